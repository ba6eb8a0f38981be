"""Engines that are programs on the PATH: run one, read the wav that it writes."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from llasm.errors import LlasmError


def require(program: str) -> str:
    """Its path; LlasmError says how to install it."""
    found = shutil.which(program)
    if found is None:
        raise LlasmError(
            f"speech engine {program!r} needs the program {program}: install it (Debian: apt install {program})"
        )
    return found


def version_of(program: str) -> str:
    """The first line of `--version`."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().partition("\n")[0]


def run_to_wav(command: list[str], text: str, sample_rate: int) -> np.ndarray:
    """float32 mono [n_samples] of what `command` (with OUT in place of the wav's path) says, given `text` on stdin."""
    import soundfile

    if not any(map(str.isalnum, text)):  # espeak-ng then writes no file at all
        return np.zeros(0, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "said.wav"
        filled = [str(out) if word == "OUT" else word for word in command]
        done = subprocess.run(filled, input=text.encode(), capture_output=True, check=False)
        if done.returncode != 0 or not out.exists():
            reason = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
            raise LlasmError(f"{Path(command[0]).name}: {reason[-1]}")
        wave, rate = soundfile.read(out, dtype="float32", always_2d=True)
    mono = wave.mean(axis=1)
    if rate != sample_rate and len(mono):
        import soxr

        mono = soxr.resample(mono, rate, sample_rate)
    return mono
