"""The web demo without a browser: what is heard and asked, what goes wrong, the open tabs."""

from __future__ import annotations

import asyncio
import base64

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from llasm import audio
from llasm.chat import Reply, check_messages
from llasm.errors import LlasmError
from llasm.serve import sessions as tabs
from llasm.serve.conversation import Conversation, Said
from llasm.serve.demo import _Page
from llasm.serve.engine import Busy, Draining
from llasm.serve.gate import mount
from llasm.serve.host import LOST, NO_QUESTION, NO_SPEECH, Host, Options
from llasm.serve.schema import MAX_CHARACTERS, MAX_CLIPS
from llasm.serve.sessions import Sessions
from llasm.serve.speech import Speaker

FRANCE, SKY = (audio.decode(f"examples/{name}.wav") for name in ("france", "sky"))
PAUSE = np.zeros(round(1.5 * audio.SAMPLE_RATE), np.float32)
NOISE = (0.05 * np.random.default_rng(0).standard_normal(10 * audio.SAMPLE_RATE)).astype(np.float32)
OPTIONS = Options("", True, "hibari:heart", 0, 1, 64)


@pytest.fixture(scope="module")
def speaker():
    return Speaker()


# ---- the page


def test_the_page_is_served_and_offers_nothing_else(speaker):
    app = FastAPI()
    mount(app, Host(Scripted(), speaker, 60), max_new_tokens=100, max_body_bytes=1_000_000)
    with TestClient(app) as client:
        page = client.get("/").text
        assert "scripted · voice chat" in page and "window.llasm" in page and "--paper" in page
        assert client.get("/gradio_api/info").json() == {"named_endpoints": {}, "unnamed_endpoints": {}}
        config = client.get("/config").json()
    props = {c["props"].get("label"): c["props"] for c in config["components"]}
    assert [value for _, value in props["Voice"]["choices"]] == speaker.voices()
    assert props["Longest answer, in tokens"]["maximum"] == props["Longest answer, in tokens"]["value"] == 100
    assert len(props["Conversation"]["examples"]) == 4


# ---- the host: what is heard, asked and said


class Scripted:
    """An engine that answers with the given pieces, or raises; it remembers what it was asked."""

    name = "scripted"

    def __init__(self, pieces=("It is Paris. ", "Paris is ", "old."), error=None, endless=False):
        self.pieces, self.error, self.endless, self.asked = pieces, error, endless, []

    def submit(self, request):
        check_messages(request.messages)
        if self.error is not None:
            raise self.error
        self.asked.append(request)
        self.answer = ScriptedAnswer(self)
        return self.answer


class ScriptedAnswer:
    def __init__(self, engine):
        self.engine, self.reply, self.finish_reason, self.cancelled = engine, None, None, False

    def cancel(self):
        self.cancelled = True

    async def __aiter__(self):
        text = ""
        while not self.cancelled:
            for piece in self.engine.pieces:
                await asyncio.sleep(0.01)
                if self.cancelled:
                    break
                text += piece
                yield piece
            if not self.engine.endless:
                break
        self.finish_reason = "cancelled" if self.cancelled else "stop"
        self.reply = Reply(text, 0, 0.0, {"first_token": 10.0})


def pcm_of(wave):
    return base64.b64encode((32767 * wave).astype("<i2").tobytes()).decode()


async def collected(host, talk, options=OPTIONS):
    return [event async for event in host.answer(talk, options)]


def test_an_answer_is_written_and_spoken(speaker):
    async def run():
        host, talk = Host(Scripted(), speaker, 60), Conversation()
        assert await host.ask_typed({"text": " Where? ", "files": []}, talk) == ""
        return host, talk, await collected(host, talk)

    host, talk, events = asyncio.run(run())
    assert host.engine.asked[0].messages == [{"role": "user", "content": [{"type": "text", "text": "Where?"}]}]
    assert [said.text for said in talk.said] == ["Where?", "It is Paris. Paris is old."]
    clips = [event["clip"] for event in events if "clip" in event]
    assert len(clips) == 2 and all(len(audio.decode(clip)) > 4000 for clip in clips)
    assert "0.01 s to the first token" in talk.said[1].caption and "data-replay" in talk.said[1].caption
    silent = Options("", False, "hibari:heart", 0, 1, 64)

    async def again():
        talk.waiting = [Said("user", "And now?")]
        return await collected(host, talk, silent)

    assert not any("clip" in event for event in asyncio.run(again()))
    assert [message["role"] for message in host.engine.asked[1].messages] == ["user", "assistant", "user"]


def test_stop_ends_the_answer_and_keeps_its_text(speaker):
    async def run():
        host, talk = Host(Scripted(endless=True), speaker, 60), Conversation()
        talk.waiting = [Said("user", "Tell me everything.")]
        async for _ in host.answer(talk, OPTIONS):
            if len(talk.said[-1].text) > 60:
                talk.stop()
        return host, talk

    host, talk = asyncio.run(asyncio.wait_for(run(), 60))
    assert host.engine.answer.cancelled and talk.said[-1].text and "stopped" in talk.said[-1].caption


def test_a_reader_who_leaves_cancels_the_answer(speaker):
    async def run():
        host, talk = Host(Scripted(endless=True), speaker, 60), Conversation()
        talk.waiting = [Said("user", "Tell me everything.")]
        reading = host.answer(talk, OPTIONS)
        async for _ in reading:
            if talk.said[-1].text:
                break
        await reading.aclose()
        return host.engine.answer.cancelled, talk.turn.locked()

    assert asyncio.run(run()) == (True, False)


@pytest.mark.parametrize(
    ("error", "words"),
    [(Busy(7), "again in 7 s"), (Draining(), "shut down"), (RuntimeError("secret /path"), "Something went wrong")],
)
def test_what_goes_wrong_is_said_kindly(speaker, error, words):
    async def run():
        host, talk = Host(Scripted(error=error), speaker, 60), Conversation()
        talk.waiting = [Said("user", "Where?")]
        return talk, await collected(host, talk)

    talk, events = asyncio.run(run())
    [note] = [event["note"] for event in events if "note" in event]
    assert words in note and "secret" not in note
    assert "not answered" in talk.said[-1].caption and talk.said[0].text == "Where?"


def test_a_question_that_was_refused_does_not_stay_in_the_way(speaker):
    """Nor one for which there was an error; after Busy the question still waits for its answer."""

    async def run(error):
        host, talk = Host(Scripted(error=error), speaker, 60), Conversation()
        for text in ("too long " * 9, "What now?"):
            talk.waiting = [Said("user", text)]
            await collected(host, talk)
            host.engine.error = None
        [request] = host.engine.asked
        return "".join(part["text"] for part in request.messages[0]["content"])

    for error in (LlasmError("the conversation takes too many tokens"), RuntimeError("out of memory")):
        assert asyncio.run(run(error)) == "What now?"
    assert asyncio.run(run(Busy(7))) == "too long " * 9 + "What now?"


def test_the_page_keeps_the_limits_of_the_api(speaker):
    host, talk = Host(Scripted(), speaker, 5), Conversation()

    def type_in(text, talk=talk, system=""):
        return asyncio.run(host.ask_typed({"text": text, "files": []}, talk, system))

    assert str(MAX_CHARACTERS) in type_in("a" * (MAX_CHARACTERS + 1))
    assert str(MAX_CHARACTERS) in type_in("a", system="a" * MAX_CHARACTERS)
    assert talk.waiting == [] and type_in("a" * 400_000) == ""
    assert str(MAX_CHARACTERS) in type_in("a" * 400_000) and len(talk.waiting) == 1
    clips = Conversation()
    clips.said = [Said("user", waves=[FRANCE[:1600]])] * (MAX_CLIPS + 1)
    assert str(MAX_CLIPS) in type_in("hello", clips)
    long = Conversation()
    long.said = [Said("user", waves=[FRANCE])] * 2
    long.waiting = [Said("user", waves=[FRANCE])]  # by another way: an example, a second tab
    assert len(FRANCE) * 3 > 5 * audio.SAMPLE_RATE
    [event] = asyncio.run(collected(host, long))
    assert "at most 5 s" in event["note"] and not host.engine.asked and len(long.said) == 2
    [event] = asyncio.run(collected(host, talk, Options("a" * MAX_CHARACTERS, False, "hibari:heart", 0, 1, 64)))
    assert str(MAX_CHARACTERS) in event["note"] and not host.engine.asked


def test_the_microphone_keeps_them_too(speaker):
    host = Host(Scripted(), speaker, 2)
    tab = host.sessions.open("tab")
    data = {"token": tab.token, "pcm": pcm_of(FRANCE), "rate": 16_000, "hands_free": False, "first": True, "last": True}
    found = [asyncio.run(host.hear(data)) for _ in range(3)]
    assert [answer["turns"] for answer in found] == [1, 0, 0] and "at most 2 s" in found[1]["note"]
    assert len(tab.talk.waiting) == 1


def test_an_edit_to_nothing_is_not_asked(speaker):
    class Blank:
        index, value = 0, "  "

    class Asked:
        session_hash = "tab"

    async def run(page):
        return [update async for update in page.edit(Asked, Blank, *vars(OPTIONS).values())]

    host = Host(Scripted(), speaker, 60)
    talk = host.sessions.open("tab").talk
    talk.said = [Said("user", "Where?"), Said("assistant", "There.")]
    page = _Page(host, {name: name for name in ("wire", "chat", "status", "box")})
    [update] = asyncio.run(run(page))
    assert update["status"] == NO_QUESTION and len(update["chat"]) == 2
    assert not host.engine.asked and [said.text for said in talk.said] == ["Where?", "There."]
    talk.said[0] = Said("user", "Where?", [FRANCE])
    Blank.index = 1  # its text; the recording above it can be asked alone
    asyncio.run(run(page))
    assert [part["type"] for part in host.engine.asked[0].messages[0]["content"]] == ["audio"]


def test_uploads_are_checked_and_their_copies_deleted(speaker, tmp_path):
    host, talk = Host(Scripted(), speaker, 3), Conversation()

    def give(name, wave, text=""):
        path = tmp_path / "upload" / name
        path.parent.mkdir()
        if wave is None:
            path.write_bytes(b"not audio at all")
        else:
            audio.write_wav(path, wave, audio.SAMPLE_RATE)
        trouble = asyncio.run(host.ask_typed({"text": text, "files": [str(path)]}, talk))
        assert not path.parent.exists()
        return trouble

    assert give("silence.wav", NOISE[:32_000]) == NO_SPEECH
    assert "long.wav" in give("long.wav", np.concatenate([FRANCE, FRANCE]))
    assert "broken.wav" in give("broken.wav", None)
    assert asyncio.run(host.ask_typed({"text": "  ", "files": []}, talk)) != ""
    assert talk.waiting == []
    assert give("france.wav", FRANCE) == ""
    assert len(talk.waiting) == 1 and len(talk.waiting[0].waves) == 1
    for folder, wave in (("broken", None), ("whole", FRANCE)):
        (tmp_path / folder).mkdir()
        audio.write_wav(tmp_path / folder / "a.wav", FRANCE, audio.SAMPLE_RATE)
        if wave is None:
            (tmp_path / folder / "a.wav").write_bytes(b"not audio at all")
    files = [str(tmp_path / folder / "a.wav") for folder in ("broken", "whole")]
    assert asyncio.run(host.ask_typed({"text": "", "files": files}, talk)) != ""
    assert list(tmp_path.iterdir()) == []  # also of those that came after the fault


def test_microphone_of_a_tab(speaker):
    host = Host(Scripted(), speaker, 60)
    tab = host.sessions.open("tab")
    token, talk = tab.token, tab.talk

    def hear(wave, first=False, last=False, hands_free=False):
        data = {"token": token, "pcm": pcm_of(wave), "rate": 16_000, "first": first, "last": last}
        return asyncio.run(host.hear({**data, "hands_free": hands_free}))

    assert hear(FRANCE, first=True) == {"speaking": False, "turns": 0, "note": ""}
    assert hear(PAUSE, last=True) == {"speaking": False, "turns": 1, "note": ""}
    assert hear(NOISE, first=True, last=True) == {"speaking": False, "turns": 0, "note": NO_SPEECH}
    assert len(talk.waiting) == 1
    talk.stopped = False
    assert hear(np.concatenate([PAUSE, FRANCE[:16_000]]), first=True, hands_free=True)["speaking"]
    assert talk.stopped  # barging in
    assert hear(np.concatenate([FRANCE[16_000:], PAUSE]), hands_free=True)["turns"] == 1
    assert len(talk.waiting) == 2


@pytest.mark.parametrize(
    "data", [{}, {"pcm": "%%%"}, {"pcm": "", "first": True, "rate": 1, "hands_free": True}, {"pcm": 3}]
)
def test_a_broken_microphone_is_told_so(speaker, data):
    host = Host(Scripted(), speaker, 60)
    token = host.sessions.open("tab").token
    assert "no sound" in asyncio.run(host.hear({**data, "token": token}))["note"]


# ---- tabs


def test_tabs_do_not_see_each_other():
    sessions = Sessions()
    one, other = sessions.open("one"), sessions.open("other")
    one.talk.said.append(Said("user", "private"))
    assert sessions.by_token(other.token).talk.said == [] and sessions.by_token("") is None
    assert sessions.by_token(one.token) is sessions.of("one") is one and sessions.by_token(None) is None
    sessions.close("one")
    assert one.talk.said == [] and sessions.by_token(one.token) is sessions.of("one") is None


def test_a_tab_ends_a_while_after_it_was_seen_last():
    async def run():
        sessions = Sessions(grace_s=0.2)
        kept, used, gone = (sessions.open(name) for name in ("kept", "used", "gone"))
        for name in ("kept", "used", "gone"):
            with sessions.present(name):
                await asyncio.sleep(0)
        with sessions.present("kept"):  # its connection has come back
            for _ in range(5):
                await asyncio.sleep(0.1)
                assert sessions.of("used") is used
            assert sessions.of("gone") is None and sessions.by_token(gone.token) is None
            await asyncio.sleep(0.4)
            assert sessions.of("used") is None and sessions.of("kept") is kept
        with sessions.present("kept"), sessions.present("kept"):
            pass
        await asyncio.sleep(0.5)
        assert sessions.of("kept") is None

    asyncio.run(run())


def test_a_page_that_loads_itself_anew_goes_on(monkeypatch):
    sessions = Sessions()
    tab = sessions.open("before")
    tab.talk.said.append(Said("user", "private"))
    assert sessions.resume("after", "wrong") is None and sessions.of("before") is tab
    assert sessions.resume("after", tab.token) is tab and sessions.of("before") is None
    assert sessions.of("after").talk.said[0].text == "private"
    assert sessions.resume("after", tab.token) is tab and tab.talk.said
    monkeypatch.setattr(tabs, "MAX_SESSIONS", 2)
    for name in ("a", "b"):
        sessions.open(name)
    assert sessions.of("after") is None and not tab.talk.said


def test_a_page_of_an_unknown_session_gets_a_new_token(speaker):
    host = Host(Scripted(), speaker, 60)
    data = {"token": "of another server", "session": "tab", "pcm": pcm_of(FRANCE), "rate": 16_000, "hands_free": False}
    first = asyncio.run(host.hear({**data, "first": False}))  # the server was started anew while somebody spoke
    assert first["note"] == LOST and host.sessions.by_token(first["token"]) is host.sessions.of("tab")
    second = asyncio.run(host.hear({**data, "token": first["token"], "last": True, "first": False}))
    assert second == {"speaking": False, "turns": 1, "note": ""}
    assert asyncio.run(host.transcript({"token": "x", "session": "tab"})) == {"note": LOST, "token": first["token"]}
    assert len(host.sessions.of("tab").talk.waiting) == 1  # nothing was lost for it
