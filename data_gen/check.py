"""`llasm data check PATH`: anybody's data set, row by row, before anything is trained on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tqdm import tqdm

from llasm import audio
from llasm.errors import LlasmError
from llasm.records import BadRow, locate, records

from .rows import messages_of

MAX_AUDIO_SECONDS = 30.0  # of a clip: longer ones are cut into several
MAX_WORDS = 2000  # of a conversation: more fills a small model's context
MAX_CLIPS = 16


@dataclass
class Checked:
    """How many rows were read, how many had a fault, and what the good ones hold."""

    rows: int = 0
    bad: int = 0
    clips: int = 0
    seconds: float = 0.0
    answered: int = 0


def check(path: str, split: str = "train") -> Iterator[tuple[Checked, list[str]]]:
    """After each row the counts so far and the row's faults, each `file:row: what is wrong`."""
    so_far = Checked()
    rows = records(path, split)
    first = next(rows, None)  # a wrong path is told before the bar appears
    if first is None:
        raise LlasmError(f"{path}: holds no row")
    for where, record in tqdm(chain([first], rows), desc="check", unit="row"):
        so_far.rows += 1
        faults = _faults(where, record, so_far)
        so_far.bad += bool(faults)
        yield so_far, [f"{where}: {fault}" for fault in faults]


def _faults(where: str, record: Any, so_far: Checked) -> list[str]:
    if isinstance(record, BadRow):
        return [record.reason]
    try:
        messages, audios = messages_of(record, where)
    except BadRow as error:
        return [error.reason]
    faults = []
    faults += _order_faults([message["role"] for message in messages])
    texts = [part["text"] or "" for message in messages for part in message["content"]]
    if (n_words := sum(len(text.split()) for text in texts)) > MAX_WORDS:
        faults.append(f"{n_words} words; more than {MAX_WORDS} do not fit a small model")
    if len(audios) > MAX_CLIPS:
        faults.append(f"{len(audios)} clips; more than {MAX_CLIPS} do not fit a small model")
    for number, given in enumerate(audios, 1):
        if given is None:  # to be spoken
            continue
        try:
            seconds = len(audio.decode(locate(given, where))) / audio.SAMPLE_RATE
        except LlasmError as error:
            faults.append(f"audio {number}: {error}")
            continue
        so_far.clips += 1
        so_far.seconds += seconds
        if seconds > MAX_AUDIO_SECONDS:
            faults.append(f"audio {number}: {seconds:.1f} s; longer than {MAX_AUDIO_SECONDS:.0f} s")
    so_far.answered += messages[-1]["role"] == "assistant"
    return faults


def _order_faults(roles: list[str]) -> list[str]:
    """A system message only first; user and assistant by turns."""
    turns = roles[1:] if roles[0] == "system" else roles
    for i, role in enumerate(turns):
        wanted = ("user", "assistant")[i % 2]
        if role != wanted:
            return [f"turn {i + 1} is the {role}'s; it should be the {wanted}'s"]
    return []
