"""The parts of the loss, each a sum over tokens; `combined` divides by the tokens of the whole optimiser step.

Shapes: B clips, N adapter steps, U target tokens, K sampled tokens, H LLM width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llasm.adapter import Aligner


def sampled_ctc(
    adapter: Aligner,
    states: Tensor,
    blank: Tensor,
    n_steps: Tensor,
    targets: list[Tensor],
    table: Tensor,
    n_negatives: int,
) -> Tensor:
    """CTC (Graves et al., ICML 2006) over the vocabulary {blank, the targets' tokens, n_negatives random ones}.

    A sampled softmax (Jean et al., arXiv 1412.2007, section 3) keeps tables of 49k to 128k tokens cheap.
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
    return losses.sum()


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student), both logits [U, V] softened (Hinton et al., arXiv 1503.02531, section 2).

    Times temperature² so that the gradients keep their size.
    """
    p = F.log_softmax(teacher.float() / temperature, dim=-1)
    q = F.log_softmax(student.float() / temperature, dim=-1)
    return F.kl_div(q, p, log_target=True, reduction="sum") * temperature**2


def combined(parts: dict[str, Tensor], counts: dict[str, Any], weights: dict[str, float]) -> dict[str, Tensor]:
    """Parts, each a sum over `counts` of its tokens → `loss`, the weighted sum of their means, and the means to log."""
    means = {name: total / max(1, int(counts[name])) for name, total in parts.items()}
    loss = torch.stack([weights[name] * mean for name, mean in means.items()]).sum()
    return {"loss": loss, **{name: mean.detach() for name, mean in means.items()}}
