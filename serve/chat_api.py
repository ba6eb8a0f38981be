"""`/v1/chat/completions`: a conversation in OpenAI's shape → an answer, whole or as it is written, also aloud."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from llasm import audio
from llasm.chat import MAX_NEW_TOKENS, Message, Messages
from llasm.tts import UnspeakableText

from . import engine, voice_files
from .engine import Answer, Draining
from .errors import ApiError, api_error
from .fetch import base64_bytes
from .schema import (
    AnswerMessage,
    AssistantMessage,
    AudioTokens,
    ChatCompletion,
    ChatRequest,
    Choice,
    InputAudioPart,
    Part,
    SpokenAnswer,
    TextPart,
    Usage,
    too_much,
)
from .serving import ERRORS, LOG, Serving, unless_gone

AUDIO_ID = "audio_"
AUDIO_KEPT_S = 365 * 24 * 3600  # what `expires_at` says: nothing is kept, the id itself carries the text
STREAMED: dict[str, Any] = {
    "schema": {"type": "string", "description": "data: {chat.completion.chunk}, at last [DONE]"}
}


def router(serving: Serving) -> APIRouter:
    routes = APIRouter()

    @routes.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={200: {"content": {"text/event-stream": STREAMED}}, **ERRORS},
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """An answer to the conversation's last message. Greedy unless a temperature is given."""
        serving.check_open()
        serving.check_model(body.model)
        speaks = await _voice(serving, body)
        asked = await _asked(serving, body)
        if serving.settings.log_content:
            LOG.info("asked: %s", _shown(asked.messages))
        answer = serving.engine.submit(asked)
        turn = _Turn(serving, body, answer, speaks)
        if body.stream:
            pieces = answer.__aiter__()
            # The first piece decides whether the answer is one, while the status can still say so.
            first = await unless_gone(request, _next(pieces), answer.cancel)
            return _Events(turn, first, pieces)
        return await unless_gone(request, turn.whole(), answer.cancel)

    return routes


class _Events(StreamingResponse):
    """The answer as it is written. It is cancelled also where the client left before the first event was asked for."""

    def __init__(self, turn: _Turn, first: str | None, pieces: AsyncIterator[str]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # a proxy should pass each event on
        super().__init__(turn.events(first, pieces), media_type="text/event-stream", headers=headers)
        self._answer = turn.answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


async def _next(pieces: AsyncIterator[str]) -> str | None:
    return await anext(pieces, None)


async def _voice(serving: Serving, body: ChatRequest) -> tuple[str | None, str] | None:
    """(voice, format) where speech is asked for."""
    if "audio" not in (body.modalities or ()):
        return None
    if body.audio is None:
        raise ApiError('audio: missing; modalities ask for speech, so give audio: {"voice", "format"}', 400, "audio")
    if body.stream and body.audio.format != "pcm16":
        raise ApiError(f"audio.format is {body.audio.format!r}; streamed speech is pcm16", 400, "audio.format")
    return await voice_files.voice_named(serving.speaker, body.audio.voice, "audio.voice"), body.audio.format


async def _asked(serving: Serving, body: ChatRequest) -> engine.Request:
    limit = serving.settings.max_new_tokens
    for name in ("max_completion_tokens", "max_tokens"):
        if (getattr(body, name) or 0) > limit:
            raise ApiError(f"{name} is {getattr(body, name)}; this server writes at most {limit}", 400, name)
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if not all(stop):
        raise ApiError("stop: holds an empty text, which would end every answer; leave it out", 400, "stop")
    return engine.Request(
        messages=await _messages(serving, body),
        max_new_tokens=body.max_completion_tokens or body.max_tokens or min(MAX_NEW_TOKENS, limit),
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        stop=tuple(stop),
    )


async def _messages(serving: Serving, body: ChatRequest) -> Messages:
    """The conversation as `llasm.chat` takes it, audio decoded."""
    if body.messages[-1].role != "user":
        raise ApiError(f"messages: the last is the {body.messages[-1].role}'s; it must be the user's", 400, "messages")
    if _blank(body.messages[-1].content):
        where = f"messages[{len(body.messages) - 1}].content"
        raise ApiError(f"{where}: is blank; give a text or audio to answer", 400, where)
    parts = [part for m in body.messages if isinstance(m.content, list) for part in m.content]
    n_clips = sum(not isinstance(part, TextPart) for part in parts)
    n_characters = sum(len(m.content) for m in body.messages if isinstance(m.content, str))
    n_characters += sum(len(part.text) for part in parts if isinstance(part, TextPart))
    if trouble := too_much(n_clips, n_characters):
        raise ApiError(f"messages: {trouble}", 400, "messages")
    left = serving.settings.max_audio_seconds
    found: Messages = []
    for i, message in enumerate(body.messages):
        if isinstance(message, AssistantMessage):
            found.append({"role": "assistant", "content": _said(message, f"messages[{i}]")})
            continue
        role = "user" if message.role == "user" else "system"
        if isinstance(message.content, str):
            found.append({"role": role, "content": message.content})
            continue
        content: list[Message] = []
        for j, part in enumerate(message.content):
            content.append(await _part(serving, part, f"messages[{i}].content[{j}]", left))
            left -= _seconds(content[-1])
        found.append({"role": role, "content": content})
    return found


def _blank(content: Any) -> bool:
    texts = [content] if isinstance(content, str) else [p.text if isinstance(p, TextPart) else "audio" for p in content]
    return not "".join(texts).strip()


async def _part(serving: Serving, part: Part, param: str, left_seconds: float) -> Message:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, InputAudioPart):
        data = await asyncio.to_thread(base64_bytes, part.input_audio.data, f"{param}.input_audio.data")
    else:
        data = await serving.listener.url_bytes(part.audio_url.url, f"{param}.audio_url.url")
    return {"type": "audio", "audio": await serving.listener.decode(data, param, left_seconds)}


def _seconds(part: Message) -> float:
    return len(part["audio"]) / audio.SAMPLE_RATE if part["type"] == "audio" else 0.0


def _said(message: AssistantMessage, where: str) -> str:
    """What the assistant said before, typed or aloud."""
    if isinstance(message.content, str) and message.content:
        return message.content
    if message.content:
        return "".join(part.text for part in message.content if isinstance(part, TextPart))
    if message.audio is not None:
        try:
            return base64.urlsafe_b64decode(message.audio.id.removeprefix(AUDIO_ID)).decode()
        except (binascii.Error, ValueError):
            raise ApiError(f"{where}.audio.id: no answer of this server", 400, f"{where}.audio.id") from None
    if message.content is None:
        raise ApiError(f"{where}.content: missing; an assistant's message has content or audio", 400, where)
    return ""


def _shown(messages: Messages) -> str:
    """Messages for the log, where it may hold them: each clip as its length."""

    def part(one: Message) -> str:
        return one["text"] if one["type"] == "text" else f"<{_seconds(one):.1f} s of audio>"

    contents = [m["content"] if isinstance(m["content"], str) else " ".join(map(part, m["content"])) for m in messages]
    return " | ".join(f"{m['role']}: {content}" for m, content in zip(messages, contents, strict=True))


class _Turn:
    """One answer on its way to a client."""

    def __init__(
        self, serving: Serving, body: ChatRequest, answer: Answer, speaks: tuple[str | None, str] | None
    ) -> None:
        self.serving, self.body, self.answer, self.speaks = serving, body, answer, speaks
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.name = serving.engine.name

    async def whole(self) -> Response:
        text = "".join([piece async for piece in self.answer])
        reason = self._ended(text)
        spoken = await self._aloud(text) if self.speaks else None
        message = AnswerMessage(content=None if spoken else text, audio=spoken)
        completion = ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.name,
            choices=[Choice(message=message, finish_reason=reason)],
            usage=self._usage(),
        )
        return Response(completion.model_dump_json(), media_type="application/json")

    async def _aloud(self, text: str) -> SpokenAnswer | None:
        """The answer's speech; None where it holds nothing that can be said, and so comes as text."""
        assert self.speaks is not None
        voice, kind = self.speaks
        try:
            wave, rate = await voice_files.say(self.serving.speaker, text, voice)
        except UnspeakableText:
            return None
        data = base64.b64encode(await asyncio.to_thread(voice_files.encode, wave, rate, kind)).decode()
        return SpokenAnswer(id=_audio_id(text), data=data, transcript=text, expires_at=self._expiry())

    async def events(self, first: str | None, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
        """Server-sent events."""
        try:
            yield self._chunk({"role": "assistant", "content": "", "refusal": None})
            text = ""

            async def written() -> AsyncIterator[str]:
                nonlocal text
                piece = first
                while piece is not None:
                    text += piece
                    yield piece
                    piece = await _next(pieces)

            deltas = self._spoken(written()) if self.speaks else self._typed(written())
            async for delta in deltas:
                yield self._chunk(delta)
            yield self._chunk({}, self._ended(text))
            if self.body.stream_options and self.body.stream_options.include_usage:
                yield self._event([], self._usage().model_dump())
        except Exception as error:
            found = api_error(error)
            if found.status == 500:
                LOG.error("an answer broke off", exc_info=error)
            yield f"data: {json.dumps(found.body())}\n\n"
        yield "data: [DONE]\n\n"

    async def _typed(self, written: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
        async for piece in written:
            yield {"content": piece}

    async def _spoken(self, written: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
        """The transcript as it is written, and each sentence's sound as soon as it is spoken."""
        assert self.speaks is not None
        voice, kind = self.speaks
        deltas: asyncio.Queue[dict[str, Any] | BaseException | None] = asyncio.Queue()
        text = ""

        async def noted() -> AsyncIterator[str]:
            nonlocal text
            async for piece in written:
                text += piece
                deltas.put_nowait({"audio": {"transcript": piece}})
                yield piece

        async def speak() -> None:
            try:
                async for spoken in self.serving.speaker.say(noted(), voice):
                    data = await asyncio.to_thread(voice_files.encode, spoken.wave, spoken.sample_rate, kind)
                    deltas.put_nowait({"audio": {"data": base64.b64encode(data).decode()}})
                deltas.put_nowait(None)
            except Exception as error:
                deltas.put_nowait(error)

        speaking = asyncio.create_task(speak())
        try:
            while (delta := await deltas.get()) is not None:
                if isinstance(delta, BaseException):
                    raise delta
                yield delta
            yield {"audio": {"id": _audio_id(text)}}
            yield {"audio": {"expires_at": self._expiry()}}
        finally:
            speaking.cancel()

    def _ended(self, text: str) -> Any:
        """Why it ended; Draining where the server ended it."""
        if self.serving.settings.log_content:
            LOG.info("answered: %s", text)
        if self.answer.finish_reason == "cancelled":
            raise Draining
        return self.answer.finish_reason or "stop"

    def _usage(self) -> Usage:
        n_audio = self.answer.reply.n_audio_tokens if self.answer.reply else 0
        n_prompt, n_new = self.answer.n_prompt_tokens, self.answer.n_new_tokens
        return Usage(
            prompt_tokens=n_prompt,
            completion_tokens=n_new,
            total_tokens=n_prompt + n_new,
            prompt_tokens_details=AudioTokens(audio_tokens=n_audio),
        )

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> str:
        return self._event([{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}])

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> str:
        chunk = {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.name,
            "choices": choices,
        }
        if self.body.stream_options and self.body.stream_options.include_usage:
            chunk["usage"] = usage
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"

    def _expiry(self) -> int:
        return self.created + AUDIO_KEPT_S


def _audio_id(text: str) -> str:
    """Carries the text, so that a later turn can name the answer and nothing has to be kept here."""
    return AUDIO_ID + base64.urlsafe_b64encode(text.encode()).decode()
