"""For `llasm serve` without a model: an engine that answers at once or at the pace of a test, a speaker that hums."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time

import numpy as np
import soundfile
import uvicorn
from starlette.testclient import TestClient

from llasm import audio
from llasm.chat import Reply, check_messages
from llasm.serve.api import application
from llasm.serve.engine import Answer, Busy, Draining, Request
from llasm.serve.settings import Settings
from llasm.serve.speech import Spoken, sentences
from llasm.tts import UnspeakableText


class FakeEngine:
    """Says back the last text, or how many clips it heard; one word a token. `pace_s` is how long a word takes."""

    name = "fake"

    def __init__(self, pace_s: float = 0.0, places: int = 8):
        self.pace_s, self.places = pace_s, places
        self.asked: list[Request] = []
        self.running: set[asyncio.Task] = set()
        self.draining = False
        self.fails: Exception | None = None

    def submit(self, request: Request) -> Answer:
        if self.draining:
            raise Draining
        check_messages(request.messages)
        if len(self.running) >= self.places:
            raise Busy(3.0)
        self.asked.append(request)
        answer = Answer()
        task = asyncio.get_running_loop().create_task(self._write(request, answer))
        self.running.add(task)
        task.add_done_callback(self.running.discard)
        return answer

    async def _write(self, request: Request, answer: Answer) -> None:
        parts = [part for m in request.messages if isinstance(m["content"], list) for part in m["content"]]
        clips = [part["audio"] for part in parts if part["type"] == "audio"]
        last = request.messages[-1]["content"]
        texts = [last] if isinstance(last, str) else [part["text"] for part in last if part["type"] == "text"]
        words = " ".join(texts or [f"I heard {len(clips)} clips."]).split(" ")
        if self.fails is not None:
            answer.put(self.fails)
            return
        answer.n_prompt_tokens = 10 + 5 * len(clips)
        said, answer.finish_reason = "", "stop"
        for i, word in enumerate(words):
            if answer.cancelled.is_set():
                answer.finish_reason = "cancelled"
                break
            if i == request.max_new_tokens:
                answer.finish_reason = "length"
                break
            await asyncio.sleep(self.pace_s)
            piece = word if i == 0 else " " + word
            said += piece
            answer.n_new_tokens += 1
            answer.put(piece)
        seconds = sum(map(len, clips)) / audio.SAMPLE_RATE
        answer.reply = Reply(said, 5 * len(clips), seconds, {"first_token": 10.0, "total": 20.0})
        answer.put(None)

    def load(self) -> tuple[int, int]:
        return len(self.running), 0

    async def drain(self, timeout_s: float) -> None:
        self.draining = True

    def close(self) -> None:
        pass


class FakeSpeaker:
    """A tenth of a second of hum a sentence, at 24 kHz; nothing for what has no letters."""

    voice = "hum:low"

    def voices(self) -> list[str]:
        return ["hum:low", "hum:high"]

    def speak(self, text: str, voice: str | None = None, speed: float = 1.0) -> tuple[np.ndarray, int]:
        if not any(map(str.isalnum, text)):
            raise UnspeakableText("nothing to speak")
        pitch = 440 if voice == "hum:high" else 110
        return (0.5 * np.sin(2 * np.pi * pitch * np.arange(2_400) / 24_000)).astype(np.float32), 24_000

    async def say(self, deltas, voice=None, speed=1.0):
        async for sentence in sentences(deltas):
            try:
                wave, rate = self.speak(sentence, voice, speed)
            except UnspeakableText:
                continue
            yield Spoken(sentence, wave, rate)


# ---- requests and servers for tests

CHAT, SPEECH = "/v1/chat/completions", "/v1/audio/speech"
HERE = "http://localhost:7860"


def flac(seconds: float = 1.0, rate: int = 16_000) -> bytes:
    content = io.BytesIO()
    wave = 0.3 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)
    soundfile.write(content, wave, rate, format="FLAC")
    return content.getvalue()


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def clip(content: bytes) -> dict:
    return {"type": "input_audio", "input_audio": {"data": b64(content), "format": "flac"}}


def linked(url: str) -> dict:
    return {"type": "audio_url", "audio_url": {"url": url}}


def ask(*parts, **fields) -> dict:
    content = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)
    return {"model": "fake", "messages": [{"role": "user", "content": content}], **fields}


def talk(*messages) -> dict:
    return {"model": "fake", "messages": list(messages)}


def aloud(text: str, **fields) -> dict:
    return {"model": "tts-1", "input": text, "voice": "alloy", **fields}


def client_of(engine, page=False, **options):
    app, _ = application(engine, FakeSpeaker(), Settings(**options), page=page)
    return TestClient(app, base_url=HERE, raise_server_exceptions=False)


class Running:
    """A server in a thread, for clients that speak over a socket."""

    def __init__(self, engine, page=False, **options):
        app, self.serving = application(engine, FakeSpeaker(), Settings(**options), page=page)
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        return self

    def __exit__(self, *_):
        self.serving.hang_up()
        self.server.should_exit = True
        self.thread.join()
