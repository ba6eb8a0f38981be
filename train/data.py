"""Spoken data sets → samples with cached encoder frames → batches.

Shapes: B samples, T encoder frames, D encoder width, U target tokens.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm
from transformers.trainer_pt_utils import get_length_grouped_indices

from llasm import audio, weights
from llasm.errors import LlasmError
from llasm.features import FeatureCache
from llasm.processing_llasm import AUDIO_TOKEN

Row = dict[str, Any]
Check = tuple[Callable[[Row], Any], str]

NO_SPEECH = "no speech"  # what `meta.source` begins with where nobody speaks
VARIANT = "~"  # what stands in an id between that of the row and its noisy copy's number
# Seconds of audio encoded at once. Small on CPUs: the activations then stay in the cache (1.5 times faster).
CPU_BATCH_SECONDS, GPU_BATCH_SECONDS = 16.0, 480.0


@dataclass(frozen=True)
class Sample:
    """A data set's row with its audio replaced by keys into the feature cache."""

    id: str
    messages: list[dict[str, Any]]
    texts: list[str]  # what each audio says
    keys: list[str]  # one for each audio
    truncated: bool  # an answer was cut off: no end in it is taught as an end of turn
    silent: bool  # nobody speaks: "" in `texts` then means no words, and else that nobody wrote them down
    clip_seconds: list[float]  # of each audio
    origin: str = ""  # the data set's folder
    licence: str = ""
    attribution: str = ""
    repeats: bool = False  # the answer is what the audio says (`spoken.as_repetition`)

    @property
    def seconds(self) -> float:
        """Of all its audio."""
        return sum(self.clip_seconds)

    @property
    def is_recording(self) -> bool:
        """One clip that nobody answers and nothing is asked about: what it says can be repeated."""
        parts = [(m["role"], part["type"]) for m in self.messages for part in m["content"]]
        return parts == [("user", "audio")]


def _parts(row: Row, kind: str = "", role: str = "") -> list[Row]:
    """The parts of one kind, or of both, in the turns of one role, or of all."""
    turns = [message for message in row["messages"] if role in ("", message["role"])]
    return [part for turn in turns for part in turn["content"] if kind in ("", part["type"])]


# What a row must be, and what it has where it is not; each check takes for granted what those above it ask for.
CONTRACT: tuple[Check, ...] = (
    (lambda row: row["id"], "no id"),
    (lambda row: row["messages"] and all(m and m.get("content") for m in row["messages"]), "no or empty messages"),
    (lambda row: all(m["role"] in ("system", "user", "assistant") for m in row["messages"]),
     "a role that is none of system, user and assistant"),
    (lambda row: all(part["type"] in ("audio", "text") for part in _parts(row)), "a part neither audio nor text"),
    (lambda row: len(_parts(row, "audio")) == len(_parts(row, "audio", "user")), "audio in a turn not the user's"),
    (lambda row: all(part["text"] is not None for part in _parts(row, "text")), "a text part without text"),
    (lambda row: all(part["text"].strip() for part in _parts(row, "text", "assistant")), "an empty answer"),
    (lambda row: row["meta"] and "texts" in row["meta"], "no meta.texts"),
    (lambda row: "seconds" in row["meta"], "no meta.seconds"),
    (lambda row: "truncated" in row["meta"], "no meta.truncated"),
    (lambda row: len(row["audios"]) == len(row["meta"]["texts"] or []) == len(row["meta"]["seconds"] or []),
     "not one text and duration for each audio"),
    (lambda row: AUDIO_TOKEN not in "\n".join(filter(None, _texts(row))),
     f"{AUDIO_TOKEN}, which stands for sound, as text"),
)  # fmt: skip


def _texts(row: Row) -> list[str]:
    return [*(row["meta"]["texts"] or []), *(part["text"] for part in _parts(row, "text"))]


def shards(folder: str) -> list[Path]:
    """The parquet files of a data set folder."""
    paths = sorted(Path(folder).glob("data/*.parquet"))
    if not paths:
        raise LlasmError(f"{folder}: holds no data/*.parquet; name a folder that `llasm data build` wrote")
    return paths


def read_rows(folder: str) -> Iterator[tuple[str, Row]]:
    """(file:row, row) of a data set folder, audio as `{"bytes", "path"}`."""
    import pyarrow
    import pyarrow.parquet as parquet

    for path in shards(folder):
        try:
            table = parquet.read_table(path)
            rows = table.to_pylist()
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise LlasmError(f"{path}: is no parquet file, or damaged ({reason}); copy or build it again") from error
        missing = {"id", "messages", "audios", "meta"} - set(table.column_names)
        if missing:
            raise LlasmError(
                f"{path}: has no column {sorted(missing)[0]!r}, so it is no spoken data set; bring it into shape with "
                f"`llasm data build --input {folder} --output DIR`"
            )
        for number, row in enumerate(rows, 1):
            yield f"{path}:{number}", row


def read_samples(folders: list[str]) -> list[Sample]:
    """All rows; raises LlasmError, naming file and row, where one breaks the data set's contract or is there twice."""
    places = [Path(folder).resolve() for folder in folders]
    if twice := [folder for folder, place in zip(folders, places) if places.count(place) > 1]:
        raise LlasmError(f"{', '.join(twice)}: is one data set named twice, so held-out rows would be trained on too")
    samples: list[Sample] = []
    ids: dict[tuple[str, str], str] = {}
    contents: dict[str, str] = {}
    for folder in folders:
        for where, row in read_rows(folder):
            sample = _sample(folder, where, row)
            content = repr((sample.id, sample.messages, sample.texts, sample.keys))
            if first := ids.get((folder, sample.id)) or contents.get(content):
                raise LlasmError(f"{where}: row {sample.id!r} is there already, at {first}; leave one of them out")
            ids[folder, sample.id] = contents[content] = where
            samples.append(sample)
    return samples


def _sample(folder: str, where: str, row: Row) -> Sample:
    for holds, fault in CONTRACT:
        if not holds(row):
            raise LlasmError(f"{where}: has {fault}; `llasm data check {folder}` tells more")
    if any(not clip or not clip["bytes"] for clip in row["audios"]):
        raise LlasmError(f"{where}: an audio has no bytes; `llasm data build --input {folder}` packs the files in")
    meta = row["meta"]
    return Sample(
        id=row["id"],
        messages=row["messages"],
        texts=[text or "" for text in meta["texts"] or []],
        keys=[FeatureCache.key(clip["bytes"]) for clip in row["audios"]],
        truncated=bool(meta["truncated"]),
        silent=str(meta.get("source")).startswith(NO_SPEECH),
        clip_seconds=[_seconds(clip["bytes"], f"{where}: row {row['id']!r}") for clip in row["audios"]],
        origin=folder,
        licence=meta.get("licence") or "",
        attribution=meta.get("attribution") or "",
    )


def _seconds(content: bytes, name: str) -> float:
    """How long a clip is, whatever its row says; decoded just where its header leaves room for doubt."""
    import soundfile

    try:
        header = soundfile.info(io.BytesIO(content))
    except (soundfile.SoundFileError, OSError):
        header = None
    if header and 0 < header.frames < audio.UNKNOWN_FRAMES and header.subtype not in ("FLOAT", "DOUBLE"):
        return header.frames / header.samplerate
    return len(audio.decode(content, name)) / audio.SAMPLE_RATE


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

    names: dict[str, str] = {}

    def clips() -> Iterator[tuple[str, bytes]]:
        for folder in dict.fromkeys(sample.origin for sample in samples):
            for where, row in read_rows(folder):
                for clip in row["audios"]:
                    if (key := FeatureCache.key(clip["bytes"])) in keys:
                        names[key] = f"{where}: row {row['id']!r}"
                        yield key, clip["bytes"]

    with tqdm(total=len(keys), desc="encode", unit="clip", disable=rank > 0) as bar:
        device = next(model.parameters()).device
        on_cpu = device.type == "cpu"
        seconds = CPU_BATCH_SECONDS if on_cpu else GPU_BATCH_SECONDS
        n_encoders = max(1, torch.get_num_threads() // n_ranks) if on_cpu else 1
        encode = encoder_of(model, device)
        cache.add_all(clips(), processor.feature_extractor, encode, bar.update, seconds, names.get, n_encoders)


def encoder_of(model: Any, device: Any) -> Any:
    """Mels [A, mels, M] with their mask → frames [A, T, D] and counts [A], by a bfloat16 copy of the model's encoder.

    The copy is 1.5 times faster than autocast, which casts the weights anew in every call.
    """
    tower = copy.deepcopy(model.model.audio_tower).to(torch.bfloat16)

    @torch.inference_mode()
    def encode(mels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        frames = tower(mels.to(device), mask.to(device)).last_hidden_state
        return frames.cpu(), mask.sum(1) // 2

    return encode


def split(
    samples: list[Sample], n_held_out: int, seed: int, texts_apart: bool = False
) -> tuple[list[Sample], list[Sample]]:
    """(train, held out): the rows whose hashed ids come first are held out, whatever the order of the rows.

    Their copies in other noise are in neither. texts_apart: nor is any row that says what one of them says, in whatever
    voice.
    """
    ranked = sorted(samples, key=lambda s: sha256(f"{seed}/{s.id}".encode()).digest())
    held_out = ranked[:n_held_out]
    copied = {_first_copy(sample) for sample in held_out}
    said = {text for sample in held_out for text in sample.texts if text and texts_apart}
    rest = [sample for sample in ranked[n_held_out:] if _first_copy(sample) not in copied]
    return [sample for sample in rest if said.isdisjoint(sample.texts)], held_out


def _first_copy(sample: Sample) -> tuple[str, str]:
    """Data set and id of the row that the sample is, or is a variant of."""
    return sample.origin, sample.id.split(VARIANT)[0]


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
    """Batches of like length, long and short ones mixed, in an order that follows from (seed, epoch) alone, so a
    resumed run repeats it.

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
        # As they come, 50 batches go from the longest to the shortest rows, so what is short would be left out for
        # dozens of steps. The longest row stays in front, where memory that is too small shows.
        first, *others = (indices[i : i + self.batch_size] for i in range(0, len(self), self.batch_size))
        mixed = torch.randperm(len(others), generator=generator).tolist()
        rows = first + [index for i in mixed for index in others[i]]
        return (self.epoch * len(self.lengths) + row for row in rows)
