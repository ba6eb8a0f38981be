"""Spoken benchmarks of voice assistants: VoiceBench's record formats and Big Bench Audio."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from llasm.records import Record

from .items import Item
from .task import Task, clips, field, row_id, text, texts


class _VoiceBench(Task):
    """Chen et al., arXiv 2410.17196; github MatthewCYM/VoiceBench, hub hlt-lab/voicebench.

    Parquet or JSONL of `prompt` (what is said), `audio`, and `output` or `reference`; one folder (hub: one
    configuration) a subset. Each subset is a group.
    """

    files = ("*.parquet", "*.jsonl")

    def _common(self, record: Record, where: str) -> dict[str, Any]:
        folder = Path(where.rpartition(":")[0]).parent.name
        name = row_id(where)
        return {
            "id": f"{folder}/{name}" if folder else name,
            "task": self.name,
            "question": text(record["prompt"]),
            "audio": clips(record, where, "audio"),
            "group": folder,
        }


class VoiceBenchOpen(_VoiceBench):
    """alpacaeval, alpacaeval_full, commoneval, wildvoice: free answers, which only a judge can score."""

    name = "voicebench_open"
    kind = "open"
    hub = "hlt-lab/voicebench:commoneval:test"

    def item(self, record: Record, where: str) -> Item:
        answers = texts(field(record, "output", "reference", default=()))
        return Item(**self._common(record, where), kind="open", answers=answers)


class VoiceBenchQA(_VoiceBench):
    """sd-qa: questions with a `reference` answer; the splits are dialects (usa, ind_n, …)."""

    name = "voicebench_qa"
    hub = "hlt-lab/voicebench:sd-qa:usa"

    def item(self, record: Record, where: str) -> Item:
        return Item(**self._common(record, where), answers=texts(record["reference"]))


class VoiceBenchChoice(_VoiceBench):
    """openbookqa, mmsu: the prompt names the options, `reference` is a letter."""

    name = "voicebench_choice"
    kind = "choice"
    hub = "hlt-lab/voicebench:openbookqa:test"

    def item(self, record: Record, where: str) -> Item:
        answer = str(record["reference"]).strip().upper()
        return Item(
            **self._common(record, where), kind="choice", answers=(answer,), choices=options_in(record["prompt"])
        )


def options_in(prompt: str) -> dict[str, str]:
    """The options "A. …" or "A) …" that a prompt lists; A to D without their texts where it lists none."""
    found = dict(re.findall(r"(?:^|\s)\(?([A-J])[.):]\s+(.+?)(?=\s+\(?[A-J][.):]\s|\s*$)", prompt, re.DOTALL))
    letters = "ABCDEFGHIJ"[: len(found)]
    return found if len(found) > 1 and list(found) == list(letters) else dict.fromkeys("ABCD", "")


class BigBenchAudio(Task):
    """1,000 spoken questions of reasoning (Artificial Analysis, 2024, after BIG-Bench Hard); categories are groups.

    hub ArtificialAnalysis/big_bench_audio: metadata.jsonl (`id`, `category`, `official_answer`, `file_name`) and
    data/question_ID.mp3. It has no transcripts, so the condition `text` is left out unless a copy adds `transcript`.
    """

    name = "big_bench_audio"
    files = ("metadata.jsonl", "*.parquet")
    hub = "ArtificialAnalysis/big_bench_audio::train"
    options = {"formal_fallacies": ("valid", "invalid"), "navigate": ("Yes", "No"), "web_of_lies": ("Yes", "No")}

    def item(self, record: Record, where: str) -> Item:
        answer = str(record["official_answer"]).strip()
        options = self.options.get(record["category"], ())
        by_label = {option.lower(): option for option in options}
        return Item(
            id=str(record["id"]),
            task=self.name,
            kind="choice" if options else "qa",
            question=str(record.get("transcript") or ""),
            answers=(answer.lower() if options else answer,),
            choices=by_label,
            audio=clips(record, where, "audio"),
            group=record["category"],
        )
