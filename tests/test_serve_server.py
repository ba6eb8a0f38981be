"""`llasm serve` as a process: the port, the drain, the signals; and in front of another OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
import uvicorn
from serve_fakes import HERE, FakeEngine, FakeSpeaker, Running, ask, flac

import llasm
from llasm.cli import main
from llasm.errors import LlasmError
from llasm.serve.api import application
from llasm.serve.engine import Draining
from llasm.serve.remote import RemoteEngine
from llasm.serve.server import _Server
from llasm.serve.settings import Settings

CLIP = Path("examples/france.wav")
LONG = "Tell me a long story about a dog, with all its friends and everything that they did."


def test_a_taken_port_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert capsys.readouterr().err == f"llasm: port {port} of 127.0.0.1 is taken; choose another with --port\n"
    assert main(["serve", "--host", "192.0.2.1"]) == 2
    assert "cannot listen on port 7860 of 192.0.2.1" in capsys.readouterr().err


def test_an_engine_that_is_not_there_is_one_line(capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    assert main(["serve", "--port", "0", "--engine", url]) == 2
    assert re.fullmatch(rf"llasm: engine {url}: .*is the server running.*\n", capsys.readouterr().err)


def test_a_missing_package_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(llasm, "serve", llasm.serve)  # set anew when it is imported anew
    for name in [name for name in sys.modules if name.startswith(("llasm.serve", "uvicorn"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 2
    assert capsys.readouterr().err == "llasm: serve: uvicorn is not installed; pip install 'llasm[serve]'\n"


# ---- in front of another server


@contextlib.contextmanager
def behind(engine: FakeEngine, **limits):
    """(the server in front, by the openai client; the server at the back)."""
    with Running(engine) as back:
        remote = RemoteEngine(back.url, name="front", **limits)
        with Running(remote) as front, openai.OpenAI(api_key="none", base_url=front.url, max_retries=0) as client:
            yield client, front


def test_the_answer_of_another_server_is_passed_on():
    engine = FakeEngine()
    with behind(engine) as (client, _):
        data = base64.b64encode(CLIP.read_bytes()).decode()
        content = [
            {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
            {"type": "text", "text": "say this back"},
        ]
        asked = {"model": "front", "messages": [{"role": "user", "content": content}], "seed": 3, "stop": ["#"]}
        whole = client.chat.completions.create(**asked, max_tokens=9, temperature=0.5, top_p=0.5)
        assert whole.choices[0].message.content == "say this back" and whole.model == "front"
        assert whole.usage.prompt_tokens_details.audio_tokens == 5 and whole.usage.completion_tokens == 3
        request = engine.asked[0]
        assert (request.max_new_tokens, request.temperature, request.top_p, request.seed) == (9, 0.5, 0.5, 3)
        assert request.stop == ("#",) and len(request.messages[0]["content"][0]["audio"]) > 16_000
        chunks = client.chat.completions.create(**asked, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "say this back"
        assert client.chat.completions.create(**asked, max_tokens=1).choices[0].finish_reason == "length"


def test_trouble_of_another_server_is_told_apart():
    engine = FakeEngine()
    with behind(engine, max_batch=1, max_waiting=1) as (client, _):
        asked = {"model": "front", "messages": [{"role": "user", "content": "one two"}]}
        engine.fails = LlasmError("the conversation is too long")
        with pytest.raises(openai.BadRequestError, match="the conversation is too long"):
            client.chat.completions.create(**asked)
        engine.fails, places, engine.places = None, engine.places, 0
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(**asked)
        engine.fails, engine.places = RuntimeError("secret"), places
        with pytest.raises(openai.InternalServerError) as found:
            client.chat.completions.create(**asked)
        assert found.value.status_code == 502 and "secret" not in str(found.value)
        engine.fails = None  # that answer's connection has been closed: a new one is made
        assert client.chat.completions.create(**asked).choices[0].message.content == "one two"


def test_a_client_that_leaves_is_noticed_by_the_other_server():
    engine = FakeEngine(pace_s=0.05)
    with behind(engine) as (client, front):
        words = " ".join(["word"] * 200)
        asked = {"model": "front", "messages": [{"role": "user", "content": words}]}
        with client.chat.completions.create(**asked, stream=True) as chunks:
            next(iter(chunks))
        ends = time.monotonic() + 3
        while (engine.running or front.serving.engine.load()[0]) and time.monotonic() < ends:
            time.sleep(0.02)
        assert not engine.running and front.serving.engine.load() == (0, 0)


# ---- the end


def test_a_drain_lets_a_transcription_of_several_segments_finish(monkeypatch):
    """Newcomers are refused meanwhile, and the engine's own door shuts last."""
    monkeypatch.setattr("llasm.vad.segments", lambda wave, seconds: [(0, 8_000), (8_000, 16_000), (12_000, 16_000)])
    engine = FakeEngine(pace_s=0.05)
    app, serving = application(engine, FakeSpeaker(), Settings())
    ended: list[bool] = []
    serving.hang_up = lambda: ended.append(serving.metrics.in_flight == 0 and engine.draining)
    server = _Server(uvicorn.Config(app), serving, None)

    async def run():
        asked = {"data": {"model": "whisper-1"}, "files": {"file": ("a.flac", flac())}}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=HERE) as client:
            listening = asyncio.create_task(client.post("/v1/audio/transcriptions", **asked))
            while not engine.asked:
                await asyncio.sleep(0.01)
            serving.draining = True
            draining = asyncio.create_task(server._drain())
            refused = await client.post("/v1/chat/completions", json=ask("hi"))
            with pytest.raises(Draining):
                serving.newcomers.submit(engine.asked[0])  # as the page does
            answer = await listening
            await draining
        return answer, refused

    answer, refused = asyncio.run(run())
    assert answer.status_code == 200 and len(engine.asked) == 3 and refused.status_code == 503
    assert ended == [True] and server.should_exit


# ---- the process


class Process:
    """`llasm serve` with the default model."""

    def __init__(self, *options: str):
        command = [sys.executable, "-m", "llasm.cli", "serve", "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self):
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"is at (http://localhost:\d+)", line)
        assert found, (line, self.process.stderr.read() if self.process.stderr else "")
        self.url = found[1]
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def ask(self, tokens: int) -> str:
        with openai.OpenAI(api_key="none", base_url=f"{self.url}/v1", max_retries=0, timeout=120) as client:
            messages = [{"role": "user", "content": LONG}]
            answer = client.chat.completions.create(model="llasm-tiny", messages=messages, max_tokens=tokens)
            return answer.choices[0].finish_reason


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGTERM")
def test_sigterm_drains_and_a_second_signal_ends_at_once():
    with Process("--drain_s", "60") as server:
        ended: list[str] = []
        asking = threading.Thread(target=lambda: ended.append(server.ask(80)))
        asking.start()
        while httpx.get(f"{server.url}/health").json()["running"] == 0:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        while httpx.get(f"{server.url}/health").status_code != 503:
            time.sleep(0.02)
        with pytest.raises(openai.InternalServerError) as found:
            server.ask(4)
        assert found.value.status_code == 503 and "shutting down" in str(found.value)
        asking.join()
        assert ended == ["length"]  # it was let finish
        assert server.process.wait(timeout=10) == 0
        assert "Traceback" not in server.process.stderr.read()

    with Process() as server, httpx.stream("GET", f"{server.url}/gradio_api/heartbeat/page") as page:
        assert "ALIVE" in next(page.iter_text())  # a page is open
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=10) == 0 and time.monotonic() - began < 8
        assert server.process.stderr.read() == ""

    with Process() as server:
        asking = threading.Thread(target=_try, args=[server])
        asking.start()
        while httpx.get(f"{server.url}/health").json()["running"] == 0:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        while httpx.get(f"{server.url}/health").status_code != 503:
            time.sleep(0.02)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(timeout=5)
        asking.join()


def _try(server: Process) -> None:
    with contextlib.suppress(openai.OpenAIError):
        server.ask(1_000)


@pytest.mark.slow
def test_the_default_answers_through_the_openai_client():
    with Process() as server, openai.OpenAI(api_key="none", base_url=f"{server.url}/v1") as client:
        data = base64.b64encode(CLIP.read_bytes()).decode()
        spoken = {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]}
        asked = {"model": "llasm-tiny", "messages": [spoken], "max_tokens": 24}
        answer = client.chat.completions.create(**asked)
        assert "Paris" in answer.choices[0].message.content and answer.usage.prompt_tokens_details.audio_tokens > 0
        chunks = client.chat.completions.create(**asked, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert streamed.strip() == answer.choices[0].message.content.strip()
        aloud = client.chat.completions.create(
            **asked, modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"}
        )
        heard = client.audio.transcriptions.create(
            model="llasm-tiny", file=("answer.wav", base64.b64decode(aloud.choices[0].message.audio.data))
        )
        assert "Paris" in heard.text
        found = client.audio.transcriptions.create(model="llasm-tiny", file=CLIP, response_format="verbose_json")
        assert "France" in found.text and 0 <= found.segments[0].start < found.segments[0].end <= found.duration
        assert httpx.get(f"{server.url}/").status_code == 200
        assert "llasm_first_token_seconds_count" in httpx.get(f"{server.url}/metrics").text
