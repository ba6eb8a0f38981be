"""One conversation of the page: as the model reads it, as it is shown, as a file to keep."""

from __future__ import annotations

import json

import numpy as np
import pytest

from llasm import audio
from llasm.chat import check_messages
from llasm.serve.conversation import Conversation, Said, plain, player

FRANCE, SKY = (audio.decode(f"examples/{name}.wav") for name in ("france", "sky"))


# ---- the conversation


def conversation():
    talk = Conversation()
    talk.system = "Be brief."
    talk.said = [
        Said("user", "Compare them.", [FRANCE, SKY]),
        Said("assistant", "Paris. Light.", caption="<div></div>"),
        Said("user", "Why?"),
        Said("assistant"),  # stopped before its first word
        Said("user", waves=[SKY]),
    ]
    return talk


def test_messages_for_the_model():
    messages = conversation().messages()
    check_messages(messages)
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in messages[1]["content"]] == ["audio", "audio", "text"]
    assert [part["type"] for part in messages[3]["content"]] == ["text", "audio"]


def test_the_transcript_can_be_asked_again():
    talk = conversation()
    read = json.loads(talk.transcript("llasm-tiny"))
    assert read["model"] == "llasm-tiny"
    check_messages(read["messages"])
    first = read["messages"][1]["content"]
    assert first[0]["audio"].startswith("data:audio/flac;base64,")
    assert np.abs(audio.decode(first[0]["audio"]) - FRANCE).max() < 1e-4
    assert first[2] == {"type": "text", "text": "Compare them."}


def test_cutting_the_conversation_where_the_page_shows_it():
    talk = conversation()
    shown = [i for i, _ in talk.rows()]
    assert shown == [0, 0, 0, 1, 1, 2, 3, 4]  # each recording, text and caption is a row of its own
    assert talk.cut_before(4) is not None and talk.said == []
    talk = conversation()
    gone = talk.cut_before(5)
    assert gone is not None and gone.text == "Why?" and len(talk.said) == 2
    talk.ask_again(gone, "When?")
    assert [said.text for said in talk.waiting] == ["When?"]


# ---- what is shown


def test_the_users_text_is_shown_as_it_is():
    assert plain("<img src=x> *a* 1. b") == "\\<img src=x\\> \\*a\\* 1\\. b"
    assert plain("  two") == "\u00a0\u00a0two"
    talk = conversation()
    talk.said[2].text = "![](http://example.org/a.png)"
    contents = [row["content"] for row in talk.shown()]
    assert plain(talk.said[2].text) in contents and talk.said[2].text not in contents


@pytest.mark.parametrize(("seconds", "shown"), [(0.2, "0:01"), (1.8, "0:02"), (59.7, "1:00"), (61.2, "1:01")])
def test_the_length_of_a_recording_is_rounded(seconds, shown):
    assert f"<time>{shown}</time>" in player(np.zeros(round(seconds * audio.SAMPLE_RATE), np.float32))
