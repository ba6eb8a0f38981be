"""Files that a kill leaves whole: written at once, or appended to line by line; folders that one process writes."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from llasm.errors import LlasmError


def write_whole(path: Path, content: str | bytes) -> None:
    """A file, whole or not at all; text as UTF-8."""
    # A name of its own: another process may be writing the same file.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_claimable(folder: Path, marks: Iterable[Path], command: str, option: str) -> None:
    """Whether a command may write the folder; LlasmError where it holds something else, or cannot be written to.

    marks: one of them is there where the command has been at work before. option: names the folder.
    """
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise LlasmError(f"{there}: is a file; choose another {option}")
    if not os.access(there, os.W_OK):
        raise LlasmError(f"{there}: may not be written to; choose another {option}")
    if folder.exists() and any(folder.iterdir()) and not any(mark.exists() for mark in marks):
        raise LlasmError(f"{folder}: holds something else than {command} writes; choose another {option}")


@contextmanager
def claimed(folder: Path, marks: Iterable[Path], lock: Path, command: str, option: str) -> Iterator[None]:
    """The folder that a command writes, or the part of it that `lock` stands for, for this process alone.

    marks: one of them is there where the command has been at work before. option: names the folder.
    Raises LlasmError where the folder holds something else or cannot be written, or another process has the lock.
    """
    held = FileLock(lock)
    try:
        check_claimable(folder, marks, command, option)
        lock.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
    except Timeout:
        raise LlasmError(f"{folder}: another {command} is at work in it ({lock.relative_to(folder)} is held)") from None
    except OSError as error:
        raise LlasmError(f"{folder}: cannot be written ({error.strerror}); choose another {option}") from error
    try:
        yield
    finally:
        held.release()


def jsonl(rows: Iterable[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def open_log(path: Path) -> TextIO:
    """A log of JSON lines, to append to; half a line, left by a kill, is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as log:
        log.seek(0)
        whole = log.read().rfind(b"\n") + 1
        log.truncate(whole)
    return open(path, "a", encoding="utf-8")


def read_log(path: Path) -> Iterator[Any]:
    """The whole lines of a log that another process may be writing. Raises LlasmError where one cannot be read."""
    number = 0
    try:
        with open(path, "rb") as log:
            for line in log:
                number += 1
                if line.endswith(b"\n"):
                    yield json.loads(line)
    except FileNotFoundError as error:
        raise LlasmError(f"{path}: no such file") from error
    except ValueError as error:
        raise LlasmError(f"{path}:{number}: not JSON ({error})") from error
