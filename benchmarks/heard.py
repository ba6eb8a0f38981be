"""How much of what is asked aloud an adapter hears: the words wrong in its own reading, without the LLM.

    python benchmarks/heard.py llasm-tiny runs/mine --data dev.jsonl --voice piper [--snr 10 --noise DIR] [--asr NAME]

DATA: recordings with their words, or questions for the voice to speak, as `llasm eval --task transcription` reads them.
The reading is greedy, its words compared behind Whisper's normaliser; intervals are bootstrapped over the questions.
Models that stand on one encoder share its frames. With --asr that recogniser has a row too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from llasm import asr, audio, checkpoint, features
from llasm.adapter import Aligner, DecoderAdapter
from llasm.errors import LlasmError
from llasm.evals.conditions import Condition, Variation, heard
from llasm.evals.items import Item
from llasm.evals.own_sets import Transcription
from llasm.evals.report import markdown_table, number
from llasm.evals.statistics import ratio_interval
from llasm.evals.voiced import voiced
from llasm.train.data import encoder_of, pad_frames

BATCH = 32  # clips


def encoded(model: Any, processor: Any, waves: list[audio.Wave]) -> list[Tensor]:
    """[T_i, D] frames of each clip."""
    encode = encoder_of(model, "cpu")
    frames = []
    for wave in tqdm(waves, desc="encode", unit="clip"):
        found, counts = encode(*features.pad_mels([features.mel(processor.feature_extractor, wave)]))
        frames.append(found[0, : int(counts[0])].float())  # encoded in bfloat16, as in training
    return frames


@torch.inference_mode()
def readings(model: Any, processor: Any, frames: list[Tensor]) -> Iterator[str]:
    """What the adapter reads in each clip."""
    adapter = model.model.multi_modal_projector
    if not isinstance(adapter, (Aligner, DecoderAdapter)):
        raise LlasmError(f"adapter {adapter.config.name!r} reads no words: `decoder` and `aligner` do")
    table = model.get_input_embeddings().weight
    for first in range(0, len(frames), BATCH):
        for ids in adapter.transcribe(*pad_frames(frames[first : first + BATCH]), table):
            yield processor.tokenizer.decode(ids)


def wrong(items: list[Item], texts: Iterator[str]) -> str:
    """The share of words that is wrong, with its 95 % interval."""
    errors, words = zip(*(asr.count_errors(item.question, text) for item, text in zip(items, texts, strict=True)))
    score, low, high = (number(value, "wer") for value in ratio_interval(errors, words))
    return f"{score} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, help="the first N questions")
    parser.add_argument("--voice", default="hibari")
    parser.add_argument("--snr", type=float, help="dB; a second column with noise")
    parser.add_argument("--noise", help="folder of noise recordings for --snr; without it, noise is generated")
    parser.add_argument("--asr", help="a recogniser: whisper-base, …")
    args = parser.parse_args()
    items = voiced(Transcription().read(args.data, args.limit), args.voice)
    if faults := [f"{item.id}: {item.fault}" for item in items if item.fault]:
        raise LlasmError(f"{args.data}: {len(faults)} of {len(items)} cannot be asked aloud; the first: {faults[0]}")
    conditions = [
        Condition("speech"),
        *([Condition("speech", Variation("snr", args.snr))] if args.snr is not None else []),
    ]
    waves = [[heard(item, condition, args.noise)[0] for item in items] for condition in conditions]
    frames: dict[str, list[list[Tensor]]] = {}  # by the encoder's hash, a list for each condition
    rows = []
    for name in args.models:
        model, processor = checkpoint.load(name)
        encoder = model.config.bases["audio"]["sha256"]
        if encoder not in frames:
            frames[encoder] = [encoded(model, processor, clips) for clips in waves]
        rows.append([Path(name).name, *(wrong(items, readings(model, processor, f)) for f in frames[encoder])])
    if args.asr:
        recogniser = asr.Recogniser(args.asr)
        rows.append([args.asr, *(wrong(items, iter(recogniser.transcribe(clips))) for clips in waves)])
    print("\n".join(markdown_table(["words wrong", *map(str, conditions)], rows)))


if __name__ == "__main__":
    try:
        main()
    except LlasmError as error:
        sys.exit(f"heard.py: {error}")
