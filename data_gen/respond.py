"""Stage respond: answers by the target LLM itself, the targets that align a speech adapter with it.

Self-generated targets: BLSP (arXiv 2309.00916), AudioChatLlama (arXiv 2311.06753), DiVA (arXiv 2410.02678).
The LLM reads each recording's or spoken turn's words in the audio's place, just as it will hear them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llasm.generator import Refusal, generator_for, identity_of

from .filter import answer_fault
from .recipe import Filter
from .rows import Row, as_typed, drop, user_texts


@dataclass
class Respond:
    """Rows that end with the user's turn (or all, where `always`) → rows with the LLM's answer."""

    llm: str
    url: str | None
    always: bool
    max_new_tokens: int
    rules: Filter

    name = "respond"
    uses_model = True

    def settings(self) -> dict[str, Any]:
        return {
            "version": 3,
            "llm": identity_of(self.llm, self.url),
            "always": self.always,
            "max_new_tokens": self.max_new_tokens,
            "max_answer_chars": self.rules.max_answer_chars,
        }

    def __call__(self, rows: list[Row]) -> list[Row]:
        if self.always:
            rows = [_without_last_answer(row) for row in rows]
        asked = [i for i, row in enumerate(rows) if row["messages"][-1]["role"] == "user"]
        done = list(rows)
        wordless = [i for i in asked if not all(user_texts(rows[i]))]
        for i in wordless:
            done[i] = drop(rows[i], self.name, "no transcript to answer")
        asked = [i for i in asked if i not in wordless]
        if not asked:
            return done
        batch = [as_typed(rows[i]) for i in asked]
        written = generator_for(self.llm, self.url).generate(batch, self.max_new_tokens)
        for i, (text, truncated) in zip(asked, written, strict=True):
            if isinstance(text, Refusal):
                done[i] = drop(rows[i], self.name, "refused by the server", text.reason)
                continue
            answer = {"role": "assistant", "content": [{"type": "text", "text": text}]}
            meta = {**rows[i]["meta"], "answered_by": self.llm, "truncated": truncated}
            done[i] = {**rows[i], "messages": [*rows[i]["messages"], answer], "meta": meta}
            if fault := answer_fault(text, self.rules):
                done[i] = drop(done[i], self.name, fault, text)
        return done


def _without_last_answer(row: Row) -> Row:
    return {**row, "messages": row["messages"][:-1]} if row["messages"][-1]["role"] == "assistant" else row
