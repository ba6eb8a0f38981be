"""Text → speech over all cores: the stage of `llasm data build` that takes the time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import get_context

import numpy as np

from llasm import audio
from llasm.errors import LlasmError
from llasm.tts import TTSEngine, load_voice


@dataclass(frozen=True)
class Utterance:
    """One text to speak; `speed` 1.0 is the voice's own pace."""

    text: str
    voice: str  # "engine:voice"
    speed: float
    seed: int


def draw_utterance(row_id: str, text: str, voice: str, seed: int) -> Utterance:
    """Speed in [0.85, 1.2] and the noise seed follow from the row's id: any order, any worker, same speech."""
    digest = sha256(f"{seed}/{row_id}".encode()).digest()
    speed = 0.85 + 0.35 * int.from_bytes(digest[:4], "big") / 2**32
    return Utterance(text, voice, round(speed, 3), int.from_bytes(digest[4:8], "big"))


_engines: dict[str, tuple[TTSEngine, str]] = {}  # one per worker process


def speak_one(utterance: Utterance) -> tuple[bytes, float] | str:
    """(16 kHz mono FLAC bytes, seconds), or the reason why this text cannot be spoken."""
    if utterance.voice not in _engines:
        _engines[utterance.voice] = load_voice(utterance.voice)
    engine, voice = _engines[utterance.voice]
    try:
        wave = engine.synthesize(utterance.text, voice, utterance.speed, utterance.seed)
    except LlasmError as error:
        return str(error)
    wave = audio.decode((engine.sample_rate, wave))
    return audio.to_flac_bytes(wave), len(wave) / audio.SAMPLE_RATE


def _single_thread() -> None:
    # The pool already fills the cores; a numeric library with threads of its own would fight it.
    os.environ["OMP_NUM_THREADS"] = "1"
    np.seterr(all="ignore")


def speak(utterances: Iterable[Utterance], workers: int) -> Iterator[tuple[bytes, float] | str]:
    """`speak_one` of each, in order, in `workers` processes (1: in this one)."""
    if workers <= 1:
        yield from map(speak_one, utterances)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_single_thread) as pool:
        yield from pool.map(speak_one, utterances, chunksize=16)
