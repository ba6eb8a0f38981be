"""report.md and report.html of a finished run: scores, gaps, robustness, latencies, and failures to listen to."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llasm import audio
from llasm.errors import LlasmError
from llasm.files import write_whole
from llasm.pages import figure, page, player, table

from .conditions import TRANSCRIPT, Condition, heard
from .items import Item, digest
from .results import Row, Run, load

SHOWN_FAILURES = 8  # of each task and condition
STAGES = ("transcribe", "encode", "prefill", "first_token", "total")


def report(out: Path) -> Path:
    """Writes both files of a scored run again; returns the page's path."""
    write_report(load(out))
    return out / "report.html"


def write_report(run: Run) -> None:
    if not run.scores:
        raise LlasmError(f"{run.out}: has no scores yet; run llasm eval score {run.out}")
    write_whole(run.out / "report.md", _markdown(run))
    write_whole(run.out / "report.html", _page(run))


# ---- tables, as (title, note, heads, rows); both files show them


Table = tuple[str, str, list[str], list[list[Any]]]


def _tables(run: Run) -> Iterator[Table]:
    for task, scores in run.scores.items():
        yield _scores_table(task, scores)
        if scores["gaps"]:
            rows = [[name, *gap_cells(gap, scores["metric"])] for name, gap in scores["gaps"].items()]
            note = (
                "The same items under both. p: McNemar's exact test; of scores that are not yes or no, by permutation."
            )
            yield f"{task}: paired gaps", note, ["gap", scores["metric"], *GAP_HEADS], rows
        groups = _groups_table(task, scores)
        if groups is not None:
            yield groups
    yield from _cost_tables(run)
    errors: dict[tuple[str, str], list[Row]] = {}
    for found in run.verdicts:
        if "error" in found:
            errors.setdefault((found["task"], found["error"]), []).append(found)
    if errors:
        rows = [[task, len(found), found[0]["id"], why] for (task, why), found in list(errors.items())[:50]]
        yield "Errors", "Not answered, and in no score.", ["task", "answers", "first item", "why"], rows


def _scores_table(task: str, scores: Row) -> Table:
    metric, columns = scores["metric"], []
    conditions = scores["conditions"]
    for name in ("exact", "f1", "parse_failures", "refused", "empty"):
        if any(name in found for found in conditions.values()):
            columns.append(name)
    judged = any("judge_failures" in found for found in conditions.values())
    heads = ["given", metric, "95 % interval", *[name.replace("_", " ") for name in columns]]
    heads += ["judge", "judge unread"] * judged + ["items", "errors"]
    rows = []
    for name, found in conditions.items():
        cells: list[Any] = [name, *_score_cells(found.get("score"), metric)]
        cells += [number(found[c], "f1" if c == "f1" else "share") if c in found else "–" for c in columns]
        if judged:
            cells += [number((found.get("judge") or [None])[0], "judge"), found.get("judge_failures", "–")]
        rows.append([*cells, found["n"], found["errors"]])
    note = ""
    if metric == "false answers":
        said = [
            f"{number(found['score'][0], metric)} ({name})" for name, found in conditions.items() if "score" in found
        ]
        note = f"Nobody speaks, yet the model answers: {', '.join(said)}."
    elif "exact" in columns:
        note = (
            "Right: the answer holds any of the right ones word for word, in any case, and does not deny it; so "
            "“It may be June.” counts for May. exact: it is one and nothing else."
        )
    elif any(Condition.parse(name).kind == TRANSCRIPT for name in conditions):
        note = "transcript: what the recogniser wrote down, as it is; cascade: what the LLM makes of it."
    elif metric.startswith("judge") and not judged:
        note = "Free answers: without a judge (--judge_url) only refusals and empty answers are counted."
    return task, note, heads, rows


def _groups_table(task: str, scores: Row) -> Table | None:
    found = {name: of["groups"] for name, of in scores["conditions"].items() if "groups" in of}
    if not found:
        return None
    groups = list(dict.fromkeys(group for of in found.values() for group in of))
    rows = []
    for group in groups:
        cells = [number(of[group]["score"], scores["metric"]) if group in of else "–" for of in found.values()]
        rows.append([group, max(of[group]["n"] for of in found.values() if group in of), *cells])
    return f"{task}: {scores['metric']} by group", "", ["group", "items", *found], rows


def _cost_tables(run: Run) -> Iterator[Table]:
    latencies = _latencies(run)
    if latencies:
        rows = []
        for (task, condition), found in latencies.items():
            stages = [_milliseconds([t[s] for t in found if s in t]) for s in STAGES]
            rows.append([task, condition, *stages, len(found)])
        note = (
            "Asked one by one, from the wave in memory; median (90th percentile). encode: mel, encoder, adapter; "
            "prefill: prompt to first token; first_token and total count from the start, transcribing included."
        )
        for task in run.scores:
            if (task, "speech") in latencies and (task, "cascade") in latencies:
                times = [[t["first_token"] for t in latencies[task, kind]] for kind in ("speech", "cascade")]
                ours, theirs = map(np.median, times)
                note += f" {task}: the first token of speech takes {ours / theirs:.2f} of the cascade's time."
        yield "Latency in ms", note, ["task", "given", *[s.replace("_", " ") for s in STAGES], "items"], rows
    rows = [[task, condition, *_throughput(found)] for (task, condition), found in _by_place(run, "answer").items()]
    heads = ["task", "given", "items/s", "real-time factor", "audio s", "audio tokens an item"]
    note = "Real-time factor: seconds of work for a second of audio."
    if peaks := [row["batch"]["peak_mb"] for row in run.timings if "batch" in row]:
        note += f" Over the whole run a process held at most {max(peaks)} MB of memory."
    yield "Throughput in batches", note, heads, rows


def _by_place(run: Run, kind: str) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in run.timings:
        if row["kind"] == kind:
            found.setdefault((row["task"], row["condition"]), []).append(row)
    return found


def _latencies(run: Run) -> dict[tuple[str, str], list[dict[str, float]]]:
    return {place: [row["timings_ms"] for row in rows] for place, rows in _by_place(run, "latency").items()}


def _throughput(rows: list[Row]) -> list[str]:
    batches = {row["batch"]["first"]: row["batch"] for row in rows if "batch" in row}.values()
    if not batches:
        return ["–"] * 4
    work = sum(batch["ms"] for batch in batches) / 1000
    seconds = sum(row.get("audio_seconds", 0) for row in rows)
    tokens = [row["n_audio_tokens"] for row in rows if row.get("n_audio_tokens")]
    return [
        f"{sum(batch['n'] for batch in batches) / work:.2f}",
        f"{work / seconds:.3f}" if seconds else "–",
        f"{seconds:.0f}" if seconds else "–",
        f"{np.mean(tokens):.1f}" if tokens else "–",
    ]


def number(value: float | None, metric: str) -> str:
    """As the reports write a score of that metric."""
    if value is None:
        return "–"
    return f"{value:.2f}" if metric.startswith(("judge", "f1")) else f"{100 * value:.1f} %"


def _score_cells(score: list[float | None] | None, metric: str) -> list[str]:
    if score is None:
        return ["–", "–"]
    mean, low, high = score
    return [number(mean, metric), _interval(low, high, lambda value: number(value, metric))]


def _interval(low: float | None, high: float | None, written: Callable[[float], str]) -> str:
    return "–" if low is None or high is None else f"{written(low)} to {written(high)}"


GAP_HEADS = ["95 % interval", "ratio", "95 % interval", "p", "items"]


def gap_cells(gap: Row, metric: str) -> list[Any]:
    """Difference and ratio with their intervals, p and number of items of a paired comparison."""
    if not gap["n"]:
        return ["–", "–", "–", "–", "–", 0]
    scale, unit = (1, "") if metric.startswith("judge") else (100, " points")
    interval = _interval(gap["low"], gap["high"], lambda value: f"{scale * value:+.1f}")
    ratio, low, high = gap["ratio"]
    ratios = ["–" if ratio is None else f"{ratio:.2f}", _interval(low, high, "{:.2f}".format)]
    p = "–" if gap["p"] is None else f"{gap['p']:.3g}"
    return [f"{scale * gap['gap']:+.1f}{unit}", interval, *ratios, p, gap["n"]]


def _milliseconds(values: list[float]) -> str:
    return f"{np.median(values):.0f} ({np.quantile(values, 0.9):.0f})" if values else "–"


# ---- figures


def _figures(run: Run) -> Iterator[str]:
    for task, scores in run.scores.items():
        scored = {name: of["score"] for name, of in scores["conditions"].items() if "score" in of}
        if scored:
            yield figure(_bars(scored, f"{task}: {scores['metric']}"), f"{task} scores")
        gaps = {name: gap for name, gap in scores["gaps"].items() if gap["n"]}
        if gaps:
            yield figure(_gap_bars(gaps, f"{task}: paired gap"), f"{task} gaps")
        if any("@snr" in name for name in scored):
            yield figure(_curves(scored, f"{task}: noise"), f"{task} noise")
    for task in run.scores:
        latencies = {c: [t["first_token"] for t in ts] for (name, c), ts in _latencies(run).items() if name == task}
        if latencies:
            yield figure(_boxes(latencies, f"{task}: first token"), f"{task} latency")


def _bars(scores: dict[str, list[float]], title: str) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        means = [mean for mean, _, _ in scores.values()]
        spread = _spread([(mean, low, high) for mean, low, high in scores.values()])
        axes.bar(range(len(means)), means, yerr=spread, color="#3366cc", capsize=4)
        slant = {"rotation": 30, "ha": "right"} if len(means) > 3 else {}
        axes.set_xticks(range(len(means)), list(scores), fontsize=8, **slant)
        axes.set(title=title, ylim=(0, None))

    return draw


def _gap_bars(gaps: dict[str, Row], title: str) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        places = range(len(gaps))
        values = [gap["gap"] for gap in gaps.values()]
        spread = _spread([(gap["gap"], gap["low"], gap["high"]) for gap in gaps.values()])
        axes.errorbar(values, places, xerr=spread, fmt="o", color="#3366cc", capsize=4)
        axes.axvline(0, color="#888", linewidth=1)
        axes.set_yticks(places, list(gaps), fontsize=8)
        axes.set(title=title, ylim=(-0.6, len(gaps) - 0.4))

    return draw


def _spread(intervals: list[tuple[float, float | None, float | None]]) -> list[list[float]]:
    """Lengths of error bars below and above; none where there is no interval."""
    below = [max(0.0, value - low) if low is not None else 0.0 for value, low, _ in intervals]
    return [below, [max(0.0, high - value) if high is not None else 0.0 for value, _, high in intervals]]


def _curves(scores: dict[str, list[float]], title: str) -> Callable[[Any], None]:
    """Score against signal-to-noise ratio, a line for each kind."""

    def draw(axes: Any) -> None:
        lines: dict[str, list[tuple[float, float]]] = {}
        for name, (mean, _, _) in scores.items():
            condition = Condition.parse(name)
            if condition.variation is not None and condition.variation.name == "snr":
                assert condition.variation.value is not None  # every snr has one
                lines.setdefault(condition.kind, []).append((condition.variation.value, mean))
        for kind, points in lines.items():
            x, y = zip(*sorted(points))
            [line] = axes.plot(x, y, marker="o", label=kind)
            if kind in scores:
                axes.axhline(scores[kind][0], linestyle=":", color=line.get_color())
        axes.set(title=title, xlabel="signal-to-noise ratio in dB (dotted: clean)", ylim=(0, None))
        axes.legend(fontsize=8)

    return draw


def _boxes(values: dict[str, list[float]], title: str) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        axes.boxplot(list(values.values()), tick_labels=list(values), widths=0.5)
        axes.set(title=title, ylabel="ms, one by one", ylim=(0, None))

    return draw


# ---- failures to listen to


def _failures(run: Run) -> Iterator[tuple[Row, Row, Item]]:
    """(verdict, prediction, item) of the first wrong answers of each task and condition."""
    shown: dict[tuple[str, str], int] = {}
    answers = {(task, c, row["id"]): row for (task, c), rows in run.predictions.items() for row in rows}
    for found in run.verdicts:
        place = found["task"], found["condition"]
        if found.get("right") is False and shown.get(place, 0) < SHOWN_FAILURES:
            shown[place] = shown.get(place, 0) + 1
            yield found, answers[(*place, found["id"])], run.items[found["task"]][found["id"]]


def save_clips(run: Run, items: list[Item]) -> None:
    """Keeps what was heard of the failures that the report shows: the data set may not be there later."""
    by_id = {(item.task, item.id): item for item in items}
    for found, prediction, item in _failures(run):
        condition = Condition.parse(found["condition"])
        target = _clip(run, prediction)
        if condition.hears and not target.exists():
            try:
                waves = heard(by_id[item.task, item.id], condition, run.facts["settings"]["noise"])
            except LlasmError:  # the file was there when the item was asked
                continue
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(audio.to_flac_bytes(np.concatenate(waves)))


def _clip(run: Run, prediction: Row) -> Path:
    return run.out / "clips" / f"{digest(prediction['key'])[:16]}.flac"


# ---- the files


def _head(run: Run) -> str:
    settings, model_hash = run.facts["settings"], run.facts["model"]["sha256"]
    names = ", ".join(f"{name} {of}" for name, of in run.facts["versions"].items() if of)
    revision = run.facts["git"] or "unknown"
    facts = [
        f"Model {settings['model']} (sha256 {model_hash[:12]}), greedy, at most {run.facts['max_new_tokens']} tokens.",
        f"Recogniser {settings['asr']}." if run.facts["asr"] else "",
        f"Voice {settings['voice']}." if run.facts.get("voice") else "",
        f"Data {', '.join(f'{task} {sha[:12]}' for task, sha in run.facts['data'].items())}.",
        f"Revision {revision}; {names}.",
    ]
    return " ".join(fact for fact in facts if fact)


def _markdown(run: Run) -> str:
    lines = ["# Evaluation\n", _head(run)]
    for title, note, heads, rows in _tables(run):
        lines += [f"\n## {title}\n"] + [f"{note}\n"] * bool(note)
        lines += markdown_table(heads, rows)
    return "\n".join(lines) + "\n"


def markdown_table(heads: list[str], rows: list[list[Any]]) -> list[str]:
    """Its lines."""
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    return lines + ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]


def _page(run: Run) -> str:
    parts = ["<h1>Evaluation</h1>", f"<p class=who>{html.escape(_head(run))}</p>"]
    parts.append("<div class=row>" + "".join(_figures(run)) + "</div>")
    for title, note, heads, rows in _tables(run):
        parts += [f"<h2>{html.escape(title)}</h2>"] + [f"<p>{html.escape(note)}</p>"] * bool(note)
        parts.append(table(heads, rows))
    failures = [_failure(run, *found) for found in _failures(run)]
    if failures:
        parts += ["<h2>Failures</h2>", f"<p>The first {SHOWN_FAILURES} of each task and condition.</p>", *failures]
    return page("Evaluation", parts)


def _failure(run: Run, found: Row, prediction: Row, item: Item) -> str:
    clip = _clip(run, prediction)
    facts = [found["task"], found["condition"], item.id]
    lines = [f"<p class=who>{html.escape(' · '.join(facts))}</p>"]
    if clip.exists():
        lines.append(player(clip.read_bytes()))
    question = "\n".join(text for text in (item.question, item.typed) if text)
    said = {"question": question, "heard": prediction.get("heard"), "answer": prediction["text"] or "(nothing)"}
    said["right"] = "; ".join(item.answers[:6]) or None
    for who, text in said.items():
        if text:
            lines.append(f"<p><span class=who>{who}</span> {html.escape(text)}</p>")
    return f"<div class=sample>{''.join(lines)}</div>"
