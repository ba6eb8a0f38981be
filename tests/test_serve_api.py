"""`llasm serve`'s API over an engine that answers at once: the openai client's calls, trouble, settings and log."""

from __future__ import annotations

import base64
import io
import threading
import time

import openai
import pytest
import soundfile
from serve_fakes import (
    CHAT,
    SPEECH,
    FakeEngine,
    Running,
    ask,
    b64,
    client_of,
    clip,
    flac,
    linked,
)

from llasm import audio
from llasm.errors import LlasmError
from llasm.serve.engine import TimedOut
from llasm.serve.errors import EngineFailed
from llasm.serve.settings import load_settings

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


@pytest.mark.parametrize("voice", ["default", "nova", "shimmer", "ash", "marin"])
def test_openais_voices_are_the_servers_own(client, voice):
    given = {"model": "tts-1", "input": "Hi."}
    said, own = (client.post(SPEECH, json={**given, "voice": name}).content for name in (voice, "hum:low"))
    assert said == own and len(own) > 100


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
