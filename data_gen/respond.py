"""Stage respond: answers by the target LLM itself, the targets that align a speech adapter with it.

Self-generated targets: BLSP (arXiv 2309.00916), AudioChatLlama (arXiv 2311.06753), DiVA (arXiv 2410.02678).
The LLM reads each recording's or spoken turn's words in the audio's place, just as it will hear them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llasm.draws import draw, pick
from llasm.generator import Refusal, generator_for, identity_of

from .filter import answer_fault
from .recipe import Filter
from .rows import Row, as_typed, drop, user_texts

# What people say next; none can be answered without the turn before.
FOLLOW_UPS = {
    "en": (
        "Can you say that in one sentence?",
        "Why is that?",
        "Can you explain that more simply?",
        "Give me an example of that.",
        "Tell me more about it.",
        "What does that mean?",
        "Are you sure about that?",
        "What else should I know about it?",
        "Say that again in other words.",
        "How do you know that?",
        "And why does it matter?",
        "What was my first question?",
    ),
    "zh": (
        "能用一句话说吗？",
        "为什么？",
        "能说得更简单一点吗？",
        "举个例子。",
        "再多说一点。",
        "这是什么意思？",
        "你确定吗？",
    ),
}
MAX_TURNS = 4


@dataclass
class Respond:
    """Rows that end with the user's turn (or all, where `always`) → rows with the LLM's answer. A share of the
    conversations that begin here goes on, again and again up to MAX_TURNS: by FOLLOW_UPS or, as often, by what another
    row of the same source asks, for people change the subject, too."""

    llm: str
    url: str | None
    always: bool
    max_new_tokens: int
    rules: Filter
    follow_up_share: float
    seed: int

    name = "respond"
    uses_model = True

    def settings(self) -> dict[str, Any]:
        return {
            "version": 5,
            "llm": identity_of(self.llm, self.url),
            "always": self.always,
            "max_new_tokens": self.max_new_tokens,
            "max_answer_chars": self.rules.max_answer_chars,
            "follow_ups": (self.follow_up_share, self.seed),
        }

    def __call__(self, rows: list[Row]) -> list[Row]:
        if self.always:
            rows = [_without_last_answer(row) for row in rows]
        begun = [[m["role"] for m in row["messages"] if m["role"] != "system"] == ["user"] for row in rows]
        rows = self._answered(rows)
        if not self.follow_up_share:
            return rows
        going = [i for i, begins in enumerate(begun) if begins and "dropped" not in rows[i]]
        questions: dict[tuple[str, str], list[str]] = {}
        for i in going:
            if rows[i]["audios"] == [None]:  # what a recording says has passed no filter of texts
                questions.setdefault(_kind(rows[i]), []).extend(user_texts(rows[i]))
        for n_turns in range(1, MAX_TURNS):
            going = [i for i in going if self._goes_on(rows[i], n_turns)]
            longer = [self._with_turn(rows[i], n_turns, questions.get(_kind(rows[i]), [])) for i in going]
            done = dict(zip(going, self._answered(longer), strict=True))
            going = [i for i in going if "dropped" not in done[i]]  # the others stand as they are
            for i in going:
                rows[i] = done[i]
        return rows

    def _answered(self, rows: list[Row]) -> list[Row]:
        """The rows that end with the user's turn, with an answer or dropped; the others as they are."""
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
            meta = {**rows[i]["meta"], "answered_by": self.llm}
            meta["truncated"] = truncated or bool(meta.get("truncated"))
            done[i] = {**rows[i], "messages": [*rows[i]["messages"], answer], "meta": meta}
            if fault := answer_fault(text, self.rules):
                done[i] = drop(done[i], self.name, fault, text)
        return done

    def _goes_on(self, row: Row, n_turns: int) -> bool:
        return draw(f"follow-up/{self.seed}/{row['id']}/{n_turns}") < self.follow_up_share

    def _with_turn(self, row: Row, n_turns: int, questions: list[str]) -> Row:
        """The row with one more of the user's turns, unanswered."""
        key = f"follow-up text/{self.seed}/{row['id']}/{n_turns}"
        others = [text for text in questions if text not in user_texts(row)]
        changes = others and draw(f"subject/{key}") < 0.5
        text = pick(key, others if changes else FOLLOW_UPS[row["meta"]["language"]])
        turn = {"role": "user", "content": [{"type": "audio", "text": text}]}
        return {**row, "messages": [*row["messages"], turn], "audios": [*row["audios"], None]}


def _kind(row: Row) -> tuple[str, str]:
    # Another source's texts have another licence.
    return row["meta"]["source"], row["meta"]["language"]


def _without_last_answer(row: Row) -> Row:
    if row["messages"][-1]["role"] != "assistant":
        return row
    return {**row, "messages": row["messages"][:-1], "meta": {**row["meta"], "truncated": False}}
