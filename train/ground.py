"""Stage `ground`: the aligner learns by CTC to emit the LLM's own tokens; the LLM itself is not run.

The classifier is the LLM's embedding table (frozen), so what the aligner emits lies among the word
embeddings from the start. Beside it the middle layer may learn to spell: short pieces are heard thousands of times
where a name is heard once.

Shapes: B clips, T frames, D encoder width, U target tokens.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from llasm.adapter import Aligner
from llasm.errors import LlasmError
from llasm.features import FeatureCache

from .data import Sample, pad_frames
from .losses import combined, sampled_ctc

N_MERGES = 1000  # pieces of 2.5 letters in English: some 6 a second, of the aligner's 12.5 steps
SHOWN_WORDS = 50  # unseen words listed, the most frequent first


class GroundModel(nn.Module):
    """The aligner with its loss, as the Trainer wants it."""

    def __init__(self, adapter: Aligner, table: Tensor, weights: dict[str, float], n_negatives: int) -> None:
        super().__init__()
        self.adapter, self.weights, self.n_negatives = adapter, weights, n_negatives
        self.table: Tensor
        self.register_buffer("table", table.detach(), persistent=False)

    def forward(
        self,
        frames: Tensor,
        n_frames: Tensor,
        targets: list[Tensor],
        spelled: list[Tensor],
        counts: dict[str, Any],
        **_: Any,
    ) -> dict[str, Tensor]:
        """frames [B, T, D], n_frames [B], targets and spelled B × [U_i] → the loss; `counts` says by how many tokens
        to divide.

        `spelling` is CTC at the layer in the middle, read as the last one is (intermediate CTC: Lee and Watanabe,
        arXiv 2102.03216), in smaller units than the last layer's (Higuchi et al., arXiv 2110.04109).
        """
        frames = frames.to(next(self.adapter.parameters()).dtype)  # DeepSpeed trains in bfloat16
        layers = self.adapter.layers(frames, n_frames)
        n_steps = self.adapter.n_tokens(n_frames)

        def ctc(layer: Tensor, words: list[Tensor]) -> Tensor:
            states, blank = self.adapter.read(layer)
            return sampled_ctc(self.adapter, states, blank, n_steps, words, self.table, self.n_negatives)

        parts = {"ctc": ctc(layers[-1], targets)}
        if self.weights["spelling"]:
            parts["spelling"] = ctc(layers[(len(layers) - 1) // 2], spelled)
        return combined(parts, counts, self.weights)

    @torch.no_grad()
    def held_out(self, frames: Tensor, n_frames: Tensor, targets: list[Tensor], **_: Any) -> dict[str, tuple[int, int]]:
        """The edit distance between recognised and spoken tokens, as (errors, tokens)."""
        import jiwer

        heard = self.transcribe(frames, n_frames)
        n_errors = sum(len(ids) for ids, target in zip(heard, targets) if not len(target))  # heard where nobody speaks
        pairs = [(target.tolist(), ids) for target, ids in zip(targets, heard) if len(target)]
        if pairs:
            said, ids = ([" ".join(map(str, side)) for side in sides] for sides in zip(*pairs))
            found = jiwer.process_words(said, ids)
            n_errors += found.substitutions + found.deletions + found.insertions
        return {"token_error_rate": (n_errors, sum(map(len, targets)))}

    @torch.no_grad()
    def transcribe(self, frames: Tensor, n_frames: Tensor) -> list[list[int]]:
        """Token ids that are heard in each clip."""
        return self.adapter.transcribe(frames, n_frames, self.table)

    def answer(self, batch: dict[str, Any], max_new_tokens: int) -> list[Tensor]:
        """The words heard, in the place of an answer."""
        return [torch.tensor(ids, dtype=torch.long) for ids in self.transcribe(batch["frames"], batch["n_frames"])]


class GroundCollator:
    """Samples → frames [B, T, D], n_frames [B], targets B × [U_i]; every audio is a clip of its own, less those whose
    words nobody knows; where nobody speaks, no token is the target."""

    def __init__(self, cache: FeatureCache, tokenizer: Any, spells: bool = False) -> None:
        self.cache, self.tokenizer = cache, tokenizer
        self.speller = speller(tokenizer) if spells else None

    def __call__(self, samples: list[tuple[Sample, int]]) -> dict[str, Any]:
        pairs = [pair for s, _ in samples for pair in zip(s.keys, s.texts, strict=True) if pair[1] or s.silent]
        frames, n_frames = pad_frames([self.cache.get(key).float() for key, _ in pairs])
        texts = [text for _, text in pairs]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        pieces = [self.speller.encode(text, add_special_tokens=False).ids for text in texts if self.speller]
        n_tokens = sum(map(len, ids))
        counts = {"ctc": n_tokens, "spelling": sum(map(len, pieces)), "tokens": n_tokens}
        return {
            "frames": frames,
            "n_frames": n_frames,
            "targets": [torch.tensor(i, dtype=torch.long) for i in ids],
            "spelled": [torch.tensor(i, dtype=torch.long) for i in pieces],
            "counts": counts,
        }


def speller(tokenizer: Any) -> Tokenizer:
    """The LLM's byte-pair encoding with its first merges only: the same ids, but of letters and short pieces."""
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    if settings["model"]["type"] != "BPE":
        raise LlasmError(f"losses.spelling needs an LLM with byte-pair encoding, not {settings['model']['type']}")
    settings["model"]["merges"] = settings["model"]["merges"][:N_MERGES]
    settings["model"]["ignore_merges"] = False  # LLaMA 3 looks whole words up first
    return Tokenizer.from_str(json.dumps(settings))


def unseen_words(seen: list[Sample], held_out: list[Sample]) -> dict[str, Any]:
    """Words of the held-out texts that no training text holds: what CTC never saw it cannot name."""
    known = {word for sample in seen for text in sample.texts for word in _words(text)}
    asked = Counter(word for sample in held_out for text in sample.texts for word in _words(text))
    unknown = Counter({word: n for word, n in asked.items() if word not in known})
    share = sum(unknown.values()) / max(1, sum(asked.values()))
    return {"share": round(share, 4), "words": [word for word, _ in unknown.most_common(SHOWN_WORDS)]}


def _words(text: str) -> list[str]:
    stripped = (word.strip(".,;:!?\"'()“”‘’…") for word in text.lower().split())
    return [word for word in stripped if word]
