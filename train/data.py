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
NO_SPEECH = "no speech"  # what `meta.source` begins with where nobody speaks
CPU_BATCH_SECONDS, GPU_BATCH_SECONDS = 16.0, 480.0


@dataclass(frozen=True)
class Sample:
    """A data set's row with its audio replaced by keys into the feature cache."""

    id: str
    messages: list[dict[str, Any]]
    texts: list[str]  # what each audio says
    keys: list[str]  # one for each audio
    truncated: bool  # the answer was cut off: its end is no end of turn
    silent: bool  # nobody speaks: "" in `texts` then means no words, and else that nobody wrote them down
    clip_seconds: list[float]  # of each audio
    origin: str = ""  # the data set's folder
    licence: str = ""

    @property
    def seconds(self) -> float:
        """Of all its audio."""
        return sum(self.clip_seconds)


def shards(folder: str) -> list[Path]:
    """The parquet files of a data set folder."""
    paths = sorted(Path(folder).glob("data/*.parquet"))
    if not paths:
        raise LlasmError(f"{folder}: holds no data/*.parquet; name a folder that `llasm data build` wrote")
    return paths


def read_rows(folder: str) -> Iterator[tuple[str, Row]]:
    """(file:row, row) of a data set folder, audio as `{"bytes", "path"}`."""
    import pyarrow.parquet as parquet

    for path in shards(folder):
        table = parquet.read_table(path)
        missing = {"id", "messages", "audios", "meta"} - set(table.column_names)
        if missing:
            raise LlasmError(
                f"{path}: has no column {sorted(missing)[0]!r}, so it is no spoken data set; bring it into shape with "
                f"`llasm data build --input {folder} --output DIR`"
            )
        for number, row in enumerate(table.to_pylist(), 1):
            yield f"{path}:{number}", row


def read_samples(folders: list[str]) -> list[Sample]:
    """All rows; raises LlasmError, naming file and row, where one breaks the data set's contract."""
    samples = []
    for folder in folders:
        for where, row in read_rows(folder):
            meta = row["meta"]
            missing = {"texts", "seconds", "truncated"} - set(meta)
            if missing or not len(row["audios"]) == len(meta["texts"]) == len(meta["seconds"]):
                fault = f"no meta.{sorted(missing)[0]}" if missing else "not one text and duration for each audio"
                raise LlasmError(f"{where}: has {fault}; `llasm data check {folder}` tells more")
            if any(not audio["bytes"] for audio in row["audios"]):
                raise LlasmError(
                    f"{where}: an audio has no bytes; `llasm data build --input {folder}` packs the files in"
                )
            keys = [FeatureCache.key(audio["bytes"]) for audio in row["audios"]]
            silent = str(meta.get("source")).startswith(NO_SPEECH)
            identity = (row["id"], row["messages"], meta["texts"], keys, meta["truncated"], silent)
            samples.append(Sample(*identity, meta["seconds"], folder, meta.get("licence") or ""))
    return samples


def cache_folder(config: Any, cache_dir: str | None) -> Path:
    """Where all runs share the frames of this model's encoder: named after its hash, where that is known yet."""
    root = Path(cache_dir) if cache_dir else weights.home() / "features"
    return root / ((config.bases.get("audio") or {}).get("sha256") or "")[:16]


def open_cache(model: Any, cache_dir: str | None) -> FeatureCache:
    return FeatureCache(cache_folder(model.config, cache_dir), model.config.audio_config.d_model)


def encode_missing(
    samples: list[Sample], cache: FeatureCache, model: Any, processor: Any, rank: int = 0, n_ranks: int = 1
) -> None:
    """Adds to the cache what is not there yet, each process its share of the clips, with a progress bar."""
    keys = {key for sample in samples for key in sample.keys if key not in cache and int(key, 16) % n_ranks == rank}
    if not keys:
        return

    def clips() -> Iterator[tuple[str, bytes]]:
        for folder in dict.fromkeys(sample.origin for sample in samples):
            for _, row in read_rows(folder):
                pairs = ((FeatureCache.key(clip["bytes"]), clip["bytes"]) for clip in row["audios"])
                yield from (pair for pair in pairs if pair[0] in keys)

    with torch.inference_mode(), tqdm(total=len(keys), desc="encode", unit="clip", disable=rank > 0) as bar:
        device = next(model.parameters()).device
        seconds = CPU_BATCH_SECONDS if device.type == "cpu" else GPU_BATCH_SECONDS
        encode = encoder_of(model, device)
        cache.add_all(clips(), processor.feature_extractor, encode, bar.update, seconds)


def encoder_of(model: Any, device: Any) -> Any:
    """Mels [A, mels, M] with their mask → frames [A, T, D] and counts [A], by a bfloat16 copy of the model's encoder.

    The copy is 1.5 times faster than autocast, which casts the weights anew in every call.
    """
    tower = copy.deepcopy(model.model.audio_tower).to(torch.bfloat16)

    def encode(mels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        frames = tower(mels.to(device), mask.to(device)).last_hidden_state
        return frames.cpu(), mask.sum(1) // 2

    return encode


def split(samples: list[Sample], n_held_out: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(train, held out): the rows whose hashed ids come first are held out, whatever the order of the rows."""
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
        # Encoder frames, 50 a second, and text, a few tokens a word, stand for the work that a row makes.
        self.lengths = [sum(cache.n_frames(key) for key in s.keys) + _n_words(s) for s in samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Sample, int]:
        """(sample, epoch): `LengthGroupedOrder` counts on through the epochs."""
        epoch, index = divmod(index, len(self.samples))
        return self.samples[index], epoch


def _n_words(sample: Sample) -> int:
    return sum(len((part.get("text") or "").split()) for m in sample.messages for part in m["content"])


class LengthGroupedOrder(Sampler):
    """Batches of like length in an order that follows from (seed, epoch) alone, so a resumed run repeats it.

    Yields indices of `Samples`: epoch · rows + row.
    batch_size: samples of a whole optimiser step, so that the order is the same on any number of processes.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        """Whole steps only: what a part of a step would be is shared out differently on other numbers of processes."""
        return len(self.lengths) // self.batch_size * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        indices = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        return (self.epoch * len(self.lengths) + index for index in indices[: len(self)])
