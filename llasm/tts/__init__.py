"""Text to speech: one protocol, one file an engine, found by entry point.

An engine is a class without arguments, named in the entry-point group `llasm.tts`; it loads its
weights at the first `synthesize`. The generator (spoken data) and the chat (spoken replies) share it.
Texts go through `speakable` first, which writes numbers and symbols as words.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol

import numpy as np

from llasm.errors import LlasmError

PEAK = 0.9  # of every engine's samples: their own levels differ by 20 dB


@dataclass(frozen=True)
class Voice:
    """A voice that an engine can speak with."""

    id: str
    language: str  # BCP 47, such as en-US
    gender: str
    licence: str  # SPDX id


class UnspeakableText(LlasmError):
    """The text holds nothing that the voice can say; any other LlasmError of an engine is the engine's own trouble."""


class TTSEngine(Protocol):
    """What every engine offers. One whose speech depends on more than its package's version also has
    `identity(voice) -> str`: the hash of a weights file, the address of a server."""

    name: str
    sample_rate: int  # Hz

    def voices(self) -> list[Voice]: ...

    def synthesize(self, text: str, voice: str, speed: float = 1.0, seed: int = 0) -> np.ndarray:
        """float32 mono [n_samples] at `sample_rate`, peak 0.9; the same arguments give the same samples.

        Raises UnspeakableText when the text holds nothing that can be spoken, LlasmError when the voice is unknown.
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


def identity_of(name: str, voice: str) -> str:
    """What the speech of a voice depends on beside text, speed and seed: for the keys of caches."""
    [point, *_] = entry_points(group="llasm.tts", name=name)
    engine = load_engine(name)
    own = engine.identity(voice) if hasattr(engine, "identity") else ""
    return f"{name}:{voice} {point.dist.name} {point.dist.version} {own}" if point.dist else f"{name}:{voice} {own}"


def load_voices(spec: str) -> tuple[TTSEngine, list[Voice]]:
    """`"engine:voice"`, `"engine"` (its first voice) or `"engine:*"` (all) → (engine, voices)."""
    name, _, wanted = spec.partition(":")
    engine = load_engine(name)
    voices = engine.voices()
    if not voices:
        raise LlasmError(f"speech engine {name!r} finds no voice on this machine")
    if wanted == "*":
        return engine, voices
    found = [v for v in voices if v.id == wanted] if wanted else voices[:1]
    if not found:
        raise LlasmError(f"unknown voice {wanted!r} of engine {name!r}: it has {', '.join(v.id for v in voices)}")
    return engine, found


def load_voice(spec: str) -> tuple[TTSEngine, str]:
    """`"engine:voice"` or `"engine"` (its first voice) → (engine, voice id)."""
    engine, voices = load_voices(spec)
    return engine, voices[0].id


def find_voice(engine: TTSEngine, voice: str) -> Voice:
    """The engine's voice of that id; LlasmError names those it has."""
    for found in engine.voices():
        if found.id == voice:
            return found
    known = ", ".join(v.id for v in engine.voices()) or "none on this machine"
    raise LlasmError(f"unknown voice {voice!r} of engine {engine.name!r}: it has {known}")


def with_peak(wave: np.ndarray, text: str) -> np.ndarray:
    """The samples at the common peak; UnspeakableText where the engine said nothing."""
    peak = float(np.abs(wave).max()) if len(wave) else 0.0
    if peak == 0.0:
        raise UnspeakableText(f"nothing to speak in {text!r:.80}: it holds no readable word")
    return (wave * (PEAK / peak)).astype(np.float32)
