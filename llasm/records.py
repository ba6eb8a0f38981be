"""Reads the layouts that text and speech data come in, record by record, each with its file and row.

JSONL, JSON, CSV, TSV, parquet, webdataset tars, audiofolders (metadata.csv or .jsonl beside the files), folders
that `llasm data build` or `datasets` wrote, and hub ids. What is wrong with one record is a BadRow in its place:
the reader goes on. `records` of what `llasm data export` wrote gives the same conversations back.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llasm.errors import LlasmError

Record = dict[str, Any]
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".webm", ".aac", ".wma", ".aiff")
_ESCAPED = re.compile("[\udc80-\udcff]")  # what Python makes of bytes that are no UTF-8
MAX_LINE_BYTES = 5_000_000  # bytes of one line of JSON; inline audio is welcome, a whole file in one line is not


class BadRow(LlasmError):
    """A row from outside that breaks the contract; the message says how, `where` in which file and line."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


def hub_id(path: str) -> tuple[str, str | None, str | None]:
    """`owner/name[:config[:split]]` → (name, configuration, split)."""
    name, _, rest = path.partition(":")
    config, _, split = rest.partition(":")
    return name, config or None, split or None


def records(path: str, split: str = "train") -> Iterator[tuple[str, Record | BadRow]]:
    """("file:row", record) of a file, a folder or a hub id; `locate` finds the audio.

    A hub id may name its configuration and split: `owner/name:config:split`. `split` also picks one of a saved
    DatasetDict. Raises LlasmError when there is nothing of a known layout at `path`.
    """
    place = Path(path)
    name, config, named_split = hub_id(path)
    if place.is_file():
        yield from _file_records(place)
    elif place.is_dir():
        yield from _folder_records(place, split)
    elif name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).suffix:
        yield from _hub_records(name, named_split or split, config)
    else:
        raise LlasmError(f"{path}: no such file or folder; a hub id is owner/name")


def _file_records(path: Path) -> Iterator[tuple[str, Record | BadRow]]:
    readers = {
        ".jsonl": _jsonl_records, ".ndjson": _jsonl_records, ".json": _json_records, ".csv": _table_records,
        ".tsv": _table_records, ".parquet": _parquet_records, ".tar": _tar_records,
    }  # fmt: skip
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise LlasmError(f"{path}: unknown kind of file; known are {', '.join(readers)}")
    for where, record in reader(path):
        if isinstance(record, dict) and "file_name" in record:  # audiofolder's word for it
            record = {"audio": record["file_name"], **record}
        yield where, record


def _folder_records(folder: Path, split: str) -> Iterator[tuple[str, Record | BadRow]]:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        yield from _saved_records(folder, split)
        return
    for pattern in ("data/*.parquet", "*.parquet", "*.tar", "metadata.jsonl", "metadata.csv", "*.jsonl", "*.json"):
        # build.json and the like beside a data set are none of it
        files = sorted(file for file in folder.glob(pattern) if file.name not in ("build.json", "stats.json"))
        if files:
            for file in files:
                yield from _file_records(file)
            return
    raise LlasmError(f"{folder}: holds no data set: no parquet, tar, metadata.csv, metadata.jsonl, JSONL or JSON")


def audio_files(place: Path) -> list[Path]:
    """The audio file, or those below the folder, in a fixed order."""
    files = place.rglob("*") if place.is_dir() else [place] if place.is_file() else []
    return sorted(file for file in files if file.suffix.lower() in AUDIO_SUFFIXES)


def locate(given: Any, where: str) -> Any:
    """An audio source as `audio.decode` takes it: a relative path is one from the folder of the record's file."""
    if isinstance(given, dict) and given.get("bytes") is None:
        given = given.get("path")
    if isinstance(given, str) and not given.startswith("data:"):
        return str(Path(where.rpartition(":")[0]).parent / given)
    return given


def _jsonl_records(path: Path) -> Iterator[tuple[str, Record | BadRow]]:
    with open(path, "rb") as lines:  # as bytes: broken UTF-8 is then an error of its line
        for number, line in enumerate(lines, 1):
            where = f"{path}:{number}"
            if len(line) > MAX_LINE_BYTES:
                yield where, BadRow(where, f"a line of {len(line)} bytes; at most {MAX_LINE_BYTES} make sense")
            elif line.strip():
                try:
                    yield where, json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield where, BadRow(where, f"not JSON ({error})")


def _json_records(path: Path) -> Iterator[tuple[str, Record | BadRow]]:
    content = path.read_bytes()
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError) as error:
        # Many call their JSON lines .json: an object, and then more of them.
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and content.lstrip()[:1] == b"{":
            yield from _jsonl_records(path)
            return
        raise LlasmError(f"{path}: not JSON ({error})") from error
    if not isinstance(rows, list):
        raise LlasmError(f"{path}: expected a list of rows, found {type(rows).__name__}")
    for number, row in enumerate(rows, 1):
        yield f"{path}:{number}", row


def _table_records(path: Path) -> Iterator[tuple[str, Record | BadRow]]:
    header: list[str] | None = None
    for number, fields in _table_rows(path):
        where = f"{path}:{number}"
        if header is None:
            if isinstance(fields, str):
                raise LlasmError(f"{where}: the header is {fields}")
            if len(fields) == 1 and re.search("[;\t,]", fields[0]):
                wanted = "tabs" if path.suffix.lower() == ".tsv" else "commas"
                raise LlasmError(
                    f"{where}: the header is one field, {fields[0]!r}; {wanted} must be between its fields"
                )
            header = fields
        elif isinstance(fields, str):
            yield where, BadRow(where, fields)
        elif len(fields) != len(header):
            yield where, BadRow(where, f"not as many fields as the header has ({len(header)})")
        else:
            yield where, {key: _unpacked(value) for key, value in zip(header, fields)}


def _table_rows(path: Path) -> Iterator[tuple[int, list[str] | str]]:
    """(first line, fields) of each row that is not blank, the header too; why it is none where it is none."""
    csv.field_size_limit(sys.maxsize)  # a long field is for the row's own check to refuse
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    # A TSV's quotes are part of its text: no manifest of speech data quotes its fields.
    quoting: Any = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    # surrogateescape: broken UTF-8 is then an error of its row.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        lines = file.readlines()
    number = 0  # lines that are read
    while number < len(lines):
        first = number
        rest = (lines[i] for i in range(first, len(lines)))
        reader = csv.reader(rest, delimiter=delimiter, quoting=quoting, strict=True)
        try:
            fields = next(reader)
        except csv.Error as error:  # a quote that nobody closes swallows good rows: they are read again
            number = first + 1
            yield number, f"not a row of a table ({error})"
            continue
        number += reader.line_num
        if _ESCAPED.search("".join(fields)):
            yield first + 1, "not UTF-8; save the file as UTF-8"
        elif fields:
            yield first + 1, fields


def _unpacked(value: str) -> Any:
    """A list that `export` wrote into a table's cell, or the text as it is."""
    if value[:2] in ("[{", '["'):
        try:
            return json.loads(value)
        except ValueError:  # text that only looks like it
            return value
    return value


def _parquet_records(path: Path) -> Iterator[tuple[str, Record | BadRow]]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise LlasmError(f"{path}: no parquet file ({str(error).splitlines()[0]})") from error
    number = 0
    try:
        for batch in file.iter_batches(batch_size=256):
            for row in _batch_rows(batch):
                number += 1
                where = f"{path}:{number}"
                yield where, row if isinstance(row, dict) else BadRow(where, f"not UTF-8 ({row})")
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise LlasmError(f"{path}: is damaged behind row {number} ({reason}); copy the whole file again") from error


def _batch_rows(batch: Any) -> list[Record | UnicodeDecodeError]:
    """The rows of a batch; the error where a row's text will not decode."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            return [error]
        return [row for i in range(len(batch)) for row in _batch_rows(batch.slice(i, 1))]


def _tar_records(path: Path) -> Iterator[tuple[str, Record | BadRow]]:
    """webdataset: the members `KEY.json` and `KEY.AUDIO` or `KEY.0.AUDIO`, `KEY.1.AUDIO` … make one record."""
    number = 0
    key: str | None = None
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if f"{folder}/{stem}" != key and members:
                    number += 1
                    yield _tar_record(f"{path}:{number}", members)
                    members = {}
                key = f"{folder}/{stem}"
                content = archive.extractfile(member)
                assert content is not None  # it is a file
                members[suffix.lower()] = content.read()
    except (tarfile.TarError, OSError) as error:
        raise LlasmError(f"{path}: no tar file, or damaged ({error})") from error
    if members:
        yield _tar_record(f"{path}:{number + 1}", members)


def _tar_record(where: str, members: dict[str, bytes]) -> tuple[str, Record | BadRow]:
    try:
        record = json.loads(members["json"]) if "json" in members else {}
    except ValueError as error:
        return where, BadRow(where, f"not JSON ({error})")
    audios = {s: content for s, content in members.items() if f".{s.split('.')[-1]}" in AUDIO_SUFFIXES}
    # By number where there are several: 10 comes after 9.
    ordered = sorted(audios, key=lambda suffix: int(suffix.split(".")[0]) if suffix[0].isdigit() else -1)
    if not isinstance(record, dict):
        return where, BadRow(where, f"expected an object, found {type(record).__name__}")
    if ordered:
        record["audio"] = [{"bytes": audios[suffix], "path": None} for suffix in ordered]
    if "txt" in members and "text" not in record:
        record["text"] = members["txt"].decode("utf-8", "replace").strip()
    return where, record


def _saved_records(folder: Path, split: str) -> Iterator[tuple[str, Record | BadRow]]:
    from datasets import DatasetDict, load_from_disk

    loaded: Any = load_from_disk(str(folder))
    if isinstance(loaded, DatasetDict):
        if split not in loaded:
            raise LlasmError(f"{folder}: has no split {split!r}; set split, or give its folder: {', '.join(loaded)}")
        folder, loaded = folder / split, loaded[split]
    yield from _dataset_records(loaded, str(folder))


def _hub_records(name: str, split: str, config: str | None) -> Iterator[tuple[str, Record | BadRow]]:
    from datasets import load_dataset

    try:
        loaded = load_dataset(name, config, split=split)
    except Exception as error:  # datasets raises its own, the hub's and the network's
        reason = " ".join(str(error).split())[:200]
        raise LlasmError(f"{name}: neither a file or folder here nor a hub data set that loads ({reason})") from error
    yield from _dataset_records(loaded, name)


def _dataset_records(loaded: Any, name: str) -> Iterator[tuple[str, Record | BadRow]]:
    from datasets import Audio, List

    for column, feature in loaded.features.items():  # the bytes as they are: decoding would need torchcodec
        if isinstance(feature, Audio):
            loaded = loaded.cast_column(column, Audio(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Audio):
            loaded = loaded.cast_column(column, List(Audio(decode=False)))
    for number, row in enumerate(loaded, 1):
        yield f"{name}:{number}", row
