"""Answers of a model to a batch of items under one condition, as events for the log.

An event is a dict: kind (`answer`, or `latency`: the same asked alone, to be timed), key, task, id, condition, text,
error (why there is no answer), heard (what the recogniser wrote down, in a cascade), n_audio_tokens, audio_seconds,
timings_ms (of the whole batch it was in; of kind `latency` its own), batch (its first key, size, ms, peak_mb).
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from llasm import asr, audio, chat, checkpoint
from llasm.errors import LlasmError

from .conditions import BASE, Condition, heard, messages
from .items import Item

Event = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """Items under one condition; a callable that any process can do."""

    condition: Condition
    items: tuple[Item, ...]
    keys: tuple[str, ...]  # of the events, by item
    model: str
    recogniser: str
    noise: str | None
    max_new_tokens: int
    alone: bool = False
    """Ask one by one, for latencies."""

    def __call__(self) -> list[Event]:
        model = base_model(self.model) if self.condition.kind == BASE else chat_model(self.model)
        if self.condition.kind == "cascade":
            recogniser(self.recogniser)
        if not self.alone:
            return self._answered(model)
        events, warm = [], False
        for item, key in zip(self.items, self.keys):
            try:
                waves = self._waves(item)
                if not warm:  # the first call of a process is slower
                    self._ask(model, [item], waves)
                    warm = True
                found = self._ask(model, [item], waves)
            except LlasmError:  # its file may be gone since it was answered: it has no latency
                continue
            facts = {"task": item.task, "id": item.id, "condition": str(self.condition)}
            events.append({"kind": "latency", "key": key, **facts, "timings_ms": found[0]["timings_ms"]})
        return events

    def _answered(self, model: chat.ChatModel) -> list[Event]:
        started = time.perf_counter()
        waves: list[list[audio.Wave]] = []
        items, found = [], {}
        for item in self.items:
            try:
                if self.condition.hears:
                    waves.append(heard(item, self.condition, self.noise))
                items.append(item)
            except LlasmError as error:
                found[item.id] = {"error": str(error)}
        for item, answer in zip(items, self._ask_each(model, items, waves)):
            found[item.id] = answer
        ms = 1000 * (time.perf_counter() - started)
        batch = {"first": self.keys[0], "n": len(self.items), "ms": round(ms, 3), "peak_mb": peak_mb()}
        return [
            {"kind": "answer", "key": key, "task": item.task, "id": item.id, "condition": str(self.condition)}
            | found[item.id]
            | {"batch": batch}
            for item, key in zip(self.items, self.keys)
        ]

    def _waves(self, item: Item) -> list[list[audio.Wave]]:
        return [heard(item, self.condition, self.noise)] if self.condition.hears else []

    def _ask_each(self, model: chat.ChatModel, items: list[Item], waves: list[list[audio.Wave]]) -> list[Event]:
        """All at once; where one of them cannot be answered each for itself, so that only that one is an error."""
        if not items:
            return []
        try:
            return self._ask(model, items, waves)
        except LlasmError as error:
            if len(items) == 1:
                return [{"error": str(error)}]
        clips = [[given] for given in waves] or [[] for _ in items]
        return [self._ask_each(model, [item], given)[0] for item, given in zip(items, clips)]

    def _ask(self, model: chat.ChatModel, items: list[Item], waves: list[list[audio.Wave]]) -> list[Event]:
        started = time.perf_counter()
        words: list[list[str] | None] = [[*(asked for asked, _ in item.before), item.question] for item in items]
        if self.condition.kind == "cascade":
            words = list(transcribed(recogniser(self.recogniser), items, waves))
        elif self.condition.kind == "speech":
            words = [None] * len(items)
        transcribe = 1000 * (time.perf_counter() - started)
        clips = waves if self.condition.kind == "speech" else [[] for _ in items]
        conversations = [messages(item, text, given) for item, text, given in zip(items, words, clips)]
        replies = model.batch(conversations, max_new_tokens=self.max_new_tokens)
        events: list[Event] = []
        for i, reply in enumerate(replies):
            timings = {name: round(ms, 3) for name, ms in reply.timings_ms.items() if name != "decode_audio"}
            event: Event = {"text": reply.text, "n_audio_tokens": reply.n_audio_tokens, "timings_ms": timings}
            seconds = sum(map(len, waves[i])) / audio.SAMPLE_RATE if waves else 0.0
            event["audio_seconds"] = round(seconds, 3)
            if self.condition.kind == "cascade":
                event["heard"] = "\n".join(words[i] or [])
                timings["transcribe"] = round(transcribe, 3)
                for name in ("first_token", "total"):
                    timings[name] = round(timings[name] + transcribe, 3)
            events.append(event)
        return events


def transcribed(model: asr.Recogniser, items: list[Item], waves: list[list[audio.Wave]]) -> list[list[str]]:
    """What the recogniser hears in each turn of each item; without earlier turns, its clips one after the other."""
    texts: list[list[str]] = [[] for _ in items]
    for language in dict.fromkeys(item.language for item in items):
        chosen = [i for i, item in enumerate(items) if item.language == language]
        found = iter(model.transcribe([wave for i in chosen for wave in waves[i]], language))
        for i in chosen:
            turns = [next(found).strip() for _ in waves[i]]
            texts[i] = turns if items[i].before else [" ".join(turns).strip()]
    return texts


# One of each for a process: batches come one after the other.


@lru_cache(maxsize=1)
def chat_model(name: str) -> chat.ChatModel:
    return chat.load(name)


@lru_cache(maxsize=1)
def base_model(name: str) -> chat.ChatModel:
    """The model's LLM as it was before training, behind the same interface and asked under the same template."""
    trained = chat_model(name)
    model, processor = trained.model, trained.processor
    audio_dir, text_dir = map(str, original_bases(name))
    fresh, _ = checkpoint.from_bases(
        audio_dir, text_dir, model.config.adapter_config, model.dtype, chat_template=processor.chat_template
    )
    return chat.ChatModel(fresh.to(model.device, model.dtype), processor)


def original_bases(name: str) -> tuple[Path, Path]:
    """Directories of the encoder and the LLM that a model was trained on; LlasmError where they are no longer those."""
    directory = checkpoint.locate(name)
    config, _ = checkpoint.describe(directory)
    if not config.bases:
        raise LlasmError(f"{directory}: does not say which LLM it was trained on, so task typed has none to ask")
    return checkpoint.checked_base(config, "audio", directory), checkpoint.checked_base(config, "text", directory)


@lru_cache(maxsize=1)
def recogniser(name: str) -> asr.Recogniser:
    return asr.Recogniser(name, exact=True)


def peak_mb() -> int:
    """The most memory that this process has held: a GPU's where there is one, else resident (MB)."""
    import resource

    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() // 1_000_000
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 1_000_000
