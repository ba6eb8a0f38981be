"""Stage `ground`: the adapter learns to hear words, from speech and its transcript; the LLM itself is not run.

The aligner learns by CTC to emit the LLM's own tokens. Its classifier is the LLM's embedding table (frozen), so what it
emits lies among the word embeddings from the start. The adapter `decoder` learns where the sound ends, by cross-entropy
of what Whisper's decoder is to write, and whether anybody speaks.

Shapes: B clips, T frames, D encoder width, U target tokens: the LLM's (aligner) or Whisper's (decoder).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from llasm.adapter import Aligner, DecoderAdapter
from llasm.ear import Ear
from llasm.features import FeatureCache

from .data import Sample, pad_frames
from .losses import combined, sampled_ctc

SHOWN_WORDS = 50  # unseen words listed, the most frequent first


class GroundModel(nn.Module):
    """The adapter with its loss, as the Trainer wants it."""

    def __init__(
        self, adapter: Aligner | DecoderAdapter, table: Tensor, weights: dict[str, float], n_negatives: int
    ) -> None:
        super().__init__()
        self.adapter, self.weights, self.n_negatives = adapter, weights, n_negatives
        self.table: Tensor
        self.register_buffer("table", table.detach(), persistent=False)

    def forward(
        self, frames: Tensor, n_frames: Tensor, targets: list[Tensor], counts: dict[str, Any], **_: Any
    ) -> dict[str, Tensor]:
        """frames [B, T, D], n_frames [B], targets B × [U_i] → the loss; `counts` says by how many tokens to divide."""
        frames = frames.to(next(self.adapter.parameters()).dtype)  # DeepSpeed trains in bfloat16
        if isinstance(self.adapter, DecoderAdapter):
            spoken = torch.tensor([len(target) > 0 for target in targets], device=frames.device)
            parts = {
                "ce": self.adapter.words_loss(frames, n_frames, targets),
                "speech": self.adapter.speech_loss(frames, n_frames, spoken),
            }
        else:
            states, blank = self.adapter.states(frames, n_frames)
            n_steps = self.adapter.n_tokens(n_frames)
            parts = {"ctc": sampled_ctc(self.adapter, states, blank, n_steps, targets, self.table, self.n_negatives)}
        return combined(parts, counts, self.weights)

    @torch.no_grad()
    def held_out(self, frames: Tensor, n_frames: Tensor, said: list[list[int]], **_: Any) -> dict[str, tuple[int, int]]:
        """The edit distance between recognised and spoken tokens of the LLM, as (errors, tokens), and what is taken
        for speech or for none wrongly, as (errors, clips)."""
        import jiwer

        heard = self.transcribe(frames, n_frames)
        n_errors = sum(len(ids) for ids, words in zip(heard, said) if not words)  # heard where nobody speaks
        pairs = [(words, ids) for words, ids in zip(said, heard) if words]
        if pairs:
            wanted, found_ids = ([" ".join(map(str, side)) for side in sides] for sides in zip(*pairs))
            found = jiwer.process_words(wanted, found_ids)
            n_errors += found.substitutions + found.deletions + found.insertions
        figures = {"token_error_rate": (n_errors, sum(map(len, said)))}
        if isinstance(self.adapter, DecoderAdapter):
            speaks = (self.adapter.speech_scores(frames, n_frames) > 0).tolist()
            wrong = sum(found != bool(words) for found, words in zip(speaks, said, strict=True))
            figures["speech_error_rate"] = (wrong, len(said))
        return figures

    @torch.no_grad()
    def transcribe(self, frames: Tensor, n_frames: Tensor) -> list[list[int]]:
        """The LLM's tokens that are heard in each clip."""
        return self.adapter.transcribe(frames, n_frames, self.table)

    def answer(self, batch: dict[str, Any], max_new_tokens: int) -> list[Tensor]:
        """The words heard, in the place of an answer."""
        return [torch.tensor(ids, dtype=torch.long) for ids in self.transcribe(batch["frames"], batch["n_frames"])]


class GroundCollator:
    """Samples → frames [B, T, D], n_frames [B], targets B × [U_i] and the LLM's tokens of the same; every audio is a
    clip of its own, less those whose words nobody knows; where nobody speaks, no token is the target."""

    def __init__(self, cache: FeatureCache, tokenizer: Any, ear: Ear | None = None) -> None:
        """tokenizer: the LLM's; ear: of the adapter `decoder`."""
        self.cache, self.tokenizer, self.ear = cache, tokenizer, ear

    def __call__(self, samples: list[tuple[Sample, int]]) -> dict[str, Any]:
        pairs = [pair for s, _ in samples for pair in zip(s.keys, s.texts, strict=True) if pair[1] or s.silent]
        frames, n_frames = pad_frames([self.cache.get(key).float() for key, _ in pairs])
        texts = [text for _, text in pairs]
        said = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        ids = self.ear.encode(texts) if self.ear else said
        n_tokens = sum(map(len, ids))
        return {
            "frames": frames,
            "n_frames": n_frames,
            "targets": [torch.tensor(i, dtype=torch.long) for i in ids],
            "said": said,
            "counts": {
                "ctc": n_tokens,
                "ce": n_tokens + sum(map(bool, ids)),  # each text's end too
                "speech": len(ids),
                "tokens": n_tokens,
            },
        }


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
