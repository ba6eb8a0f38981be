"""The hibari engine: English, 24 kHz, over 100 times real time on one core (package hibari-tts)."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from llasm.tts import Voice, find_voice, with_peak


class HibariEngine:
    """Speaks with the voices whose model file is there: "heart" ships in the package.

    The other voices of hibari are downloads from a model hub; they appear once they are in its cache.
    """

    name = "hibari"
    sample_rate = 24_000  # Hz

    def __init__(self) -> None:
        self._speakers: dict[str, Any] = {}

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

    def identity(self, voice: str) -> str:
        from importlib.metadata import version

        return f"hibari-tts {version('hibari-tts')}"

    def synthesize(self, text: str, voice: str, speed: float = 1.0, seed: int = 0) -> np.ndarray:
        find_voice(self, voice)
        # The engine makes a breath of bare punctuation.
        readable = any(character.isalnum() for character in text)
        wave = self._speaker(voice)(text, speed=speed, seed=seed) if readable else np.zeros(0, np.float32)
        return with_peak(wave, text)

    def _speaker(self, voice: str) -> Any:
        if voice not in self._speakers:
            from hibari import Hibari
            from hibari.g2p import G2P
            from hibari.voices import VOICES

            g2p = G2P(british=VOICES[voice]["british"])
            # Its own normaliser (0.2.1) takes the first letters of names for Roman numerals.
            self._speakers[voice] = Hibari(voice=voice, g2p=lambda text: g2p(text, normalize_text=False))
        return self._speakers[voice]
