"""What a run leaves beside its weights: recipe.yaml, metrics.json, loss.png and the model card."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from llasm.files import write_whole

from .data import Sample
from .preflight import Plan
from .recipe import Recipe

METRICS = "metrics.json"


def write_results(
    recipe: Recipe, output: Path, bases: dict[str, Any], plan: Plan, figures: dict[str, Any], log: list[dict[str, Any]]
) -> None:
    """figures: held-out metrics, examples and the like; log: the Trainer's log lines."""
    text = yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False, allow_unicode=True)
    (output / "recipe.yaml").write_text(text, encoding="utf-8")
    _plot(log, output / "loss.png")
    (output / "README.md").write_text(_card(recipe, output, bases, plan, figures), encoding="utf-8")
    metrics = json.dumps({**figures, "log": log}, indent=1, ensure_ascii=False)
    write_whole(output / METRICS, metrics + "\n")  # the last of all: it says that the run is whole


def _plot(log: list[dict[str, Any]], path: Path) -> None:
    """Each part of the loss over the steps, held-out figures dotted."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="step", ylabel="loss a token")
    names = ["loss", "ctc", "kl", "ce", "speech", "guard", "token_error_rate", "speech_error_rate"]
    colours = {name: f"C{i}" for i, name in enumerate(names)}
    for name in names:
        for key, style in ((name, "-"), (f"eval_{name}", "o:")):
            points = [(line["step"], line[key]) for line in log if key in line]
            if points:
                axes.plot(*zip(*points), style, color=colours[name], label=key.replace("eval_", "held-out "))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)


def _card(recipe: Recipe, output: Path, bases: dict[str, Any], plan: Plan, figures: dict[str, Any]) -> str:
    held_out = "\n".join(f"| {name} | {value:.4g} |" for name, value in figures["held_out"].items())
    losses = ", ".join(f"{name} × {weight:g}" for name, weight in plan.losses.items() if weight)
    parts = "\n".join(
        f"| {part} | {total / 1e6:.2f} M | {f'{trained / 1e6:.2f} M' if trained else 'frozen'} |"
        for part, (total, trained) in plan.parameters.items()
    )
    examples = "\n".join(
        "- " + "; ".join(f"{name}: *{_inline(text)}*" for name, text in example.items())
        for example in figures.get("examples", [])
    )
    chat = recipe.stage == "chat"
    repeated = f", {plan.recordings} without an answer, so they are repeated" if plan.recordings else ""
    named = f"Started from `{recipe.init}`, whose card names its data."
    start = named if recipe.init else "The adapter started untrained."
    return f"""# {output.name}

A speech-language model in the manner of [LLaSM](https://arxiv.org/abs/2308.15930): an adapter between
{_base(bases["audio"])} and {_base(bases["text"])}{", which got LoRA" if chat else ""}.

```
llasm chat question.wav --model {output.name}
```

## Training

Stage `{recipe.stage}` ({losses}), {recipe.n_steps} steps of {recipe.batch_size} samples, `recipe.yaml` says the rest.
{start} {plan.hours:.2f} hours of speech in {len(plan.samples)} rows, {recipe.held_out} of them held out{repeated}.

| part | parameters | trained |
|---|---|---|
{parts}

## Data

| data set | rows | licence | attribution |
|---|---|---|---|
{_data_table(plan.samples)}

## Held-out figures

| figure | value |
|---|---|
{held_out}

![loss](loss.png)

{examples}

These are figures of the training's own data; `llasm eval` tells how well the model answers. What the bases get wrong,
it gets wrong too, and it mishears: check what matters.
"""


def _base(base: dict[str, Any]) -> str:
    return f"`{base['id']}` (sha256 {base['sha256'][:12]}…)"


def _data_table(samples: list[Sample]) -> str:
    rows = Counter(
        (Path(sample.origin).name, sample.licence or "not stated", sample.attribution or "–") for sample in samples
    )
    return "\n".join(f"| {name} | {n} | {licence} | {credit} |" for (name, licence, credit), n in sorted(rows.items()))


def _inline(text: str) -> str:
    return " ".join(text.split()).replace("*", "\\*").replace("|", "\\|")[:160]
