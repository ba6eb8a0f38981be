"""The web demo's page: mounted by the server at `/`.

    gr.mount_gradio_app(app, build(host, settings.max_new_tokens), path="/", **look())  # in gate.py

The conversation lives in memory, one for each open tab, and ends with it (conversation.py, host.py). page/app.js takes
the microphone's sound and plays the answers; page/app.css and the theme below are the looks.
"""

from __future__ import annotations

import html
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr

from llasm import audio

from .conversation import Conversation, Said
from .host import LOST, NO_QUESTION, Host, Options
from .sessions import Tab
from .speech import Speaker

PAGE = Path(__file__).with_name("page")
EXAMPLES = Path(__file__).parents[1] / "examples"  # beside the code in a checkout; an installed package has none
FRAME_SECONDS = 0.08  # between two updates of a streaming answer
ATTENTIVE: dict[str, Any] = {"submit_btn": True, "stop_btn": False}
ANSWERING: dict[str, Any] = {"submit_btn": False, "stop_btn": True}


def look() -> dict[str, Any]:
    """What `mount_gradio_app` needs beside the blocks: theme, style and script."""
    script = (PAGE / "app.js").read_text(encoding="utf-8")
    return {
        "theme": _theme(),
        "css": (PAGE / "app.css").read_text(encoding="utf-8"),
        "head": f'<meta name="viewport" content="width=device-width, initial-scale=1"><script>{script}</script>',
        "footer_links": [],
        "ssr_mode": False,
        "show_error": False,
    }


def build(host: Host, max_new_tokens: int) -> gr.Blocks:
    """The page; max_new_tokens: of the longest answer that it may ask for."""
    with gr.Blocks(title=f"{host.engine.name} · voice chat", fill_height=True, delete_cache=(600, 600)) as blocks:
        parts = {
            "wire": gr.HTML(
                value={"token": ""},
                html_template=" ",
                js_on_load="llasm.wire(props, watch, server);",
                server_functions=_calls(host),
                elem_id="wire",
            ),
            "header": gr.HTML(
                html_template=_html("header").replace("NAME", html.escape(host.engine.name)),
                js_on_load="element.querySelector('[data-clear]').onclick = () => trigger('clear');",
                elem_id="header",
            ),
            "chat": _chat(),
        }
        with gr.Column(elem_id="composer"):
            parts["status"] = gr.HTML(html_template=_html("status"), js_on_load=None, elem_id="status")
            with gr.Row(elem_id="bar"):
                parts["mic"] = gr.HTML(
                    html_template=_html("mic"),
                    js_on_load="llasm.microphone(() => trigger('submit'));",
                    elem_id="mic",
                    min_width=0,
                )
                parts["box"] = _box()
        _Page(host, parts).connect(blocks, parts, _drawer(host.speaker, max_new_tokens))
    return blocks


def _calls(host: Host) -> list[Any]:
    """What the page's script may call; Gradio marks them, which a method does not allow."""

    async def hear(data: Any) -> Any:
        return await host.hear(data)

    async def hush(data: Any) -> None:
        await host.hush(data)

    async def transcript(data: Any) -> Any:
        return await host.transcript(data)

    return [hear, hush, transcript]


def _html(name: str) -> str:
    return (PAGE / f"{name}.html").read_text(encoding="utf-8")


def _theme() -> gr.themes.Base:
    """The page's own colours are in app.css; these keep Gradio's controls in the same family."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_lg,
        font=["Inter", "ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
    )


def _chat() -> gr.Chatbot:
    examples = [{"text": question, "display_text": question} for question, _ in _examples()]
    return gr.Chatbot(
        elem_id="chat",
        label="Conversation",
        show_label=False,
        container=False,
        scale=1,
        height="100%",
        editable="user",
        buttons=[],  # Gradio's Copy goes once there is a caption: such a row is not all text; ours is in the caption
        placeholder=_html("welcome"),
        examples=examples,  # type: ignore[arg-type]
    )


def _box() -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(
        elem_id="box",
        label="Message",
        show_label=False,
        container=False,
        placeholder="Speak or type",
        sources=["upload"],
        file_types=["audio", "video"],  # browsers call a recording video/webm too
        file_count="multiple",
        max_lines=8,
        autofocus=False,  # the script focuses it, except where that opens a keyboard
        scale=1,
        html_attributes=gr.InputHTMLAttributes(enterkeyhint="send"),
    )


def _drawer(speaker: Speaker, max_new_tokens: int) -> list[gr.components.Component]:
    """The drawer at the side: the inputs of every question, in the order of `Options`."""
    with gr.Sidebar(position="right", open=False, elem_id="settings", width=340):
        gr.HTML("<h2>Settings</h2>", js_on_load=None)
        system = gr.Textbox(label="System prompt", lines=3, placeholder="You are a helpful assistant.")
        speaks = gr.Checkbox(True, label="Speak the answers")
        voices = [(_voice_name(voice), voice) for voice in speaker.voices()]
        voice = gr.Dropdown(voices, value=speaker.voice, label="Voice", filterable=len(voices) > 8)
        temperature = gr.Slider(0, 1.5, 0, step=0.05, label="Temperature", info="0: always the likeliest word")
        top_p = gr.Slider(0.05, 1, 1, step=0.05, label="Top-p")
        longest = max(1, min(1024, max_new_tokens))
        length = gr.Slider(1, longest, min(256, longest), step=1, label="Longest answer, in tokens")
    return [system, speaks, voice, temperature, top_p, length]


def _voice_name(voice: str) -> str:
    engine, _, name = voice.partition(":")
    return f"{name} ({engine})"


def _examples() -> list[tuple[str, Path | None]]:
    """(question, its recording): those that are spoken come with the repository."""
    listing = EXAMPLES / "questions.jsonl"
    if not listing.is_file():
        return [(text, None) for text in ("What is the capital of France?", "Why is the sky blue?")]
    rows = [json.loads(line) for line in listing.read_text(encoding="utf-8").splitlines()]
    return [(row["text"], EXAMPLES / row["file"]) for row in rows]


class _Page:
    """What the page's events do: who asks, and what else changes the conversation."""

    def __init__(self, host: Host, parts: dict[str, Any]) -> None:
        self.host = host
        self.wire, self.chat, self.status, self.box = (parts[name] for name in ("wire", "chat", "status", "box"))

    def connect(self, blocks: gr.Blocks, parts: dict[str, Any], options: list[gr.components.Component]) -> None:
        # No limit here: how many answers run at once is the engine's to say, and it says so kindly.
        asks: dict[str, Any] = {
            "outputs": [self.chat, self.wire, self.status, self.box],
            "concurrency_limit": None,
            "trigger_mode": "multiple",
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        self.box.submit(self.ask, [self.box, *options], **asks)
        parts["mic"].submit(self.ask_aloud, options, **asks)
        self.chat.example_select(self.ask_example, options, **asks)
        self.chat.retry(self.retry, options, **asks)
        self.chat.edit(self.edit, options, **asks)
        now: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
        quiet: dict[str, Any] = {"js": "() => llasm.interrupt()", **now}
        self.chat.undo(self.undo, None, [self.chat, self.box, self.status, self.wire], **quiet)
        parts["header"].clear(self.clear, None, [self.chat, self.status, self.box, self.wire], **quiet)
        self.box.stop(self.stop, None, None, **quiet)
        resumed = [self.wire, self.chat, self.status]
        blocks.unload(lambda: None)  # has the page keep a connection, by which the gate sees that it is there
        blocks.load(self.opened, self.wire, resumed, js="() => [llasm.resume()]", **now)
        self.box.change(None, self.box, None, js="(given) => llasm.named(given)", **now)  # the attached files' names

    def tab(self, request: gr.Request) -> tuple[Tab, dict[Any, Any]]:
        """The request's tab; where it is not known, a new one with the updates that tell its page so."""
        session = str(request.session_hash)
        if tab := self.host.sessions.of(session):
            return tab, {}
        tab = self.host.sessions.open(session)
        return tab, {self.wire: {"token": tab.token}, self.status: LOST}

    async def answer(self, talk: Conversation, chosen: tuple[Any, ...]) -> AsyncIterator[dict[Any, Any]]:
        """The answer to what waits, as updates of the page, those of its text at most every FRAME_SECONDS."""
        update: dict[Any, Any] = {}
        reply, clips, sent = 0, [], 0.0
        async for event in self.host.answer(talk, Options(*chosen)):
            if "reply" in event:
                reply = event["reply"]
                update[self.box] = gr.update(**ANSWERING)
            if "clip" in event:
                clips.append(event["clip"])
            if "reply" in event or "clip" in event:
                update[self.wire] = {"token": "", "reply": reply, "clips": list(clips)}
            if "note" in event:
                update[self.status] = event["note"]
            if update or time.monotonic() - sent > FRAME_SECONDS:
                yield {**update, self.chat: talk.shown()}
                update, sent = {}, time.monotonic()
        yield {self.chat: talk.shown(), self.box: gr.update(**ATTENTIVE)}

    async def ask(self, request: gr.Request, given: dict[str, Any], *chosen: Any) -> AsyncIterator[dict[Any, Any]]:
        tab, lost = self.tab(request)
        if trouble := await self.host.ask_typed(given, tab.talk, Options(*chosen).system):
            yield {**lost, self.status: trouble, self.box: gr.update(value={"text": given["text"], "files": []})}
            return
        yield {self.status: "", **lost, self.box: gr.update(value={"text": "", "files": []})}
        async for update in self.answer(tab.talk, chosen):
            yield update

    async def ask_aloud(self, request: gr.Request, *chosen: Any) -> AsyncIterator[dict[Any, Any]]:
        tab, lost = self.tab(request)
        if lost:
            yield lost
        async for update in self.answer(tab.talk, chosen):
            yield update

    async def ask_example(
        self, request: gr.Request, picked: gr.SelectData, *chosen: Any
    ) -> AsyncIterator[dict[Any, Any]]:
        tab, lost = self.tab(request)
        if lost:
            yield lost
        examples = _examples()
        question, recording = examples[min(_row(picked.index), len(examples) - 1)]
        tab.talk.waiting.append(Said("user", waves=[audio.decode(recording)]) if recording else Said("user", question))
        async for update in self.answer(tab.talk, chosen):
            yield update

    async def retry(self, request: gr.Request, event: gr.RetryData, *chosen: Any) -> AsyncIterator[dict[Any, Any]]:
        async for update in self.again(request, _row(event.index), None, chosen):
            yield update

    async def edit(self, request: gr.Request, event: gr.EditData, *chosen: Any) -> AsyncIterator[dict[Any, Any]]:
        async for update in self.again(request, _row(event.index), str(event.value).strip(), chosen):
            yield update

    async def again(
        self, request: gr.Request, row: int, text: str | None, chosen: tuple[Any, ...]
    ) -> AsyncIterator[dict[Any, Any]]:
        """Asks anew what is shown in that row, with another text if one is given."""
        tab, lost = self.tab(request)
        talk, i = tab.talk, tab.talk.asked_in(row)
        if lost or i is None:
            yield {self.chat: talk.shown(), **lost}
        elif text == "" and not talk.said[i].waves:
            yield {self.chat: talk.shown(), self.status: NO_QUESTION}
        else:
            talk.ask_again(talk.cut_before(row), text)
            yield {self.status: ""}
            async for update in self.answer(talk, chosen):
                yield update

    def undo(self, request: gr.Request, event: gr.UndoData) -> dict[Any, Any]:
        tab, lost = self.tab(request)
        gone = tab.talk.cut_before(_row(event.index))
        box = gr.update(value={"text": gone.text if gone else "", "files": []})
        return {self.chat: tab.talk.shown(), self.box: box, self.status: "", **lost}

    def clear(self, request: gr.Request) -> dict[Any, Any]:
        tab, lost = self.tab(request)
        tab.talk.clear()
        return {self.chat: [], **lost, self.status: "", self.box: gr.update(**ATTENTIVE)}

    def stop(self, request: gr.Request) -> None:
        if tab := self.host.sessions.of(str(request.session_hash)):
            tab.talk.stop()

    async def opened(self, request: gr.Request, token: str) -> dict[Any, Any]:
        """token: of the conversation that a page goes on with which had to load itself anew; "" for a new page."""
        session = str(request.session_hash)
        known = self.host.sessions.resume(session, token)
        tab = known or self.host.sessions.open(session)
        note = LOST if token and known is None else ""
        return {self.wire: {"token": tab.token}, self.chat: tab.talk.shown(), self.status: note}


def _row(index: int | tuple[int, int]) -> int:
    """Of the conversation as it is shown; older layouts of Gradio's number pairs."""
    return index if isinstance(index, int) else index[0]
