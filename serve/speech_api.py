"""`/v1/audio/transcriptions`: the model repeats what it hears; `/v1/audio/speech`: a text aloud."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, File, Form, Request, UploadFile
from starlette.responses import PlainTextResponse, Response

from llasm import audio, vad
from llasm.tts import UnspeakableText

from . import engine, voice_files
from .engine import Answer, Draining
from .errors import ApiError
from .schema import Segment, SpeechRequest, Transcription
from .serving import ERRORS, Serving, unless_gone

REPEAT = "Repeat what I just said, word for word."  # as in training
SEGMENT_SECONDS = 15.0  # of a segment at most; the model was trained on sentences
TOKENS_PER_SECOND, SPARE_TOKENS = 9, 12  # of fast speech; more is a loop
SPEECH_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")  # what clients call whoever speaks here
HEARING_MODELS = ("whisper-1",)  # ... and whoever listens
BINARY = {"schema": {"type": "string", "format": "binary"}}


def router(serving: Serving) -> APIRouter:
    routes = APIRouter()

    @routes.post(
        "/v1/audio/transcriptions",
        response_model=Transcription,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **ERRORS},
    )
    async def transcriptions(
        request: Request,
        file: Annotated[UploadFile, File(description="a recording")],
        model: Annotated[str, Form()],
        response_format: Annotated[Literal["json", "text", "verbose_json"], Form()] = "json",
        language: Annotated[str | None, Form(description="not used: the model hears it")] = None,
        prompt: Annotated[str | None, Form(description="not used")] = None,
        temperature: Annotated[float, Form(ge=0, le=2, allow_inf_nan=False)] = 0.0,
        stream: Annotated[Literal["false", "False"] | None, Form(description="not streamed")] = None,
        granularities: Annotated[list[Literal["segment"]] | None, Form(alias="timestamp_granularities[]")] = None,
    ) -> Response:
        """What was said, as the model repeats it. verbose_json: with the time of each stretch of speech."""
        serving.check_open()
        serving.check_model(model, *HEARING_MODELS)
        await _check_single(request)
        wave = await serving.listener.decode(await file.read(), "file", serving.settings.max_audio_seconds)
        listening = _Listening(serving, temperature)
        segments = await unless_gone(request, listening.segments(wave), listening.leave)
        text = " ".join(segment.text for segment in segments if segment.text)
        if response_format == "text":
            return PlainTextResponse(text + "\n")
        found = Transcription(text=text)
        if response_format == "verbose_json":
            found.task, found.language = "transcribe", language or "unknown"
            found.duration, found.segments = round(len(wave) / audio.SAMPLE_RATE, 3), segments
        return Response(found.model_dump_json(exclude_none=True), media_type="application/json")

    @routes.post(
        "/v1/audio/speech",
        response_class=Response,
        responses={
            200: {"content": {kind: BINARY for kind in sorted(set(voice_files.MEDIA_TYPES.values()))}},
            **ERRORS,
        },
    )
    async def speech(body: SpeechRequest, request: Request) -> Response:
        """A text aloud."""
        serving.check_open()
        serving.check_model(body.model, *SPEECH_MODELS)
        voice = await voice_files.voice_named(serving.speaker, body.voice, "voice")
        speaking = voice_files.say(serving.speaker, body.input, voice, body.speed)
        try:
            wave, rate = await unless_gone(request, speaking, lambda: None)
        except UnspeakableText as error:
            raise ApiError(f"input: {error}", 400, "input") from error
        content = await asyncio.to_thread(voice_files.encode, wave, rate, body.response_format)
        return Response(content, media_type=voice_files.MEDIA_TYPES[body.response_format])

    return routes


async def _check_single(request: Request) -> None:
    """Of a field that comes twice only one would be read."""
    names = [name for name, _ in (await request.form()).multi_items() if not name.endswith("[]")]
    again = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if again is not None:
        raise ApiError(f"{again:.80}: comes more than once", 400, again[:80])


class _Listening:
    """One recording being written down, stretch by stretch."""

    def __init__(self, serving: Serving, temperature: float) -> None:
        self.serving, self.temperature = serving, temperature
        self.answer: Answer | None = None

    def leave(self) -> None:
        if self.answer is not None:
            self.answer.cancel()

    async def segments(self, wave: audio.Wave) -> list[Segment]:
        """What each stretch of speech says; silence has none."""
        spans = await asyncio.to_thread(vad.segments, wave, SEGMENT_SECONDS)
        found = []
        for i, (start, end) in enumerate(spans):
            text = await self._repeat(wave[start:end])
            first, last = round(start / audio.SAMPLE_RATE, 3), round(end / audio.SAMPLE_RATE, 3)
            found.append(Segment(id=i, start=first, end=last, text=text))
        return found

    async def _repeat(self, wave: audio.Wave) -> str:
        content = [{"type": "audio", "audio": wave}, {"type": "text", "text": REPEAT}]
        limit = int(TOKENS_PER_SECOND * len(wave) / audio.SAMPLE_RATE) + SPARE_TOKENS
        self.answer = self.serving.engine.submit(
            engine.Request([{"role": "user", "content": content}], limit, self.temperature)
        )
        text = "".join([piece async for piece in self.answer])
        if self.answer.finish_reason == "cancelled":
            raise Draining
        return text.strip()
