"""Spoken text as the files that clients ask for."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator

import numpy as np
import soundfile
import soxr

from llasm import tts

from .errors import ApiError
from .speech import Speaker

PCM_RATE = 24_000  # Hz of OpenAI's raw PCM
OPUS_RATE = 48_000  # Hz
# Names for the server's own voice: clients come with OpenAI's, of its first speech models and of later ones.
_FIRST = ("alloy", "echo", "fable", "nova", "onyx", "shimmer")
_LATER = ("ash", "ballad", "cedar", "coral", "marin", "sage", "verse")
OWN = ("default", *_FIRST, *_LATER)
MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "opus": "audio/ogg",
    "pcm": "audio/pcm",
    "pcm16": "audio/pcm",
}


async def voice_named(speaker: Speaker, name: str, param: str) -> str | None:
    """A voice of `speaker.voices()`, from `engine:voice` or `engine`; None: its own. ApiError lists them."""
    if name in OWN:
        return None
    voices = await asyncio.to_thread(speaker.voices)
    found = [voice for voice in voices if name in (voice, voice.partition(":")[0])]
    if not found:
        known = ", ".join(voices[:20])
        raise ApiError(f"unknown voice {name!r:.80}: there are default, {known}", 400, param, "unknown_voice")
    return found[0]


async def say(speaker: Speaker, text: str, voice: str | None, speed: float = 1.0) -> tuple[np.ndarray, int]:
    """(float32 mono [n_samples], Hz) of a whole text. UnspeakableText where it holds nothing that can be said."""

    async def whole() -> AsyncIterator[str]:
        yield text

    spoken = [piece async for piece in speaker.say(whole(), voice, speed)]
    if not spoken:
        raise tts.UnspeakableText(f"nothing to speak in {text!r:.80}: it holds no readable word")
    return np.concatenate([piece.wave for piece in spoken]), spoken[0].sample_rate


def encode(wave: np.ndarray, rate: int, kind: str) -> bytes:
    """A file's content; pcm and pcm16 are bare 16-bit little-endian samples at PCM_RATE."""
    if kind in ("pcm", "pcm16"):
        samples = _resampled(wave, rate, PCM_RATE)
        return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    content = io.BytesIO()
    if kind == "opus":
        soundfile.write(content, _resampled(wave, rate, OPUS_RATE), OPUS_RATE, format="OGG", subtype="OPUS")
    elif kind == "mp3":
        soundfile.write(content, wave, rate, format="MP3", subtype="MPEG_LAYER_III")
    else:
        soundfile.write(content, wave, rate, format=kind.upper(), subtype="PCM_16")
    return content.getvalue()


def _resampled(wave: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    return wave if rate == wanted else np.asarray(soxr.resample(wave, rate, wanted))
