"""Two runs, usually of two models, item by item."""

from __future__ import annotations

from pathlib import Path

from llasm.errors import LlasmError

from .items import Item
from .report import GAP_HEADS, gap_cells, markdown_table, number
from .results import Row, Run, gap, load, mean, scored


def compare(first: Path, second: Path) -> str:
    """A table in Markdown: both scores over the items that both runs asked alike, and their paired difference.

    Raises LlasmError where a folder holds no scored run, or the two have nothing in common.
    """
    ours, theirs = (_scored(load(folder)) for folder in (first, second))
    rows = []
    for task, scores in ours.scores.items():
        for condition in scores["conditions"]:
            a, b = _values(ours, task, condition), _values(theirs, task, condition)
            both = [name for name in a if name in b and _same(ours.items[task][name], theirs.items[task][name])]
            if both:
                x, y = ({name: rows_of[name] for name in both} for rows_of in (a, b))
                metric = scores["metric"]
                means = [number(mean(list(values.values())), metric) for values in (x, y)]
                left_out = len(a) + len(b) - 2 * len(both)
                rows.append([task, condition, metric, *means, *gap_cells(gap(x, y), metric), left_out])
    if not rows:
        raise LlasmError(f"{first} and {second} share no task, condition and item")
    heads = ["task", "given", "metric", "A", "B", "A - B", *GAP_HEADS, "left out"]
    names = [f"{letter}: {run.facts['settings']['model']} ({run.out})" for letter, run in (("A", ours), ("B", theirs))]
    note = "Left out: items that only one of the two asked, asked otherwise, or could not score."
    return "\n".join([*names, "", *markdown_table(heads, rows), "", note])


def _scored(run: Run) -> Run:
    if not run.scores:
        raise LlasmError(f"{run.out}: has no scores yet; run llasm eval score {run.out}")
    return run


def _values(run: Run, task: str, condition: str) -> dict[str, Row]:
    verdicts = [v for v in run.verdicts if (v["task"], v["condition"]) == (task, condition)]
    return scored(run.items.get(task, {}), verdicts)


def _same(one: Item, other: Item) -> bool:
    names = ("question", "before", "typed", "answers", "clip_hashes", "choices", "language")
    return all(getattr(one, name) == getattr(other, name) for name in names)
