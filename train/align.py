"""Stage `align`: the LLM is to answer the speech as it answers the transcript; only the adapter learns.

Both runs of the same frozen LLM read the same answer (its own, written for the transcript); the loss is the
KL divergence between their next-token distributions on the answer, the end of turn included, softened by a
temperature (DiVA, arXiv 2410.02678, section 3; temperature: Hinton et al., arXiv 1503.02531). A share of the
samples asks to repeat what was said instead, so that the words themselves are carried. A CTC term keeps
the aligner among the LLM's word embeddings.

Shapes: B samples, A audios over the batch, T encoder frames, D encoder width, L positions, V vocabulary.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llasm.adapter import Aligner
from llasm.features import FeatureCache
from llasm.modeling_llasm import flatten

from .data import Sample, pad_frames
from .ground import sampled_ctc_loss

REPEAT_PROMPTS = (
    "Repeat what I just said, word for word.",
    "Write down exactly what you heard.",
    "Say that back to me.",
)


def as_repetition(sample: Sample, share: float, seed: int) -> tuple[list[dict[str, Any]], bool]:
    """The sample's messages, or for a share of the samples (by id) its first audio with the wish to repeat it.

    Returns (messages, whether the last message was cut off).
    """
    draw = int.from_bytes(sha256(f"repeat/{seed}/{sample.id}".encode()).digest()[:8], "big")
    if draw / 2**64 >= share or not sample.texts[0]:  # nothing was said, or nobody knows what
        return sample.messages, sample.truncated
    wish = {"type": "text", "text": REPEAT_PROMPTS[draw % len(REPEAT_PROMPTS)]}
    answer = [{"type": "text", "text": sample.texts[0]}]
    return [
        {"role": "user", "content": [{"type": "audio"}, wish]},
        {"role": "assistant", "content": answer},
    ], False


def with_texts(messages: list[dict[str, Any]], texts: list[str]) -> list[dict[str, Any]]:
    """The same conversation typed: each audio part replaced by its transcript."""
    rest = iter(texts)
    return [
        {
            "role": m["role"],
            "content": [{"type": "text", "text": next(rest)} if p["type"] == "audio" else p for p in m["content"]],
        }
        for m in messages
    ]


class AlignCollator:
    """Samples → token ids of the spoken and the typed conversation up to the answer, the answer, and frames."""

    def __init__(self, cache: FeatureCache, processor: Any, repeat_share: float, seed: int) -> None:
        self.cache, self.processor = cache, processor
        self.repeat_share, self.seed = repeat_share, seed

    def __call__(self, samples: list[Sample]) -> dict[str, Any]:
        spoken, typed, answers, frames, targets = [], [], [], [], []
        tokenizer = self.processor.tokenizer
        for sample in samples:
            messages, truncated = as_repetition(sample, self.repeat_share, self.seed)
            if messages[-1]["role"] != "assistant":
                raise ValueError(f"{sample.id}: no answer to align with; build the data set with answers")
            n_audios = sum(part["type"] == "audio" for m in messages for part in m["content"])
            spoken.append(self._prompt(messages[:-1]))
            typed.append(self._prompt(with_texts(messages[:-1], sample.texts)))
            answer = tokenizer(messages[-1]["content"][0]["text"], add_special_tokens=False)["input_ids"]
            # A cut-off answer has no end: teaching one would teach a false stop.
            answers.append(torch.tensor(answer if truncated else [*answer, tokenizer.eos_token_id]))
            frames += [self.cache.get(key).float() for key in sample.keys[:n_audios]]
            ids = tokenizer(sample.texts[:n_audios], add_special_tokens=False)["input_ids"]
            targets += [torch.tensor(i) for i in ids]
        padded, n_frames = pad_frames(frames)
        return {
            "spoken": spoken, "typed": typed, "answers": answers,
            "frames": padded, "n_frames": n_frames, "targets": targets,
        }  # fmt: skip

    def _prompt(self, messages: list[dict[str, Any]]) -> Tensor:
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return torch.tensor(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])


class AlignModel(nn.Module):
    """Student (speech) and teacher (transcript) are the same LLM; gradients reach the adapter only."""

    def __init__(self, model: Any, temperature: float, ctc_weight: float, n_negatives: int) -> None:
        super().__init__()
        self.llasm, self.temperature = model, temperature
        self.ctc_weight, self.n_negatives = ctc_weight, n_negatives

    def forward(
        self,
        spoken: list[Tensor],
        typed: list[Tensor],
        answers: list[Tensor],
        frames: Tensor,
        n_frames: Tensor,
        targets: list[Tensor],
        **_: Any,
    ) -> dict[str, Tensor]:
        table = self.llasm.get_input_embeddings().weight
        adapter = self.llasm.model.multi_modal_projector
        out: dict[str, Tensor] = {}
        if isinstance(adapter, Aligner):
            states, blank = adapter.states(frames, n_frames)
            counts = adapter.n_tokens(n_frames)
            out["ctc"] = sampled_ctc_loss(adapter, states, blank, counts, targets, table, self.n_negatives)
            if adapter.config.rate == "heard":
                tokens = adapter.collapse(states, blank, counts, table)
            else:
                tokens = adapter(frames, n_frames, table)
        else:
            tokens = adapter(frames, n_frames, table)
        with torch.no_grad():
            teacher = self._answer_logits(typed, answers, None, None)
        student = self._answer_logits(spoken, answers, flatten(tokens), tokens.counts)
        out["kl"] = softened_kl(student, teacher, self.temperature)
        loss = out["kl"] + self.ctc_weight * out.get("ctc", 0.0)
        return {"loss": loss, **{name: value.detach() for name, value in out.items()}}

    def _answer_logits(
        self, prompts: list[Tensor], answers: list[Tensor], audio: Tensor | None, counts: Tensor | None
    ) -> Tensor:
        """Logits [ΣU, V] of the positions that predict the answers' tokens."""
        token_id = self.llasm.config.audio_token_id
        rows, where = [], []
        rest = iter(counts.tolist() if counts is not None else [])
        for prompt, answer in zip(prompts, answers, strict=True):
            repeats = torch.tensor([next(rest) if t == token_id else 1 for t in prompt.tolist()])
            prompt = prompt.repeat_interleave(repeats.to(prompt.device))
            rows.append(torch.cat([prompt, answer]))
            where.append(torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1))
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        embeds = self.llasm.model.embed(ids, audio)
        hidden = self.llasm.model.language_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False)
        picked = torch.cat([row[w] for row, w in zip(hidden.last_hidden_state, where, strict=True)])
        return self.llasm.lm_head(picked)


def softened_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) a token, both [ΣU, V] softened; times temperature² so that gradients keep their size."""
    p = F.log_softmax(teacher.float() / temperature, dim=-1)
    q = F.log_softmax(student.float() / temperature, dim=-1)
    return F.kl_div(q, p, log_target=True, reduction="batchmean") * temperature**2


def held_out_loss(model: AlignModel, batches: Any) -> dict[str, float]:
    """Mean of each part of the loss over the held-out rows."""
    sums: dict[str, float] = {}
    n = 0
    for batch in batches:
        for name, value in model(**batch).items():
            sums[name] = sums.get(name, 0.0) + float(value)
        n += 1
    return {name: total / n for name, total in sums.items()}
