"""What a run's folder holds: the plan, the log put in order, scores and their summary. Needs no model and no audio."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llasm.errors import LlasmError
from llasm.files import jsonl, read_log, write_whole

from . import statistics
from .conditions import BASE, TRANSCRIPT, Condition, conditions_of
from .items import Item, digest, from_row
from .judge import Judge
from .scoring import verdict

Row = dict[str, Any]
# The differences that are reported, as (first, second).
GAPS = (("speech", "text"), ("speech", "cascade"), ("speech", TRANSCRIPT), ("cascade", "text"))
METRICS = {
    "qa": "accuracy",
    "choice": "accuracy",
    "open": "judge (1 to 5)",
    "transcription": "error rate",
    "no_speech": "false answers",
    "typed": "unchanged",
}
OUTPUT = ("id", "key", "text", "heard", "error", "n_audio_tokens", "audio_seconds")  # of a prediction
TIMING = ("kind", "task", "condition", "id", "audio_seconds", "n_audio_tokens", "timings_ms", "batch")


@dataclass(frozen=True)
class Planned:
    item: Item
    condition: Condition
    key: str


def plan(facts: Row, items: Iterable[Item]) -> list[Planned]:
    """Every (item, condition) of a run, by a key that names all that the answer depends on."""
    asked = [Condition.parse(text) for text in facts["conditions"]]
    model, bases, limit = facts["model"]["sha256"], facts["model"]["bases"], facts["max_new_tokens"]
    if facts["format"] > 1:  # answers of older runs can still be scored again
        bases, limit = [bases, facts["model"].get("files")], [limit, facts["device"]]
    found = []
    for item in items:
        before = [item.before] if facts["format"] > 2 else []
        content = [item.task, item.id, item.question, item.typed, *before]
        for condition in conditions_of(item, asked):
            varied = condition.variation
            of_run = [
                [bases, None if condition.kind == BASE else model],
                limit,
                [facts["asr"], item.language] if condition.kind == "cascade" else None,
                facts["noise"] if varied and varied.name == "snr" else None,
            ]
            asked_of = [*content, item.clip_hashes] if condition.hears else content
            key = digest([of_run, str(condition), asked_of, bool(item.fault)])
            found.append(Planned(item, condition, key))
    return found


@dataclass
class Run:
    """A run's folder in memory."""

    out: Path
    facts: Row
    items: dict[str, dict[str, Item]]  # task → id → item
    predictions: dict[tuple[str, str], list[Row]]  # (task, condition) → in the items' order
    verdicts: list[Row]
    scores: Row
    timings: list[Row]


def load(out: Path) -> Run:
    """Raises LlasmError where `out` holds no finished run."""
    facts, items = facts_of(out), _items(out)
    predictions = {}
    for task in items:
        for condition in dict.fromkeys([*facts["conditions"], "text", BASE]):
            file = out / "predictions" / f"{task}.{condition}.jsonl"
            if file.exists():
                predictions[task, condition] = list(read_log(file))
        if items[task][0].kind == "transcription":
            predictions |= _transcripts(task, predictions)
    if not predictions:
        raise LlasmError(f"{out}: holds no predictions; finish the run with llasm eval … --resume")

    def rows(name: str) -> list[Row]:
        return list(read_log(out / name)) if (out / name).exists() else []

    scores = _json(out / "scores.json") if (out / "scores.json").exists() else {}
    by_id = {task: {item.id: item for item in found} for task, found in items.items()}
    return Run(out, facts, by_id, predictions, rows("verdicts.jsonl"), scores, rows("timings.jsonl"))


def _transcripts(task: str, predictions: dict[tuple[str, str], list[Row]]) -> dict[tuple[str, str], list[Row]]:
    """The recogniser's own words of each cascade, as if they were answers."""
    found = {}
    for (of, name), rows in predictions.items():
        condition = Condition.parse(name)
        if of == task and condition.kind == "cascade":
            own = [row | {"text": row["heard"]} if "heard" in row else row for row in rows]
            found[task, str(replace(condition, kind=TRANSCRIPT))] = own
    return found


def facts_of(out: Path) -> Row:
    """What run.json holds. Raises LlasmError where it is not there or is broken."""
    if not (out / "run.json").exists():
        raise LlasmError(f"{out}: no run.json, so this is no folder of llasm eval")
    facts = _json(out / "run.json")
    needed = ("format", "data", "model", "conditions", "settings", "max_new_tokens", "asr", "noise")
    if missing := [name for name in needed if name not in facts]:
        raise LlasmError(f"{out}/run.json: is broken or of another version, without {', '.join(missing)}")
    return facts


def _json(file: Path) -> Row:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LlasmError(f"{file}: is broken ({error})") from error
    if not isinstance(found, dict):
        raise LlasmError(f"{file}: is broken: no object")
    return found


def _items(out: Path) -> dict[str, list[Item]]:
    """By task, in the order they were asked."""
    tasks = facts_of(out)["data"]
    return {task: [from_row(row) for row in read_log(out / "items" / f"{task}.jsonl")] for task in tasks}


def assemble(out: Path) -> int:
    """Puts the log's answers in the items' order, if all are there; returns how many are missing."""
    facts = facts_of(out)
    keyed = plan(facts, [item for found in _items(out).values() for item in found])
    answers: dict[str, Row] = {}
    latencies = []
    for file in sorted((out / "events").glob("*.jsonl")):
        for event in read_log(file):
            if event["kind"] == "answer":
                answers.setdefault(event["key"], event)
            else:
                latencies.append(event)
    missing = sum(planned.key not in answers for planned in keyed)
    if missing:
        return missing
    (out / "predictions").mkdir(exist_ok=True)
    by_place: dict[str, list[Row]] = {}
    timings = []
    for planned in keyed:
        event = answers[planned.key]
        place = f"{planned.item.task}.{planned.condition}"
        by_place.setdefault(place, []).append({name: event[name] for name in OUTPUT if name in event})
        where = {
            "kind": "answer",
            "task": planned.item.task,
            "condition": str(planned.condition),
            "id": planned.item.id,
        }
        timings.append(where | {name: event[name] for name in TIMING if name in event})
    for place, predictions in by_place.items():
        write_whole(out / "predictions" / f"{place}.jsonl", jsonl(predictions))
    write_whole(out / "timings.jsonl", jsonl([*timings, *latencies]))
    return 0


# ---- scores


def score(out: Path, judge: Judge | None) -> None:
    """Writes verdicts.jsonl and scores.json of the saved predictions."""
    run = load(out)
    verdicts = []
    for (task, condition), predictions in run.predictions.items():
        if condition == BASE:  # only there to be compared with
            continue
        before = {row["id"]: row["text"] for row in run.predictions.get((task, BASE), []) if "text" in row}
        found = []
        for row in predictions:
            item = run.items[task][row["id"]]
            facts = {"task": task, "condition": condition, "id": item.id, "group": item.group}
            if "error" in row:
                found.append({**facts, "error": row["error"]})
            else:
                found.append({**facts, **verdict(item, row["text"], before.get(item.id))})
        if judge is not None:
            _judged(judge, run.items[task], predictions, found)
        verdicts += found
    write_whole(out / "verdicts.jsonl", jsonl(verdicts))
    summary = summarised(verdicts, run.items)
    write_whole(out / "scores.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


def _judged(judge: Judge, items: dict[str, Item], predictions: list[Row], verdicts: list[Row]) -> None:
    """Adds the judge's scores to the verdicts on questions."""
    kinds = ("qa", "choice", "open")
    asked = [(v, p) for v, p in zip(verdicts, predictions) if "error" not in v and items[v["id"]].kind in kinds]
    scores = judge.scores([(items[v["id"]], p["text"]) for v, p in asked])
    for (found, _), scored in zip(asked, scores):
        found.update(scored)


def headline(item: Item, found: Row) -> float | None:
    """The one number of a verdict by which conditions are compared; None where it has none."""
    if item.kind == "transcription":
        return found["errors"] / found["units"] if found.get("units") else None
    if item.kind == "open":
        return found.get("judge")
    right = found.get("right")
    return None if right is None else float(not right if item.kind == "no_speech" else right)


def summarised(verdicts: list[Row], items: dict[str, dict[str, Item]]) -> Row:
    """{task: {"metric", "conditions": {condition: …}, "gaps": {"first - second": …}}}; shares lie in [0, 1]."""
    places: dict[str, dict[str, list[Row]]] = {}
    for found in verdicts:
        places.setdefault(found["task"], {}).setdefault(found["condition"], []).append(found)
    summary: Row = {}
    for task, by_condition in places.items():
        kind = next(iter(items[task].values())).kind
        values = {name: scored(items[task], rows) for name, rows in by_condition.items()}
        summary[task] = {
            "metric": METRICS[kind],
            "conditions": {name: _of_condition(rows, values[name]) for name, rows in by_condition.items()},
            "gaps": {f"{a} - {b}": gap(values[a], values[b]) for a, b in _compared(list(by_condition))},
        }
    return summary


def _of_condition(rows: list[Row], values: dict[str, Row]) -> Row:
    """Counts and means of one condition; errors are counted, and are in no mean."""
    answered = [row for row in rows if "error" not in row]
    found: Row = {"n": len(answered), "errors": len(rows) - len(answered)}
    if any("units" in row for row in values.values()):
        parts, wholes = ([row[name] for row in values.values()] for name in ("errors", "units"))
        found["score"] = statistics.ratio_interval(parts, wholes)
    elif values:
        found["score"] = statistics.mean_interval([row["value"] for row in values.values()])
    for name in ("exact", "f1", "refused", "empty"):
        if any(name in row for row in answered):
            found[name] = sum(row.get(name, 0) for row in answered) / len(answered)
    if any("parsed" in row for row in answered):
        choices = [row for row in answered if "parsed" in row]
        found["parse_failures"] = sum(not row["parsed"] for row in choices) / len(choices)
    if any("judged" in row for row in answered):
        asked = [row for row in answered if "judged" in row]
        read = [row["judge"] for row in asked if row["judged"]]
        found["judge"] = statistics.mean_interval(read) if read else None
        found["judge_failures"] = len(asked) - len(read)
    groups = sorted({row["group"] for row in rows})
    if len(groups) > 1:
        by_group = {g: [values[r["id"]] for r in rows if r["group"] == g and r["id"] in values] for g in groups}
        found["groups"] = {g: {"n": len(x), "score": mean(x)} for g, x in by_group.items() if x}
    return found


def _compared(names: list[str]) -> list[tuple[str, str]]:
    """Pairs of conditions whose difference says something: kinds under the same audio (no noise befalls the text), and
    noisy against clean."""
    pairs = []
    for first in names:
        one = Condition.parse(first)
        for second in names:
            other = Condition.parse(second)
            kinds = (one.kind, other.kind) in GAPS and (one.variation == other.variation or not other.hears)
            noisy = one.kind == other.kind and one.variation is not None and other.variation is None
            if kinds or noisy:
                pairs.append((first, second))
    return pairs


def scored(items: dict[str, Item], verdicts: list[Row]) -> dict[str, Row]:
    """The verdicts that have a headline, by id, which is with them as `value`."""
    found = {}
    for row in verdicts:
        value = headline(items[row["id"]], row) if "error" not in row else None
        if value is not None:
            found[row["id"]] = {**row, "value": value}
    return found


def mean(rows: list[Row]) -> float:
    """Of scored verdicts; an error rate is one of all their words together."""
    if all("units" in row for row in rows):
        return float(sum(row["errors"] for row in rows) / sum(row["units"] for row in rows))
    return float(sum(row["value"] for row in rows) / len(rows))


def gap(first: dict[str, Row], second: dict[str, Row]) -> Row:
    """Of scored verdicts, over the items that both have; `ratio` is [first / second, low, high]."""
    both = [name for name in first if name in second]
    if not both:
        return {"n": 0}
    ours, theirs = [first[name] for name in both], [second[name] for name in both]
    if all("units" in row for row in (*ours, *theirs)):  # of the same words under both
        x, y = ([row["errors"] for row in rows] for rows in (ours, theirs))
        found = statistics.paired_ratio(x, y, [row["units"] for row in ours])
    else:
        x, y = ([row["value"] for row in rows] for rows in (ours, theirs))
        found = statistics.paired(x, y)
    return {**found, "ratio": statistics.ratio_interval(x, y)}
