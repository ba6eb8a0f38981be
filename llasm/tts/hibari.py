"""The hibari engine: English, 24 kHz, over 100 times real time on one core (package hibari-tts)."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from llasm.errors import LlasmError
from llasm.tts import Voice

_PEAK = 0.9  # hibari's own peak lies near 0.3


class HibariEngine:
    """Speaks with the voices whose model file is there: "heart" ships in the package.

    The other voices of hibari are downloads from a model hub; they appear once they are in its cache.
    """

    name = "hibari"
    sample_rate = 24_000  # Hz

    def __init__(self) -> None:
        self._speakers: dict[str, object] = {}

    @cached_property
    def _voices(self) -> list[Voice]:
        from hibari.voices import VOICES, voice_path

        found = []
        for voice, facts in VOICES.items():
            try:
                voice_path(voice, download_missing=False)
            except FileNotFoundError:
                continue
            found.append(Voice(voice, facts["language"], facts["gender"], "Apache-2.0"))
        return found

    def voices(self) -> list[Voice]:
        return self._voices

    def synthesize(self, text: str, voice: str, speed: float = 1.0, seed: int = 0) -> np.ndarray:
        if voice not in (known := [v.id for v in self.voices()]):
            raise LlasmError(f"unknown voice {voice!r} of engine 'hibari': it has {', '.join(known)}")
        # The engine makes a breath of bare punctuation.
        readable = any(character.isalnum() for character in text)
        wave = self._speaker(voice)(text, speed=speed, seed=seed) if readable else np.zeros(0, np.float32)
        peak = float(np.abs(wave).max()) if len(wave) else 0.0
        if peak == 0.0:
            raise LlasmError(f"nothing to speak in {text!r}: it holds no readable word")
        return (wave * (_PEAK / peak)).astype(np.float32)

    def _speaker(self, voice: str):
        if voice not in self._speakers:
            from hibari import Hibari

            self._speakers[voice] = Hibari(voice=voice)
        return self._speakers[voice]
