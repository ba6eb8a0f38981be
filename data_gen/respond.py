"""Answers written by the target LLM itself: the targets that align a speech adapter with it.

Self-generated targets: BLSP (arXiv 2309.00916), AudioChatLlama (arXiv 2311.06753), DiVA (arXiv 2410.02678).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

Messages = list[dict[str, str]]


class TextGenerator(Protocol):
    """Writes the assistant's next message for each conversation."""

    identity: str  # part of the cache key: another model writes other answers

    def generate(self, batch: list[Messages], max_new_tokens: int) -> list[tuple[str, bool]]:
        """Greedy answers in order, each with whether `max_new_tokens` cut it off."""
        ...


class LocalGenerator:
    """A transformers causal LM from a named base, a hub id or a directory."""

    def __init__(self, name: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from llasm import weights

        directory = weights.resolve(name)
        self.identity = weights.content_hash(directory)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # bfloat16 halves the time of a batch on CPUs with AMX and on GPUs.
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
        self._model = model.to(device).eval()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(directory, padding_side="left")

    def generate(self, batch: list[Messages], max_new_tokens: int) -> list[tuple[str, bool]]:
        import torch

        inputs = self._tokenizer.apply_chat_template(
            batch, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(self._model.device)
        with torch.inference_mode():
            output = self._model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        answers = output[:, inputs["input_ids"].shape[1] :]
        stops = self._model.generation_config.eos_token_id
        stops = stops if isinstance(stops, list) else [stops]
        ended = torch.isin(answers, torch.tensor(stops, device=answers.device)).any(1).tolist()
        texts = self._tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [(text.strip(), not end) for text, end in zip(texts, ended, strict=True)]


def respond(
    conversations: list[Messages], generator: TextGenerator, cache: Path, max_new_tokens: int, batch_size: int
) -> Iterator[tuple[int, str, bool]]:
    """Yields (index, answer, truncated) for every conversation, shortest prompts first.

    Every batch is appended to `cache` (JSONL keyed by content) before it is yielded: an interrupted run
    continues with the next batch.
    """
    known: dict[str, tuple[str, bool]] = {}
    if cache.exists():
        for line in cache.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the last line of a killed run
                continue
            known[row["key"]] = (row["text"], row["truncated"])
    keys = [sha256(json.dumps([c, generator.identity, max_new_tokens]).encode()).hexdigest() for c in conversations]
    for i, key in enumerate(keys):
        if key in known:
            yield i, *known[key]
    todo = [i for i, key in enumerate(keys) if key not in known]
    todo.sort(key=lambda i: sum(len(m["content"]) for m in conversations[i]))
    with open(cache, "a", encoding="utf-8") as out:
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            answers = generator.generate([conversations[i] for i in batch], max_new_tokens)
            for i, (text, truncated) in zip(batch, answers, strict=True):
                out.write(json.dumps({"key": keys[i], "text": text, "truncated": truncated}) + "\n")
            out.flush()
            for i, (text, truncated) in zip(batch, answers, strict=True):
                yield i, text, truncated
