"""A user's own questions, and what is asked of a model beside questions: repeating, silence, typed chat."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from llasm import effects
from llasm.audio import SAMPLE_RATE, to_flac_bytes
from llasm.draws import generator
from llasm.errors import LlasmError
from llasm.records import BadRow, Record, audio_files

from .items import HAN, Item
from .task import Task, clips, field, row_id, text, texts

LETTERS = "ABCDEFGHIJ"
_AUDIO = ("audio", "file_name", "file", "wav", "path")
_ANSWERS = ("answers", "answer", "reference", "output")
_QUESTION = ("question", "text", "prompt", "sentence", "transcript", "transcription")


class Custom(Task):
    """Your own: JSONL, JSON, CSV, TSV, parquet, an audiofolder or a hub id, with these columns.

    audio (or file_name, file; relative to the table) or question (or text, prompt), or both; answers (or answer,
    reference: a list, or texts separated by "|"); choices, if any, likewise; id, group, language if you like; before:
    earlier turns, [[what the user said, what the assistant answered], …], with one clip a turn.
    """

    name = "custom"
    files = ("metadata.jsonl", "metadata.csv", "*.jsonl", "*.csv", "*.tsv", "*.parquet", "*.json")

    def records(self, file: Path) -> Iterator[tuple[str, Record | BadRow]]:
        # A table's heads as people write them: "Question", "Answers ".
        for where, record in super().records(file):
            if isinstance(record, dict) and file.suffix.lower() in (".csv", ".tsv"):
                record = {name.strip().lower(): value for name, value in record.items()} | record
            yield where, record

    def item(self, record: Record, where: str) -> Item:
        if not any(name in record for name in _ANSWERS):
            columns = ", ".join(map(repr, record))
            raise ValueError(f"no column {', '.join(_ANSWERS[:-1])} or {_ANSWERS[-1]}; its columns are {columns}")
        answers = _several(field(record, *_ANSWERS, default=()))
        options = _several(field(record, "choices", default=()))
        if len(options) > len(LETTERS):
            raise ValueError(f"{len(options)} choices; at most {len(LETTERS)}")
        choices = dict(zip(LETTERS, options))
        typed = "\n".join(f"{label}. {option}" for label, option in choices.items())
        audio = clips(record, where, *_AUDIO)
        # Not for a voice to speak: the other rows' speech is somebody else's.
        silent = "its audio is not named" if not audio and any(name in record for name in _AUDIO) else ""
        return Item(
            id=str(field(record, "id", default=row_id(where))),
            task=self.name,
            kind="choice" if choices else self.kind,
            question=text(_question(record)),
            answers=tuple(_label(answer, choices) for answer in answers),
            audio=audio,
            choices=choices,
            typed=f"{typed}\nAnswer with the letter of one option." if choices else "",
            before=_before(record.get("before") or ()),
            group=str(record.get("group") or ""),
            language=_language(record),
            fault=silent,
        )


def _language(record: Record) -> str:
    """What the record says, else by the script of its question."""
    return str(record.get("language") or ("zh" if re.search(f"[{HAN}]", str(_question(record))) else "en"))


def _before(turns: Any) -> tuple[tuple[str, str], ...]:
    try:
        return tuple((text(asked), text(answer)) for asked, answer in turns)
    except (TypeError, ValueError):
        raise ValueError(f"before is {turns!r:.80}; it must be [[question, answer], …]") from None


def _question(record: Record) -> Any:
    return field(record, *_QUESTION, default="")


def _several(value: Any) -> tuple[str, ...]:
    return texts(value.split("|") if isinstance(value, str) else value)


def _label(answer: str, choices: dict[str, str]) -> str:
    """An option's label, given that or its text; the answer as it is where it is neither."""
    for label, option in choices.items():
        if answer.casefold() == option.casefold():
            return label
    return answer.upper() if answer.upper() in choices else answer


class FollowUp(Custom):
    """Conversations of two turns, whose second asks for what the first said: 50 of our own, or yours (see `custom`)."""

    name = "follow_up"

    def read(self, data: str | None, limit: int | None = None) -> list[Item]:
        return super().read(data or str(files("llasm.evals") / "sets" / "follow_ups.jsonl"), limit)


class Transcription(Custom):
    """Speech with its words (audio and text, columns as in `custom`): the model is asked to repeat it."""

    name = "transcription"
    kind = "transcription"
    ask = "Repeat what I just said, word for word."  # as in training (`train`)

    def item(self, record: Record, where: str) -> Item:
        words = text(field(record, *_QUESTION, "answer"))
        item = super().item({"question": words, **record, "answers": [words], "choices": None}, where)
        return replace(item, typed=self.ask)


class NoSpeech(Task):
    """Sound in which nobody speaks: a folder of recordings, or generated silence, noise and music.

    The right answer says that nothing was heard, or nothing; any other is a false answer.
    """

    name = "no_speech"
    kind = "no_speech"
    seconds = (1.0, 2.0, 3.0, 5.0, 8.0)
    copies = 20  # of noise and music at each length: 205 clips with the silences

    def read(self, data: str | None, limit: int | None = None) -> list[Item]:
        if data is None:
            return list(self._generated())[:limit]
        files = audio_files(Path(data))
        if not files:
            raise LlasmError(f"task {self.name}: {data} holds no audio file")
        place = Path(data) if Path(data).is_dir() else Path(data).parent
        names = [(str(file.relative_to(place)), str(file)) for file in files[:limit]]
        return [
            Item(id=name, task=self.name, kind="no_speech", audio=(path,), group="recordings") for name, path in names
        ]

    def _generated(self) -> Any:
        makers = {
            "silence": lambda n, rng: np.zeros(n, np.float32),
            "noise": effects.generated_noise,
            "music": effects.generated_music,
        }
        for copy in range(self.copies):
            for seconds in self.seconds:
                for kind, make in makers.items():
                    name = f"{kind}-{seconds:g}s-{copy}"
                    if kind == "silence" and copy:
                        continue  # it would be the same again
                    wave = make(int(seconds * SAMPLE_RATE), generator(f"no_speech/{name}"))
                    clip = {"bytes": to_flac_bytes(wave), "path": None}
                    yield Item(id=name, task=self.name, kind="no_speech", audio=(clip,), group=kind)


class Typed(Custom):
    """Is typed chat as it was? Each prompt goes to the model and to its LLM before training (greedily).

    The prompts are below, or questions of your own (columns as in `custom`, no audio).
    """

    name = "typed"
    kind = "typed"

    def read(self, data: str | None, limit: int | None = None) -> list[Item]:
        if data is not None:
            return super().read(data, limit)
        prompts = list(enumerate(PROMPTS, 1))[:limit]
        return [Item(id=f"prompt-{i}", task=self.name, kind="typed", question=prompt) for i, prompt in prompts]

    def item(self, record: Record, where: str) -> Item:
        question = text(field(record, *_QUESTION))
        return Item(id=str(field(record, "id", default=row_id(where))), task=self.name, kind="typed", question=question)


PROMPTS = (
    "What is the capital of Italy?",
    "Write a short poem about the sea.",
    "Explain to a child why the sky is blue.",
    "What is 17 plus 25?",
    "Give me three ideas for a birthday present.",
    "Translate into French: Good morning, how are you?",
    "Who wrote Romeo and Juliet?",
    "List the planets of the solar system.",
    "Summarise in one sentence what a computer does.",
    "How do I boil an egg?",
    "Name two animals that live in the desert.",
    "Write an email asking for a day off.",
    "What is the difference between weather and climate?",
    "Give me a synonym for happy.",
    "Is the following sentence correct? She go to school every day.",
    "What should I pack for a week in the mountains?",
    "Tell me a joke.",
    "Which is heavier, a kilogram of iron or a kilogram of feathers?",
    "Write a function in Python that adds two numbers.",
    "How many days are in a leap year?",
    "What can I cook with eggs, rice and tomatoes?",
    "Describe the taste of a lemon.",
    "What happens when water freezes?",
    "Give me advice on how to learn a language.",
)
