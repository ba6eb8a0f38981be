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

from .rows import MAX_WORDS, all_texts, messages_of, n_words

MAX_AUDIO_SECONDS = audio.MAX_PIECE_SECONDS  # of a clip: longer ones are cut into several
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
    if (n := n_words(all_texts({"messages": messages}))) > MAX_WORDS:
        faults.append(f"{n} words; more than {MAX_WORDS} do not fit a small model")
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
