"""`llasm data build`: text or recordings → a spoken instruction data set (parquet).

    llasm data build --input questions.jsonl --output my_speech
    llasm data build recipe.yaml --runner ray

The stages are write → filter → respond → speak → verify → vary → pack. The output folder holds `data/*.parquet` (the
contract's schema), `README.md` (the data card), `report.html`, `stats.json`, `dropped.jsonl` (what was left out, by
which stage and why), and `.stages/`, the blocks of every stage by the hash of all they depend on. The same command
again continues where it was interrupted; a changed recipe redoes just the stages that the change touches.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from llasm.errors import LlasmError
from llasm.files import claimed, jsonl, write_whole
from llasm.records import BadRow

from . import vary
from .filter import filter_rows
from .pack import ShardWork
from .recipe import Recipe
from .report import Statistics, write_report
from .respond import Respond
from .rows import Row, drop, kept, user_texts
from .runner import Stage, StageWork, read_block, run, write_block
from .sources import mixed, read, told_apart
from .speak import Speak, resolve_voices
from .verify import Verify
from .write import Cut, Write

BLOCK_ROWS = 64  # rows of a block: one batch of the LLM; what a kill can cost
# The same of the stages before: a row of kind long_audio is a whole recording, one of kind self asks for several
# answers.
CUT_ROWS = {"long_audio": 1}
WRITE_ROWS = {"transcribe": 64, "ask": 64, "self": 8}
SHOWN_ERRORS = 20  # bad rows printed when the build goes on: all are then in dropped.jsonl


def build(recipe: Recipe) -> Path:
    """Runs all stages; returns the output folder. Raises LlasmError on what the user can mend."""
    output = Path(recipe.output).resolve()  # workers may run in another folder
    voices = resolve_voices(recipe.speak.voices)
    stages = _stages(recipe, voices)
    for stage in stages:  # a model or folder that is not there is told before any work
        stage.settings()
    faults: list[BadRow] = []
    rows = read(recipe, faults.append)
    _tell(faults, recipe.on_error)
    if not rows:
        raise LlasmError("data build: the sources hold no good row")
    root = output / ".stages"
    with claimed(output, (root,), root / "lock", "llasm data build", "--output"):
        for partial in output.rglob("*.part"):  # of a run that was killed
            partial.unlink()
        return _built(recipe, rows, faults, stages, voices, output, root)


def _built(
    recipe: Recipe, rows: list[Row], faults: list[BadRow], stages: list[Stage], voices: Any, output: Path, root: Path
) -> Path:
    dropped = [_fault_row(fault) for fault in faults]
    rows, notes = mixed(_written(rows, recipe, root, dropped), recipe)
    for note in notes:
        print(f"llasm: note: {note}", file=sys.stderr)
    rows = _filtered(rows, recipe, root)
    dropped += [row for row in rows if "dropped" in row]
    good = list(kept(rows))
    _check_languages(good, recipe.verify.asr, {voice.language[:2] for _, voice in voices})
    blocks = [_first_block(root, good[i : i + BLOCK_ROWS]) for i in range(0, len(good), BLOCK_ROWS)]
    for stage in stages:
        blocks = _apply(stage, blocks, recipe, root)
        dropped += [row for block in blocks for row in read_block(root, block, clips=False) if "dropped" in row]
    shards = _pack(blocks, recipe, output, root)
    _write_dropped(dropped, output)
    statistics = Statistics.of(root, blocks, dropped)
    licences = {f"{engine}:{voice.id}": voice.licence for engine, voice in voices}
    write_report(statistics, recipe, output, len(shards), licences)
    if dropped:
        why = ", ".join(f"{reason} ({n})" for reason, n in statistics.drops.most_common(3))
        counted = f"{len(dropped)} rows were left out: {why}; see {output / 'dropped.jsonl'}"
        if not statistics.total.rows:
            raise LlasmError(f"data build: all {counted}")
        print(f"llasm: note: {counted}", file=sys.stderr)
    return output


def _check_languages(rows: list[Row], asr: str, spoken: set[str]) -> None:
    """An English Whisper cannot check Chinese: told before the LLM has answered and the voices have spoken.

    spoken: languages of the voices; rows of others are dropped without being heard.
    """
    if not asr.removesuffix(".pt").endswith(".en"):
        return
    for row in rows:
        language = row["meta"]["language"]
        if language != "en" and language in spoken:
            raise LlasmError(
                f"{row['meta']['origin']}: is in {language!r}, and {asr} knows only English; choose another "
                "verify.asr, or leave such rows out: --filter.languages '[en]'"
            )


def _stages(recipe: Recipe, voices: Any) -> list[Stage]:
    """Those that the recipe asks for, in order."""
    respond, check = recipe.respond, recipe.verify
    stages: list[Stage] = []
    if respond.answers != "never":
        always = respond.answers == "always"
        stages.append(
            Respond(
                respond.llm, respond.url, always, respond.max_new_tokens, recipe.filter, respond.follow_up_share,
                recipe.seed,
            )
        )  # fmt: skip
    speed = (float(recipe.speak.speed[0]), float(recipe.speak.speed[1]))
    stages.append(Speak(voices, speed, recipe.speak.max_seconds, recipe.seed))
    if check.asr != "none":
        stages.append(Verify(check.asr, check.max_wer, check.max_cer, check.allow_errors, check.recordings))
    if vary.needed(recipe.vary):
        # Workers may run in another folder.
        noise, music = (list(map(os.path.abspath, folders)) for folders in (recipe.vary.noise, recipe.vary.music))
        settings = replace(recipe.vary, noise=noise, music=music)
        stages.append(vary.Vary(settings, recipe.speak.max_seconds, recipe.seed))
    return stages


def _tell(faults: list[BadRow], on_error: str) -> None:
    """Names the bad rows; with on_error=fail nothing is built before they are mended."""
    shown = len(faults) if on_error == "fail" else SHOWN_ERRORS
    for fault in faults[:shown]:
        print(f"llasm: {fault}", file=sys.stderr)
    if len(faults) > shown:
        print(f"llasm: and {len(faults) - shown} more", file=sys.stderr)
    if faults and on_error == "fail":
        n = len(faults)
        raise LlasmError(f"data build: {n} bad row{'s' * (n > 1)}; mend them, or go on without: --on-error skip")


def _key(*parts: Any) -> str:
    return sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:24]


def _content(row: Row) -> Any:
    """What makes a row: its words, and its audio by content and place."""
    audios = [audio and [audio["sha256"], audio.get("path")] for audio in row["audios"]]
    return [row["id"], row["messages"], audios, row["meta"], row.get("write")]


def _first_block(root: Path, rows: list[Row]) -> str:
    name = f"rows/{_key([_content(row) for row in rows])}"
    if not (root / f"{name}.parquet").exists():
        write_block(root, name, rows)
    return name


def _apply(stage: Stage, blocks: list[str], recipe: Recipe, root: Path) -> list[str]:
    """Runs a stage over blocks; returns the blocks that it made."""
    settings = stage.settings()
    names = [f"{stage.name}/{_key(stage.name, settings, block)}" for block in blocks]
    works = [StageWork(stage, root, block, name) for block, name in zip(blocks, names)]
    run(works, recipe.runner, recipe.workers)
    return names


def _written(rows: list[Row], recipe: Recipe, root: Path, dropped: list[Row]) -> list[Row]:
    """The rows, long recordings cut, and those that wait for the write stage replaced by what it made of them."""
    asr = "whisper-base" if recipe.verify.asr == "none" else recipe.verify.asr
    respond = recipe.respond
    write = Write(respond.llm, respond.url, asr, respond.max_new_tokens, recipe.filter, recipe.seed)
    for stage, sizes in ((Cut(recipe.seed), CUT_ROWS), (write, WRITE_ROWS)):
        rows = _replaced(rows, stage, sizes, recipe, root, dropped)
    return rows


def _replaced(
    rows: list[Row], stage: Stage, sizes: dict[str, int], recipe: Recipe, root: Path, dropped: list[Row]
) -> list[Row]:
    """The rows, those of a kind in `sizes` (rows of a block) replaced by what the stage made of them."""

    def kind_of(row: Row) -> str | None:
        return row["write"]["kind"] if "write" in row else None

    blocks = []
    for kind, size in sizes.items():
        some = [row for row in rows if kind_of(row) == kind]
        blocks += [_first_block(root, some[i : i + size]) for i in range(0, len(some), size)]
    if not blocks:
        return rows
    by_wish: dict[str, list[Row]] = {}
    for block in _apply(stage, blocks, recipe, root):
        for row in read_block(root, block, clips=False):
            by_wish.setdefault(row.pop("wish"), []).append(row)
    done: list[Row] = []
    for row in rows:
        made = by_wish.get(row["id"], []) if kind_of(row) in sizes else [row]
        dropped += [one for one in made if "dropped" in one]
        done += [{**one, "source_number": row["source_number"]} for one in kept(made)]
    return told_apart(done)


def _filtered(rows: list[Row], recipe: Recipe, root: Path) -> list[Row]:
    """The rows, those that break a rule marked; the verdicts are kept for the next run."""
    name = _key("filter", 3, asdict(recipe.filter), [_content(row) for row in rows])
    file = root / "filter" / f"{name}.json"
    if file.exists():
        verdicts = json.loads(file.read_text(encoding="utf-8"))
        return [drop(row, "filter", *verdicts[row["id"]]) if row["id"] in verdicts else row for row in rows]
    rows = filter_rows(rows, recipe.filter)
    verdicts = {r["id"]: [r["dropped"]["reason"], r["dropped"]["detail"]] for r in rows if "dropped" in r}
    file.parent.mkdir(exist_ok=True)
    write_whole(file, json.dumps(verdicts, ensure_ascii=False))
    return rows


def _pack(blocks: list[str], recipe: Recipe, output: Path, root: Path) -> list[Path]:
    """The shards under `data/`: links to the packed blocks, so that none is packed twice."""
    size = max(1, recipe.shard_rows // BLOCK_ROWS)
    groups = [tuple(blocks[i : i + size]) for i in range(0, len(blocks), size)]
    form = recipe.speak.audio_format
    works = [ShardWork(root, group, root / "pack" / f"{_key(2, form, group)}.parquet", form) for group in groups]
    run(works, recipe.runner, recipe.workers)
    data = output / "data"
    data.mkdir(exist_ok=True)
    shards = [data / f"shard-{i:05d}.parquet" for i in range(len(works))]
    for work, shard in zip(works, shards):
        _link(work.target, shard)
    for old in set(data.glob("shard-*.parquet")) - set(shards):  # of an earlier, longer recipe
        old.unlink()
    return shards


def _link(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        return
    partial = target.with_suffix(".part")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, partial)
    partial.replace(target)


def _fault_row(fault: BadRow) -> Row:
    row: Row = {"id": "", "messages": [], "audios": [], "meta": {"origin": fault.where}}
    return drop(row, "read", "bad row", fault.reason)


def _write_dropped(rows: Iterable[Row], output: Path) -> None:
    entries = []
    for row in rows:
        said = {**row["dropped"], "origin": row["meta"]["origin"]}
        voice = row["meta"].get("voice")
        texts = {"texts": user_texts(row), "messages": row["messages"]} if row["messages"] else {}
        entries.append({"id": row["id"], **said, **({"voice": voice} if voice else {}), **texts})
    write_whole(output / "dropped.jsonl", jsonl(entries))
