"""`llasm serve`'s API over an engine that answers at once: the openai client's calls, refusals, guard, addresses."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import threading
import time

import numpy as np
import openai
import pytest
import soundfile
import uvicorn
from serve_fakes import FakeEngine, FakeSpeaker
from starlette.testclient import TestClient

from llasm import audio
from llasm.errors import LlasmError
from llasm.serve import fetch
from llasm.serve.api import application
from llasm.serve.engine import TimedOut
from llasm.serve.errors import EngineFailed
from llasm.serve.settings import Settings, load_settings

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


@pytest.fixture
def engine():
    return FakeEngine()


def client_of(engine, page=False, **options):
    app, _ = application(engine, FakeSpeaker(), Settings(**options), page=page)
    return TestClient(app, base_url=HERE, raise_server_exceptions=False)


@pytest.fixture
def client(engine):
    with client_of(engine, max_audio_seconds=20, max_body_mb=1, max_new_tokens=100) as client:
        yield client


class Running:
    """A server in a thread, for clients that speak over a socket."""

    def __init__(self, engine, **options):
        app, self.serving = application(engine, FakeSpeaker(), Settings(**options))
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
        self.server.should_exit = True
        self.thread.join()


# ---- the openai client's own calls


def test_the_openai_client_asks_whole_and_streamed(engine):
    with Running(engine) as running, openai.OpenAI(api_key="none", base_url=running.url) as client:
        assert [model.id for model in client.models.list()] == ["fake"]
        assert client.models.retrieve("fake").id == "fake"
        linked_clip = linked("data:audio/flac;base64," + b64(flac()))
        messages = ask({"type": "text", "text": "say this back"}, clip(flac()), linked_clip)["messages"]
        asked = {"model": "fake", "messages": messages, "max_completion_tokens": 50, "seed": 7, "stop": ["#"]}
        whole = client.chat.completions.create(**asked, temperature=0.5, top_p=0.9)
        assert whole.choices[0].message.content == "say this back" and whole.choices[0].finish_reason == "stop"
        assert whole.usage.completion_tokens == 3 and whole.usage.prompt_tokens_details.audio_tokens == 10
        request = engine.asked[-1]
        assert (request.seed, request.stop, request.max_new_tokens) == (7, ("#",), 50)
        assert (request.temperature, request.top_p) == (0.5, 0.9)
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "say this back"
        assert chunks[-1].usage.total_tokens == whole.usage.total_tokens and not chunks[-1].choices
        assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == "stop"
        # The answer goes back into the conversation as the client dumps it.
        again = [*messages, whole.choices[0].message, {"role": "user", "content": "and more"}]
        assert client.chat.completions.create(model="fake", messages=again).choices[0].message.content == "and more"
        roles = [message["role"] for message in engine.asked[-1].messages]
        assert roles == ["user", "assistant", "user"] and engine.asked[-1].messages[1]["content"] == "say this back"
        cut = client.chat.completions.create(model="fake", messages=again, max_tokens=1)
        assert cut.choices[0].finish_reason == "length"
        with client.chat.completions.stream(model="fake", messages=again) as stream:
            assert stream.get_final_completion().choices[0].message.content == "and more"
        with pytest.raises(openai.NotFoundError, match="'gpt-5' does not exist here; there is 'fake'"):
            client.chat.completions.create(model="gpt-5", messages=again)
        with pytest.raises(openai.BadRequestError, match="n: input should be 1, not 2"):
            client.chat.completions.create(model="fake", messages=again, n=2)


def test_the_openai_client_is_spoken_to(engine):
    with Running(engine) as running, openai.OpenAI(api_key="none", base_url=running.url) as client:
        aloud = {"model": "fake", "modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
        messages = [{"role": "user", "content": "One sentence. And two."}]
        message = client.chat.completions.create(**aloud, messages=messages).choices[0].message
        wave, rate = soundfile.read(io.BytesIO(base64.b64decode(message.audio.data)))
        assert message.audio.transcript == "One sentence. And two." and len(wave) / rate == pytest.approx(0.2)
        # OpenAI's way to go on: the earlier answer by its id.
        earlier = {"role": "assistant", "audio": {"id": message.audio.id}}
        client.chat.completions.create(model="fake", messages=[*messages, earlier, *messages])
        assert engine.asked[-1].messages[1] == {"role": "assistant", "content": "One sentence. And two."}

        aloud["audio"] = {"voice": "hum:high", "format": "pcm16"}
        chunks = client.chat.completions.create(**aloud, messages=messages, stream=True)
        deltas = [chunk.choices[0].delta.audio for chunk in chunks if chunk.choices[0].delta.audio]
        assert "".join(delta.transcript or "" for delta in deltas) == "One sentence. And two."
        sounds = [base64.b64decode(delta.data) for delta in deltas if delta.data]
        assert [len(sound) for sound in sounds] == [4_800, 4_800] and deltas[-1].expires_at
        assert [delta.id for delta in deltas if delta.id] == [message.audio.id]


@pytest.mark.parametrize("kind", ["mp3", "wav", "flac", "opus", "pcm"])
def test_the_openai_client_has_text_spoken(engine, kind):
    with Running(engine) as running, openai.OpenAI(api_key="none", base_url=running.url) as client:
        content = client.audio.speech.create(model="tts-1", voice="alloy", input="Hello.", response_format=kind).content
    seconds = len(content) / 48_000 if kind == "pcm" else len(audio.decode(content)) / 16_000
    assert seconds == pytest.approx(0.1, abs=0.06)  # mp3 and opus pad


def test_the_openai_client_has_speech_written_down(engine, monkeypatch):
    spans = [(0, 8_000), (12_000, 16_000)]
    monkeypatch.setattr("llasm.vad.segments", lambda wave, seconds: spans)
    with Running(engine) as running, openai.OpenAI(api_key="none", base_url=running.url) as client:
        given = {"model": "whisper-1", "file": ("a.flac", flac())}
        text = "Repeat what I just said, word for word."
        assert client.audio.transcriptions.create(**given).text == f"{text} {text}"
        assert client.audio.transcriptions.create(**given, response_format="text").strip() == f"{text} {text}"
        found = client.audio.transcriptions.create(**given, response_format="verbose_json", language="en")
        assert [(s.start, s.end) for s in found.segments] == [(0.0, 0.5), (0.75, 1.0)] and found.duration == 1.0
        waves = [request.messages[0]["content"][0]["audio"] for request in engine.asked[-2:]]
        assert [len(wave) for wave in waves] == [8_000, 4_000]


# ---- what is refused

WAV = (
    b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x80\x3e\x00\x00\x00\x7d\x00\x00\x02\x00\x10\x00data"
)


def float_wav(values) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, np.asarray(values, np.float32), 16_000, format="WAV", subtype="FLOAT")
    return content.getvalue()


def silence(seconds: float) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, np.zeros(round(seconds * 48_000), np.int16), 48_000, format="FLAC")
    return content.getvalue()


CHAT, SPEECH = "/v1/chat/completions", "/v1/audio/speech"
MALFORMED = {
    "no body": (CHAT, b"", "must be a JSON object"),
    "not JSON": (CHAT, b"{", "not JSON"),
    "a list": (CHAT, b"[]", "must be a JSON object"),
    "a string": (CHAT, b'"hello"', "must be a JSON object"),
    "deep nesting": (CHAT, b"[" * 100_000, "body"),
    "not UTF-8": (CHAT, b'{"model": "\xff"}', "body"),
    "nothing": (CHAT, {}, "field required"),
    "no messages": (CHAT, {"model": "fake"}, "messages: field required"),
    "empty messages": (CHAT, {"model": "fake", "messages": []}, "messages: .*at least 1"),
    "messages of text": (CHAT, {"model": "fake", "messages": "hi"}, "messages: input should be a valid list"),
    "a message of text": (CHAT, {"model": "fake", "messages": ["hi"]}, r"messages\[0\]"),
    "no role": (CHAT, talk({"content": "hi"}), r"messages\[0\].*role"),
    "unknown role": (CHAT, talk({"role": "tool", "content": "hi"}), "'tool'.*'assistant'"),
    "no content": (CHAT, talk({"role": "user"}), r"messages\[0\].content: field required"),
    "content null": (
        CHAT,
        talk({"role": "user", "content": None}),
        r"messages\[0\].content",
    ),
    "content number": (CHAT, ask(1), r"messages\[0\].content\[0\]"),
    "empty content": (CHAT, talk({"role": "user", "content": []}), "at least 1"),
    "assistant last": (
        CHAT,
        talk({"role": "assistant", "content": "hi"}),
        "must be the user's",
    ),
    "assistant mute": (
        CHAT,
        talk({"role": "assistant"}, {"role": "user", "content": "hi"}),
        r"messages\[0\].content: missing",
    ),
    "10,000 messages": (
        CHAT,
        talk(*[{"role": "user", "content": "hi"}] * 10_000),
        "at most 1000",
    ),
    "10,000 parts": (CHAT, ask(*[{"type": "text", "text": "a"}] * 10_000), "at most 64"),
    "a book": (CHAT, ask("word " * 110_000), "hold 550000 characters; at most 500000"),
    "40 clips": (CHAT, ask(*[clip(flac(0.01))] * 40), "hold 40 clips; at most 32"),
    "unknown part": (CHAT, ask({"type": "image_url", "image_url": {"url": "x"}}), "'image_url'.*'input_audio'"),
    "part without text": (CHAT, ask({"type": "text"}), r"content\[0\].text: field required"),
    "text number": (CHAT, ask({"type": "text", "text": 5}), r"content\[0\].text: .*not 5"),
    "placeholder": (CHAT, ask("hello <|audio|>"), "stands for audio"),
    "half a surrogate": (CHAT, b'{"model":"fake","messages":[{"role":"user","content":"\\ud800"}]}', "surrogate"),
    "unknown model": (CHAT, {**ask("hi"), "model": "gpt-4o"}, "'gpt-4o' does not exist"),
    "model number": (CHAT, {**ask("hi"), "model": 4}, "model: .*not 4"),
    "model path": (CHAT, {**ask("hi"), "model": "../../etc/passwd"}, "does not exist here"),
    "n 2": (CHAT, ask("hi", n=2), "n: input should be 1, not 2"),
    "tools": (CHAT, ask("hi", tools=[{"type": "function"}]), "tools: .*at most 0"),
    "json mode": (CHAT, ask("hi", response_format={"type": "json_object"}), "response_format.type"),
    "logprobs": (CHAT, ask("hi", logprobs=True), "logprobs"),
    "penalty": (CHAT, ask("hi", presence_penalty=1.5), "presence_penalty"),
    "unknown field": (CHAT, ask("hi", temprature=1), "temprature: extra inputs"),
    "temperature 3": (CHAT, ask("hi", temperature=3), "temperature: .*less than or equal to 2"),
    "temperature -1": (CHAT, ask("hi", temperature=-1), "temperature: .*greater than or equal to 0"),
    "temperature text": (CHAT, ask("hi", temperature="1"), "temperature: .*valid number, not '1'"),
    "temperature NaN": (
        CHAT,
        b'{"model":"fake","messages":[{"role":"user","content":"a"}],"temperature":NaN}',
        "temperature",
    ),
    "top_p 0": (CHAT, ask("hi", top_p=0), "top_p"),
    "max_tokens 0": (CHAT, ask("hi", max_tokens=0), "max_tokens"),
    "max_tokens true": (CHAT, ask("hi", max_tokens=True), "max_tokens"),
    "max_tokens a million": (CHAT, ask("hi", max_tokens=1_000_000), "writes at most 100"),
    "seed text": (CHAT, ask("hi", seed="x"), "seed"),
    "seed too large": (CHAT, ask("hi", seed=2**70), "seed"),
    "stop number": (CHAT, ask("hi", stop=3), "stop"),
    "stop empty": (CHAT, ask("hi", stop=[""]), "stop: holds an empty text"),
    "stops many": (CHAT, ask("hi", stop=["a"] * 9), "stop: .*at most 4"),
    "stream text": (CHAT, ask("hi", stream="yes"), "stream"),
    "audio without how": (CHAT, ask("hi", modalities=["text", "audio"]), "audio: missing"),
    "unknown modality": (CHAT, ask("hi", modalities=["video"]), r"modalities\[0\]"),
    "unknown voice": (
        CHAT,
        ask("hi", modalities=["audio"], audio={"voice": "bob", "format": "wav"}),
        "unknown voice 'bob'",
    ),
    "streamed mp3": (
        CHAT,
        ask("hi", stream=True, modalities=["audio"], audio={"voice": "default", "format": "mp3"}),
        "streamed speech is pcm16",
    ),
    "bad base64": (CHAT, ask({"type": "input_audio", "input_audio": {"data": "!!!"}}), "bad base64"),
    "base64 of umlauts": (CHAT, ask({"type": "input_audio", "input_audio": {"data": "äöü"}}), "bad base64"),
    "0 bytes": (CHAT, ask(clip(b"")), r"content\[0\]: is empty \(0 bytes\)"),
    "no audio": (CHAT, ask(clip(b"hello, this is no audio")), r"content\[0\]: not audio"),
    "half a header": (CHAT, ask(clip(flac()[:20])), "not audio, or damaged"),
    "a cut wav": (CHAT, ask(clip(WAV + b"\xff\xff\x00\x00" + b"\x00" * 100)), "truncated"),
    "0 samples": (CHAT, ask(clip(WAV + b"\x00\x00\x00\x00")), "no samples"),
    "NaN samples": (CHAT, ask(clip(float_wav([0.1, np.nan, 0.2]))), "NaN or infinite"),
    "infinite samples": (CHAT, ask(clip(float_wav([np.inf] * 9))), "NaN or infinite"),
    "too long": (CHAT, ask(clip(flac(21, 8_000))), "longer than 20.0 s"),
    "too long together": (CHAT, ask(*[clip(flac(8, 8_000))] * 3), r"content\[2\]: is longer than 4.0 s"),
    "bomb": (CHAT, ask(clip(silence(1_200))), "longer than 20.0 s"),
    "a path": (CHAT, ask(linked("/etc/passwd")), "is no data: URI"),
    "a file address": (CHAT, ask(linked("file:///etc/passwd")), "is no data: URI"),
    "a path as data": (CHAT, ask({"type": "input_audio", "input_audio": {"data": "/etc/passwd"}}), "base64|not audio"),
    "an address": (CHAT, ask(linked("https://example.org/a.wav")), "fetches no addresses"),
    "data of text": (CHAT, ask(linked("data:text/html;base64,aGk=")), "not audio"),
    "data without base64": (CHAT, ask(linked("data:audio/wav,hello")), "base64-encoded"),
    "speech of nothing": (SPEECH, aloud(""), "input"),
    "speech of dots": (SPEECH, aloud("..."), "nothing to speak"),
    "speech of a book": (
        "/v1/audio/speech",
        aloud("a" * 9_999),
        "at most 4096",
    ),
    "speech too fast": (SPEECH, aloud("a", speed=99), "speed"),
    "speech in aac": (
        "/v1/audio/speech",
        aloud("a", response_format="aac"),
        "response_format",
    ),
    "speech by a path": (
        "/v1/audio/speech",
        aloud("a", voice="piper:/etc/x.onnx"),
        "unknown voice",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_are_told_what_is_wrong(client, engine, name):
    path, body, message = MALFORMED[name]
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and "Traceback" not in answer.text
    assert re.search(message, error["message"]), error["message"]
    assert len(error["message"]) < 1_000 and "\n" not in error["message"]
    assert not engine.asked


def test_there_are_at_least_60_of_them():
    assert len(MALFORMED) >= 60


def test_one_sample_is_heard(client, engine):
    answer = client.post(CHAT, json=ask(clip(float_wav([0.5]))))
    assert answer.status_code == 200 and len(engine.asked[0].messages[0]["content"][0]["audio"]) == 1


def test_multipart_faults(client):
    url = "/v1/audio/transcriptions"
    assert client.post(url, data={"model": "fake"}).json()["error"]["param"] == "file"
    assert client.post(url, data={"model": "fake", "file": "/etc/passwd"}).status_code == 400
    assert client.post(url, data={"model": "fake"}, files={"file": b""}).status_code == 400
    assert client.post(url, data={"model": "gpt"}, files={"file": flac()}).status_code == 404
    for wrong in ({"response_format": "srt"}, {"stream": "true"}, {"temperature": "nan"}, {"temperature": "hot"}):
        answer = client.post(url, data={"model": "fake", **wrong}, files={"file": flac()})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == next(iter(wrong))
    assert client.post(url, content=b"--x", headers={"Content-Type": "multipart/form-data"}).status_code == 400


def test_unknown_addresses_and_methods(client):
    assert client.delete("/v1/models").status_code == 405 and client.delete("/v1/models").headers["allow"] == "GET"
    for path in ("/v1/embeddings", "/v1/../etc/passwd", "/v1/%2e%2e/%2e%2e/etc/passwd"):
        answer = client.get(path)
        assert answer.status_code == 404 and answer.json()["error"]["message"]


# ---- trouble behind the API


def test_trouble_has_its_status(client, engine):
    for error, status in ((LlasmError("too long"), 400), (TimedOut("late"), 408), (EngineFailed("gone"), 502)):
        engine.fails = error
        for stream in (False, True):
            answer = client.post(CHAT, json=ask("hi", stream=stream))
            assert answer.status_code == status and answer.json()["error"]["message"] == str(error)
    engine.fails = RuntimeError("secret of the inside")
    answer = client.post(CHAT, json=ask("hi"))
    assert answer.status_code == 500 and "secret" not in answer.text
    engine.fails, engine.places = None, 0
    answer = client.post(CHAT, json=ask("hi"))
    assert answer.status_code == 429 and answer.headers["retry-after"] == "3"
    engine.draining = True
    assert client.post(CHAT, json=ask("hi")).status_code == 503


def test_only_so_many_requests_are_let_in():
    with Running(FakeEngine(pace_s=0.2), max_batch=1, max_waiting=1) as running:
        client = openai.OpenAI(api_key="none", base_url=running.url, max_retries=0)
        asked = {"model": "fake", "messages": [{"role": "user", "content": "one two three"}]}
        others = [threading.Thread(target=client.chat.completions.create, kwargs=asked) for _ in range(2)]
        for other in others:
            other.start()
        while running.serving.metrics.in_flight < 2:
            time.sleep(0.01)
        with pytest.raises(openai.RateLimitError, match="too many requests"):
            client.chat.completions.create(**asked)
        for other in others:
            other.join()
        assert client.chat.completions.create(**asked).choices[0].message.content == "one two three"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_answer(stream):
    engine = FakeEngine(pace_s=0.05)
    words = " ".join(["word"] * 400)
    with Running(engine) as running, openai.OpenAI(api_key="none", base_url=running.url, max_retries=0) as client:
        asked = {"model": "fake", "messages": [{"role": "user", "content": words}], "max_tokens": 400}
        if stream:
            with client.chat.completions.create(**asked, stream=True) as chunks:
                next(iter(chunks))
        else:
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=0.3).chat.completions.create(**asked)
        ends = time.monotonic() + 2
        while engine.running and time.monotonic() < ends:
            time.sleep(0.02)
        assert not engine.running
        assert 'llasm_answers_total{reason="cancelled"} 1.0' in running.serving.metrics.text().decode()


def test_metrics_and_health(client):
    client.post(CHAT, json=ask({"type": "text", "text": "one two three"}, clip(flac())))
    client.post(CHAT, json={})
    assert client.get("/health").json() == {"status": "ok", "running": 0, "waiting": 0}
    shown = client.get("/metrics").text
    for line in (
        'llasm_requests_total{route="/v1/chat/completions",status="200"} 1.0',
        'llasm_requests_total{route="/v1/chat/completions",status="400"} 1.0',
        'llasm_answers_total{reason="stop"} 1.0',
        "llasm_audio_tokens_total 5.0",
        "llasm_first_token_seconds_count 1.0",
        "llasm_running 0.0",
        "llasm_waiting 0.0",
    ):
        assert line in shown
    assert "one two three" not in shown


# ---- the guard

KEY = "correct-horse"


def test_the_key_guards_everything(engine):
    with client_of(engine, api_key=KEY, page=True) as client:
        for path in ("/", "/v1/models", "/metrics", "/docs", "/openapi.json", "/gradio_api/info", "/config"):
            answer = client.get(path)
            assert answer.status_code == 401 and "key" in answer.json()["error"]["message"], path
        for wrong in ("Bearer wrong", "Bearer ", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer \xff"):
            assert client.get("/v1/models", headers={"Authorization": wrong.encode("latin-1")}).status_code == 401
        assert client.get("/health").status_code == 200
        bearer = {"Authorization": f"Bearer {KEY}"}
        assert client.get("/v1/models", headers=bearer).status_code == 200
        assert client.get("/", headers=bearer).status_code == 200


def test_the_page_has_a_login_form_and_a_cookie_that_is_not_the_key(engine):
    with client_of(engine, api_key=KEY, page=True) as client:
        page = {"Accept": "text/html"}
        answer = client.get("/", headers=page)
        assert answer.status_code == 401 and '<form method="post" action="/login">' in answer.text
        assert client.post("/login", data={"key": "wrong"}).status_code == 401 and not client.cookies
        answer = client.post("/login", data={"key": KEY}, follow_redirects=False)
        cookie = answer.headers["set-cookie"]
        assert answer.status_code == 303 and "HttpOnly" in cookie and "SameSite=strict" in cookie and KEY not in cookie
        assert client.get("/", headers=page).status_code == 200 and client.get("/config").status_code == 200
        client.cookies.clear()
        client.cookies.set("llasm_session", "0" * 64)
        assert client.get("/", headers=page).status_code == 401


def test_no_other_site_gets_in(client):
    assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 421
    assert client.get("/v1/models", headers={"Host": "[::1]:7860"}).status_code == 200
    evil = {"Origin": "https://evil.example"}
    for headers in (evil, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
        assert client.post(CHAT, json=ask("hi"), headers=headers).status_code == 403
    assert client.post(CHAT, json=ask("hi"), headers={"Origin": HERE}).status_code == 200
    answers = [client.get("/v1/models", headers=evil), client.options(CHAT, headers=evil)]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control")]


def test_the_page_grants_no_other_site_access(engine):
    with client_of(engine, page=True, host="0.0.0.0", api_key="k") as client:
        headers = {"Origin": "https://evil.example", "Authorization": "Bearer k", "Host": "public.example"}
        answer = client.get("/config", headers=headers)
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]
        for path in ("/gradio_api/file=/etc/passwd", "/gradio_api/file=../../etc/passwd", "/file=/etc/passwd"):
            assert client.get(path, headers=headers).status_code in (403, 404)


def test_a_body_is_counted_while_it_is_read(client):
    def pieces():  # without a Content-Length
        for _ in range(20):
            yield b"x" * 100_000

    for content in (b"x" * 2_000_000, pieces()):
        answer = client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413 and "larger than 1 MB" in answer.json()["error"]["message"]
    big = {"file": b"x" * 2_000_000}
    assert client.post("/v1/audio/transcriptions", data={"model": "fake"}, files=big).status_code == 413


# ---- addresses


@pytest.mark.parametrize(
    "address, public",
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        *[(address, False) for address in ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254")],
        *[(address, False) for address in ("0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1")],
        *[(address, False) for address in ("::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:10.0.0.1")],
        *[(address, False) for address in ("64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1", "not an address")],
    ],
)
def test_only_public_addresses(address, public):
    assert fetch.is_public(address) is public


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/a.wav",
        "http://localhost/a.wav",
        "http://[::1]/a.wav",
        "http://2130706433/a.wav",
        "http://0x7f.1/a.wav",
        "http://169.254.169.254/latest/meta-data",
        "http://user:secret@example.org/a.wav",
        "http:///a.wav",
        "http://[/a.wav",
        "http://example.org:99999/a.wav",
        "HTTP://LOCALHOST/a.wav",
    ],
)
def test_private_addresses_are_not_fetched_even_where_fetching_is_allowed(engine, url):
    with client_of(engine, fetch_audio=True) as client:
        answer = client.post(CHAT, json=ask(linked(url)))
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "bad_url" and not engine.asked


def test_a_name_with_one_private_address_is_refused(monkeypatch):
    class Loop:
        async def getaddrinfo(self, host, port, type):
            return [(2, 1, 6, "", ("93.184.216.34", port)), (2, 1, 6, "", ("10.0.0.1", port))]

    monkeypatch.setattr(fetch.asyncio, "get_running_loop", Loop)
    assert asyncio.run(fetch._public_address("rebinding.example", 80)) is None


def test_what_is_fetched_comes_from_the_checked_address_without_redirects(monkeypatch):
    seen = []

    async def serve(reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        seen.append(head)
        if "/moved" in head:
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://localhost/x\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nsound")
        await writer.drain()
        writer.close()

    async def fetched():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]

        async def address(host, port):
            assert host == "example.org"
            return "127.0.0.1"

        monkeypatch.setattr(fetch, "_public_address", address)
        url = f"http://example.org:{port}"
        assert await fetch._fetch(url + "/a.wav", "url", 100) == b"sound"
        for bad, limit, reason in (("/moved", 100, "redirects are not followed"), ("/a.wav", 4, "is larger than")):
            with pytest.raises(fetch.ApiError, match=reason):
                await fetch._fetch(url + bad, "url", limit)
        server.close()
        assert f"Host: example.org:{port}" in seen[0]

    asyncio.run(fetched())


# ---- settings and log


def test_settings(monkeypatch):
    assert load_settings([]).on_loopback and load_settings([]).host_names >= {"localhost", "127.0.0.1"}
    assert load_settings(["--host", "0.0.0.0"]).host_names is None
    monkeypatch.setenv("LLASM_API_KEY", "k")
    assert load_settings(["--allow-hosts", "a.example", "--open"]).host_names >= {"a.example"}
    assert load_settings([]).api_key == "k"
    wrong = [
        ["--port", "70000"],
        ["--engine", "localhost"],
        ["--api-key", "kö"],
        ["--max-body-mb", "0"],
        ["--nope", "1"],
    ]
    for argv in wrong:
        with pytest.raises(LlasmError):
            load_settings(argv)


def test_the_log_holds_what_was_said_only_if_asked(engine, caplog):
    caplog.set_level("INFO", logger="llasm.serve")
    for wanted in (False, True):
        caplog.clear()
        with client_of(engine, log_content=wanted) as client:
            client.post(CHAT, json=ask({"type": "text", "text": "my secret"}, clip(flac())))
        assert ("my secret" in caplog.text) is wanted and "POST /v1/chat/completions 200" in caplog.text


# ---- the description


def test_the_description_is_served(client):
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) >= {CHAT, "/v1/models", "/v1/audio/speech", "/v1/audio/transcriptions", "/health"}
    assert client.get("/docs").status_code == 200
