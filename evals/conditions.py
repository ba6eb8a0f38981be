"""What the LLM is given of a question: the speech, the text, or what a recogniser heard; and what befalls the audio."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from llasm import audio, effects
from llasm.draws import generator, pick
from llasm.errors import LlasmError
from llasm.records import audio_files

from .items import Item

KINDS = ("speech", "text", "cascade")
BASE = "base"  # the text, to the LLM as it was before any training: task `typed` compares with it
TRANSCRIPT = "transcript"  # what a cascade's recogniser wrote down: task `transcription` compares with it


@dataclass(frozen=True)
class Variation:
    """snr: noise at `value` dB; speed: `value` times the pace; telephone."""

    name: str
    value: float | None = None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}{self.value:g}"


@dataclass(frozen=True)
class Condition:
    kind: str
    variation: Variation | None = None

    def __str__(self) -> str:
        return self.kind if self.variation is None else f"{self.kind}@{self.variation}"

    @property
    def hears(self) -> bool:
        return self.kind in ("speech", "cascade", TRANSCRIPT)

    @classmethod
    def parse(cls, text: str) -> Condition:
        """The inverse of str()."""
        kind, _, varied = text.partition("@")
        for name in ("snr", "speed"):
            if varied.startswith(name):
                return cls(kind, Variation(name, float(varied[len(name) :])))
        return cls(kind, Variation(varied) if varied else None)


def conditions_of(item: Item, asked: list[Condition]) -> list[Condition]:
    """Those of the asked conditions that this item can be put under."""
    if item.kind == "typed":
        return [Condition("text"), Condition(BASE)]
    # What is faulty is reported as an error, whichever part of it is missing.
    possible = [c for c in asked if c.hears or item.question or item.fault]
    return [c for c in possible if c.hears] if item.kind == "no_speech" else possible


def heard(item: Item, condition: Condition, noise_folder: str | None) -> list[audio.Wave]:
    """The item's clips as the condition has them. Raises LlasmError where one cannot be read."""
    waves = [audio.decode(source) for source in item.audio]
    variation = condition.variation
    if variation is None:
        return waves
    if variation.name == "telephone":
        return [effects.telephone(wave) for wave in waves]
    assert variation.value is not None  # snr and speed have one
    if variation.name == "speed":
        return [effects.shifted(wave, 0, variation.value) for wave in waves]
    # The same noise at every ratio, so that only the ratio differs.
    return [
        effects.add_noise(wave, _noise(noise_folder, key, len(wave)), variation.value, generator(f"place/{key}"))
        for wave, key in zip(waves, (f"{item.task}/{item.id}/{i}" for i in range(len(waves))))
    ]


def _noise(folder: str | None, key: str, n_samples: int) -> audio.Wave:
    if folder is None:
        return effects.generated_noise(n_samples, generator(f"noise/{key}"))
    return _decoded(pick(f"noise/{key}", noise_files(folder)))


@lru_cache(maxsize=256)
def _decoded(path: Path) -> audio.Wave:
    return audio.decode(path)


@lru_cache(maxsize=4)
def noise_files(folder: str) -> tuple[Path, ...]:
    """The recordings below a folder; LlasmError where there is none."""
    files = tuple(audio_files(Path(folder)))
    if not files:
        raise LlasmError(f"noise is {folder!r}: it holds no audio file")
    return files


def messages(item: Item, words: list[str] | None, waves: list[audio.Wave]) -> list[dict[str, Any]]:
    """The user's turns, with earlier answers between them: the clips, or the words of each turn instead of them; then
    what is typed beside the question."""
    turns: list[Any] = list(words) if words is not None else [_clips([wave]) for wave in waves]
    if words is None and not item.before:
        turns = [_clips(waves)]
    if item.typed and words is not None:
        turns[-1] = "\n".join(text for text in (turns[-1], item.typed) if text)
    elif item.typed:
        turns[-1].append({"type": "text", "text": item.typed})
    found: list[dict[str, Any]] = []
    for turn, (_, answer) in zip(turns, (*item.before, ("", ""))):
        found += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return found[:-1]


def _clips(waves: list[audio.Wave]) -> list[dict[str, Any]]:
    return [{"type": "audio", "audio": wave} for wave in waves]
