"""One session of the web demo: what was said, as the model reads it, as the page shows it, as a file to keep.

Nothing here is written to disk: recordings live in the session's memory and on its own page as data URIs.
"""

from __future__ import annotations

import asyncio
import base64
import html
import itertools
import json
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llasm import audio
from llasm.chat import Message, Messages

from .engine import Answer
from .voice_files import encode

WAITING = '<div class="waiting" role="status" aria-label="Thinking"><i></i><i></i><i></i></div>'
# What Markdown and HTML read something into; the page's script takes it away again when the text is edited.
_MARKUP = re.compile(r"[\\`*_\[\]<>|~$&@/]|^[-+=#]|(?<=\d)[.)]|(?<=www)\.", re.MULTILINE | re.IGNORECASE)
BARS = 36  # of a recording's little waveform
_ids = itertools.count(1)


@dataclass
class Said:
    """One message of the conversation."""

    role: str
    text: str = ""
    waves: list[audio.Wave] = field(default_factory=list)
    """recordings, float32 [n_samples] at 16 kHz, heard before the text is read"""
    caption: str = ""
    """HTML of the small line below an answer"""
    id: int = field(default_factory=lambda: next(_ids))
    players: list[str] = field(default_factory=list)
    """HTML of each recording's player"""
    refused: bool = False
    """It could not be answered, and is left out of what the model reads"""

    def __post_init__(self) -> None:
        self.players = [player(wave) for wave in self.waves]

    def parts(self) -> list[dict[str, Any]]:
        """The content of a message in the project's schema."""
        clips = [{"type": "audio", "audio": wave} for wave in self.waves]
        return clips + ([{"type": "text", "text": self.text}] if self.text else [])


class Conversation:
    """What one browser tab holds; it is gone when the tab is closed or loaded anew."""

    def __init__(self) -> None:
        self.said: list[Said] = []
        self.waiting: list[Said] = []  # heard by the microphone, not asked yet
        self.system = ""  # the prompt that the last question was asked with
        self.answer: Answer | None = None  # the one that is running
        self.stopped = False  # the running answer was told to stop
        self.turn = asyncio.Lock()  # one answer at a time

    def stop(self) -> None:
        """Ends the running answer; what it has said so far stays."""
        self.stopped = True
        if self.answer is not None:
            self.answer.cancel()

    def clear(self) -> None:
        self.stop()
        self.said, self.waiting = [], []

    def messages(self) -> Messages:
        """For the model. An answer stopped before its first word is left out: its question joins the next one. A
        question that could not be answered is left out with it."""
        found: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for said in self.said:
            if said.refused or (said.role == "assistant" and not said.text):
                continue
            if found and said.role == found[-1]["role"] == "user":
                found[-1]["content"] = found[-1]["content"] + said.parts()
            else:
                found.append({"role": said.role, "content": said.text if said.role == "assistant" else said.parts()})
        return found

    def rows(self) -> list[tuple[int, dict[str, Any]]]:
        """(index into `said`, the message as Gradio's Chatbot takes it), in the order in which they are shown."""
        import gradio as gr

        found: list[tuple[int, dict[str, Any]]] = []
        for i, said in enumerate(self.said):
            contents: list[Any] = [gr.HTML(shown, js_on_load=None) for shown in said.players]
            if said.text:
                contents.append(plain(said.text) if said.role == "user" else said.text)
            elif said.role == "assistant" and not said.caption:
                contents.append(gr.HTML(WAITING, js_on_load=None))
            if said.caption:
                contents.append(gr.HTML(said.caption, js_on_load=None))
            found += [(i, {"role": said.role, "content": content}) for content in contents]
        return found

    def shown(self) -> list[dict[str, Any]]:
        return [row for _, row in self.rows()]

    def asked_in(self, row: int) -> int | None:
        """Index into `said` of the user's message that is shown in that row, or the last before it."""
        rows = self.rows()
        i = rows[min(max(row, 0), len(rows) - 1)][0] if rows else -1
        return next((j for j in range(i, -1, -1) if self.said[j].role == "user"), None)

    def cut_before(self, row: int) -> Said | None:
        """Forgets the user's message of that row, and all after; returns it."""
        i = self.asked_in(row)
        if i is None:
            return None
        found = self.said[i]
        self.stop()
        del self.said[i:]
        return found

    def ask_again(self, said: Said | None, text: str | None = None) -> None:
        """Has a user's message wait for an answer anew, with another text if one is given."""
        if said is not None:
            self.waiting = [Said("user", said.text if text is None else text, said.waves)]

    def transcript(self, model: str) -> str:
        """JSON: the messages in the project's schema, each recording a data URI (FLAC, lossless)."""
        messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        for said in self.said:
            parts = said.parts()
            for part in parts:
                if part["type"] == "audio":
                    part["audio"] = _data_uri("audio/flac", audio.to_flac_bytes(part["audio"]))
            messages.append({"role": said.role, "content": said.text if said.role == "assistant" else parts})
        return json.dumps({"model": model, "messages": messages}, ensure_ascii=False, indent=1)


def plain(text: str) -> str:
    """Text as Markdown that shows exactly it: each line's indent kept as spaces that do not break."""
    kept = re.sub(r"^[ \t]+| {2,}", lambda found: "\u00a0" * len(found[0].expandtabs(4)), text, flags=re.MULTILINE)
    return _MARKUP.sub(r"\\\g<0>", kept)


def caption(facts: list[str], replay: int | None = None, copies: bool = False) -> str:
    """HTML of the small line below an answer; its buttons play the answer `replay` again, and copy the text."""
    play = f'<button type="button" data-replay="{replay}" aria-label="Play the answer again">▶ Play</button>'
    copy = '<button type="button" data-copy aria-label="Copy the answer">Copy</button>'
    buttons = (play if replay is not None else "") + (copy if copies else "")
    shown = html.escape(" · ".join(facts))
    return f'<div class="caption">{buttons}<span>{shown}</span></div>'


def player(wave: audio.Wave) -> str:
    """HTML of a recording: a button, its waveform and its length; the page's script plays the data URI."""
    edges = np.linspace(0, len(wave), BARS + 1).astype(int)
    peaks = [float(np.abs(wave[a:b]).max(initial=0.0)) for a, b in itertools.pairwise(edges)]
    loudest = max(max(peaks), 1e-4)
    bars = "".join(f'<i style="height:{12 + 88 * (peak / loudest) ** 0.7:.0f}%"></i>' for peak in peaks)
    seconds = len(wave) / audio.SAMPLE_RATE
    minutes, rest = divmod(max(1, round(seconds)), 60)
    return (
        f'<div class="voice" data-audio="{mp3_uri(wave, audio.SAMPLE_RATE)}">'
        f'<button type="button" aria-label="Play the recording, {seconds:.1f} seconds"></button>'
        f'<span class="wave" aria-hidden="true">{bars}</span>'
        f"<time>{minutes}:{rest:02d}</time></div>"
    )


def mp3_uri(wave: np.ndarray, sample_rate: int) -> str:
    """For a browser: about 4 KB a second, and every one plays it."""
    return _data_uri("audio/mpeg", encode(wave, sample_rate, "mp3"))


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
