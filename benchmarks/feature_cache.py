"""Cached encoder frames against the encoder in the loop on 30 s of padding: samples a second of the same recipe.

    python benchmarks/feature_cache.py data/mine [--recipe tiny_ground] [--steps 6]

Both train the same adapter on the same batches of the recipe, from the same start. Without the cache, every step
makes the mels of its clips, padded to 30 s as openai-whisper and most trainers do, and runs the encoder on them. Prints
both speeds, their ratio, and how far the cached frames lie from the encoder's own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch

from llasm import audio, checkpoint, features
from llasm.train.data import (
    LengthGroupedOrder,
    Samples,
    encode_missing,
    encoder_of,
    open_cache,
    read_rows,
    read_samples,
)
from llasm.train.ground import GroundCollator, GroundModel
from llasm.train.recipe import load_recipe
from llasm.train.run import bases_of


def padded_mels(waves: list[np.ndarray], extractor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, mels, 3000] of 30 s windows, all of it taken for real."""
    mels = extractor(waves, sampling_rate=audio.SAMPLE_RATE, return_tensors="pt")["input_features"]
    return mels, torch.ones(len(waves), mels.shape[-1], dtype=torch.long)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--recipe", default="tiny_ground")
    parser.add_argument("--steps", type=int, default=6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(args.recipe, ["--data", f'["{args.data}"]', "--output", folder, "--cache", folder])
        compare(recipe, args.steps)


def compare(recipe: Any, n_steps: int) -> None:
    model, processor = checkpoint.from_bases(*bases_of(recipe), recipe.adapter, torch.bfloat16)
    samples = read_samples(recipe.data)
    cache = open_cache(model, recipe.cache)
    started = time.perf_counter()
    encode_missing(samples, cache, model, processor)
    once = time.perf_counter() - started
    clips = {
        features.FeatureCache.key(clip["bytes"]): clip["bytes"]
        for folder in recipe.data
        for _, row in read_rows(folder)
        for clip in row["audios"]
    }
    table, adapter = model.get_input_embeddings().weight, model.model.multi_modal_projector
    adapter.requires_grad_(True)
    stage = GroundModel(adapter, table, recipe.loss_weights, recipe.n_negatives)
    collate = GroundCollator(cache, processor.tokenizer, bool(recipe.loss_weights["spelling"]))
    optimiser = torch.optim.AdamW(adapter.parameters(), lr=1e-4)
    order = list(LengthGroupedOrder(Samples(samples, cache).lengths, recipe.batch_size, recipe.seed))
    encode = encoder_of(model, "cpu")

    def steps(encoder_in_the_loop: bool) -> float:
        """Samples a second; the first step is not counted."""
        started = 0.0
        for step in range(n_steps + 1):
            if step == 1:
                started = time.perf_counter()
            batch = [samples[i] for i in islice(cycle(order), step * recipe.batch_size, (step + 1) * recipe.batch_size)]
            inputs = collate([(sample, 0) for sample in batch])
            if encoder_in_the_loop:
                waves = [audio.decode(clips[key]) for s in batch for key in s.keys]
                with torch.inference_mode():
                    frames, counts = encode(*padded_mels(waves, processor.feature_extractor))
                inputs |= {"frames": frames.float().clone(), "n_frames": counts.clone()}
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
                loss = stage(**inputs)["loss"]
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        return n_steps * recipe.batch_size / (time.perf_counter() - started)

    cached, padded = steps(False), steps(True)
    print(f"{len(samples)} rows, {recipe.stage}, batches of {recipe.batch_size}, {n_steps} steps each")
    print(f"encoding once           {once:.1f} s, {len(clips) / once:.1f} clips a second")
    print(f"encoder in the loop     {padded:.2f} samples a second")
    print(f"cached frames           {cached:.2f} samples a second")
    print(f"ratio                   {cached / padded:.1f}")
    print(difference(cache, clips, model, processor))


@torch.inference_mode()
def difference(cache: Any, clips: dict[str, bytes], model: Any, processor: Any) -> str:
    """Cached frames against the encoder on each clip alone, in bfloat16 and in float32."""
    encoders = {"bfloat16": model.model.audio_tower, "float32": None}
    exact, errors = 0, {name: [] for name in encoders}
    some = list(clips.items())[:16]
    tower = model.model.audio_tower
    for name in encoders:
        tower.to(getattr(torch, name))
        for key, data in some:
            mels, mask = features.pad_mels([features.mel(processor.feature_extractor, audio.decode(data))])
            own = tower(mels, mask).last_hidden_state[0].float()
            cached = cache.get(key).float()
            errors[name].append(float((cached - own).norm() / own.norm()))
            exact += name == "bfloat16" and torch.equal(cached, own)
    worst = {name: max(found) for name, found in errors.items()}
    return (
        f"cached frames against the encoder alone: {exact} of {len(some)} clips bit for bit in bfloat16, largest "
        f"relative difference {worst['bfloat16']:.1e}; to the float32 encoder {worst['float32']:.1e} "
        f"(bfloat16 rounds to {2**-9:.1e})"
    )


if __name__ == "__main__":
    main()
