"""The web demo in a real browser, against `llasm serve` with the default model: Chromium, a WAV as its microphone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
import soxr

from llasm import audio
from llasm.chat import check_messages
from llasm.serve.speech import Speaker

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FRANCE, SKY = (audio.decode(f"examples/{name}.wav") for name in ("france", "sky"))
ANSWER_MS = 120_000  # milliseconds an answer may take on a busy machine
STORY = "Write a long story about a farmer who finds a talking horse and travels around the world with it."

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address, Gradio's folder of temporary files) of a server with the default model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("serve")
    log = open(folder / "log", "w+")  # noqa: SIM115  (open as long as the server runs)
    command = [sys.executable, "-m", "llasm.cli", "serve", "--port", str(port)]
    env = {**os.environ, "GRADIO_TEMP_DIR": str(folder / "gradio")}
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)
    address, ends = f"http://127.0.0.1:{port}", time.monotonic() + 180
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5)
            break
        except OSError:
            log.seek(0)
            assert process.poll() is None and time.monotonic() < ends, log.read()
            time.sleep(0.3)
    yield address, folder / "gradio"
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    log.seek(0)
    assert "Traceback" not in log.read()


class Line:
    """Between a browser and the server: can be cut, which ends what is open and refuses what is new, and mended."""

    def __init__(self, address):
        self.server = ("127.0.0.1", int(address.rpartition(":")[2]))
        self.open, self.listener = [], None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.mend()

    def mend(self):
        self.listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def cut(self):
        for end in [self.listener, *self.open]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.open = []

    def _accept(self, listener):
        with contextlib.suppress(OSError):  # cut
            while True:
                near = listener.accept()[0]
                far = socket.create_connection(self.server)
                self.open += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one, other):
        with contextlib.suppress(OSError):
            while content := one.recv(65536):
                other.sendall(content)
            other.shutdown(socket.SHUT_WR)


@pytest.fixture
def line(server):
    line = Line(server[0])
    yield line
    line.cut()


@pytest.fixture
def browser(tmp_path_factory):
    """Opens pages whose microphone plays the given waves, one after the other, `pause` seconds of silence between."""
    from playwright.sync_api import sync_playwright

    opened = []
    with sync_playwright() as playwright:

        def launch(*waves, pause=4, **options):
            silence = np.zeros(pause * audio.SAMPLE_RATE, np.float32)
            sound = np.concatenate([silence[:8000], *[part for wave in waves for part in (wave, silence)], silence])
            path = tmp_path_factory.mktemp("mic") / "microphone.wav"
            audio.write_wav(path, soxr.resample(sound, audio.SAMPLE_RATE, 48_000), 48_000)
            chromium = playwright.chromium.launch(
                executable_path=CHROMIUM,
                args=[
                    "--no-sandbox",
                    "--use-fake-ui-for-media-stream",
                    "--use-fake-device-for-media-stream",
                    f"--use-file-for-fake-audio-capture={path}%noloop",
                ],
            )
            opened.append(chromium)
            context = chromium.new_context(
                permissions=["microphone", "clipboard-read", "clipboard-write"], accept_downloads=True, **options
            )
            page = context.new_page()
            page.set_default_timeout(ANSWER_MS)
            page.faults = []
            page.on("pageerror", lambda error: page.faults.append(str(error)))
            return page

        yield launch
        for chromium in opened:
            chromium.close()


def visit(page, address):
    page.goto(address)
    page.wait_for_selector("#box textarea")
    page.wait_for_function("() => document.body.dataset.mic === 'off'")
    return page


def answered(page, n):
    """Waits until n answers are complete; the text of the last."""
    page.wait_for_function(f"() => document.querySelectorAll('#chat .caption').length >= {n}")
    return page.locator("#chat .bot-row").last.inner_text()


def ask(page, text):
    page.fill("#box textarea", text)
    page.keyboard.press("Enter")


def send_file(page, path):
    page.set_input_files("#box input[type=file]", str(path))
    page.wait_for_selector("#box .thumbnail-item, #box .thumbnails")
    page.focus("#box textarea")
    page.keyboard.press("Enter")


def saved(page):
    """The messages of the transcript that the page gives."""
    with page.expect_download() as download:
        page.click("[data-act=download]")
    return json.loads(download.value.path().read_text(encoding="utf-8"))["messages"]


def talk(page):
    """Presses the microphone, waits until its file has spoken and paused, and presses again."""
    page.evaluate("window.heard = 0")
    page.click("#talk")
    page.wait_for_function(
        """() => {
            const level = Number(document.body.style.getPropertyValue("--level")), now = performance.now();
            if (level > 0.2) window.heard = now;
            return window.heard && level < 0.1 && now - window.heard > 900;
        }"""
    )
    page.click("#talk")


def test_two_spoken_turns_then_text_and_a_recording(server, browser, tmp_path):
    address, cache = server
    page = visit(browser(FRANCE, SKY), address)
    talk(page)
    first = answered(page, 1)
    assert "Paris" in first and "s to the first token" in first and "s heard" in first
    page.wait_for_function("() => llasm.stats.started >= 1")  # it is spoken
    assert page.locator("#chat .user-row .voice").count() == 1
    page.wait_for_function("() => !llasm.playing()")

    before = page.evaluate("llasm.stats.started")
    page.locator("#chat .voice button").first.click()  # one's own turn can be played
    page.wait_for_selector("#chat .voice button.on")
    page.locator("[data-replay]").first.click()  # and the answer, again
    page.wait_for_function(f"() => llasm.stats.started > {before}")

    talk(page)  # the microphone's file begins anew: the same question
    assert "Paris" in answered(page, 2)
    assert page.locator("#chat .user-row .voice").count() == 2

    ask(page, "What did I ask about first?")
    answered(page, 3)
    ocean = tmp_path / "copy.wav"
    audio.write_wav(ocean, audio.decode("examples/ocean.wav"), audio.SAMPLE_RATE)
    send_file(page, ocean)
    fourth = answered(page, 4)
    assert "Pacific" in fourth and "2.1 s heard" in fourth  # of that recording alone

    messages = saved(page)
    check_messages(messages[:-1])
    sent, file = (audio.decode(clip) for clip in (messages[6]["content"][0]["audio"], "examples/ocean.wav"))
    np.testing.assert_allclose(sent, file, atol=1e-3)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 4
    kinds = [part["type"] for message in messages[::2] for part in message["content"]]
    assert kinds == ["audio", "audio", "text", "audio"]

    assert not [path for path in cache.rglob("*") if path.is_file()]  # no recording lies on the disk
    page.reload()
    page.wait_for_selector("#chat .examples")
    assert page.locator("#chat .message-row").count() == 0
    send_file(page, ocean)
    assert "Pacific" in answered(page, 1)
    assert page.faults == []


def test_a_spoken_follow_up_is_understood_with_what_went_before(server, browser):
    wave, rate = Speaker().speak("What language do people speak there?")
    page = visit(browser(FRANCE, soxr.resample(wave, rate, audio.SAMPLE_RATE), pause=8), server[0])
    page.click("#hands")
    assert "Paris" in answered(page, 1)
    assert "French" in answered(page, 2)
    assert page.locator("#chat .user-row .voice").count() == 2
    page.click("#hands")


def test_hands_free_and_barging_in(server, browser):
    page = visit(browser(SKY, FRANCE, pause=8), server[0])
    page.click("#hands")
    page.wait_for_function("() => llasm.playing()")  # the first answer is being spoken …
    page.wait_for_function("() => llasm.stats.stopped >= 1")  # … and the second question stops it
    page.wait_for_function("() => document.querySelectorAll('#chat .user-row .voice').length === 2")
    assert "Paris" in answered(page, 2)
    page.click("#hands")
    assert page.get_attribute("#hands", "aria-pressed") == "false"
    assert page.faults == []


def test_stop_retry_edit_undo_and_new(server, browser):
    page = visit(browser(), server[0])
    ask(page, STORY)
    page.wait_for_function("() => document.querySelector('#chat .bot-row')?.innerText.length > 40")
    page.click("#box .stop-button")
    stopped = answered(page, 1)
    assert "stopped" in stopped
    page.wait_for_timeout(1500)
    assert page.locator("#chat .bot-row").last.inner_text() == stopped and not page.evaluate("llasm.playing()")

    page.click("#chat [aria-label=Edit]")
    page.fill("#chat textarea", "What is the capital of France?")
    page.click("#chat [aria-label=Submit]")
    page.wait_for_function("() => document.querySelector('#chat .bot-row')?.innerText.includes('Paris')")
    edited = answered(page, 1)
    assert "farmer" not in page.locator("#chat .user-row").inner_text()

    page.click("#chat [aria-label=Retry]")
    page.wait_for_selector("#box .stop-button")
    page.wait_for_selector("#box .submit-button")
    assert answered(page, 1).split("\n")[0] == edited.split("\n")[0]  # greedy
    page.click("#chat [data-copy]")
    page.wait_for_function("() => document.querySelector('[data-copy]').textContent === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()").split("\n")[0] == edited.split("\n")[0]

    page.click("#chat [aria-label=Undo]")
    page.wait_for_function("() => !document.querySelector('#chat .message-row')")
    assert page.input_value("#box textarea") == "What is the capital of France?"

    page.keyboard.press("Enter")
    answered(page, 1)
    page.click("[data-clear]")
    page.wait_for_selector("#chat .examples")


def test_text_is_shown_as_it_was_typed(server, browser):
    page = visit(browser(), server[0])
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    typed = "Say **hi** to <img src=/secret.png> _me_, $$x^2$$ and www.example.org\n# no head\n1. no\n    list &lt; \\*"
    page.fill("#box textarea", typed)
    page.wait_for_timeout(300)
    page.click("#box .submit-button")
    answered(page, 1)
    assert page.locator("#chat .user-row .message-content").inner_text().replace("\u00a0", " ").strip() == typed
    assert page.locator("#chat .user-row :is(img, strong, em, h1, ol, a)").count() == 0
    page.click("#chat [aria-label=Edit]")
    page.wait_for_selector("#chat textarea")
    assert page.input_value("#chat textarea") == typed
    page.click("#chat [aria-label=Cancel]")
    assert not [url for url in asked if "secret" in url or not url.startswith((server[0], "data:", "blob:"))]


SLOW_MICROPHONE = """
    window.tracks = [];
    const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    navigator.mediaDevices.getUserMedia = async (...given) => {  // as where the browser asks the user first
      await new Promise((done) => setTimeout(done, 400));
      const stream = await open(...given);
      window.tracks.push(...stream.getTracks());
      return stream;
    };
"""
LIVE = "() => tracks.filter((track) => track.readyState === 'live').length"


def test_a_microphone_that_is_still_opening_is_let_go(server, browser):
    page = browser(FRANCE)
    page.add_init_script(SLOW_MICROPHONE)
    visit(page, server[0])
    page.dblclick("#talk")  # starts, and stops while it is being opened
    page.wait_for_timeout(1000)
    assert page.evaluate("tracks.length") == 1 and page.evaluate(LIVE) == 0
    page.focus("#talk")
    page.keyboard.press("Space")
    page.keyboard.press("Escape")
    page.wait_for_timeout(1000)
    assert page.evaluate("tracks.length") == 2 and page.evaluate(LIVE) == 0
    page.click("#talk")
    page.click("#hands")
    page.wait_for_selector("#hands[aria-pressed=true]")
    page.wait_for_timeout(600)
    assert page.evaluate("tracks.length") == 4 and page.evaluate(LIVE) == 1
    assert page.get_attribute("#talk", "aria-pressed") == "false"
    page.click("[data-clear]")  # a new conversation does not go on listening
    page.wait_for_selector("#hands[aria-pressed=false]")
    assert page.evaluate(LIVE) == 0 and page.faults == []


UNREACHABLE = "() => document.querySelector('#status').innerText.includes('cannot be reached')"


def test_the_server_is_gone_while_recording(line, browser):
    page = browser(FRANCE)
    page.add_init_script(SLOW_MICROPHONE)
    visit(page, line.address)
    page.click("#talk")
    page.wait_for_selector("#talk[aria-pressed=true]")
    line.cut()
    page.wait_for_function(UNREACHABLE)
    assert page.get_attribute("#talk", "aria-pressed") == "false" and page.evaluate(LIVE) == 0
    page.click("[data-act=download]")
    page.wait_for_timeout(300)
    assert page.evaluate(UNREACHABLE)
    line.mend()
    page.wait_for_function("() => document.querySelector('#status').innerText.includes('is back')")
    assert page.faults == []


def test_the_line_breaks_in_the_middle_of_an_answer(line, browser):
    page = visit(browser(), line.address)
    ask(page, "My name is Bob.")
    answered(page, 1)
    ask(page, STORY)
    page.wait_for_function("() => document.querySelectorAll('#chat .bot-row')[1]?.innerText.length > 40")
    line.cut()
    page.wait_for_function(UNREACHABLE)
    page.wait_for_selector("#box .stop-button", state="hidden")
    assert not page.locator(".toast-body").first.is_visible()
    page.click("[data-act=settings]")  # nothing lies over the header
    page.wait_for_selector("#settings.open")
    line.mend()
    page.wait_for_event("load")  # Gradio loads the page anew …
    answered(page, 2)  # … and the conversation is there again
    assert page.locator("#chat .user-row").first.inner_text().strip() == "My name is Bob."
    ask(page, "What is my name?")
    answered(page, 3)
    assert [message["role"] for message in saved(page)] == ["user", "assistant"] * 3
    page.reload()
    page.wait_for_selector("#chat .examples")  # an ordinary reload begins a new one


def test_silence_is_told_and_not_asked(server, browser):
    page = visit(browser(np.zeros(audio.SAMPLE_RATE, np.float32)), server[0])
    page.click("#talk")
    page.wait_for_timeout(1500)
    page.click("#talk")
    page.wait_for_function("() => document.querySelector('#status').innerText.includes('could not hear')")
    assert page.locator("#chat .message-row").count() == 0


def test_example_settings_and_keyboard(server, browser):
    page = visit(browser(), server[0])
    page.click("[data-act=settings]")
    page.uncheck("#settings input[type=checkbox]")
    page.fill("#settings textarea", "Answer in one short sentence.")
    page.keyboard.press("Escape")
    page.locator("#chat .example").first.click()
    assert "Paris" in answered(page, 1)
    assert page.evaluate("llasm.stats.started") == 0 and page.locator("[data-replay]").count() == 0
    page.focus("#talk")
    page.keyboard.press("Space")
    page.wait_for_selector("#talk[aria-pressed=true]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#talk[aria-pressed=false]")
    names = page.evaluate(
        "() => [...document.querySelectorAll('button')].filter((b) => b.checkVisibility() && "
        "!(b.ariaLabel || b.innerText.trim() || b.title)).map((b) => b.outerHTML)"
    )
    assert names == []  # every button has a name


def test_phone_width_needs_no_sideways_scroll(server, browser):
    page = visit(browser(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True), server[0])
    width = "() => Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
    assert page.evaluate(width) == 390
    page.locator("#chat .example").first.click()
    answered(page, 1)
    ask(page, "averyveryverylongwordthatneverends" * 8)
    answered(page, 2)
    assert page.evaluate(width) == 390
    for selector in ("#talk", "#hands", "#box textarea", "#box .submit-button", "[data-act=settings]"):
        box = page.locator(selector).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["y"] + box["height"] <= 844


def test_waiting_an_attached_files_name_and_the_theme(server, browser):
    page = visit(browser(color_scheme="light"), server[0])
    assert page.evaluate("() => document.activeElement.matches('#box textarea')")
    page.set_input_files("#box input[type=file]", "examples/ocean.wav")
    page.wait_for_selector("#box .thumbnail-item[data-name='ocean.wav']")
    page.focus("#box textarea")
    page.keyboard.press("Enter")
    page.wait_for_selector("#chat .waiting")
    answered(page, 1)
    assert page.locator("#chat .waiting").count() == 0
    page.click("[data-act=theme]")
    page.wait_for_selector("#header .sun:visible")
    page.reload()
    page.wait_for_selector("#header .sun:visible")
    assert page.evaluate("() => document.body.classList.contains('dark')")
    phone = visit(browser(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True), server[0])
    phone.wait_for_timeout(1000)
    assert phone.evaluate("() => document.activeElement === document.body")  # no keyboard opens by itself


def test_the_api_is_described_without_anything_from_elsewhere(server, browser):
    page = browser()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server[0]}/docs")
    page.wait_for_selector("[data-path='/v1/chat/completions']")
    assert all(url.startswith((server[0], "data:", "blob:")) for url in asked)


def test_two_tabs_hold_two_conversations(server, browser):
    one, other = visit(browser(), server[0]), visit(browser(), server[0])
    ask(one, "What is the capital of France?")
    answered(one, 1)
    ask(other, "Why is the sky blue?")
    answered(other, 1)
    assert "France" not in other.locator("#chat").inner_text()
