"""The flite engine: five small English voices (program flite)."""

from __future__ import annotations

import numpy as np

from llasm.tts import Voice, find_voice, with_peak
from llasm.tts._program import require, run_to_wav, version_of

_VOICES = {"slt": "female", "awb": "male", "rms": "male", "kal16": "male", "kal": "male"}


class FliteEngine:
    name = "flite"
    sample_rate = 16_000  # Hz

    def __init__(self) -> None:
        self._program = require("flite")

    def voices(self) -> list[Voice]:
        return [Voice(name, "en-US", gender, "BSD-style (CMU)") for name, gender in _VOICES.items()]

    def identity(self, voice: str) -> str:
        return version_of(self._program)

    def synthesize(self, text: str, voice: str, speed: float = 1.0, seed: int = 0) -> np.ndarray:
        """seed is unused: the voices draw nothing."""
        find_voice(self, voice)
        # flite reads a short -t as a file's name; from a file it reads just the text.
        stretch = f"duration_stretch={1 / speed:.3f}"
        command = [self._program, "-voice", voice, "--setf", stretch, "-f", "/dev/stdin", "-o", "OUT"]
        return with_peak(run_to_wav(command, text, self.sample_rate), text)
