"""The openai engine: any server with OpenAI's `/v1/audio/speech` (package openai).

OPENAI_BASE_URL and OPENAI_API_KEY say where, LLASM_TTS_MODEL which model (tts-1), LLASM_TTS_VOICES which voices it
has, as `id` or `id=language`, separated by commas (alloy,echo,nova…).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from llasm import audio
from llasm.errors import LlasmError
from llasm.tts import Voice, find_voice, with_peak

_DEFAULT_VOICES = "alloy,ash,ballad,coral,echo,fable,nova,onyx,sage,shimmer"


class OpenAIEngine:
    name = "openai"
    sample_rate = audio.SAMPLE_RATE  # Hz; whatever the server sends is resampled to it

    def __init__(self) -> None:
        import openai

        self._openai = openai
        self._client: Any = None

    def voices(self) -> list[Voice]:
        found = []
        for given in os.environ.get("LLASM_TTS_VOICES", _DEFAULT_VOICES).split(","):
            name, _, language = given.strip().partition("=")
            if name:
                found.append(Voice(name, language or "en-US", "unknown", "the server's terms"))
        return found

    def identity(self, voice: str) -> str:
        return f"{os.environ.get('OPENAI_BASE_URL', '')} {os.environ.get('LLASM_TTS_MODEL', 'tts-1')}"

    def synthesize(self, text: str, voice: str, speed: float = 1.0, seed: int = 0) -> np.ndarray:
        """seed is unused: the API takes none, so the same samples come back only where the server is deterministic."""
        find_voice(self, voice)
        if not any(map(str.isalnum, text)):
            return with_peak(np.zeros(0, np.float32), text)
        model = os.environ.get("LLASM_TTS_MODEL", "tts-1")
        try:
            if self._client is None:
                key = os.environ.get("OPENAI_API_KEY", "none")  # servers of one's own ask for none
                self._client = self._openai.OpenAI(api_key=key)
            answer = self._client.audio.speech.create(
                model=model, voice=voice, input=text, speed=speed, response_format="wav"
            )
        except self._openai.OpenAIError as error:
            where = os.environ.get("OPENAI_BASE_URL", "api.openai.com")
            raise LlasmError(f"speech engine 'openai' at {where}: {' '.join(str(error).split())[:200]}") from error
        return with_peak(audio.decode(answer.content, "the server's speech"), text)
