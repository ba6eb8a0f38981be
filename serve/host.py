"""The web demo without its page: the open tabs, what they hear, what they ask, the answers as text and as speech."""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llasm import audio, vad
from llasm.errors import LlasmError

from .conversation import Conversation, Said, caption, mp3_uri
from .engine import Answer, Busy, Draining, Engine, Request
from .speech import Speaker
from .turns import LONGEST_SECONDS, Microphone

MAX_SESSIONS = 1_000  # open tabs; beyond it the one that has rested longest is forgotten
NO_SPEECH = "I could not hear anybody speak in that. Closer to the microphone, perhaps?"


@dataclass(frozen=True)
class Options:
    """The page's settings at the time of a question, in the order of its inputs."""

    system: str
    speaks: bool
    voice: str
    temperature: float
    top_p: float
    max_new_tokens: float


class Sessions:
    """The conversations of the open tabs: by Gradio's session, and by the token that the tab's own script holds."""

    def __init__(self) -> None:
        self._tabs: OrderedDict[str, tuple[str, Conversation]] = OrderedDict()  # session → (token, conversation)
        self.microphones: dict[str, Microphone] = {}  # by token

    def open(self, session: str) -> str:
        """Starts the tab's conversation; returns its token."""
        self.close(session)
        token = secrets.token_urlsafe(24)
        self._tabs[session] = (token, Conversation())
        while len(self._tabs) > MAX_SESSIONS:
            self.close(next(iter(self._tabs)))
        return token

    def close(self, session: str) -> None:
        token, talk = self._tabs.pop(session, ("", None))
        self.microphones.pop(token, None)
        if talk is not None:
            talk.clear()

    def of(self, session: str) -> Conversation:
        if session not in self._tabs:
            self.open(session)
        self._tabs.move_to_end(session)
        return self._tabs[session][1]

    def by_token(self, token: Any) -> Conversation | None:
        """None where there is no such tab: it was closed, or the server has been started anew."""
        return next((talk for own, talk in self._tabs.values() if secrets.compare_digest(own, str(token))), None)


class Host:
    """Listens, asks the engine and speaks, for every open tab."""

    def __init__(self, engine: Engine, speaker: Speaker, max_seconds: float) -> None:
        self.engine, self.speaker, self.max_seconds = engine, speaker, max_seconds
        self.sessions = Sessions()

    # ---- called by the page's script

    async def hear(self, data: dict[str, Any]) -> dict[str, Any]:
        """The microphone's next samples → {speaking, turns, note}; a turn that is over waits to be asked."""
        talk = self.sessions.by_token(data.get("token"))
        if talk is None:
            return {"note": "This page has lost its conversation. Please load it again."}
        try:
            pcm = base64.b64decode(data["pcm"], validate=True)
            if data.get("first"):
                longest = min(LONGEST_SECONDS, self.max_seconds)
                new = await asyncio.to_thread(Microphone, int(data["rate"]), bool(data["hands_free"]), longest)
                self.sessions.microphones[str(data["token"])] = new
            microphone = self.sessions.microphones[str(data["token"])]
        except (KeyError, TypeError, ValueError, binascii.Error, LlasmError):
            return {"note": "The microphone sent something that is no sound."}
        turns = await asyncio.to_thread(microphone.feed, pcm, bool(data.get("last")))
        if microphone.speaking:
            talk.stop()
        spoken = [turn for turn in turns if len(turn) and await asyncio.to_thread(_has_speech, turn)]
        talk.waiting += [Said("user", waves=[turn]) for turn in spoken]
        kept_silent = bool(data.get("last")) and not data.get("hands_free") and not spoken
        return {"speaking": microphone.speaking, "turns": len(spoken), "note": NO_SPEECH if kept_silent else ""}

    async def hush(self, data: dict[str, Any]) -> None:
        talk = self.sessions.by_token(data.get("token"))
        if talk is not None:
            talk.stop()

    async def transcript(self, data: dict[str, Any]) -> str:
        talk = self.sessions.by_token(data.get("token"))
        if talk is None or not talk.said:
            return ""
        return await asyncio.to_thread(talk.transcript, self.engine.name)

    # ---- what can be asked, and changed

    async def ask_typed(self, given: dict[str, Any], talk: Conversation) -> str:
        """Text and uploaded files → a question that waits; returns what is wrong with it instead, if anything."""
        text, waves = (given.get("text") or "").strip(), []
        for path in map(Path, given.get("files") or []):
            try:
                wave = await asyncio.to_thread(audio.decode, path, path.name, self.max_seconds)
            except LlasmError as error:
                return str(error)
            finally:
                path.unlink(missing_ok=True)  # Gradio's copy of the upload
            if not text and not await asyncio.to_thread(_has_speech, wave):
                return NO_SPEECH
            waves.append(wave)
        if not text and not waves:
            return "Say something, type something, or add a recording."
        talk.stop()
        talk.waiting.append(Said("user", text, waves))
        return ""

    async def answer(self, talk: Conversation, options: Options) -> AsyncIterator[dict[str, Any]]:
        """Asks what waits. Yields {"reply": id} when the answer begins, {"said": True} as it is written,
        {"clip": data URI} as it is spoken, {"note": text} when it cannot be had."""
        talk.stop()
        async with talk.turn:
            asked, talk.waiting = talk.waiting, []
            if not asked:
                return
            talk.said += [*asked, said := Said("assistant")]
            talk.stopped, talk.system = False, options.system.strip()
            yield {"said": True, "reply": said.id}
            try:
                talk.answer = self.engine.submit(
                    Request(
                        talk.messages(),
                        max_new_tokens=int(options.max_new_tokens),
                        temperature=float(options.temperature),
                        top_p=float(options.top_p),
                    )
                )
                async for event in self._run(talk, talk.answer, said, options):
                    yield event
            except Exception as error:
                yield {"note": _kindly(error)}
            finally:  # also when the tab is gone: then this generator is closed here
                said.caption = _caption(talk, asked, said, options.speaks)
                if talk.answer is not None:
                    talk.answer.cancel()
                talk.answer = None
            yield {"said": True}

    async def _run(
        self, talk: Conversation, running: Answer, said: Said, options: Options
    ) -> AsyncIterator[dict[str, Any]]:
        """Reads the answer and speaks it side by side; raises what goes wrong with either."""
        events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        written: asyncio.Queue[str | None] = asyncio.Queue()

        async def read() -> None:
            try:
                async for piece in running:
                    said.text += piece
                    events.put_nowait({"said": True})
                    written.put_nowait(piece)
            finally:
                written.put_nowait(None)

        async def deltas() -> AsyncIterator[str]:
            while (piece := await written.get()) is not None and not talk.stopped:
                yield piece

        async def speak() -> None:
            try:
                async for spoken in self.speaker.say(deltas(), options.voice):
                    if talk.stopped:
                        return
                    events.put_nowait({"clip": await asyncio.to_thread(mp3_uri, spoken.wave, spoken.sample_rate)})
            except LlasmError as error:  # the voice's trouble: the text goes on
                events.put_nowait({"note": str(error)})

        async def work() -> None:
            speaking = asyncio.create_task(speak()) if options.speaks else None
            try:
                await read()
                if speaking is not None:
                    await speaking
            finally:
                if speaking is not None:
                    speaking.cancel()
                events.put_nowait(None)

        working = asyncio.create_task(work())
        try:
            while (event := await events.get()) is not None:
                yield event
            await working
        finally:
            working.cancel()


def _has_speech(wave: audio.Wave) -> bool:
    return bool(vad.speech_spans(wave))


def _caption(talk: Conversation, asked: list[Said], said: Said, speaks: bool) -> str:
    heard = sum(len(wave) for message in asked for wave in message.waves) / audio.SAMPLE_RATE
    facts = [f"{heard:.1f} s heard"] if heard else []
    reply = talk.answer.reply if talk.answer is not None else None
    if reply is not None and said.text:
        facts.append(f"{reply.timings_ms['first_token'] / 1000:.2f} s to the first token")
    if talk.stopped:
        facts.append("stopped")
    elif reply is None:
        facts.append("not answered")
    return caption(facts, said.id if speaks and said.text.strip() else None)


def _kindly(error: Exception) -> str:
    """What a visitor reads when an answer could not be had; nothing of the inside."""
    if isinstance(error, Busy):
        return f"Many are asking at once. Please try again in {error.retry_after_s:.0f} s."
    if isinstance(error, Draining):
        return "The server is being shut down. Please come back in a moment."
    if isinstance(error, LlasmError):
        return str(error)
    return "Something went wrong while answering. Please try again."
