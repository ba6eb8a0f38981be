"""The espeak-ng engine: formant voices, robotic and quick, English and Mandarin (program espeak-ng).

Mandarin goes through pypinyin into the voice that reads pinyin: Debian's build has no dictionary of characters.
"""

from __future__ import annotations

import numpy as np

from llasm.tts import Voice, find_voice, with_peak
from llasm.tts._program import require, run_to_wav, version_of

WORDS_PER_MINUTE = 165  # at speed 1
# espeak-ng's voice of an accent, and its variants: +f1 to +f5 are female, +m1 to +m8 male.
_ACCENTS = {"en-us": "en-US", "en-gb": "en-GB", "en-gb-scotland": "en-GB", "cmn-latn-pinyin": "zh-CN"}
_VARIANTS = ("f2", "m3", "f4", "m7")


class EspeakEngine:
    name = "espeak-ng"
    sample_rate = 22_050  # Hz

    def __init__(self) -> None:
        self._program = require("espeak-ng")

    def voices(self) -> list[Voice]:
        return [
            Voice(f"{accent}+{variant}", language, "female" if variant[0] == "f" else "male", "GPL-3.0-or-later")
            for accent, language in _ACCENTS.items()
            for variant in _VARIANTS
        ]

    def identity(self, voice: str) -> str:
        return version_of(self._program)

    def synthesize(self, text: str, voice: str, speed: float = 1.0, seed: int = 0) -> np.ndarray:
        """seed is unused: a formant synthesiser has no noise to draw."""
        language = find_voice(self, voice).language
        said = _as_pinyin(text) if language == "zh-CN" else text
        pace = str(round(WORDS_PER_MINUTE * speed))
        command = [self._program, "-v", voice, "-s", pace, "-w", "OUT", "--stdin"]
        return with_peak(run_to_wav(command, said, self.sample_rate), text)


def _as_pinyin(text: str) -> str:
    """Hanzi as numbered pinyin; what is in other letters stays."""
    from pypinyin import Style, lazy_pinyin

    return " ".join(lazy_pinyin(text, style=Style.TONE3, neutral_tone_with_five=True))
