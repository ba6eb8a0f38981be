"""Spoken data sets → samples with cached encoder frames → batches.

Shapes: B samples, T encoder frames, D encoder width, U target tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm
from transformers.trainer_pt_utils import get_length_grouped_indices

from llasm import weights
from llasm.errors import LlasmError
from llasm.features import FeatureCache

Row = dict[str, Any]

# Seconds of audio encoded at once. Small on CPUs: the activations then stay in the cache (1.5 times faster).
CPU_BATCH_SECONDS, GPU_BATCH_SECONDS = 16.0, 480.0


@dataclass(frozen=True)
class Sample:
    """A data set's row with its audio replaced by keys into the feature cache."""

    id: str
    messages: list[dict[str, Any]]
    texts: list[str]  # what each audio says
    keys: list[str]  # one for each audio
    truncated: bool  # the answer was cut off: its end is no end of turn


def read_rows(folder: str) -> Iterator[Row]:
    """The rows of a data set folder, audio as `{"bytes", "path"}`."""
    import pyarrow.parquet as parquet

    paths = sorted(Path(folder).glob("data/*.parquet"))
    if not paths:
        raise LlasmError(f"{folder}: holds no data/*.parquet; name a folder that `llasm data build` wrote")
    for path in paths:
        yield from parquet.read_table(path).to_pylist()


def cached_samples(
    folders: list[str], model: Any, processor: Any, cache_dir: str | None
) -> tuple[list[Sample], FeatureCache]:
    """All rows as samples; frames that are missing are encoded first, with a progress bar.

    The cache is shared by all runs with the same encoder: its folder is named after the encoder's hash.
    """
    bases = model.config.bases
    root = Path(cache_dir) if cache_dir else weights.home() / "features"
    cache = FeatureCache(root / bases["audio"]["sha256"][:16], model.config.audio_config.d_model)
    samples: list[Sample] = []

    def clips() -> Iterator[tuple[str, bytes]]:
        for folder in folders:
            for row in read_rows(folder):
                keys = [FeatureCache.key(a["bytes"]) for a in row["audios"]]
                yield from ((key, a["bytes"]) for key, a in zip(keys, row["audios"], strict=True))
                meta = row["meta"]
                samples.append(Sample(row["id"], row["messages"], meta["texts"], keys, meta["truncated"]))

    device = next(model.parameters()).device
    # A bfloat16 copy is faster than autocast, which casts the weights anew in every call.
    tower = copy.deepcopy(model.model.audio_tower).to(torch.bfloat16)

    def encode(mels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        frames = tower(mels.to(device), mask.to(device)).last_hidden_state
        return frames.cpu(), mask.sum(1) // 2

    total = sum(_n_audios(folder) for folder in folders)
    with torch.inference_mode(), tqdm(total=total, desc="encode", unit="clip") as bar:
        batch_seconds = CPU_BATCH_SECONDS if device.type == "cpu" else GPU_BATCH_SECONDS
        cache.add_all(clips(), processor.feature_extractor, encode, bar.update, batch_seconds)
    return samples, cache


def _n_audios(folder: str) -> int:
    import pyarrow.parquet as parquet

    paths = Path(folder).glob("data/*.parquet")
    return sum(len(m["texts"]) for p in paths for m in parquet.read_table(p, columns=["meta"])["meta"].to_pylist())


def split(samples: list[Sample], n_held_out: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(train, held out): the rows whose hashed ids come first are held out, whatever the order of the rows."""
    if n_held_out >= len(samples):
        raise LlasmError(f"recipe: held_out is {n_held_out}, but the data holds only {len(samples)} rows")
    ranked = sorted(samples, key=lambda s: sha256(f"{seed}/{s.id}".encode()).digest())
    return ranked[n_held_out:], ranked[:n_held_out]


def pad_frames(frames: list[Tensor]) -> tuple[Tensor, Tensor]:
    """[T_i, D] each → [B, max T, D] and the counts [B]."""
    counts = torch.tensor([len(f) for f in frames])
    return torch.nn.utils.rnn.pad_sequence(frames, batch_first=True), counts


class Samples(Dataset):
    """What the Trainer's data loader indexes; the work is done in the stage's collator."""

    def __init__(self, samples: list[Sample], cache: FeatureCache) -> None:
        self.samples = samples
        self.lengths = [sum(cache.n_frames(key) for key in s.keys) for s in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


class LengthGroupedOrder(Sampler):
    """Batches of like length in an order that follows from (seed, epoch) alone, so a resumed run repeats it."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))
