"""Text to speech: one protocol, one file an engine, found by entry point.

An engine is a class without arguments, named in the entry-point group `llasm.tts`; it loads its
weights at the first `synthesize`. The generator (spoken data) and the chat (spoken replies) share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol

import numpy as np

from llasm.errors import LlasmError


@dataclass(frozen=True)
class Voice:
    """A voice that an engine can speak with."""

    id: str
    language: str  # BCP 47, such as en-US
    gender: str
    licence: str  # SPDX id


class TTSEngine(Protocol):
    """What every engine offers."""

    name: str
    sample_rate: int  # Hz

    def voices(self) -> list[Voice]: ...

    def synthesize(self, text: str, voice: str, speed: float = 1.0, seed: int = 0) -> np.ndarray:
        """float32 mono [n_samples] at `sample_rate`, peak 0.9; the same arguments give the same samples.

        Raises LlasmError when the text holds nothing that can be spoken or the voice is unknown.
        """
        ...


def engine_names() -> list[str]:
    return sorted(point.name for point in entry_points(group="llasm.tts"))


def load_engine(name: str) -> TTSEngine:
    """The engine of that name; LlasmError when there is none or its package is missing."""
    points = entry_points(group="llasm.tts", name=name)
    if not points:
        raise LlasmError(f"unknown speech engine {name!r}: installed are {', '.join(engine_names())}")
    try:
        return next(iter(points)).load()()
    except ImportError as error:
        raise LlasmError(f"speech engine {name!r} needs a package that is not installed: {error}") from error


def load_voice(spec: str) -> tuple[TTSEngine, str]:
    """`"engine:voice"` or `"engine"` (its first voice) → (engine, voice id)."""
    name, _, voice = spec.partition(":")
    engine = load_engine(name)
    ids = [v.id for v in engine.voices()]
    if voice and voice not in ids:
        raise LlasmError(f"unknown voice {voice!r} of engine {name!r}: it has {', '.join(ids)}")
    return engine, voice or ids[0]
