"""Spoken replies: text deltas → sentences → waves, the first of them while the rest is still being written.

`Speaker.say(deltas)` is what the demo plays; `/v1/audio/speech` and spoken chat completions use the same Speaker.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass

import numpy as np

from llasm import tts
from llasm.errors import LlasmError
from llasm.tts.speakable import speakable

LONG_PIECE = 180  # characters: a longer stretch without a sentence's end is cut at a comma or a space

# A full stop counts once a space follows (3.14, example.org); Chinese and Japanese marks need none.
_END = re.compile(r"""[.!?…]+["'”’)\]*_]*(?=\s)|[。！？]+["”’」）]*|\n+""")
# What ends in a stop and does not end a sentence: titles, initials, the numbers of a list.
_NO_END = re.compile(
    r"(?:^|[\s(\"“])(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|Lt|Col|Gen|Capt|Jr|Sr|vs|etc|approx|e\.g|i\.e|No|[A-Z])\.$|^\s*\d+\.$"
)


class Sentences:
    """Cuts text into sentences as it comes; joined, they are the text without the space between them."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, delta: str) -> list[str]:
        """The sentences that `delta` completes."""
        self._rest += delta
        found = []
        while (end := self._end()) is not None:
            sentence, self._rest = self._rest[:end].strip(), self._rest[end:]
            if sentence:
                found.append(sentence)
        return found

    def finish(self) -> list[str]:
        """The sentence that the text breaks off in, if there is one."""
        rest, self._rest = self._rest.strip(), ""
        return [rest] if rest else []

    def _end(self) -> int | None:
        for match in _END.finditer(self._rest):
            if match.end() <= LONG_PIECE and not _NO_END.search(self._rest[: match.end()]):
                return match.end()
        if len(self._rest) <= LONG_PIECE:
            return None
        cut = max(self._rest.rfind(mark, 0, LONG_PIECE) for mark in (", ", "; ", ": ", "，", "、"))
        return (cut if cut > 0 else self._rest.rfind(" ", 1, LONG_PIECE)) % LONG_PIECE + 1


async def sentences(deltas: AsyncIterable[str]) -> AsyncIterator[str]:
    """The sentences of a stream of text, each as soon as it is whole."""
    cutter = Sentences()
    async for delta in deltas:
        for sentence in cutter.feed(delta):
            yield sentence
    for sentence in cutter.finish():
        yield sentence


@dataclass(frozen=True)
class Spoken:
    """One sentence aloud."""

    text: str
    wave: np.ndarray
    """float32 mono [n_samples], peak 0.9"""
    sample_rate: int
    """Hz"""


class Speaker:
    """Speaks with one voice unless told another; voices are named `engine:voice`, as everywhere in llasm.

    Raises LlasmError when the voice is unknown. Safe to use from several threads.
    """

    def __init__(self, voice: str = "hibari") -> None:
        engine, voice_id = tts.load_voice(voice)
        self.voice = f"{engine.name}:{voice_id}"
        self._engines = {engine.name: engine}
        self._lock = threading.Lock()  # engines keep state while they speak

    def voices(self) -> list[str]:
        """What this machine can speak with, the speaker's own voice first. A remote engine only if that is its own."""
        names = [name for name in tts.engine_names() if name != "openai" or name in self._engines]
        found = []
        for name in names:
            try:
                found += [f"{name}:{voice.id}" for voice in self._engine(name).voices()]
            except LlasmError:  # its package or program is not installed
                continue
        return [self.voice, *(voice for voice in found if voice != self.voice)]

    def speak(self, text: str, voice: str | None = None, speed: float = 1.0) -> tuple[np.ndarray, int]:
        """(float32 mono [n_samples], sample rate in Hz).

        Raises UnspeakableText when the text holds nothing that can be said, LlasmError when the voice is unknown.
        """
        name, _, voice_id = (voice or self.voice).partition(":")
        engine = self._engine(name)
        language = tts.find_voice(engine, voice_id).language
        words = speakable(text, language.partition("-")[0])
        if not words:
            raise tts.UnspeakableText(f"nothing to speak in {text!r:.80}: it holds no readable word")
        with self._lock:
            return engine.synthesize(words, voice_id, speed=speed), engine.sample_rate

    async def say(
        self, deltas: AsyncIterable[str], voice: str | None = None, speed: float = 1.0
    ) -> AsyncIterator[Spoken]:
        """Each sentence aloud as soon as it is written; one that cannot be said is passed over."""
        async for sentence in sentences(deltas):
            try:
                wave, rate = await asyncio.to_thread(self.speak, sentence, voice, speed)
            except tts.UnspeakableText:
                continue
            yield Spoken(sentence, wave, rate)

    def _engine(self, name: str) -> tts.TTSEngine:
        if name not in self._engines:
            self._engines[name] = tts.load_engine(name)
        return self._engines[name]
