"""`llasm eval`: items → predictions → scores → report, in one folder.

run.json              what was asked of which model: settings, hashes of model and data, versions, git revision
items/TASK.jsonl      the items as they were asked
events/I-of-N.jsonl   the log: a line an item and condition, by content hash; an interrupted run goes on from it
predictions/TASK.CONDITION.jsonl   the answers in the items' order
timings.jsonl         what each took (the only file beside the log and the report that differs from run to run)
verdicts.jsonl, scores.json        each answer's scores, and their summary
clips/, report.md, report.html
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from llasm import checkpoint, weights
from llasm.errors import LlasmError
from llasm.files import claimed, jsonl, open_log, read_log, write_whole
from llasm.spread import RUNNERS, n_gpus

from . import results
from .conditions import Condition, noise_files
from .items import Item, digest, hashed
from .judge import Judge
from .predict import Batch, Event, original_bases
from .report import save_clips, write_report
from .settings import Settings
from .tasks import TASKS
from .voiced import is_voiced, voice_identity, voiced

PACKAGES = ("llasm", "torch", "transformers", "openai-whisper", "numpy", "scipy", "soxr")
# Of run.json: another of these would be another run. Versions and revision are only told, and where model and data
# lie does not matter: their hashes are compared.
IDENTITY = ("format", "conditions", "max_new_tokens", "model", "data", "asr", "voice", "noise", "device")
# What a model's answers depend on beside its weights: its template, tokenizer and settings.
_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "*processor*.json",
    "chat_template*",
    "*token*",
    "vocab*",
    "merges.txt",
)


def evaluate(settings: Settings) -> Path:
    """Runs what is not answered yet; scores and reports once all shards are. Returns the folder."""
    out = Path(settings.out)
    facts = run_facts(settings)  # what is missing or misnamed is told before any weights load
    logs = out / "events"
    index, n_parts = settings.part()
    log = logs / f"{index + 1}-of-{n_parts}.jsonl"
    if not settings.resume and log.exists() and _has_answer([log]):
        raise LlasmError(f"{out}: holds answers of a run; go on with it by --resume, or choose another --out")
    items = [item for task in settings.tasks for item in items_of(settings, task)]
    if not any(map(is_voiced, items)):  # so that no answer depends on it
        facts["voice"] = ""
    facts["data"] = {task: digest([item.content() for item in items if item.task == task]) for task in settings.tasks}
    planned = {p.item.task for p in results.plan(facts, items)}
    for task in settings.tasks:
        if task not in planned:
            raise LlasmError(f"task {task}: nothing to ask under conditions {settings.conditions}")
        faults = [item.fault for item in items if item.task == task]
        if all(faults):
            raise LlasmError(f"task {task}: none of {len(faults)} items can be asked; the first: {faults[0]}")
    # The log's folder alone: a run that was killed before run.json was written.
    with claimed(out, (out / "run.json", logs), log.with_suffix(".lock"), "llasm eval", "--out"):
        with _alone(out):
            _write_plan(out, facts, items)
        mine = results.plan(facts, items[index::n_parts])
        try:
            _answer(settings, mine, log, logs)
        except OSError as error:
            raise LlasmError(f"{log}: cannot write answers ({error.strerror}); go on by --resume") from error
        with _alone(out):
            missing = results.assemble(out)
            if not missing:
                finish(out, _judge(settings.judge_url, settings.judge_model, out), items)
        if missing:
            print(f"llasm: shard {settings.shard} is done; {missing} answers of others are missing", file=sys.stderr)
    return out


def rescore(out: Path, judge_url: str | None, judge_model: str) -> Path:
    """Scores and report of a folder whose answers are all there; no model, no data."""
    results.facts_of(out)
    with _alone(out):
        if any((out / "events").glob("*.jsonl")) and (missing := results.assemble(out)):
            raise LlasmError(f"{out}: {missing} answers are missing; run the other shards, or llasm eval … --resume")
        finish(out, _judge(judge_url, judge_model, out), [])
    return out


def finish(out: Path, judge: Judge | None, items: list[Item]) -> None:
    """Scores and report of assembled answers. items: with their audio, for what the report plays."""
    results.score(out, judge)
    loaded = results.load(out)
    if items:
        save_clips(loaded, items)
    write_report(loaded)
    failed = [row for row in loaded.verdicts if row.get("error")]
    if failed and len(failed) == len(loaded.verdicts):
        raise LlasmError(f"{out}: none of {len(failed)} could be answered; the first: {failed[0]['error']}")


def _judge(url: str | None, model: str, out: Path) -> Judge | None:
    return Judge(url, model, out) if url else Judge.kept(out)


def items_of(settings: Settings, task: str) -> list[Item]:
    """The task's items with their audio, spoken where there was none."""
    items = TASKS[task].read(_data_of(settings, task), settings.limit)
    if any(condition.hears for condition in settings.all_conditions()):
        items = voiced(items, settings.voice)
    return [hashed(item) for item in items]


def _data_of(settings: Settings, task: str) -> str | None:
    """The part of --data that is this task's."""
    if settings.data is None:
        return None
    named = dict(part.split("=", 1) for part in settings.data.split(",") if part.partition("=")[0] in TASKS)
    if named:
        return named.get(task)
    inner = Path(settings.data) / task
    if len(settings.tasks) > 1 and not inner.exists():
        raise LlasmError(
            f"data is {settings.data!r}: for several tasks give task=PATH,task=PATH, or a folder that holds {task}/"
        )
    return str(inner) if len(settings.tasks) > 1 else settings.data


# ---- what the run depends on


def run_facts(settings: Settings) -> dict[str, Any]:
    """What run.json holds but for the data. Raises LlasmError where the model, recogniser or voice is not to be had."""
    conditions = settings.all_conditions()
    asked = ("model", "task", "data", "conditions", "asr", "voice", "snr", "noise", "speed", "telephone")
    facts: dict[str, Any] = {
        "format": 3,
        "settings": {name: getattr(settings, name) for name in (*asked, "limit")},
        "max_new_tokens": settings.max_new_tokens,
        "conditions": [str(condition) for condition in conditions],
        "model": _model_facts(settings.model),
        "asr": "",
        "voice": "",
        "noise": "",
        "device": _device(),
        "versions": {name: _version(name) for name in PACKAGES},
        "git": _git_revision(),
    }
    if "typed" in settings.tasks:
        original_bases(settings.model)
    if any(condition.kind == "cascade" for condition in conditions):
        directory = Path(weights.resolve(settings.asr))
        facts["asr"] = digest([weights.content_hash(directory), _small_files(directory)])
    if any(condition.hears for condition in conditions):
        facts["voice"] = voice_identity(settings.voice)
    if settings.noise is not None and settings.snr is not None:
        files = noise_files(settings.noise)
        facts["noise"] = digest([[file.name, sha256(file.read_bytes()).hexdigest()] for file in files])
    return facts


def _model_facts(name: str) -> dict[str, Any]:
    """Hashes of the checkpoint's own weights and of its bases."""
    directory = checkpoint.locate(name)
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LlasmError(f"{directory}: no readable config.json, so this is not a llasm checkpoint") from error
    bases = {part: base["sha256"] for part, base in (config.get("bases") or {}).items()}
    return {"sha256": weights.content_hash(directory), "files": _small_files(directory), "bases": bases}


def _small_files(directory: Path) -> str:
    """A hash of what lies beside the weights and changes answers."""
    files = sorted({file for pattern in _SMALL_FILES for file in directory.glob(pattern) if file.is_file()})
    return digest([[file.name, sha256(file.read_bytes()).hexdigest()] for file in files])


def _device() -> str:
    """Type and precision that `chat.load` chooses here: answers may differ with them."""
    import torch

    return "cuda bfloat16" if torch.cuda.is_available() else "cpu float32"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Of the checkout that llasm runs from, with -dirty where files differ; None where it runs from none."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(checkpoint.__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if git("rev-parse", "--show-prefix") != "llasm/":  # somebody else's repository around an installed llasm
            return None
        return git("describe", "--always", "--abbrev=40", "--dirty", "--exclude", "*")
    except (OSError, subprocess.CalledProcessError):
        return None


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One shard at a time: two that begin or end together write the same files."""
    (out / "events").mkdir(parents=True, exist_ok=True)
    with FileLock(out / "events" / "folder.lock"):
        yield


def _write_plan(out: Path, facts: dict[str, Any], items: list[Item]) -> None:
    """run.json and the items; refuses a folder that holds another run's answers."""
    file = out / "run.json"
    if file.exists():
        there = results.facts_of(out)
        other = next((name for name in IDENTITY if there.get(name) != facts[name]), None)
        if other is None:
            if any(there.get(name) != facts[name] for name in ("versions", "git")):
                print("llasm: note: going on with a run that other versions began; see run.json", file=sys.stderr)
            return
        if _has_answer((out / "events").glob("*.jsonl")):
            difference = _difference(there.get(other), facts[other])
            raise LlasmError(f"{out}: was run with {other} {difference}; choose another --out")
        for folder in ("items", "predictions", "clips"):  # nothing was answered: its data may be mended since
            shutil.rmtree(out / folder, ignore_errors=True)
    (out / "items").mkdir(exist_ok=True)
    for task, group in groupby(items, key=lambda item: item.task):
        write_whole(out / "items" / f"{task}.jsonl", jsonl(item.row() for item in group))
    write_whole(file, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def _difference(there: Any, here: Any) -> str:
    if isinstance(there, dict) and isinstance(here, dict):
        name = next(key for key in (*there, *here) if there.get(key) != here.get(key))
        return f"{name} = {there.get(name)!r}, now {here.get(name)!r}"
    return f"{there!r}, now {here!r}"


# ---- answering


def _answer(settings: Settings, mine: list[results.Planned], log: Path, logs: Path) -> None:
    """Asks what no log holds; every batch is written before the next is waited for."""
    known = _known(logs)
    todo = [planned for planned in mine if ("answer", planned.key) not in known]
    with open_log(log) as events:

        def write(found: list[Event]) -> None:
            events.write(jsonl(found))
            events.flush()

        faulty = [p for p in todo if p.item.fault]
        write([_fault_event(p) for p in faulty])
        works = batches(settings, [p for p in todo if not p.item.fault])
        n_done = len(mine) - sum(len(work.items) for work in works)
        with tqdm(total=len(mine), initial=n_done, desc="answer", unit="item") as bar:
            for found in RUNNERS[settings.runner](works, max(1, n_gpus()), True) if works else ():
                write(found)
                bar.update(len(found))
        if timed := _latency_batches(settings, mine, _known(logs)):
            with tqdm(total=sum(len(work.items) for work in timed), desc="time one by one", unit="item") as bar:
                for work in timed:  # here, and nothing else at the same time
                    found = work()
                    write(found)
                    bar.update(len(found))


def _known(logs: Path) -> dict[tuple[str, str], Event]:
    """What the logs of all shards hold, by kind and key."""
    events = (event for file in sorted(logs.glob("*.jsonl")) for event in read_log(file))
    return {(event["kind"], event["key"]): event for event in events}


def _has_answer(logs: Iterable[Path]) -> bool:
    """Something was answered, and not only found faulty."""
    return any(event["kind"] == "answer" and "error" not in event for log in logs for event in read_log(log))


def _fault_event(planned: results.Planned) -> Event:
    item = planned.item
    facts = {"kind": "answer", "key": planned.key, "task": item.task, "id": item.id}
    return {**facts, "condition": str(planned.condition), "error": item.fault}


def batches(settings: Settings, todo: list[results.Planned]) -> list[Batch]:
    """Batches under one condition, of items of a like length, so that little of a batch is padding."""

    def where(planned: results.Planned) -> tuple[str, str]:
        return planned.item.task, str(planned.condition)

    works = []
    for _, group in groupby(sorted(todo, key=where), key=where):
        alike = sorted(group, key=lambda p: (_length(p.item, p.condition), p.key))
        for start in range(0, len(alike), settings.batch_size):
            works.append(_batch(settings, alike[start : start + settings.batch_size]))
    return works


def _batch(settings: Settings, chosen: list[results.Planned], alone: bool = False) -> Batch:
    return Batch(
        condition=chosen[0].condition,
        items=tuple(p.item for p in chosen),
        keys=tuple(p.key for p in chosen),
        model=settings.model,
        recogniser=settings.asr,
        noise=settings.noise,
        max_new_tokens=settings.max_new_tokens,
        alone=alone,
    )


def _length(item: Item, condition: Condition) -> int:
    """Bytes of its audio, or characters of its text: enough to sort by."""
    if not condition.hears:
        return len(item.question) + len(item.typed)
    sizes = []
    for clip in item.audio:
        if isinstance(clip, dict):
            sizes.append(len(clip.get("bytes") or b""))
        elif isinstance(clip, bytes) or str(clip).startswith("data:"):
            sizes.append(len(clip))
        else:
            sizes.append(Path(clip).stat().st_size if Path(clip).exists() else 0)
    return sum(sizes)


def _latency_batches(
    settings: Settings, mine: list[results.Planned], known: dict[tuple[str, str], Event]
) -> list[Batch]:
    """The first items of each task and plain condition that were answered, to be asked one by one."""
    answered = {key for (kind, key), event in known.items() if kind == "answer" and "error" not in event}
    works = []
    for task in settings.tasks:
        for condition in (c for c in settings.all_conditions() if c.variation is None):
            here = [p for p in mine if p.item.task == task and p.condition == condition and p.key in answered]
            todo = [p for p in here[: settings.latency_items] if ("latency", p.key) not in known]
            if todo:
                works.append(_batch(settings, todo, alone=True))
    return works
