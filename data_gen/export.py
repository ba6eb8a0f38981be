"""`llasm data export`: a spoken data set in the layouts that other projects read; `llasm.records` reads each back.

llava        conversations.json with `<audio>` placeholders, the clips in audio/
sharegpt     the same as JSONL, one conversation a line
audiofolder  metadata.jsonl with file_name for rows of one clip, as `datasets` loads it
webdataset   data-00000.tar …: KEY.json and KEY.0.flac, KEY.1.flac …
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llasm.errors import LlasmError
from llasm.records import BadRow, records

from .rows import PLACEHOLDER

FORMATS = ("llava", "sharegpt", "audiofolder", "webdataset")
TAR_ROWS = 1000  # rows of a tar
STEM_BYTES = 100  # of a file's name, which must not have more than 255 with its number and suffix
_NAMES = {"user": "human", "assistant": "gpt", "system": "system"}


def export(path: str, form: str, output: Path) -> Path:
    """Writes the data set at `path` into the new folder `output`, whole or not at all; returns it."""
    if form not in FORMATS:
        raise LlasmError(f"unknown format {form!r}: {', '.join(FORMATS)}")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise LlasmError(f"{output}: is not an empty folder; choose another --output")
    rows = _spoken_rows(path)
    first = next(rows, None)
    if first is None:
        raise LlasmError(f"{path}: holds no row")
    output = output.resolve()
    partial = output.with_name(f".{output.name}.part")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    partial.mkdir(parents=True)
    writers = {"llava": _llava, "sharegpt": _sharegpt, "audiofolder": _audiofolder, "webdataset": _webdataset}
    try:
        writers[form](_chain(first, rows), partial)
        if output.exists():  # and is empty
            output.rmdir()
        partial.replace(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from tqdm(rest, desc="export", unit="row", initial=1)


def _spoken_rows(path: str) -> Iterator[dict[str, Any]]:
    for where, record in records(path):
        if isinstance(record, BadRow):
            raise record
        if "messages" not in record or "audios" not in record:
            raise LlasmError(f"{where}: no row of a spoken data set; run llasm data build first")
        yield record


def _clips(row: dict[str, Any]) -> list[tuple[str, bytes]]:
    """(suffix, content) of each clip."""
    return [(Path(clip["path"] or "clip.flac").suffix, clip["bytes"]) for clip in row["audios"]]


class _Stems:
    """Rows' ids as files' names: no folders, no dots (webdataset ends a key at the first), each but once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def __call__(self, row: dict[str, Any]) -> str:
        plain = "".join(c if c.isalnum() or c in "-_~" else "_" for c in row["id"])
        stem = plain = plain.encode()[:STEM_BYTES].decode(errors="ignore")
        for number in count(2):
            if stem not in self._taken:
                break
            stem = f"{plain}-{number}"
        self._taken.add(stem)
        return stem


def _conversation(row: dict[str, Any], files: list[str]) -> dict[str, Any]:
    turns = []
    for message in row["messages"]:
        parts = [PLACEHOLDER if part["type"] == "audio" else part["text"] for part in message["content"]]
        turns.append({"from": _NAMES[message["role"]], "value": "\n".join(parts)})
    return {"id": row["id"], "audio": files, "texts": row["meta"]["texts"], "conversations": turns, "meta": row["meta"]}


def _with_files(rows: Iterator[dict[str, Any]], output: Path) -> Iterator[dict[str, Any]]:
    folder = output / "audio"
    folder.mkdir()
    stem_of = _Stems()
    for row in rows:
        names, stem = [], stem_of(row)
        for number, (suffix, content) in enumerate(_clips(row)):
            names.append(f"audio/{stem}-{number}{suffix}")
            (output / names[-1]).write_bytes(content)
        yield _conversation(row, names)


def _llava(rows: Iterator[dict[str, Any]], output: Path) -> None:
    with open(output / "conversations.json", "w", encoding="utf-8") as out:
        for number, conversation in enumerate(_with_files(rows, output)):
            out.write(("[\n" if number == 0 else ",\n") + json.dumps(conversation, ensure_ascii=False))
        out.write("\n]\n")


def _sharegpt(rows: Iterator[dict[str, Any]], output: Path) -> None:
    with open(output / "conversations.jsonl", "w", encoding="utf-8") as out:
        for conversation in _with_files(rows, output):
            out.write(json.dumps(conversation, ensure_ascii=False) + "\n")


def _audiofolder(rows: Iterator[dict[str, Any]], output: Path) -> None:
    """One file a row: that is what the layout can say, so a row of several clips is refused, not cut."""
    folder = output / "audio"
    folder.mkdir()
    stem_of = _Stems()
    with open(output / "metadata.jsonl", "w", encoding="utf-8") as out:
        for row in rows:
            clips = _clips(row)
            if len(clips) != 1:
                raise LlasmError(f"{row['id']}: has {len(clips)} clips; an audiofolder holds one a row: use webdataset")
            name = f"audio/{stem_of(row)}{clips[0][0]}"
            (output / name).write_bytes(clips[0][1])
            text = row["meta"]["texts"][0]
            line = {"file_name": name, "id": row["id"], "text": text, "messages": row["messages"], "meta": row["meta"]}
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


def _webdataset(rows: Iterator[dict[str, Any]], output: Path) -> None:
    stem_of = _Stems()
    for number in count():
        part = list(islice(rows, TAR_ROWS))
        if not part:
            return
        with tarfile.open(output / f"data-{number:05d}.tar", "w") as archive:
            for row in part:
                facts = {"id": row["id"], "messages": row["messages"], "meta": row["meta"]}
                members = [("json", json.dumps(facts, ensure_ascii=False).encode())]
                members += [(f"{i}{suffix}", content) for i, (suffix, content) in enumerate(_clips(row))]
                stem = stem_of(row)
                for suffix, content in members:
                    info = tarfile.TarInfo(f"{stem}.{suffix.removeprefix('.')}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
