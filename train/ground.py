"""Stage `ground`: the aligner learns by CTC to emit the LLM's own tokens; the LLM itself is not run.

The classifier is the LLM's embedding table (frozen), so what the aligner emits lies among the word
embeddings from the start. The loss runs over a sampled vocabulary, the batch's tokens and random others
(sampled softmax: Jean et al., arXiv 1412.2007), which keeps tables of 49k to 128k tokens cheap.

Shapes: B samples, T frames, N adapter steps, U target tokens, K sampled tokens, H LLM width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llasm.adapter import Aligner
from llasm.features import FeatureCache

from .data import Sample, pad_frames


def sampled_ctc_loss(
    adapter: Aligner,
    states: Tensor,
    blank: Tensor,
    n_steps: Tensor,
    targets: list[Tensor],
    table: Tensor,
    n_negatives: int,
) -> Tensor:
    """CTC loss a target token, over the vocabulary {blank, the targets' tokens, n_negatives random ones}.

    states [B, N, H], blank logits [B, N], n_steps [B]; targets: B tensors of token ids [U_i].
    """
    flat = torch.cat(targets)
    negatives = torch.randint(len(table), (n_negatives,), device="cpu").to(flat.device)
    vocabulary = torch.unique(torch.cat([flat, negatives]))
    logits = torch.cat([blank.float()[..., None], adapter.token_logits(states, table, vocabulary)], dim=-1)
    log_probs = logits.log_softmax(-1).transpose(0, 1)  # [N, B, 1 + K]
    lengths = torch.tensor([len(t) for t in targets], device=flat.device)
    # Index 0 is the blank, so the sampled vocabulary starts at 1.
    classes = torch.searchsorted(vocabulary, flat) + 1
    losses = F.ctc_loss(log_probs, classes, n_steps, lengths, blank=0, reduction="none", zero_infinity=True)
    return losses.sum() / lengths.sum().clamp(min=1)


class GroundModel(nn.Module):
    """The aligner with its loss, as the Trainer wants it."""

    def __init__(self, adapter: Aligner, table: Tensor, n_negatives: int) -> None:
        super().__init__()
        self.adapter, self.n_negatives = adapter, n_negatives
        self.table: Tensor
        self.register_buffer("table", table.detach(), persistent=False)

    def forward(self, frames: Tensor, n_frames: Tensor, targets: list[Tensor], **_: Any) -> dict[str, Tensor]:
        states, blank = self.adapter.states(frames, n_frames)
        n_steps = self.adapter.n_tokens(n_frames)
        loss = sampled_ctc_loss(self.adapter, states, blank, n_steps, targets, self.table, self.n_negatives)
        return {"loss": loss, "ctc": loss.detach()}

    @torch.no_grad()
    def transcribe(self, frames: Tensor, n_frames: Tensor, **_: Any) -> list[list[int]]:
        return self.adapter.transcribe(frames, n_frames, self.table)


class GroundCollator:
    """Samples → frames [B, T, D], n_frames [B], targets: B tensors [U_i]; every audio is a sample of its own."""

    def __init__(self, cache: FeatureCache, tokenizer: Any) -> None:
        self.cache, self.tokenizer = cache, tokenizer

    def __call__(self, samples: list[Sample]) -> dict[str, Any]:
        pairs = [pair for s in samples for pair in zip(s.keys, s.texts, strict=True)]
        frames, n_frames = pad_frames([self.cache.get(key).float() for key, _ in pairs])
        ids = self.tokenizer([text for _, text in pairs], add_special_tokens=False)["input_ids"]
        return {"frames": frames, "n_frames": n_frames, "targets": [torch.tensor(i) for i in ids]}


def token_error_rate(model: GroundModel, batches: Any, tokenizer: Any) -> dict[str, Any]:
    """Edit distance between recognised and spoken tokens over the held-out rows, with a few examples."""
    import jiwer

    said, heard = [], []
    examples: list[dict[str, str]] = []
    for batch in batches:
        for target, found in zip(batch["targets"], model.transcribe(**batch), strict=True):
            said.append(" ".join(map(str, target.tolist())))
            heard.append(" ".join(map(str, found)))
            if len(examples) < 5:
                examples.append({"said": tokenizer.decode(target), "heard": tokenizer.decode(found)})
    return {"token_error_rate": jiwer.wer(said, heard), "examples": examples}
