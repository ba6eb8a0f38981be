"""What `llasm serve` refuses: malformed requests are told what is wrong with them, and never reach the engine."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
import soundfile
from serve_fakes import (
    CHAT,
    SPEECH,
    aloud,
    ask,
    clip,
    flac,
    linked,
    talk,
)

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
    "blank text": (CHAT, ask(" \n"), r"messages\[0\].content: is blank"),
    "blank parts": (CHAT, ask({"type": "text", "text": ""}, {"type": "text", "text": " "}), "is blank"),
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
    twice = [("file", ("a.flac", flac())), ("file", ("b.flac", flac()))]
    answer = client.post(url, data={"model": "fake"}, files=twice)
    assert answer.status_code == 400 and answer.json()["error"]["message"] == "file: comes more than once"
    assert client.post(SPEECH, json=aloud("...")).json()["error"]["param"] == "input"
    assert client.post(url, content=b"--x", headers={"Content-Type": "multipart/form-data"}).status_code == 400


def test_unknown_addresses_and_methods(client):
    assert client.delete("/v1/models").status_code == 405 and client.delete("/v1/models").headers["allow"] == "GET"
    for path in ("/v1/embeddings", "/v1/../etc/passwd", "/v1/%2e%2e/%2e%2e/etc/passwd"):
        answer = client.get(path)
        assert answer.status_code == 404 and answer.json()["error"]["message"]
