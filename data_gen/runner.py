"""Runs a stage over blocks of rows: in processes on this machine, or under Ray Data on a cluster.

A block is a parquet file of rows; a piece of work reads one, applies the stage and writes another, under the same
name on every machine: the name is a hash of everything the block depends on. A finished block is never made again, an
unfinished one has no name yet. Each piece runs on one core, so that the same block comes out the same whatever the
number of workers.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from llasm.spread import RUNNERS, n_gpus, single_threaded

from .rows import Row, kept


class Stage(Protocol):
    """A callable that can be sent to another process; it loads its models at the first call and keeps them."""

    name: str
    uses_model: bool  # an LLM or Whisper: one process a GPU where there are GPUs

    def settings(self) -> dict[str, Any]:
        """All that the output depends on beside the rows: part of the blocks' names."""
        ...

    def __call__(self, rows: list[Row]) -> list[Row]: ...


class Work(Protocol):
    """One piece that any process can do; its `target` appears when it is finished."""

    @property
    def title(self) -> str:
        """Of the progress bar."""
        ...

    @property
    def uses_model(self) -> bool: ...

    @property
    def target(self) -> Path: ...

    def n_rows(self) -> int: ...

    def __call__(self) -> int:
        """Does it; returns n_rows."""
        ...


def block_path(root: Path, name: str) -> Path:
    return root / f"{name}.parquet"


def read_block(root: Path, name: str, clips: bool = True) -> list[Row]:
    """The rows of a block; with `clips`, each clip's bytes from the block where it was made."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(block_path(root, name), columns=["row"])
    rows: list[Row] = [json.loads(text) for text in table["row"].to_pylist()]
    if clips:
        stored: dict[str, list[bytes]] = {}
        for row in rows:
            for audio in row["audios"]:
                if audio is not None and "at" in audio:
                    place, index = audio["at"]
                    if place not in stored:
                        found = parquet.read_table(block_path(root, place), columns=["clips"])["clips"]
                        stored[place] = [clip for clips in found.to_pylist() for clip in clips]
                    audio["bytes"] = stored[place][index]
    return rows


def write_block(root: Path, name: str, rows: list[Row]) -> None:
    """Whole or not at all. Clips that come from another block stay there."""
    import pyarrow
    import pyarrow.parquet as parquet

    texts, columns, n_stored = [], [], 0
    for row in rows:
        stored, audios = [], []
        for audio in row["audios"]:
            if audio is not None and "bytes" in audio:
                content, audio = audio["bytes"], {key: value for key, value in audio.items() if key != "bytes"}
                if "at" not in audio:
                    audio["at"] = [name, n_stored]
                    stored.append(content)
                    n_stored += 1
            audios.append(audio)
        texts.append(json.dumps({**row, "audios": audios}, ensure_ascii=False))
        columns.append(stored)
    schema = pyarrow.schema([("row", pyarrow.string()), ("clips", pyarrow.list_(pyarrow.binary()))])
    target = block_path(root, name)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{uuid.uuid4().hex}.part")
    table = pyarrow.table({"row": texts, "clips": columns}, schema=schema)
    parquet.write_table(table, partial, compression={"row": "zstd", "clips": "none"})
    partial.replace(target)


@dataclass(frozen=True)
class StageWork:
    """A stage applied to the rows that the source block kept."""

    stage: Stage
    root: Path  # the folder of all stages' blocks
    source: str  # "STAGE/KEY"
    name: str

    @property
    def title(self) -> str:
        return self.stage.name

    @property
    def uses_model(self) -> bool:
        return self.stage.uses_model

    @property
    def target(self) -> Path:
        return block_path(self.root, self.name)

    def n_rows(self) -> int:
        return sum(1 for _ in kept(read_block(self.root, self.source, clips=False)))

    def __call__(self) -> int:
        rows = list(kept(read_block(self.root, self.source)))
        n_rows = len(rows)
        with single_threaded():
            done = self.stage(rows)
        write_block(self.root, self.name, done)
        return n_rows


def run(works: Sequence[Work], runner: str, workers: int) -> None:
    """Does what is not finished yet, with a progress bar of rows; what is finished counts as done."""
    sizes = [work.n_rows() for work in works]
    todo = [work for work in works if not work.target.exists()]
    n_done = sum(size for work, size in zip(works, sizes) if work.target.exists())
    if not todo:
        return
    n_processes = (n_gpus() or workers) if todo[0].uses_model else workers
    with tqdm(total=sum(sizes), initial=n_done, desc=todo[0].title, unit="row") as bar:
        for n in RUNNERS[runner](todo, n_processes, todo[0].uses_model):
            bar.update(n)
