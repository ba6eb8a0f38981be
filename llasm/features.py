"""Audio → mel → encoder frames, in batches and from a cache on disk.

Chat encodes a conversation's clips here; training reads the same frames from a `FeatureCache`, since a
frozen encoder gives the same frames in every epoch.

Shapes: A clips of at most 30 s, M mel frames (100/s), T encoder frames (50/s), D encoder width.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from llasm import audio
from llasm.errors import LlasmError
from llasm.spread import single_threaded

Encode = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Mels [A, mels, M] and mask [A, M] → frames [A, T, D] and how many of them are real [A]."""


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
    """Encoder frames in bfloat16 on disk, memory-mapped, named by the audio's content hash.

    The folder belongs to one encoder. It holds segments: `NAME.frames`, the frames one after the other, and
    `NAME.jsonl`, a line [key, first frame, frames] for each clip, written after its frames, so that an interrupted run
    leaves at most unused bytes behind. Every writer has segments of its own, so runs share the folder without
    a lock. Segments that no run has used for longest are the first to go when room is wanted; those that a live run
    has written or asked to keep stay: it names them in `RUN.held` and holds `RUN.lock` while its cache is open.
    """

    SEGMENT_BYTES = 1 << 30
    WINDOW = 256  # clips sorted by length at once, so that little of a batch is padding

    def __init__(self, folder: Path, d_encoder: int) -> None:
        self.folder, self.d_encoder = folder, d_encoder
        folder.mkdir(parents=True, exist_ok=True)
        self._index: dict[str, tuple[str, int, int]] = {}  # key → (segment, first frame, frames)
        self._maps: dict[str, np.ndarray] = {}
        self._lock: FileLock | None = None
        self.refresh()

    def refresh(self) -> None:
        """Reads what other processes have added since."""
        self._index.clear()
        self._maps.clear()
        for file in sorted(self.folder.glob("*.jsonl")):
            try:
                lines = file.read_text().splitlines()
            except FileNotFoundError:  # another run has just made room
                continue
            for line in lines:
                try:
                    key, start, n_frames = json.loads(line)
                except ValueError:  # the last line of a killed run
                    continue
                self._index[key] = (file.stem, start, n_frames)

    @staticmethod
    def key(data: bytes) -> str:
        return sha256(data).hexdigest()[:32]

    def __contains__(self, key: str) -> bool:
        return key in self._index

    def n_frames(self, key: str) -> int:
        return self._index[key][2]

    def n_bytes(self, seconds: float) -> int:
        """Room that the frames of so much audio take; an upper bound."""
        return int((seconds + 1) * audio.SAMPLE_RATE / audio.N_SAMPLES_PER_ENCODER_FRAME) * 2 * self.d_encoder

    def get(self, key: str) -> Tensor:
        """[T, D] bfloat16, copied from the map."""
        name, start, n = self._index[key]
        mapped = self._maps.get(name)
        if mapped is None or start + n > len(mapped):
            whole = os.path.getsize(self._frames(name)) // (2 * self.d_encoder)  # another run may be at work in it
            mapped = np.memmap(self._frames(name), np.uint16, mode="r", shape=(whole, self.d_encoder))
            self._maps[name] = mapped
        return torch.from_numpy(mapped[start : start + n].copy()).view(torch.bfloat16)

    def make_room(self, n_bytes: int, limit_bytes: int, keys: Iterable[str]) -> None:
        """Removes the longest unused segments until `n_bytes` more fit under the limit.

        Those of `keys` stay, and so do those of other runs at work. Raises LlasmError when they do not fit even then.
        """
        with FileLock(self.folder / "room.lock"):  # what one run removes, another must not be about to keep
            self.refresh()
            kept = {self._index[key][0] for key in keys if key in self._index}
            for name in kept:
                os.utime(self._frames(name))
            self._hold(kept)
            sizes = {file: file.stat() for file in self.folder.glob("*.frames")}
            held = self._held()  # read behind the list: a writer holds a segment before the file is there
            total = sum(stat.st_size for stat in sizes.values()) + n_bytes
            for file, stat in sorted(sizes.items(), key=lambda item: item[1].st_mtime):
                if total > limit_bytes and file.stem not in held:
                    file.with_suffix(".jsonl").unlink(missing_ok=True)
                    file.unlink()
                    total -= stat.st_size
            self.refresh()
        if total > limit_bytes:
            others = sum(stat.st_size for file, stat in sizes.items() if file.stem in held - kept)
            beside = f", beside {others / 1e9:.1f} GB of other runs at work" if others else ""
            raise LlasmError(
                f"cache_gb is {limit_bytes / 1e9:g}, but the encoder frames of this data take "
                f"{(total - others) / 1e9:.1f} GB in {self.folder}{beside}; raise cache_gb, or train on less data"
            )

    def _hold(self, names: Iterable[str]) -> None:
        """No run removes these segments while this cache is open."""
        if self._lock is None:
            self._lock = FileLock(self.folder / f"{uuid.uuid4().hex}.lock")
            self._lock.acquire()  # before the list is there: a list without a lock is a dead run's
        with open(Path(self._lock.lock_file).with_suffix(".held"), "a") as held:
            held.writelines(f"{name}\n" for name in names)

    def _held(self) -> set[str]:
        """The segments that live runs hold; what dead ones have left of their lists is cleared away."""
        names: set[str] = set()
        for file in self.folder.glob("*.held"):
            lock = FileLock(file.with_suffix(".lock"))
            try:
                with lock.acquire(timeout=0):
                    file.unlink()
            except Timeout:
                names.update(file.read_text().split())
            else:
                file.with_suffix(".lock").unlink(missing_ok=True)
        return names

    def add_all(
        self,
        clips: Iterable[tuple[str, bytes]],
        extractor: Any,
        encode: Encode,
        progress: Callable[[int], Any] = lambda n: None,
        batch_seconds: float = 16.0,
        name_of: Callable[[str], str | None] = lambda key: None,
        n_encoders: int = 1,
    ) -> None:
        """Encodes the clips (key, audio file bytes) that are missing; `name_of` a key is what an error calls its clip.

        Threads decode and make the mels of the next window while this one is encoded. Clips are sorted by
        length inside a window and joined to batches of `batch_seconds` (padding included). With several `n_encoders`
        that many batches are encoded at once, each on one core: on CPUs faster than all cores on one batch.
        """

        def prepare(clip: tuple[str, bytes]) -> tuple[str, Tensor]:
            return clip[0], mel(extractor, audio.decode(clip[1], name_of(clip[0])))

        def missing() -> Iterator[tuple[str, bytes]]:
            seen: set[str] = set()
            for key, data in clips:
                if key not in self._index and key not in seen:
                    seen.add(key)
                    yield key, data

        rest = missing()
        with (
            single_threaded() if n_encoders > 1 else nullcontext(),
            ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
            ThreadPoolExecutor(n_encoders, "encode", torch.set_num_threads, (torch.get_num_threads(),)) as encoders,
            self._writer() as write,
        ):
            window = [pool.submit(prepare, clip) for clip in islice(rest, self.WINDOW)]
            while window:
                following: list[Future] = [pool.submit(prepare, clip) for clip in islice(rest, self.WINDOW)]
                ready = sorted((future.result() for future in window), key=lambda item: item[1].shape[1])
                batches = list(_batches(ready, batch_seconds))
                padded = (pad_mels([m for _, m in batch]) for batch in batches)
                for batch, (out, counts) in zip(batches, encoders.map(lambda mels: encode(*mels), padded)):
                    for (key, _), rows, n in zip(batch, out, counts.tolist(), strict=True):
                        write(key, rows[:n])
                    progress(len(batch))
                window = following

    @contextmanager
    def _writer(self) -> Iterator[Callable[[str, Tensor], None]]:
        """Writes a clip's frames [T, D] and its line, into a new segment when this one is full."""
        with ExitStack() as segment:
            name, data, index = "", None, None

            def write(key: str, frames: Tensor) -> None:
                nonlocal name, data, index
                if data is None or data.tell() > self.SEGMENT_BYTES:
                    segment.close()
                    name = uuid.uuid4().hex
                    self._hold([name])
                    data = segment.enter_context(open(self._frames(name), "wb"))
                    index = segment.enter_context(open(self.folder / f"{name}.jsonl", "w"))
                start = data.tell() // (2 * self.d_encoder)
                data.write(frames.to(torch.bfloat16).contiguous().view(torch.uint16).numpy().tobytes())
                data.flush()
                print(json.dumps([key, start, len(frames)]), file=index, flush=True)
                self._index[key] = (name, start, len(frames))

            yield write

    def _frames(self, name: str) -> Path:
        return self.folder / f"{name}.frames"


def _batches(clips: list[tuple[str, Tensor]], seconds: float) -> Iterator[list[tuple[str, Tensor]]]:
    """Clips sorted by length → runs of them that take at most so much audio, padding included."""
    start = 0
    while start < len(clips):
        size = 1
        while start + size < len(clips) and clips[start + size][1].shape[1] * (size + 1) <= seconds * 100:
            size += 1
        yield clips[start : start + size]
        start += size
