"""The web demo without its page: the open tabs, what they hear, what they ask, the answers as text and as speech."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llasm import audio, vad
from llasm.errors import LlasmError

from .conversation import Conversation, Said, caption, mp3_uri
from .engine import Answer, Busy, Draining, Engine, Request
from .schema import too_much
from .sessions import Sessions, Tab
from .speech import Speaker
from .turns import LONGEST_SECONDS, Microphone

NO_SPEECH = "I could not hear anybody speak in that. Closer to the microphone, perhaps?"
NO_SOUND = "The microphone sent something that is no sound."
NO_QUESTION = "Say something, type something, or add a recording."
LOST = "The server no longer has the earlier conversation, so this begins a new one."


@dataclass(frozen=True)
class Options:
    """The page's settings at the time of a question, in the order of its inputs."""

    system: str
    speaks: bool
    voice: str
    temperature: float
    top_p: float
    max_new_tokens: float


class Host:
    """Listens, asks the engine and speaks, for every open tab."""

    def __init__(self, engine: Engine, speaker: Speaker, max_seconds: float) -> None:
        self.engine, self.speaker, self.max_seconds = engine, speaker, max_seconds
        self.sessions = Sessions()

    # ---- called by the page's script

    async def hear(self, data: dict[str, Any]) -> dict[str, Any]:
        """The microphone's next samples → {speaking, turns, note}; a turn that is over waits to be asked. Where the
        session is not known it begins anew, and `token` names it."""
        tab, lost = self._tab(data)
        try:
            pcm = base64.b64decode(data["pcm"], validate=True)
            if data.get("first") or tab.microphone is None:
                longest = min(LONGEST_SECONDS, self.max_seconds)
                tab.microphone = await asyncio.to_thread(
                    Microphone, int(data["rate"]), bool(data["hands_free"]), longest
                )
        except (KeyError, TypeError, ValueError, OverflowError, binascii.Error, LlasmError):
            return {"note": NO_SOUND, **lost}
        microphone, talk = tab.microphone, tab.talk
        turns = await asyncio.to_thread(microphone.feed, pcm, bool(data.get("last")))
        if microphone.speaking:
            talk.stop()
        spoken = [turn for turn in turns if len(turn) and await asyncio.to_thread(_has_speech, turn)]
        kept_silent = bool(data.get("last")) and not data.get("hands_free") and not spoken
        note = NO_SPEECH if kept_silent else ""
        for turn in spoken:
            if trouble := self._trouble(talk, "", [turn]):
                note, spoken = trouble, []
                break
            talk.waiting.append(await asyncio.to_thread(Said, "user", waves=[turn]))
        return {"speaking": microphone.speaking, "turns": len(spoken), "note": note, **lost}

    async def hush(self, data: dict[str, Any]) -> None:
        tab = self.sessions.by_token(data.get("token"))
        if tab is not None:
            tab.talk.stop()

    async def transcript(self, data: dict[str, Any]) -> str | dict[str, str]:
        """JSON, "" before anything was said; {note, token} as `hear` where the session is not known."""
        tab, lost = self._tab(data)
        if lost or not tab.talk.said:
            return lost or ""
        return await asyncio.to_thread(tab.talk.transcript, self.engine.name)

    def _tab(self, data: dict[str, Any]) -> tuple[Tab, dict[str, str]]:
        """The tab of a token; where there is none, a new one with what its page must be told."""
        tab = self.sessions.by_token(data.get("token"))
        if tab is not None:
            return tab, {}
        session = str(data["session"])
        tab = self.sessions.of(session) or self.sessions.open(session)
        return tab, {"note": LOST, "token": tab.token}

    # ---- what can be asked, and changed

    async def ask_typed(self, given: dict[str, Any], talk: Conversation, system: str = "") -> str:
        """Text and uploaded files → a question that waits; returns what is wrong with it instead, if anything."""
        text, paths = given["text"].strip(), list(map(Path, given["files"]))
        try:
            if not text and not paths:
                return NO_QUESTION
            if trouble := self._trouble(talk, system + text):
                return trouble
            waves: list[audio.Wave] = []
            for path in paths:
                wave = await asyncio.to_thread(audio.decode, path, path.name, self.max_seconds)
                if not text and not await asyncio.to_thread(_has_speech, wave):
                    return NO_SPEECH
                waves.append(wave)
                if trouble := self._trouble(talk, system + text, waves):
                    return trouble
        except LlasmError as error:
            return str(error)
        finally:
            for path in paths:
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    path.parent.rmdir()  # an upload has a folder of its own
        said = await asyncio.to_thread(Said, "user", text, waves)
        talk.stop()
        talk.waiting.append(said)
        return ""

    def _trouble(self, talk: Conversation, text: str, waves: Sequence[audio.Wave] = ()) -> str:
        """What is too much, if anything, once `text` and `waves` are in the conversation: the API's limits."""
        known = [said for said in [*talk.said, *talk.waiting] if not said.refused]
        clips = [wave for said in known for wave in said.waves] + list(waves)
        n_characters = len(text) + sum(len(said.text) for said in known)
        seconds = sum(map(len, clips)) / audio.SAMPLE_RATE
        trouble = too_much(len(clips), n_characters)
        if not trouble and seconds > self.max_seconds:
            trouble = f"hold {seconds:.0f} s of recordings; at most {self.max_seconds:g} s do"
        return trouble and f"This conversation would {trouble}. Please say less, or start a new one."

    async def answer(self, talk: Conversation, options: Options) -> AsyncIterator[dict[str, Any]]:
        """Asks what waits. Yields {"reply": id} when the answer begins, {"said": True} as it is written,
        {"clip": data URI} as it is spoken, {"note": text} when it cannot be had."""
        talk.stop()
        async with talk.turn:
            trouble = self._trouble(talk, options.system)
            asked, talk.waiting = talk.waiting, []
            if trouble:
                yield {"note": trouble}
            if not asked or trouble:
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
                if not said.text and not isinstance(error, (Busy, Draining)):
                    for message in asked:  # each further question would be refused for it
                        message.refused = True
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
    has_text = bool(said.text.strip())
    return caption(facts, said.id if speaks and has_text else None, copies=has_text)


def _kindly(error: Exception) -> str:
    """What a visitor reads when an answer could not be had; nothing of the inside."""
    if isinstance(error, Busy):
        return f"Many are asking at once. Please try again in {error.retry_after_s:.0f} s."
    if isinstance(error, Draining):
        return "The server is being shut down. Please come back in a moment."
    if isinstance(error, LlasmError):
        return str(error)
    return "Something went wrong while answering. Please try again."
