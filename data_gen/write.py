"""Stage write: what the LLM or Whisper must add before a row is a conversation.

- kind `self`: the LLM writes the user's turn. Given nothing but the chat template's user prefix, an instruct model
  continues with an instruction (Magpie, arXiv 2406.08464, section 2); every second prompt shows seed tasks as
  Self-Instruct does (arXiv 2212.10560, section 2.2).
- kind `transcribe`: Whisper writes what the recordings say, and in which language.
- kind `ask`: the same where words are missing; then the LLM, given the transcript as LLaVA gave captions (arXiv
  2304.08485, section 3), writes a question of conversation (with its answer and a second question) or of reasoning
  about it, or the question for detail is drawn. The recording stays; the questions are typed beside it.
- kind `long_audio`: a recording is cut at pauses (`Cut`); each segment is then a row of kind `ask`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from llasm import audio
from llasm.draws import pick, seed_of
from llasm.errors import LlasmError
from llasm.generator import generator_for, identity_of

from .filter import answer_fault
from .recipe import LANGUAGES, Filter
from .rows import Row, all_texts, as_typed, drop, language_of, user_texts

DETAIL = {
    "en": (
        "Describe in detail what is said.",
        "Tell me everything that this recording says.",
        "What is said here? Explain it thoroughly.",
        "Give a detailed account of what you heard.",
    ),
    "zh": ("请详细说明录音里说了什么。", "这段录音的内容是什么？请详细描述。"),
}
ASK = {
    "conversation": "Here is what someone said:\n{said}\nWrite one short question about it. Write only the question.",
    "reasoning": "Here is what someone said:\n{said}\nWrite one question about it that needs thinking, about why or "
    "what follows. Write only the question.",
}
SELF = "Write one new instruction or question for an assistant, unlike these:\n{examples}\nWrite only the instruction."
FOLLOW_UP = (
    "Here is what someone said:\n{said}\nA user asked: {question}\nThe answer was: {answer}\nWrite the user's next "
)
FOLLOW_UP += "question. Write only the question."
FALLBACK = {
    "en": {
        "conversation": "What is this about?",
        "reasoning": "Why might someone say this, and what follows from it?",
    },
    "zh": {"conversation": "这段话讲了什么？", "reasoning": "为什么有人会这么说？由此可以得出什么？"},
}
MAX_NEW_TOKENS = 48


@dataclass(frozen=True)
class Cut:
    """Rows of kind `long_audio` → a row of kind `ask` for each segment; `wish` is the recording's id."""

    seed: int

    name = "cut"
    uses_model = False

    def settings(self) -> dict[str, Any]:
        return {"version": 1, "seed": self.seed}

    def __call__(self, rows: list[Row]) -> list[Row]:
        return [segment for row in rows for segment in self._segments({**row, "wish": row["id"]})]

    def _segments(self, row: Row) -> list[Row]:
        """Segments as long as Whisper's window has room for, cut at pauses."""
        from llasm import vad

        try:
            wave = _wave(row["audios"][0])
        except LlasmError as error:
            return [drop(row, self.name, "unreadable audio", str(error))]
        made = []
        for start, end in vad.segments(wave):
            name = f"{row['id']}-{start / audio.SAMPLE_RATE:.2f}"
            content = audio.to_flac_bytes(wave[start:end])
            made.append(
                {
                    **row,
                    "id": name,
                    "messages": [{"role": "user", "content": [{"type": "audio", "text": None}]}],
                    "audios": [{"bytes": content, "sha256": sha256(content).hexdigest()}],
                    "meta": dict(row["meta"]),
                    "write": {"kind": "ask", "ask": pick(f"ask/{self.seed}/{name}", row["write"]["asks"])},
                }
            )
        return made or [drop(row, self.name, "no speech found")]


@dataclass
class Write:
    """Rows marked with `write` → rows with messages, several for one of kind `self`.

    `wish` is the marked row's id.
    """

    llm: str
    url: str | None
    asr: str
    max_new_tokens: int
    rules: Filter
    seed: int

    name = "write"
    uses_model = True

    def settings(self) -> dict[str, Any]:
        return {
            "version": 4,
            "llm": identity_of(self.llm, self.url),
            "asr": identity_of(self.asr, None),
            "max_new_tokens": self.max_new_tokens,
            "max_answer_chars": self.rules.max_answer_chars,
            "seed": self.seed,
        }

    def __call__(self, rows: list[Row]) -> list[Row]:
        rows = [{**row, "wish": row["id"]} for row in rows]
        rows = [made for row in rows for made in (self._instructions(row) if row["write"]["kind"] == "self" else [row])]
        rows = self._transcribed(rows)
        rows = self._asked(rows)
        return [{key: value for key, value in row.items() if key != "write"} for row in rows]

    def _instructions(self, row: Row) -> list[Row]:
        write = row["write"]
        prompt = None
        if write["examples"]:
            prompt = SELF.format(examples="\n".join(f"- {example}" for example in write["examples"]))
        seed = seed_of(f"{self.seed}/{row['id']}") % 2**32
        texts = generator_for(self.llm, self.url).invent(prompt, write["n"], MAX_NEW_TOKENS, seed)
        made = []
        for i, (text, truncated) in enumerate(texts):
            instruction = first_line(text)
            if truncated and "\n" not in text.strip():  # a sentence cut off in its middle
                instruction = ""
            meta = {**row["meta"], "asked_by": self.llm, "language": language_of([instruction])}
            messages = [{"role": "user", "content": [{"type": "audio", "text": instruction}]}]
            one = {**row, "id": f"{row['id']}.{i}", "messages": messages, "audios": [None], "meta": meta}
            made.append(one if instruction else drop(one, self.name, "nothing written", text))
        return made

    def _transcribed(self, rows: list[Row]) -> list[Row]:
        """Each recording without words gets Whisper's, its row the language that Whisper hears."""
        from .verify import recogniser

        done = list(rows)
        silent: list[tuple[int, dict[str, Any], audio.Wave]] = []  # (row, its part, what it sounds like)
        for i, row in enumerate(rows):
            if "dropped" in row:
                continue
            parts = [p for m in row["messages"] for p in m["content"] if p["type"] == "audio"]
            try:
                pairs = zip(parts, row["audios"], strict=True)
                heard = [(i, part, _wave(given)) for part, given in pairs if part["text"] is None]
            except LlasmError as error:
                done[i] = drop(row, self.name, "unreadable audio", str(error))
                continue
            if heard:
                silent += heard
                done[i] = {**row, "meta": {**row["meta"], "transcribed_by": self.asr}}
        if not silent:
            return done
        whisper = recogniser(self.asr)
        unknown = [(i, wave) for i, _, wave in silent if done[i]["meta"]["language"] == "auto"]
        for (i, _), language in zip(unknown, whisper.detect([wave for _, wave in unknown], LANGUAGES), strict=True):
            done[i]["meta"]["language"] = language
        for language in sorted({done[i]["meta"]["language"] for i, _, _ in silent}):
            group = [(i, part, wave) for i, part, wave in silent if done[i]["meta"]["language"] == language]
            texts = whisper.transcribe([wave for _, _, wave in group], language)
            for (_, part, _), text in zip(group, texts, strict=True):
                part["text"] = text
        for i in {i for i, _, _ in silent}:
            if not all(any(map(str.isalnum, text)) for text in user_texts(done[i])):
                done[i] = drop(done[i], self.name, "no words recognised", " | ".join(user_texts(done[i])))
        return done

    def _asked(self, rows: list[Row]) -> list[Row]:
        """Rows of kind `ask` with the question typed behind the recording; all written in one batch."""
        done = list(rows)
        asked = [i for i, row in enumerate(rows) if row["write"]["kind"] == "ask" and "dropped" not in row]
        wishes = {i: rows[i]["write"]["ask"] for i in asked if rows[i]["write"]["ask"] != "reply"}
        questions = {i: self._detail(rows[i]) for i, wish in wishes.items() if wish == "detail"}
        open_ones = [i for i in wishes if i not in questions]
        prompts = [ASK[wishes[i]].format(said=user_texts(rows[i])[0]) for i in open_ones]
        for i, text in zip(open_ones, self._written(prompts, [rows[i] for i in open_ones]), strict=True):
            questions[i] = text or FALLBACK[rows[i]["meta"]["language"]][wishes[i]]
        for i, question in questions.items():
            messages = rows[i]["messages"]
            parts = [*messages[0]["content"], {"type": "text", "text": question}]
            by = {"asked_by": self.llm} if i in open_ones else {}
            done[i] = {**rows[i], "messages": [{"role": "user", "content": parts}], "meta": {**rows[i]["meta"], **by}}
        talks = [i for i in open_ones if wishes[i] == "conversation"]
        for i, row in zip(talks, self._continued([done[i] for i in talks]), strict=True):
            done[i] = row
        return done

    def _continued(self, rows: list[Row]) -> list[Row]:
        """Each row with the LLM's answer and the user's next question, typed; as it is where the answer is no good.

        An answer that the length limit cut off would teach a false stop in the conversation's middle.
        """
        if not rows:
            return rows
        generate = generator_for(self.llm, self.url).generate
        replies = generate([as_typed(row) for row in rows], self.max_new_tokens)
        prompts = [
            FOLLOW_UP.format(said=user_texts(row)[0], question=all_texts(row)[-1], answer=answer)
            for row, (answer, _) in zip(rows, replies, strict=True)
        ]
        done = []
        for row, (answer, truncated), next_question in zip(rows, replies, self._written(prompts, rows), strict=True):
            if truncated or answer_fault(answer, self.rules) or not next_question:
                done.append(row)
                continue
            turns = [("assistant", answer), ("user", next_question)]
            more = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
            done.append({**row, "messages": [*row["messages"], *more]})
        return done

    def _written(self, prompts: list[str], rows: list[Row]) -> list[str]:
        """The LLM's first line for each prompt, in the row's language; "" where it is none."""
        if not prompts:
            return []
        chinese = [row["meta"]["language"] == "zh" for row in rows]
        batch = [
            [{"role": "user", "content": prompt + " Write it in Chinese." * zh}]
            for prompt, zh in zip(prompts, chinese, strict=True)
        ]
        written = generator_for(self.llm, self.url).generate(batch, MAX_NEW_TOKENS)
        return [first_line(text) for text, _ in written]

    def _detail(self, row: Row) -> str:
        return pick(f"detail/{self.seed}/{row['id']}", DETAIL[row["meta"]["language"]])


def _wave(given: dict[str, Any]) -> audio.Wave:
    return audio.decode(given.get("bytes") or given["path"])


def first_line(text: str) -> str:
    """The first line that is a text, without a list's marks, a label or quotes around it."""
    for line in text.splitlines():
        line = re.sub(r"^\s*(?:[-*•]|\d+[.)]|(?:Question|Instruction|Answer)\s*:)\s*", "", line).strip()
        line = line.strip('"“”*').strip()
        if any(map(str.isalnum, line)):
            return line
    return ""
