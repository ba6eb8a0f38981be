"""Speech detection by silero-vad: where a recording speaks, and where it can be cut.

The package's weights are in its wheel; it runs at thousands of times real time on one core.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import Any

import torch

from llasm import audio


def load_model() -> Any:
    """A silero-vad model of one's own: it keeps state from window to window, so two streams cannot share one."""
    n_threads = torch.get_num_threads()
    from silero_vad import load_silero_vad

    model = load_silero_vad()
    torch.set_num_threads(n_threads)  # importing silero_vad sets it to 1 for the whole process
    return model


_model = lru_cache(maxsize=1)(load_model)
_lock = threading.Lock()  # one recording at a time: the shared model keeps state from window to window


def speech_spans(wave: audio.Wave, min_silence_ms: int = 300) -> list[tuple[int, int]]:
    """(first sample, last sample + 1) of each stretch of speech in a 16 kHz wave."""
    from silero_vad import get_speech_timestamps

    with _lock:
        found = get_speech_timestamps(
            torch.from_numpy(wave),
            _model(),
            sampling_rate=audio.SAMPLE_RATE,
            min_silence_duration_ms=min_silence_ms,
            max_speech_duration_s=audio.MAX_PIECE_SECONDS,
        )
    return [(span["start"], span["end"]) for span in found]


def segments(
    wave: audio.Wave, max_seconds: float = audio.MAX_PIECE_SECONDS, margin_seconds: float = 0.2
) -> list[tuple[int, int]]:
    """Spans of at most `max_seconds` that hold all the speech, cut at pauses; as few as fit.

    Neighbouring stretches of speech are joined while they fit together; `margin_seconds` of the pause is kept on
    each side.
    """
    limit, margin = int(max_seconds * audio.SAMPLE_RATE), int(margin_seconds * audio.SAMPLE_RATE)
    joined: list[list[int]] = []
    for start, end in speech_spans(wave):
        start, end = max(0, start - margin), min(len(wave), end + margin)
        if joined and end - joined[-1][0] <= limit:
            joined[-1][1] = end
        else:
            if joined:  # the margins of two segments may not overlap
                start = max(start, joined[-1][1])
            joined.append([start, min(end, start + limit)])
    return [(start, end) for start, end in joined]
