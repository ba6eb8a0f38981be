"""An LLM behind an OpenAI-compatible URL says whether answers are right. What it cannot be read to say is no score.

The prompts are pinned: a change of their words is a change of VERSION, and so of the cache.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llasm.errors import LlasmError
from llasm.files import open_log, read_log
from llasm.generator import ServerGenerator

from .items import Item, digest

VERSION = 1
BATCH = 64
MAX_NEW_TOKENS = 64
RIGHT_OR_WRONG = """\
You are grading the answer of a voice assistant.

Question: {question}
Reference answers (any of them is right): {answers}
Assistant's answer: {answer}

Is the assistant's answer right? It is right if it says the same as a reference, in any words and at any length. \
It is wrong if it says something else, contradicts itself or does not answer.
Reply with one word: CORRECT or INCORRECT."""
ONE_TO_FIVE = """\
You are grading the answer of a voice assistant on a scale from 1 to 5.

Question: {question}
Assistant's answer: {answer}

1: irrelevant, wrong or empty. 2: partly relevant with serious faults. 3: relevant and mostly right, but incomplete or \
unclear. 4: right and helpful, with small faults. 5: right, complete and to the point.
Reply with one digit."""


def prompt_for(item: Item, answer: str) -> str:
    question = "\n".join(text for text in (item.question, item.typed) if text)
    template = ONE_TO_FIVE if item.kind == "open" else RIGHT_OR_WRONG
    return template.format(question=question, answers="; ".join(item.answers), answer=answer)


def parse(reply: str, kind: str) -> float | None:
    """1.0 or 0.0, for kind `open` 1 to 5; None where the reply does not say one thing only."""
    if kind == "open":
        said = re.fullmatch(r"[\s*\"'(]*([1-5])(?:\s*/\s*5)?[\s*\"').]*", reply)
        return float(said[1]) if said else None
    said = re.fullmatch(r"\W*(IN)?CORRECT\W*", reply.upper())
    return (0.0 if said[1] else 1.0) if said else None


class Judge:
    """Asks each question once: replies are kept, as they came, in `judge.jsonl`."""

    def __init__(self, url: str, model: str, folder: Path, asks: bool = True) -> None:
        """asks: where a reply is not there yet; else that answer stays without a judgement."""
        self.asks = asks
        self.url, self.model, self.log = url, model, folder / "judge.jsonl"
        self._replies: dict[str, str] = {}
        if self.log.exists():
            self._replies = {row["key"]: row["reply"] for row in read_log(self.log)}

    @classmethod
    def kept(cls, folder: Path) -> Judge | None:
        """The judge whose replies the folder holds, the last one, to be read and not asked again; None without any."""
        rows = list(read_log(folder / "judge.jsonl")) if (folder / "judge.jsonl").exists() else []
        return cls(rows[-1]["url"], rows[-1]["model"], folder, asks=False) if rows and "url" in rows[-1] else None

    def scores(self, answered: list[tuple[Item, str]]) -> list[dict[str, Any]]:
        """{"judge": score or None, "judged": whether the reply could be read} of each (item, answer); {} unasked."""
        prompts = [prompt_for(item, answer) for item, answer in answered]
        keys = [digest([VERSION, self.url, self.model, prompt]) for prompt in prompts]
        todo = {key: prompt for key, prompt in zip(keys, prompts) if key not in self._replies}
        if todo and self.asks:
            self._ask(list(todo.items()))
        found: list[dict[str, Any]] = []
        for key, (item, _) in zip(keys, answered):
            score = parse(self._replies[key], item.kind) if key in self._replies else None
            found.append({"judge": score, "judged": score is not None} if key in self._replies else {})
        return found

    def _ask(self, todo: list[tuple[str, str]]) -> None:
        try:
            server = ServerGenerator(self.model, self.url)
        except ImportError as error:
            raise LlasmError(f"a judge needs the package openai: pip install 'llasm[eval]' ({error})") from error
        with open_log(self.log) as log, tqdm(total=len(todo), desc="judge", unit="answer") as bar:
            for start in range(0, len(todo), BATCH):
                batch = todo[start : start + BATCH]
                replies = server.generate([[{"role": "user", "content": text}] for _, text in batch], MAX_NEW_TOKENS)
                for (key, _), (reply, _) in zip(batch, replies):
                    self._replies[key] = reply
                    row = {"key": key, "url": self.url, "model": self.model, "reply": reply}
                    log.write(json.dumps(row, ensure_ascii=False) + "\n")
                log.flush()
                bar.update(len(batch))
