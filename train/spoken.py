"""Stages `align` and `chat`: the LLM hears speech; the loss is on what the assistant says.

- `kl` (align, and chat where it is given): the LLM is to answer the speech as it answers the transcript. Both runs of
  the same LLM, the teacher's without LoRA, read the same answer, its own; the loss is the KL divergence between their
  next-token distributions on it, the end of turn included, softened by a temperature (DiVA, arXiv 2410.02678, section
  3). A share of the samples, and recordings that nobody answers, ask to repeat what was said instead, so that the words
  themselves are carried.
- `ce` (chat): cross-entropy of the assistant's turns; beside `kl` of those only that have no teacher: answers to sound
  without speech, which it could not read, and what LoRA is to repeat, which a small LLM cannot do even with text.
- `guard` (chat): KL to the LLM without LoRA on typed text, so that typed chat stays as it was: text of its own and,
  beside `kl`, the conversations themselves as if they had been typed.
- `ctc`: keeps the aligner among the LLM's word embeddings.

Shapes: B samples, A audios over the batch, T encoder frames, D encoder width, L positions, U learned tokens, H LLM
width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llasm.adapter import Aligner
from llasm.draws import draw, seed_of
from llasm.errors import LlasmError
from llasm.features import FeatureCache
from llasm.modeling_llasm import flatten

from .conversation import Rendered, Renderer, with_texts
from .data import Sample, pad_frames
from .losses import combined, sampled_ctc, softened_kl

REPEAT_PROMPTS = (
    "Repeat what I just said, word for word.",
    "Write down exactly what you heard.",
    "Say that back to me.",
)
# Samples that bring a text for `guard` along, beside `kl` two: each costs as much as a sample does.
GUARD_SHARE = 0.25
# Positions whose logits are held at once: 2,048 over a vocabulary of 128k are 1 GB in float32.
LOGIT_ROWS = 2048


def as_repetition(sample: Sample, share: float, seed: int) -> Sample:
    """For recordings, and for a share of the other samples (by id), their first audio with the wish to repeat it, and
    what it says as the answer; else the sample as it is."""
    if not sample.texts or not sample.texts[0].strip():  # nothing was said, or nobody knows what
        return sample
    key = f"repeat/{seed}/{sample.id}"
    if draw(key) >= share and not sample.is_recording:
        return sample
    wish = {"type": "text", "text": REPEAT_PROMPTS[seed_of(key) % len(REPEAT_PROMPTS)]}
    messages = [
        {"role": "user", "content": [{"type": "audio"}, wish]},
        {"role": "assistant", "content": [{"type": "text", "text": sample.texts[0]}]},
    ]
    first = {name: getattr(sample, name)[:1] for name in ("texts", "keys", "clip_seconds")}
    return replace(sample, messages=messages, truncated=False, repeats=True, **first)


class SpokenCollator:
    """Samples → rendered conversations (spoken and, for `kl`, typed), encoder frames, CTC targets, guard texts."""

    def __init__(
        self,
        cache: FeatureCache,
        renderer: Renderer,
        tokenizer: Any,
        weights: dict[str, float],
        seed: int = 0,
        guard: list[Rendered] | None = None,
        guard_share: float = GUARD_SHARE,
        repeats_by_ce: bool = False,
    ) -> None:
        """guard: texts of which a sample brings one along, with the probability `guard_share`."""
        self.cache, self.renderer, self.tokenizer = cache, renderer, tokenizer
        self.weights, self.seed = weights, seed
        self.guard, self.guard_share, self.repeats_by_ce = guard or [], guard_share, repeats_by_ce

    def __call__(self, samples: list[tuple[Sample, int]]) -> dict[str, Any]:
        """samples: each with its epoch."""
        batch: dict[str, Any] = {"spoken": [], "typed": [], "targets": [], "taught": [], "guard": []}
        frames: list[Tensor] = []
        for sample, _ in samples:
            spoken = self.renderer(sample.messages, sample.truncated)
            batch["spoken"].append(spoken)
            if self.weights["kl"]:
                typed = self.renderer(with_texts(sample.messages, sample.texts), sample.truncated)
                if not torch.equal(spoken.answer, typed.answer):
                    raise LlasmError(f"{sample.id}: its answer is tokenised differently behind speech and behind text")
                batch["typed"].append(typed)
            frames += [self.cache.get(key).float() for key in sample.keys]
            ids = self.tokenizer(sample.texts, add_special_tokens=False)["input_ids"] if sample.texts else []
            known = [bool(text) or sample.silent for text in sample.texts]
            targets = zip(ids, known, strict=True)
            batch["targets"] += [torch.tensor(i, dtype=torch.long) if learns else None for i, learns in targets]
            batch["taught"].append(not sample.silent and not (sample.repeats and self.repeats_by_ce))
        # Under ZeRO-3 all processes gather the same layers, so a part of the loss that one batch has nothing for is
        # computed all the same, on a stand-in that weighs nothing.
        batch["has_audio"] = bool(frames)
        batch["frames"], batch["n_frames"] = pad_frames(frames or [torch.zeros(8, self.cache.d_encoder)])
        if self.weights["guard"]:
            for i, (sample, epoch) in enumerate(samples):
                # Drawn by sample and epoch, so that a resumed run sees the same, on any number of processes.
                key = f"guard/{self.seed}/{epoch}/{sample.id}"
                if draw(key) < self.guard_share:
                    batch["guard"].append(self.guard[seed_of(key) % len(self.guard)])
                    if self.weights["kl"] and batch["taught"][i]:
                        batch["guard"].append(batch["typed"][i])
        batch["counts"] = self._counts(batch)
        batch["has_guard"] = bool(batch["guard"])
        if self.weights["guard"] and not batch["guard"]:
            batch["guard"] = self.guard[:1]
        return batch

    def _counts(self, batch: dict[str, Any]) -> dict[str, int]:
        """Tokens that each part of the loss is a mean over, and all that the LLM reads."""
        answers = [int(r.learned.sum()) for r in batch["spoken"]]
        kl = sum(n for n, taught in zip(answers, batch["taught"], strict=True) if taught)
        ce = sum(answers) - kl if self.weights["kl"] else sum(answers)
        said = sum(len(target) for target in batch["targets"] if target is not None)
        guard = sum(len(r.ids) - 1 for r in batch["guard"])
        read = sum(len(r.ids) for name in ("spoken", "typed", "guard") for r in batch[name])
        return {"kl": kl, "ce": ce, "ctc": said, "guard": guard, "tokens": read}


class SpokenModel(nn.Module):
    """Student (speech) and teacher (text, without LoRA) are one LLM; gradients reach the adapter and LoRA only."""

    def __init__(
        self, model: Any, weights: dict[str, float], temperature: float, n_negatives: int, peft: Any = None
    ) -> None:
        """model: a LlasmForConditionalGeneration. peft: the PeftModel around it, where it has LoRA."""
        super().__init__()
        self.llasm, self.weights = model, weights
        self.temperature, self.n_negatives = temperature, n_negatives
        # Its parameters are the model's own: as a submodule they would be there twice.
        self._peft = (peft,)
        # A view of the table: DeepSpeed takes the parameter itself away between its module's calls.
        self.table: Tensor
        self.register_buffer("table", model.get_input_embeddings().weight.detach(), persistent=False)

    def forward(
        self,
        spoken: list[Rendered],
        typed: list[Rendered],
        guard: list[Rendered],
        frames: Tensor,
        n_frames: Tensor,
        targets: list[Tensor | None],
        taught: list[bool],
        counts: dict[str, Any],
        has_audio: bool = True,
        has_guard: bool = True,
    ) -> dict[str, Tensor]:
        """The loss and its parts; each part is divided by `counts` of its tokens. taught: which rows `kl` has."""
        parts: dict[str, Tensor] = {}
        audio, n_heard = self._hear(frames, n_frames, targets, parts)
        idle = 0.0 * audio.sum()  # a graph even where no clip was heard as a token
        if not has_audio:
            audio, n_heard = None, []
        hidden, answers = self._answer_states(spoken, audio, n_heard)
        if self.weights["kl"]:
            with torch.no_grad(), self._without_lora():
                teacher, _ = self._answer_states(typed, None, [])
            lengths = torch.tensor([int(row.learned.sum()) for row in spoken])
            by_kl = torch.tensor(taught).repeat_interleave(lengths).to(hidden.device)
            parts["kl"] = self._over_rows(self._kl(self.temperature), hidden[by_kl], teacher[by_kl])
            hidden, answers = hidden[~by_kl], answers[~by_kl]
        if self.weights["ce"]:
            parts["ce"] = self._over_rows(self._cross_entropy, hidden, answers)
        if self.weights["guard"]:
            parts["guard"] = self._guard_loss(guard) * float(has_guard)
        found = combined(parts, counts, self.weights)
        return {**found, "loss": idle + found["loss"]}

    def _hear(
        self, frames: Tensor, n_frames: Tensor, targets: list[Tensor | None], parts: dict[str, Tensor]
    ) -> tuple[Any, list[int]]:
        """Frames → audio embeddings [ΣN, H] and how many each clip became; adds the CTC term to `parts`."""
        adapter = self.llasm.model.multi_modal_projector
        frames = frames.to(next(adapter.parameters()).dtype)  # DeepSpeed trains in bfloat16
        words = {i: target for i, target in enumerate(targets) if target is not None}
        said = list(words)
        if isinstance(adapter, Aligner):
            states, blank = adapter.states(frames, n_frames)
            steps = adapter.n_tokens(n_frames)
            if self.weights["ctc"] and said:
                parts["ctc"] = sampled_ctc(
                    adapter, states[said], blank[said], steps[said], list(words.values()), self.table,
                    self.n_negatives,
                )  # fmt: skip
            tokens = adapter.tokens(states, blank, steps, self.table)
        else:
            tokens = adapter(frames, n_frames, self.table)
        return flatten(tokens), tokens.counts.tolist()

    def _answer_states(
        self, conversations: list[Rendered], audio: Tensor | None, n_heard: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Hidden states [ΣU, H] of the positions that predict the learned tokens, and those tokens [ΣU]."""
        rest = iter(n_heard)
        rows = []
        for conversation in conversations:
            repeats = self._repeats(conversation.ids, rest)
            pairs = (conversation.ids, conversation.learned)
            rows.append(Rendered(*(values.repeat_interleave(repeats) for values in pairs)))
        hidden = self._states([row.ids for row in rows], audio)
        where = [row.learned.nonzero()[:, 0] - 1 for row in rows]
        picked = torch.cat([states[w] for states, w in zip(hidden, where, strict=True)])
        return picked, torch.cat([row.answer for row in rows])

    def _repeats(self, ids: Tensor, n_heard: Iterator[int]) -> Tensor:
        """[L] how often each token stands: a placeholder as often as its clip was heard as a token."""
        is_audio = ids == self.llasm.config.audio_token_id
        repeats = torch.ones_like(ids)
        repeats[is_audio] = repeats.new_tensor([next(n_heard) for _ in range(int(is_audio.sum()))])
        return repeats

    def _states(self, rows: list[Tensor], audio: Tensor | None) -> Tensor:
        """Token ids [L_i] each → the LLM's last hidden states [B, max L, H]; padding stands on the right."""
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        embeds = self.llasm.model.embed(ids, audio)
        body = self.llasm.model.language_model
        return body(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state

    def _guard_loss(self, guard: list[Rendered]) -> Tensor:
        rows = [text.ids for text in guard]
        with torch.no_grad(), self._without_lora():
            teacher = self._states(rows, None)
        student = self._states(rows, None)
        real = nn.utils.rnn.pad_sequence([torch.ones_like(r[1:], dtype=torch.bool) for r in rows], batch_first=True)
        return self._over_rows(self._kl(1.0), student[:, :-1][real], teacher[:, :-1][real])

    def _over_rows(self, loss: Any, *rows: Tensor) -> Tensor:
        """Σ loss(part of each of `rows`), a part's logits made anew in the backward pass where there are several."""
        n_parts = torch.tensor(-(-len(rows[0]) // LOGIT_ROWS), device=rows[0].device)
        if torch.distributed.is_initialized():  # under ZeRO-3 all processes call the head as often
            torch.distributed.all_reduce(n_parts, torch.distributed.ReduceOp.MAX)
        if n_parts <= 1:
            return loss(*rows)
        parts = zip(*(row.tensor_split(int(n_parts)) for row in rows), strict=True)
        return torch.stack([checkpoint(loss, *part, use_reentrant=False) for part in parts]).sum()

    def _kl(self, temperature: float) -> Any:
        def loss(student: Tensor, teacher: Tensor) -> Tensor:
            with torch.no_grad():
                wanted = self.llasm.lm_head(teacher)
            return softened_kl(self.llasm.lm_head(student), wanted, temperature)

        return loss

    def _cross_entropy(self, hidden: Tensor, answers: Tensor) -> Tensor:
        return F.cross_entropy(self.llasm.lm_head(hidden).float(), answers, reduction="sum")

    def _without_lora(self) -> Any:
        return self._peft[0].disable_adapter() if self._peft[0] is not None else nullcontext()

    @torch.no_grad()
    def held_out(self, spoken: list[Rendered], counts: dict[str, Any], **batch: Any) -> dict[str, tuple[float, int]]:
        """Each part of the loss as (sum, tokens)."""
        parts = self(spoken=spoken, counts=counts, **batch)
        return {name: (float(value) * counts[name], counts[name]) for name, value in parts.items() if name != "loss"}

    @torch.no_grad()
    def answer(self, batch: dict[str, Any], max_new_tokens: int) -> list[Tensor]:
        """What the model says in each conversation's last turn, greedily: token ids."""
        audio, n_heard = self._hear(batch["frames"], batch["n_frames"], [], {})
        if not batch["has_audio"]:
            audio, n_heard = audio[:0], []
        rest = iter(n_heard)
        given = iter(audio.split(n_heard))
        answers = []
        for conversation in batch["spoken"]:
            stop = int(conversation.learned.nonzero()[-1]) if conversation.learned.any() else len(conversation.ids) - 1
            before = conversation.ids[: stop + 1]
            learned = conversation.learned[: stop + 1]
            # The last run of learned tokens is the answer asked for.
            start = int((~learned).nonzero()[-1]) + 1
            prompt = before[:start]
            clips = int((prompt == self.llasm.config.audio_token_id).sum())
            ids = prompt.repeat_interleave(self._repeats(prompt, rest))[None]
            parts = [next(given) for _ in range(clips)]
            output = self.llasm.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                audio_embeds=torch.cat(parts) if parts else None,
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
            answers.append(output[0, ids.shape[1] :])
            for _ in range(int((conversation.ids[start:] == self.llasm.config.audio_token_id).sum())):
                next(rest), next(given)  # a turn behind the answer
        return answers
