"""What a task is: a short class that turns its authors' records into items."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from llasm.errors import LlasmError
from llasm.records import BadRow, Record, hub_id, locate, records

from .items import Item, Kind, checked

_PACKED = (".bz2", ".gz", ".zip")
_PART = re.compile(r"-\d+-of-\d+(?=\.parquet$)")


class Task:
    """What its data looks like and how a record becomes an item. The class's docstring names the source."""

    name = ""
    kind: Kind = "qa"
    files: tuple[str, ...] = ()
    """Patterns of the data's files in a folder; the first that matches any counts."""
    one_file = False
    """The set is one file (or its parquet parts): others beside it are other splits, not more of it."""
    hub = ""
    """Where the data is fetched from where none is given: `owner/name:config:split`."""

    def item(self, record: Record, where: str) -> Item | None:
        """None leaves a record out that the task does not ask. KeyError, TypeError and ValueError mean a bad one."""
        raise NotImplementedError

    def read(self, data: str | None, limit: int | None = None) -> list[Item]:
        """The first `limit` items. Raises LlasmError where there is no such data, or an id is there twice."""
        data = data or self.hub
        if not data:
            raise LlasmError(f"task {self.name}: give its data: --data PATH")
        items = checked(list(islice(self._items(data), limit)))
        if not items:
            raise LlasmError(f"task {self.name}: {data} holds no item")
        return items

    def _items(self, data: str) -> Iterator[Item]:
        if not Path(data).exists():
            name, config, split = hub_id(data)
            for where, record in records(data, "test"):
                place = f"{name}/{config}/{split or 'test'}:{where.rpartition(':')[2]}" if config else where
                if (item := self._item(record, place)) is not None:
                    yield item
            return
        files = self._found(Path(data))
        stems = Counter(file.stem for file in files)
        for file in files:
            # Where files have one name, such as train/metadata.csv and test/metadata.csv, with their folders.
            name = file.stem if stems[file.stem] == 1 else str(file.relative_to(data).with_suffix(""))
            for where, record in self.records(file):
                item = self._item(record, where)
                if item is None:
                    continue
                if item.id == row_id(where):
                    item = replace(item, id=item.id.replace(file.stem, name, 1))
                yield item if item.group or len(files) < 2 else replace(item, group=name)

    def records(self, file: Path) -> Iterator[tuple[str, Record | BadRow]]:
        """("file:row", record) of one file."""
        return records(str(file))

    def _found(self, place: Path) -> list[Path]:
        if place.is_file():
            return [place]
        for pattern in self.files:
            files = sorted(file for file in place.rglob(pattern) if file.is_file() and file.suffix not in _PACKED)
            if self.one_file and len({file.parent / _PART.sub("", file.name) for file in files}) > 1:
                names = ", ".join(str(file.relative_to(place)) for file in files)
                raise LlasmError(f"task {self.name}: {place} holds several files; give one as data: {names}")
            if files:
                return files
        raise LlasmError(f"task {self.name}: {place} holds no {' or '.join(self.files)}")

    def _item(self, record: Record | BadRow, where: str) -> Item | None:
        reason = "a bad record"
        if isinstance(record, BadRow):
            reason = record.reason
        elif not isinstance(record, dict):
            reason = f"expected an object, found {type(record).__name__}"
        else:
            try:
                return self.item(record, where)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                # A KeyError says only the key.
                reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        return Item(id=row_id(where), task=self.name, kind=self.kind, fault=f"{where}: {reason}")


def row_id(where: str) -> str:
    """An id for a record that has none: its file and row."""
    file, _, row = where.rpartition(":")
    return f"{Path(file).stem}-{row}"


def field(record: Record, *names: str, default: Any = None) -> Any:
    """The first of these fields that the record has; KeyError names the first where it has none and no default."""
    for name in names:
        if record.get(name) is not None:
            return record[name]
    if default is None:
        raise KeyError(names[0])
    return default


def text(value: Any) -> str:
    """One text or number, without space around it. Raises ValueError for anything else."""
    if isinstance(value, (str, int, float)) and value == value:  # NaN is not itself
        return str(value).strip()
    raise ValueError(f"expected text, found {'NaN' if isinstance(value, float) else type(value).__name__}")


def texts(value: Any) -> tuple[str, ...]:
    """One text or several, also under a "text" (as in SQuAD). Raises ValueError for anything else."""
    if isinstance(value, dict):
        return texts(value["text"])
    if isinstance(value, (list, tuple)):
        return tuple(found for one in value if one is not None for found in texts(one))
    return (text(value),)


def clips(record: Record, where: str, *names: str) -> tuple[Any, ...]:
    """The record's audio; none where it has none. Raises ValueError where it is no audio."""
    given = field(record, *names, default=())
    found = given if isinstance(given, (list, tuple)) else [given] if given != "" else []
    located = tuple(locate(clip, where) for clip in found)
    for clip in located:
        if not clip or not isinstance(clip, (str, bytes, dict)):
            raise ValueError(f"its audio is neither a path nor sound, but {type(clip).__name__}")
    return located
