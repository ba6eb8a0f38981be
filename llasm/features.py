"""Audio → mel → encoder frames, in batches and from an append-only cache.

Chat encodes a conversation's clips here; training reads the same frames from a `FeatureCache`, since a
frozen encoder gives the same frames in every epoch.

Shapes: A clips of at most 30 s, M mel frames (100/s), T encoder frames (50/s), D encoder width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llasm import audio


def mel(extractor: Any, wave: np.ndarray) -> Tensor:
    """wave [n_samples] of at most 30 s → log-mel [mels, M] of the audio with its short tail of silence.

    One clip at a time: inside a padded batch the transform would see other samples behind a clip's end.
    """
    padded = audio.pad_chunk(wave)
    features = extractor(padded, sampling_rate=audio.SAMPLE_RATE, padding=False, truncation=False, return_tensors="pt")
    return features["input_features"][0]


def pad_mels(mels: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mels [mels, M_i] → input_features [A, mels, max M], zeros past each clip, and its mask [A, max M]."""
    longest = max(m.shape[1] for m in mels)
    features = mels[0].new_zeros(len(mels), mels[0].shape[0], longest)
    mask = torch.zeros(len(mels), longest, dtype=torch.long)
    for i, m in enumerate(mels):
        features[i, :, : m.shape[1]] = m
        mask[i, : m.shape[1]] = 1
    return features, mask


class FeatureCache:
    """Encoder frames in bfloat16, one append-only file for each encoder, memory-mapped.

    `frames.bin` holds the frames one after the other; `index.jsonl` names them by the audio's content hash.
    A line is written after its frames, so an interrupted run leaves at most unused bytes behind.
    """

    def __init__(self, folder: Path, d_encoder: int) -> None:
        self.folder, self.d_encoder = folder, d_encoder
        folder.mkdir(parents=True, exist_ok=True)
        self._index: dict[str, tuple[int, int]] = {}
        index = folder / "index.jsonl"
        if index.exists():
            for line in index.read_text().splitlines():
                try:
                    key, start, n_frames = json.loads(line)
                except json.JSONDecodeError:  # the last line of a killed run
                    continue
                self._index[key] = (start, n_frames)
        self._map: np.ndarray | None = None

    @staticmethod
    def key(data: bytes) -> str:
        return sha256(data).hexdigest()[:32]

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def n_frames(self, key: str) -> int:
        return self._index[key][1]

    def get(self, key: str) -> Tensor:
        """[T, D] bfloat16, copied from the map."""
        start, n = self._index[key]
        if self._map is None or start + n > len(self._map):
            self._map = np.memmap(self.folder / "frames.bin", np.uint16, mode="r").reshape(-1, self.d_encoder)
        return torch.from_numpy(self._map[start : start + n].copy()).view(torch.bfloat16)

    def add_all(
        self,
        clips: Iterable[tuple[str, bytes]],
        extractor: Any,
        encode: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        progress: Callable[[int], Any] = lambda n: None,
        batch_seconds: float = 16.0,
        window: int = 256,
    ) -> None:
        """Encodes the clips (key, audio file bytes) that are missing.

        encode: mels [A, mels, M] and mask [A, M] → frames [A, T, D] and counts [A]. Clips are sorted by
        length inside a window and joined to batches of `batch_seconds` (padding included), so that
        little of a batch is padding.
        """
        with (
            open(self.folder / "frames.bin", "ab") as frames,
            open(self.folder / "index.jsonl", "a") as index,
        ):
            buffer: list[tuple[str, Tensor]] = []
            for key, data in clips:
                if key in self._index:
                    progress(1)
                    continue
                buffer.append((key, mel(extractor, audio.decode(data))))
                if len(buffer) == window:
                    self._flush(buffer, encode, frames, index, progress, batch_seconds)
                    buffer = []
            self._flush(buffer, encode, frames, index, progress, batch_seconds)

    def _flush(
        self, buffer: list, encode: Callable, frames: Any, index: Any, progress: Callable, seconds: float
    ) -> None:
        buffer.sort(key=lambda item: item[1].shape[1])
        while buffer:
            size = 1
            while size < len(buffer) and buffer[size][1].shape[1] * (size + 1) <= seconds * 100:
                size += 1
            batch, buffer = buffer[:size], buffer[size:]
            out, counts = encode(*pad_mels([m for _, m in batch]))
            for (key, _), rows, n in zip(batch, out, counts.tolist(), strict=True):
                start = frames.tell() // (2 * self.d_encoder)
                frames.write(rows[:n].to(torch.bfloat16).contiguous().view(torch.uint16).numpy().tobytes())
                frames.flush()
                index.write(json.dumps([key, start, n]) + "\n")
                self._index[key] = (start, n)
            index.flush()
            progress(len(batch))
