"""Files that a kill leaves whole: written at once, or appended to line by line."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from llasm.errors import LlasmError


def write_whole(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    # A name of its own: another process may be writing the same file.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
