"""What a build made: counts, the data card (`README.md`), `stats.json` and `report.html` with playable samples.

The files hold nothing of the machine or the hour: the same recipe gives the same bytes.
"""

from __future__ import annotations

import html
import json
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llasm.files import write_whole
from llasm.pages import figure, page, player, table

from .recipe import Recipe
from .rows import Row, answers, kept, user_texts
from .runner import read_block

N_SAMPLES = 12


@dataclass
class Part:
    """Counts of some rows."""

    rows: int = 0
    seconds: float = 0.0
    errors: int = 0
    words: int = 0
    checked: int = 0  # rows that the round trip checked, kept or not
    misheard: int = 0  # of them dropped

    def add(self, row: Row) -> None:
        meta = row["meta"]
        self.rows += 1
        self.seconds += sum(meta["seconds"])
        self.errors += sum(meta.get("errors", []))
        self.words += sum(meta.get("words", []))

    @property
    def wer(self) -> float | None:
        return self.errors / self.words if self.words else None

    @property
    def drop_rate(self) -> float | None:
        return self.misheard / self.checked if self.checked else None


@dataclass
class Statistics:
    total: Part = field(default_factory=Part)
    by_voice: dict[str, Part] = field(default_factory=lambda: defaultdict(Part))
    by_source: dict[str, Part] = field(default_factory=lambda: defaultdict(Part))
    licences: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # of each source
    credits: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # attributions of each source
    drops: Counter[str] = field(default_factory=Counter)  # "stage: reason"
    languages: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    seconds: list[float] = field(default_factory=list)  # of each clip
    error_rates: list[float] = field(default_factory=list)  # of each checked clip
    answer_words: list[int] = field(default_factory=list)
    samples: list[Row] = field(default_factory=list)

    @classmethod
    def of(cls, root: Path, blocks: list[str], dropped: list[Row]) -> Statistics:
        made = cls()
        step = max(1, len(blocks) // N_SAMPLES)
        for number, block in enumerate(blocks):
            rows = list(kept(read_block(root, block, clips=False)))
            for row in rows:
                made._add(row)
            if number % step == 0 and len(made.samples) < N_SAMPLES:
                wanted = -(-N_SAMPLES // max(1, len(range(0, len(blocks), step))))
                heard = [row for row in kept(read_block(root, block)) if row["audios"]]
                made.samples += heard[:: max(1, len(heard) // wanted)][: min(wanted, N_SAMPLES - len(made.samples))]
        for row in dropped:
            made.drops[f"{row['dropped']['stage']}: {row['dropped']['reason']}"] += 1
            if row["dropped"]["stage"] == "verify":
                part = made.by_voice[_voice(row)]
                part.checked += 1
                part.misheard += 1
        return made

    def _add(self, row: Row) -> None:
        meta = row["meta"]
        parts = [self.total, self.by_source[meta["source"]], self.by_voice[_voice(row)]]
        for part in parts:
            part.add(row)
        # Variants were checked once, with the row that they are made from.
        if any(meta.get("words", [])) and "variation" not in meta:
            self.by_voice[_voice(row)].checked += 1
        self.licences[meta["source"]].add(meta["licence"])
        self.credits[meta["source"]].update([meta["attribution"]] if meta["attribution"] else [])
        self.languages[meta["language"]] += 1
        self.truncated += bool(meta.get("truncated"))
        self.seconds += meta["seconds"]
        self.error_rates += [n / words for n, words in zip(meta.get("errors", []), meta.get("words", [])) if words]
        self.answer_words += [len(answer.split()) for answer in answers(row)]

    def rights(self, source: str) -> tuple[str, str]:
        """(licences, attributions) of a source's rows."""
        return ", ".join(sorted(self.licences[source])), "; ".join(sorted(self.credits[source])) or "–"

    def as_json(self) -> dict[str, Any]:
        def part(p: Part) -> dict[str, Any]:
            shown = {**asdict(p), "seconds": round(p.seconds, 1), "hours": round(p.seconds / 3600, 3)}
            return {**shown, "wer": _rounded(p.wer), "drop_rate": _rounded(p.drop_rate)}

        return {
            "total": part(self.total),
            "voices": {name: part(p) for name, p in sorted(self.by_voice.items())},
            "sources": {name: part(p) for name, p in sorted(self.by_source.items())},
            "languages": dict(sorted(self.languages.items())),
            "dropped": dict(sorted(self.drops.items())),
            "truncated_answers": self.truncated,
        }


def _voice(row: Row) -> str:
    meta = row["meta"]
    if meta.get("engine"):
        return f"{meta['engine']}:{meta['voice']}"
    return meta["source"] if meta["source"].startswith("no speech") else "recordings"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def write_report(made: Statistics, recipe: Recipe, output: Path, n_shards: int, voice_licences: dict[str, str]) -> None:
    """voice_licences: of each "engine:voice"."""
    files = {
        "stats.json": json.dumps(made.as_json(), indent=1, ensure_ascii=False) + "\n",
        "README.md": data_card(made, recipe, n_shards, voice_licences),
        "report.html": report_page(made, output.name),
    }
    for name, text in files.items():
        write_whole(output / name, text)


def data_card(made: Statistics, recipe: Recipe, n_shards: int, voice_licences: dict[str, str]) -> str:
    """A data set card as the hub reads it."""
    total = made.total
    heading = "---\nlanguage: [" + ", ".join(sorted(made.languages)) + "]\ntask_categories: [audio-text-to-text]\n"
    heading += "configs:\n- config_name: default\n  data_files: data/*.parquet\n---\n"
    checked = sum(p.checked for p in made.by_voice.values())
    misheard = sum(p.misheard for p in made.by_voice.values())
    lines = [
        heading,
        "# Spoken instructions\n",
        f"{total.rows} conversations with {total.seconds / 3600:.2f} h of audio in {n_shards} files, made by "
        "`llasm data build`.",
    ]
    if checked:
        lines.append(
            f"{recipe.verify.asr} read the synthetic speech back: word error rate {_percent(total.wer)} over what is "
            f"kept; {misheard} of {checked} rows ({_percent(misheard / checked)}) were dropped for it."
        )
    writers = {
        "never": "the sources' own, where they have any",
        "missing": f"by {recipe.respond.llm} where missing",
        "always": f"by {recipe.respond.llm}",
    }
    answered = writers[recipe.respond.answers]
    lines.append(f"Answers are {answered}; {made.truncated} were cut off at the length limit (`meta.truncated`).\n")
    lines += ["## Sources\n", "| source | rows | hours | licence | attribution |", "|---|---|---|---|---|"]
    for name, part in sorted(made.by_source.items()):
        licence, credit = made.rights(name)
        lines.append(f"| {name} | {part.rows} | {part.seconds / 3600:.2f} | {licence} | {credit} |")
    if recorded := [kind for kind in ("noise", "music") if getattr(recipe.vary, kind)]:
        by = f", {recipe.vary.attribution}" if recipe.vary.attribution else ""
        lines.append(f"\nRecordings of others, for {' and '.join(recorded)}: licence {recipe.vary.licence}{by}.")
    lines += [
        "\n## Voices\n",
        "| voice | licence | rows | hours | WER kept | dropped in the round trip |",
        "|---|---|---|---|---|---|",
    ]
    for name, part in sorted(made.by_voice.items()):
        lost = f"{part.misheard} of {part.checked} ({_percent(part.drop_rate)})" if part.checked else "–"
        hours, licence = f"{part.seconds / 3600:.2f}", voice_licences.get(name, "–")
        lines.append(f"| {name} | {licence} | {part.rows} | {hours} | {_percent(part.wer)} | {lost} |")
    lines += ["\n## Left out\n", "Every row is in `dropped.jsonl`, with its texts.\n", "| why | rows |", "|---|---|"]
    lines += [f"| {why} | {n} |" for why, n in sorted(made.drops.items())] or ["| nothing | 0 |"]
    lines += ["\n## Fields\n", _FIELDS]
    return "\n".join(lines) + "\n"


_FIELDS = """\
`id`; `messages`: role and content, a list of parts of type text or audio; `audios`: the clips of the audio parts in
order (16 kHz mono); `meta`: source, licence, attribution, language, `texts` (what each clip says), engine and voice,
speeds, seconds, `heard` and `wer` (the round trip), variation, answered_by, asked_by, transcribed_by, truncated."""


def report_page(made: Statistics, title: str) -> str:
    """One file with everything inside: numbers, histograms, and samples to listen to."""
    total = made.total
    figures = [
        _histogram(made.seconds, "clip length", "seconds"),
        _histogram([100 * min(rate, 1) for rate in made.error_rates], "round-trip error rate", "%"),
        _histogram(made.answer_words, "answer length", "words"),
    ]
    voices = [
        [
            name,
            p.rows,
            f"{p.seconds / 3600:.2f}",
            _percent(p.wer),
            f"{p.misheard} of {p.checked}",
            _percent(p.drop_rate),
        ]
        for name, p in sorted(made.by_voice.items())
    ]
    sources = [
        [name, p.rows, f"{p.seconds / 3600:.2f}", *made.rights(name)] for name, p in sorted(made.by_source.items())
    ]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p><b>{total.rows}</b> conversations, <b>{total.seconds / 3600:.2f} h</b> of audio, word error rate of the "
        f"round trip <b>{_percent(total.wer)}</b>, <b>{sum(made.drops.values())}</b> rows left out.</p>",
        "<div class=row>" + "".join(figure for figure in figures if figure) + "</div>",
        "<h2>Voices</h2>",
        table(["voice", "rows", "hours", "WER kept", "misheard", "drop rate"], voices),
        "<h2>Sources</h2>",
        table(["source", "rows", "hours", "licence", "attribution"], sources),
        "<h2>Left out</h2>",
        table(["why", "rows"], [[why, n] for why, n in sorted(made.drops.items())]),
        "<h2>Samples</h2>",
        *[_sample(row) for row in made.samples],
    ]
    return page(title, parts)


def _sample(row: Row) -> str:
    meta, clips, said = row["meta"], iter(row["audios"]), iter(user_texts(row))
    lines = []
    for message in row["messages"]:
        for part in message["content"]:
            if part["type"] == "audio":
                lines.append(player(next(clips)["bytes"]))
                text = next(said)
            else:
                text = part["text"]
            lines.append(f"<p><span class=who>{message['role']}</span> {html.escape(text)}</p>")
    heard = " | ".join(text for text in meta.get("heard", []) if text)
    facts = [meta["source"], _voice(row), meta.get("variation", ""), f"heard: {heard}" if heard else ""]
    shown = " · ".join(fact for fact in facts if fact)
    return f"<div class=sample>{''.join(lines)}<p class=who>{html.escape(shown)}</p></div>"


def _histogram(values: list[Any], title: str, unit: str) -> str:
    """An SVG; empty where there is nothing to count."""

    def draw(axes: Any) -> None:
        axes.hist(values, bins=30, color="#3366cc")
        axes.set(title=title, xlabel=unit, ylabel="count")

    return figure(draw, title) if values else ""
