"""Stage write: what the LLM or Whisper must add before a row is a conversation.

- kind `self`: the LLM writes the user's turn. Given nothing but the chat template's user prefix, an instruct model
  continues with an instruction (Magpie, arXiv 2406.08464, section 2); every second prompt shows seed tasks as
  Self-Instruct does (arXiv 2212.10560, section 2.2).
- kind `ask`: a recording whose words are missing is transcribed; then the LLM, given the transcript as LLaVA gave
  captions (arXiv 2304.08485, section 3), writes a question of conversation or reasoning about it, or the question
  for detail is drawn. The recording stays; the question is typed beside it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from llasm import audio
from llasm.weights import content_hash, resolve

from .respond import generator_for, identity_of
from .rows import Row, drop, language_of

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
FALLBACK = {"conversation": "What is this about?", "reasoning": "Why might someone say this, and what follows from it?"}
MAX_NEW_TOKENS = 48


@dataclass
class Write:
    """Rows marked with `write` → rows with messages, several for one of kind `self`; `wish` is the marked row's id."""

    llm: str
    url: str | None
    asr: str
    seed: int

    name = "write"
    uses_model = True

    def settings(self) -> dict[str, Any]:
        identity = identity_of(self.llm, self.url)
        return {"version": 2, "llm": identity, "asr": content_hash(resolve(self.asr)), "seed": self.seed}

    def __call__(self, rows: list[Row]) -> list[Row]:
        self._transcribe([row for row in rows if row["write"]["kind"] == "ask"])
        written: list[Row] = []
        for row in rows:
            made = self._instructions(row) if row["write"]["kind"] == "self" else [self._asked(row)]
            written += [{**one, "wish": row["id"]} for one in made]
        return written

    def _transcribe(self, rows: list[Row]) -> None:
        silent = [row for row in rows if row["messages"][0]["content"][0]["text"] is None]
        if not silent:
            return
        from .verify import recogniser

        for language in ("en", "zh"):
            group = [row for row in silent if row["meta"]["language"] == language]
            waves = [audio.decode(row["audios"][0].get("bytes") or row["audios"][0]["path"]) for row in group]
            for row, text in zip(group, recogniser(self.asr).transcribe(waves, language), strict=True):
                row["messages"][0]["content"][0]["text"] = text
                row["meta"]["transcribed_by"] = self.asr

    def _asked(self, row: Row) -> Row:
        ask, said = row["write"]["ask"], row["messages"][0]["content"][0]["text"]
        row = {key: value for key, value in row.items() if key != "write"}
        if not any(map(str.isalnum, said)):
            return drop(row, self.name, "no words recognised", said)
        if ask == "reply":
            return row
        language = row["meta"]["language"]
        if ask == "detail":
            draw = sha256(row["id"].encode()).digest()[0]
            question = DETAIL[language][draw % len(DETAIL[language])]
        else:
            prompt = ASK[ask].format(said=said)
            if language == "zh":
                prompt += " Write it in Chinese."
            messages = [{"role": "user", "content": prompt}]
            [(text, _)] = generator_for(self.llm, self.url).generate([messages], MAX_NEW_TOKENS)
            question = first_line(text) or FALLBACK[ask]
        parts = [*row["messages"][0]["content"], {"type": "text", "text": question}]
        row["messages"] = [{"role": "user", "content": parts}]
        row["meta"]["asked_by"] = self.llm if ask != "detail" else ""
        return row

    def _instructions(self, row: Row) -> list[Row]:
        write = row["write"]
        generator = generator_for(self.llm, self.url)
        if write["examples"]:
            examples = "\n".join(f"- {example}" for example in write["examples"])
            prompt = SELF.format(examples=examples)
        else:
            prompt = None
        texts = generator.invent(prompt, write["n"], MAX_NEW_TOKENS, seed_of(f"{self.seed}/{row['id']}"))
        made = []
        for i, (text, truncated) in enumerate(texts):
            instruction = first_line(text)
            if truncated and "\n" not in text.strip():  # a sentence cut off in its middle
                instruction = ""
            meta = {**row["meta"], "asked_by": self.llm, "language": language_of([instruction])}
            content = [{"type": "audio", "text": instruction}]
            one = {
                "id": f"{row['id'].rpartition('-')[0]}-{write['first'] + i}",
                "messages": [{"role": "user", "content": content}],
                "audios": [None],
                "meta": meta,
            }
            made.append(one if instruction else drop(one, self.name, "nothing written", text))
        return made


def seed_of(key: str) -> int:
    return int.from_bytes(sha256(key.encode()).digest()[:4], "big")


def first_line(text: str) -> str:
    """The first line that is a text, without a list's marks, a label or quotes around it."""
    for line in text.splitlines():
        line = re.sub(r"^\s*(?:[-*•]|\d+[.)]|(?:Question|Instruction|Answer)\s*:)\s*", "", line).strip()
        line = line.strip('"“”*').strip()
        if any(map(str.isalnum, line)):
            return line
    return ""
