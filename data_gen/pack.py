"""Stage pack: blocks → parquet shards in the data set's schema (the contract with training and evaluation)."""

from __future__ import annotations

import io
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llasm import audio

from .rows import Row, kept, user_texts
from .runner import read_block


def to_record(row: Row, audio_format: str) -> dict[str, Any]:
    """A row as the data set holds it: what is said moves to `meta.texts`, audio parts keep their place."""
    messages = [
        {
            "role": message["role"],
            "content": [
                {"type": part["type"], "text": part["text"] if part["type"] == "text" else None}
                for part in message["content"]
            ],
        }
        for message in row["messages"]
    ]
    audios = [
        {
            "bytes": clip["bytes"] if audio_format == "flac" else opus_bytes(audio.decode(clip["bytes"])),
            "path": f"{row['id'].replace('/', '_')}-{i}.{audio_format}",
        }
        for i, clip in enumerate(row["audios"])
    ]
    meta = row["meta"]
    pairs = zip(meta.get("errors", []), meta.get("words", []))
    return {
        "id": row["id"],
        "messages": messages,
        "audios": audios,
        "meta": {
            **{name: str(meta.get(name, "")) for name in _TEXTS},
            "texts": user_texts(row),
            "speeds": meta["speeds"],
            "seconds": meta["seconds"],
            "heard": meta.get("heard", []),
            "wer": [n / words if words else 0.0 for n, words in pairs],
            "truncated": bool(meta.get("truncated", False)),
        },
    }


_TEXTS = (
    "source",
    "licence",
    "attribution",
    "language",
    "engine",
    "voice",
    "variation",
    "answered_by",
    "asked_by",
    "transcribed_by",
)


def write_shard(records: list[dict[str, Any]], path: Path) -> None:
    from datasets import Audio, Dataset, Features, List, Value, disable_progress_bars

    disable_progress_bars()  # the build shows its own
    text, number = Value("string"), Value("float32")
    meta = {
        **{name: text for name in _TEXTS},
        "texts": List(text),
        "speeds": List(number),
        "seconds": List(number),
        "heard": List(text),
        "wer": List(number),
        "truncated": Value("bool"),
    }
    features = Features(
        {
            "id": text,
            "messages": List({"role": text, "content": List({"type": text, "text": text})}),
            "audios": List({"bytes": Value("binary"), "path": text}),
            "meta": meta,
        }
    )
    shard = Dataset.from_dict({name: [record[name] for record in records] for name in features}, features=features)
    # Built as plain structs and then renamed to Audio: encoding through Audio would need torchcodec.
    shard = shard.cast_column("audios", List(Audio(sampling_rate=audio.SAMPLE_RATE)))
    partial = path.with_name(f".{uuid.uuid4().hex}.part")
    shard.to_parquet(partial)
    partial.replace(path)


@dataclass(frozen=True)
class ShardWork:
    """Some blocks → one shard."""

    root: Path
    blocks: tuple[str, ...]
    target: Path
    audio_format: str

    title = "pack"
    uses_model = False

    def n_rows(self) -> int:
        return sum(1 for name in self.blocks for _ in kept(read_block(self.root, name, clips=False)))

    def __call__(self) -> int:
        rows = [row for name in self.blocks for row in kept(read_block(self.root, name))]
        self.target.parent.mkdir(parents=True, exist_ok=True)
        write_shard([to_record(row, self.audio_format) for row in rows], self.target)
        return len(rows)


def opus_bytes(wave: audio.Wave) -> bytes:
    """An Ogg Opus file at 32 kbit/s; the same wave gives the same bytes."""
    import av
    import numpy as np

    content = io.BytesIO()
    # bitexact: Ogg streams carry a random number otherwise.
    with av.open(content, "w", format="ogg", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream("libopus", rate=48_000)
        stream.bit_rate = 32_000
        stream.codec_context.flags |= 1 << 23  # AV_CODEC_FLAG_BITEXACT
        stream.layout = "mono"
        pcm = np.clip(np.round(wave * 32767), -32768, 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate = audio.SAMPLE_RATE
        resampler = av.AudioResampler(format="s16", layout="mono", rate=48_000, frame_size=960)
        for given in (frame, None):
            for part in resampler.resample(given):
                container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return content.getvalue()
