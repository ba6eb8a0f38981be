"""Hands-free turn-taking: a stream of sound → the user's turns, each when its speaker pauses (silero-vad)."""

from __future__ import annotations

import threading
from collections import deque

import numpy as np
import soxr
import torch

from llasm import audio, vad
from llasm.errors import LlasmError

WINDOW = 512  # samples: what silero-vad reads at a time at 16 kHz (32 ms)
PAUSE_SECONDS = 0.8  # seconds of silence that end a turn
LEAD_SECONDS = 0.35  # seconds kept from before the detector was sure: soft first sounds
TAIL_SECONDS = 0.25  # seconds of the pause that stay in the turn
SPEAKING_SECONDS = 0.16  # seconds of speech that count as barging in: more than a click or a cough
SHORTEST_SECONDS = 0.25  # seconds of speech that make a turn
LONGEST_SECONDS = 60.0  # seconds after which a turn ends by itself
MIN_RATE, MAX_RATE = 8_000, 192_000  # Hz of a microphone


def _windows(seconds: float) -> int:
    return round(seconds * audio.SAMPLE_RATE / WINDOW)


class TurnDetector:
    """Cuts one microphone's sound into turns. Sound between turns is forgotten but for the last LEAD_SECONDS."""

    def __init__(self, pause_seconds: float = PAUSE_SECONDS, longest_seconds: float = LONGEST_SECONDS) -> None:
        from silero_vad import VADIterator

        self._vad = VADIterator(vad.load_model(), min_silence_duration_ms=round(1000 * pause_seconds), speech_pad_ms=0)
        self._pause, self._longest = _windows(pause_seconds), _windows(longest_seconds)
        self._rest = np.zeros(0, np.float32)
        self._lead: deque[np.ndarray] = deque(maxlen=_windows(LEAD_SECONDS))
        self._turn: list[np.ndarray] = []  # windows since the turn began
        self._n_speech = 0  # windows of speech in them

    @property
    def speaking(self) -> bool:
        """Whether somebody is in the middle of a turn, and has said more than a click."""
        return self._n_speech >= _windows(SPEAKING_SECONDS)

    def feed(self, wave: audio.Wave) -> list[audio.Wave]:
        """The turns that end in `wave`, the next float32 [n_samples] at 16 kHz of the stream."""
        sound = np.concatenate([self._rest, wave])
        n_whole = len(sound) // WINDOW * WINDOW
        self._rest = sound[n_whole:]
        turns = [self._hear(window) for window in sound[:n_whole].reshape(-1, WINDOW)]
        return [turn for turn in turns if turn is not None]

    def _hear(self, window: np.ndarray) -> audio.Wave | None:
        """The turn that ends with this window, if one does."""
        self._vad(torch.from_numpy(window.copy()))
        if not self._vad.triggered and not self._turn:
            self._lead.append(window)
            return None
        if not self._turn:
            self._turn = list(self._lead)
            self._lead.clear()
        self._turn.append(window)
        # While the detector waits out a pause it notes where the pause began.
        self._n_speech += self._vad.triggered and not self._vad.temp_end
        paused = not self._vad.triggered
        if not paused and len(self._turn) < self._longest:
            return None
        turn, n_speech = self._turn, self._n_speech
        self._turn, self._n_speech = [], 0
        if paused:
            turn = turn[: len(turn) - max(0, self._pause - _windows(TAIL_SECONDS))]
        else:
            self._vad.reset_states()
        return np.concatenate(turn) if n_speech >= _windows(SHORTEST_SECONDS) else None


class Microphone:
    """What a browser's microphone sends, from the button's first press to its last.

    Hands-free it gives a turn at each pause; otherwise one, everything, when it ends. Safe to use from several threads.
    """

    def __init__(self, sample_rate: int, hands_free: bool, longest_seconds: float = LONGEST_SECONDS) -> None:
        if not MIN_RATE <= sample_rate <= MAX_RATE:
            raise LlasmError(f"microphone: its sample rate is {sample_rate}; give {MIN_RATE} to {MAX_RATE} Hz")
        self._to_16k = soxr.ResampleStream(sample_rate, audio.SAMPLE_RATE, 1, dtype="float32")
        self._detector = TurnDetector(longest_seconds=longest_seconds) if hands_free else None
        self._held: list[audio.Wave] = []
        self._room = round(longest_seconds * audio.SAMPLE_RATE)  # samples that may still be held
        self._lock = threading.Lock()

    @property
    def speaking(self) -> bool:
        """Hands-free: whether the user has begun a turn."""
        return self._detector is not None and self._detector.speaking

    def feed(self, pcm: bytes, last: bool = False) -> list[audio.Wave]:
        """The turns that end in these 16-bit little-endian samples, or with them if they are the last."""
        with self._lock:
            samples = np.frombuffer(pcm[: len(pcm) // 2 * 2], "<i2").astype(np.float32) / 32768
            wave = self._to_16k.resample_chunk(samples, last=last)
            if self._detector is not None:
                return self._detector.feed(wave)
            self._held.append(wave[: self._room])
            self._room -= len(self._held[-1])
            return [np.concatenate(self._held)] if last else []
