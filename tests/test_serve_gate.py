"""What a client may reach of the page: Gradio's own calls as an attacker would send them, and as the page does."""

from __future__ import annotations

import json
import threading

import gradio as gr
import httpx
import pytest
from serve_fakes import FakeSpeaker, Running, client_of, flac

from llasm.serve import gate
from llasm.serve.demo import build
from llasm.serve.host import Host

SESSION = "attacker0"
OPTIONS = ["", False, "hum:low", 0, 1, 64]
CALL, JOIN, RUN, DATA = (
    f"/gradio_api/{name}" for name in ("component_server", "queue/join", "run/predict", "queue/data")
)


class Page:
    """Sends what the page's script would send, and what it would not."""

    def __init__(self, client):
        self.client = client
        config = client.get("/config").json()
        assert config["connect_heartbeat"]  # by which the server sees that the page is there
        self.events = {tuple(target): d["id"] for d in config["dependencies"] for target in d["targets"]}
        self.ids = {c["props"].get("elem_id"): c["id"] for c in config["components"]}
        self.load = next(d["id"] for d in config["dependencies"] if d["targets"][0][1] == "load")

    def event(self, path, number, data, **others):
        body = {"fn_index": number, "data": data, "session_hash": SESSION, **others}
        return self.client.post(path, json=body)

    def open(self) -> str:
        [wire, *_] = self.event(RUN, self.load, [""]).json()["data"]
        return wire["token"] if "token" in wire else wire["value"]["token"]

    def ask(self, text, files=(), options=OPTIONS):
        return self.event(
            JOIN, self.events[self.ids["box"], "submit"], [{"text": text, "files": list(files)}, *options]
        )

    def call(self, name, data, **others):
        body = {"component_id": self.ids["wire"], "fn_name": name, "session_hash": SESSION, "data": data, **others}
        return self.client.post(f"{CALL}/", json=body)  # as Gradio's script does

    def told(self) -> str:
        """All updates of the events that are running."""
        with self.client.stream("GET", DATA, params={"session_hash": SESSION}) as answer:
            return "".join(answer.iter_text())

    def upload(self, *contents, name="a.flac"):
        answer = self.client.post("/gradio_api/upload", files=[("files", (name, content)) for content in contents])
        return [file(path) for path in answer.json()]


def file(path: str) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Gradio's folder of temporary files."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return tmp_path / "gradio"


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.flac"
    path.write_bytes(flac())
    return path


@pytest.fixture
def page(engine, folder):
    with Running(engine, page=True) as running, httpx.Client(base_url=running.url[:-3], timeout=20) as client:
        yield Page(client)


def left(folder) -> list:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []


# ---- files and addresses of the server's side


def test_no_file_of_the_server_is_read(page, engine, folder, secret):
    token = page.open()
    for path in (str(secret), "/etc/passwd", "/dev/zero", f"{folder}/../secret.flac", "examples/france.wav"):
        assert page.ask("what is it?", files=[file(path)]).status_code == 400, path
        for i in range(len(OPTIONS)):
            options = [*OPTIONS[:i], file(path), *OPTIONS[i + 1 :]]
            assert page.ask("what is it?", options=options).status_code == 400, (path, i)
        for name in ("hear", "hush", "transcript"):
            answer = page.call(name, {"token": token, "pcm": file(path), "rate": file(path), "first": True})
            assert answer.status_code == 200 and str(secret) not in answer.text
            assert page.call(name, file(path)).status_code == 200
        for address in (f"file={path}", f"file/{path}", f"proxy={path}", f"stream/{path}"):
            assert page.client.get(f"/gradio_api/{address}").status_code == 404
    assert not left(folder) and not engine.asked and secret.is_file()
    assert page.call("transcript", {"token": token}).json() == ""


def test_no_address_is_fetched(page, engine, folder):
    page.open()
    for url in ("http://example.org/a.wav", "HTTP://example.org/a.wav", "https://93.184.216.34/a.wav"):
        assert page.ask("hear it", files=[file(url)]).status_code == 400
        assert page.ask("hear it", options=[file(url), *OPTIONS[1:]]).status_code == 400
        event = {"index": 0, "value": file(url)}
        page.event(JOIN, page.events[page.ids["chat"], "retry"], OPTIONS, event_data=event)
        assert page.client.get(f"/gradio_api/file={url}").status_code == 404
        assert page.client.get(f"/gradio_api/proxy={url}").status_code == 404
    page.told()
    assert not left(folder) and not engine.asked


def test_gradio_itself_keeps_paths_in_its_folder(page, monkeypatch, secret, folder):
    """The second lock: where the gate would let a path through, Gradio refuses it."""
    monkeypatch.setattr(gate.Gate, "_value", lambda self, block, value: value)
    page.open()
    for path in (str(secret), "/dev/zero"):
        page.ask("what is it?", options=[file(path), *OPTIONS[1:]])
        page.ask("what is it?", files=[file(path)])
    assert '"success":false' in page.told().replace(" ", "")
    assert not left(folder)


def test_a_file_that_was_uploaded_is_heard_once(page, engine, folder):
    page.open()
    [one, other] = page.upload(flac(), flac())  # the same recording twice
    assert one != other
    assert page.ask("and this?", files=[one, other]).status_code == 200
    page.told()
    clips = [part for part in engine.asked[0].messages[0]["content"] if part["type"] == "audio"]
    assert len(clips) == 2 and not left(folder) and not list(folder.iterdir())
    assert page.ask("again", files=[one]).status_code == 400
    assert page.client.post("/gradio_api/upload", data={"files": "text"}).status_code == 400
    assert page.client.post("/gradio_api/upload", content=b"--").status_code == 400


@pytest.mark.parametrize("name", ["../../evil.wav", "..", "/etc/evil.wav", ".bashrc", "a" * 300 + ".wav", "ü\0.wav"])
def test_the_name_of_an_upload_is_only_a_name(page, folder, name):
    [kept] = page.upload(flac(), name=name)
    [path] = left(folder)
    assert str(path) == kept["path"] and path.parent.parent == folder


# ---- what is no page's


def test_bodies_that_no_page_sends_are_refused_without_noise(page, caplog, capfd):
    page.open()
    submit = page.events[page.ids["box"], "submit"]
    retry = page.events[page.ids["chat"], "retry"]
    wrong = [
        page.event(JOIN, 999, []),
        page.event(RUN, 999, []),
        page.event(RUN, "x", []),
        page.event(RUN, submit, []),
        page.event(JOIN, submit, []),
        page.event(JOIN, submit, "text"),
        page.event(JOIN, submit, [None] * 9),
        page.event(JOIN, submit, [{"text": 3}, *OPTIONS]),
        page.event(JOIN, retry, OPTIONS),
        page.event(JOIN, retry, OPTIONS, event_data={"index": -9, "value": ""}),
        page.ask("hi", options=["", False, "hum:low", 99, 1, 64]),
        page.ask("hi", options=["", False, "bob", 0, 1, 64]),
        page.ask("hi", options=["", False, "hum:low", None, 1, 64]),
        page.event(JOIN, submit, [], session_hash="../x"),
        page.call("hear", {}, component_id=9_999),
        page.call("hear", {}, component_id=None),
        page.call("postprocess", {}),
        page.call("__init__", {}),
        page.call(None, {}),
        *[page.call(name, data) for name in ("hear", "transcript", "hush") for data in ([], "x", None, 3)],
        page.client.post(CALL, content=b"{"),
        page.client.post(JOIN, content=b"[" * 100_000),
        page.client.post(JOIN, json=[]),
        page.client.get("/nothing"),
        page.client.get("/gradio_api/vibe-code"),
        page.client.post("/gradio_api/vibe-edit", json={}),
        page.client.get("/gradio_api/queue/join"),
        page.client.request("TRACE", "/"),
        page.client.request("TRACE", "/v1/models"),
    ]
    for i, answer in enumerate(wrong):
        assert answer.status_code in (400, 404, 405), (i, answer.text)
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, i
    page.event(JOIN, retry, OPTIONS, event_data={"index": 99, "value": ""})
    page.event(JOIN, page.events[page.ids["chat"], "example_select"], OPTIONS, event_data={"index": 99, "value": ""})
    page.told()
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())


@pytest.mark.parametrize("data", [{"pcm": "%%%"}, {"pcm": ""}, {"pcm": 3}, {"pcm": "", "rate": 1e400}, {"rate": []}])
def test_a_broken_microphone_is_told_so_by_http(page, data):
    token = page.open()
    content = json.dumps({"component_id": page.ids["wire"], "fn_name": "hear", "session_hash": SESSION})[:-1]
    content += ', "data": ' + json.dumps({"token": token, "first": True, "hands_free": False, **data}) + "}"
    answer = page.client.post(CALL, content=content)
    assert answer.status_code == 200 and "no sound" in answer.json()["note"]


# ---- a page that was away


def test_the_conversation_outlives_its_connection(page, engine):
    def beat(seconds):
        with page.client.stream("GET", f"/gradio_api/heartbeat/{SESSION}") as answer:
            threading.Event().wait(seconds)
            next(answer.iter_text())

    token = page.open()
    beat(0.1)
    page.ask("my name is Bob")
    page.told()
    beat(0.1)
    page.ask("who am I?")
    assert "Bob" in page.told()
    assert [m["role"] for m in engine.asked[-1].messages] == ["user", "assistant", "user"]
    assert "Bob" in page.call("transcript", {"token": token}).json()


def test_a_page_that_the_server_does_not_know_is_told_so(page, engine):
    """As after the server was started anew."""
    pcm = {"pcm": "AAAA", "rate": 16_000, "hands_free": False}
    answer = page.call("hear", {"token": "of another server", **pcm}).json()
    assert "no longer has" in answer["note"]
    assert page.call("transcript", {"token": "of another server"}).json()["token"] == answer["token"]
    page.ask("hello")
    assert "no longer has" not in page.told()
    assert "hello" in page.call("transcript", {"token": answer["token"]}).json()


def test_a_question_of_an_unknown_page_begins_anew_and_says_so(page):
    page.ask("hello")
    told = page.told()
    assert "no longer has" in told and '"token"' in told.replace(" ", "").replace("\\", "")
    page.ask("and again")
    assert "no longer has" not in page.told()


# ---- what the browser may load


def test_the_browser_loads_nothing_from_elsewhere(engine):
    with client_of(engine, page=True) as client:
        for path in ("/", "/docs", "/v1/models", "/nothing", "/config"):
            policy = client.get(path).headers["content-security-policy"]
            assert "default-src 'self'" in policy and "img-src 'self' data: blob:;" in policy and "http" not in policy
        docs = client.get("/docs").text
        assert "https://" not in docs and client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200


def test_no_input_of_the_page_is_of_a_kind_that_the_gate_does_not_know(engine):
    blocks = build(Host(engine, FakeSpeaker(), 60), 100)
    known = (gr.MultimodalTextbox, gr.Checkbox, gr.Slider, gr.Dropdown, gr.Textbox, gr.HTML)
    assert all(isinstance(block, known) for fn in blocks.fns.values() for block in fn.inputs)
