"""The conversations that are being answered, a row each, over one key-value cache that rows join and leave.

Shapes: B rows, L cached positions (padded on the left), N newcomers, P positions of their prompts, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from llasm.chat import ChatModel, Messages, TextStream
from llasm.errors import LlasmError

BLOCK = 64  # positions by which the cache grows


class Asked(Protocol):
    """What a row needs of a request."""

    @property
    def messages(self) -> Messages: ...
    @property
    def max_new_tokens(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def stop(self) -> tuple[str, ...]: ...


class Row:
    """One answer: its tokens so far, and the text that may be shown."""

    def __init__(self, asked: Asked, tokenizer: Any, n_prompt_tokens: int, room: int, device: Any) -> None:
        """room: positions that the model's context has left for the answer."""
        self.asked, self.n_prompt_tokens = asked, n_prompt_tokens
        self.n_audio_tokens, self.audio_seconds = 0, 0.0
        self.timings_ms: dict[str, float] = {}
        self.first_token_at: float | None = None  # time.perf_counter()
        self.finish_reason: Literal["stop", "length", "cancelled"] | None = None
        self.limit = min(asked.max_new_tokens, room)
        self.ids: list[int] = []
        self._written, self._shown = TextStream(tokenizer), 0
        self._cut: int | None = None  # where a stop text begins
        self._generator: torch.Generator | None = None
        if asked.temperature > 0:
            self._generator = torch.Generator(device)
            if asked.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(asked.seed)

    @property
    def text(self) -> str:
        return self._written.text if self._cut is None else self._written.text[: self._cut]

    def choose(self, logits: Tensor) -> int:
        """logits [V] → the next token: the likeliest, or one drawn from the top_p share (arXiv 1904.09751)."""
        if self._generator is None:
            return int(logits.argmax())
        probabilities, order = (logits.float() / self.asked.temperature).softmax(-1).sort(descending=True)
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= self.asked.top_p, 0.0)
        return int(order[torch.multinomial(probabilities, 1, generator=self._generator)])

    def add(self, token: int, stops: set[int]) -> None:
        """Takes the next token, and notes whether the answer ends with it."""
        self.first_token_at = self.first_token_at or time.perf_counter()
        self.ids.append(token)
        if token in stops:
            self.finish_reason = "stop"
        else:
            self._written.add(token)
            if len(self.ids) >= self.limit:
                self.finish_reason = "length"
        if self.finish_reason:
            self._written.end()
        self._look_for_stop()

    def take_piece(self) -> str:
        """Text that was not taken yet, less what may become a stop text."""
        held = 0 if self.finish_reason else max((_overlap(self.text, stop) for stop in self.asked.stop), default=0)
        end = len(self.text) - held
        piece = self.text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece

    def _look_for_stop(self) -> None:
        found = [at for stop in self.asked.stop if (at := self._written.text.find(stop)) >= 0]
        if found:
            self._cut, self.finish_reason = min(found), "stop"


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` begin `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class _Layer(DynamicLayer):
    """A layer's keys and values [B, heads, L, d]. They grow in blocks: a step copies its own position and no other."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = self._room = (keys, values)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if self._room[0].shape[2] < end:
            self._room = (_with_room(self.keys, end + BLOCK), _with_room(self.values, end + BLOCK))
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:end] = states
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values


def _with_room(states: Tensor, length: int) -> Tensor:
    room = states.new_empty(*states.shape[:2], length, states.shape[3])
    room[:, :, : states.shape[2]] = states
    return room


class Batch:
    """Rows with their cache. Greedy answers do not depend on who else is in it (in float32, as on CPUs)."""

    def __init__(self, chat: ChatModel) -> None:
        self.rows: list[Row] = []
        self._chat, self._model = chat, chat.model
        self._layers: list[_Layer] = []
        self._mask = torch.zeros(0, 0, dtype=torch.long)  # [B, L], 1 where a position is real
        eos = self._model.generation_config.eos_token_id
        self._stops = set(eos if isinstance(eos, list) else [eos])

    @property
    def longest(self) -> int:
        """Positions that the longest row may come to hold; padded, every row takes as many."""
        return max((row.n_prompt_tokens + row.limit for row in self.rows), default=0)

    @torch.inference_mode()
    def join(self, requests: Sequence[Asked]) -> list[Row]:
        """Encodes and prefills newcomers, which get their first token; raises LlasmError where one does not fit."""
        prepared = self._chat.prepare([request.messages for request in requests])
        lengths = prepared.attention_mask.sum(1).tolist()
        most = self._model.config.text_config.max_position_embeddings
        for n in lengths:
            if n >= most:
                raise LlasmError(f"the conversation takes {n} tokens, but the model holds {most}; shorten it")
        prefilling = time.perf_counter()
        logits, cache = self._forward(
            DynamicCache(config=self._model.config.text_config),
            prepared.attention_mask,
            input_ids=prepared.input_ids,
            audio_embeds=prepared.audio_embeds,
        )
        timings = {**prepared.timings_ms, "prefill": 1000 * (time.perf_counter() - prefilling)}
        tokenizer, rows = self._chat.processor.tokenizer, []
        for i, (request, n) in enumerate(zip(requests, lengths, strict=True)):
            row = Row(request, tokenizer, n, most - n, logits.device)
            row.n_audio_tokens, row.audio_seconds = prepared.n_audio_tokens[i], prepared.audio_seconds[i]
            row.timings_ms = dict(timings)
            row.add(row.choose(logits[i]), self._stops)
            rows.append(row)
        if self.rows:
            pairs = zip(self._layers, cache.layers, strict=True)
            self._layers = [
                _Layer(_stacked(own.keys, new.keys, 2), _stacked(own.values, new.values, 2)) for own, new in pairs
            ]
        else:
            self._layers = [_Layer(layer.keys, layer.values) for layer in cache.layers]
        self._mask = _stacked(self._mask, prepared.attention_mask, 1) if self.rows else prepared.attention_mask
        self.rows += rows
        return rows

    @torch.inference_mode()
    def step(self) -> None:
        """The next token of every row that has not ended."""
        if not self.rows:
            return
        cache = DynamicCache(config=self._model.config.text_config)
        cache.layers = list(self._layers)
        self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        last = torch.tensor([[row.ids[-1]] for row in self.rows], device=self._mask.device)
        logits, _ = self._forward(cache, self._mask, input_ids=last)
        for row, scores in zip(self.rows, logits, strict=True):
            row.add(row.choose(scores), self._stops)

    def drop_ended(self) -> None:
        """Frees the rows that have ended, and the columns that only they needed."""
        keep = [i for i, row in enumerate(self.rows) if row.finish_reason is None]
        if len(keep) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in keep]
        if not keep:
            self._layers, self._mask = [], self._mask[:0, :0]
            return
        mask = self._mask[keep]
        start = int(mask.argmax(1).min())  # the first column that is real for anybody
        self._mask = mask[:, start:]
        self._layers = [_Layer(layer.keys[keep, :, start:], layer.values[keep, :, start:]) for layer in self._layers]

    def _forward(self, cache: Any, mask: Tensor, **inputs: Any) -> tuple[Tensor, Any]:
        """→ logits [B, V] of the last position, and the grown cache."""
        length = inputs["input_ids"].shape[1]
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -length:]
        output = self._model(
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **inputs,
        )
        return output.logits[:, -1], output.past_key_values


def _stacked(rows: Tensor, others: Tensor, dim: int) -> Tensor:
    """Both along the batch, the shorter one padded on the left of dimension `dim`."""
    length = max(rows.shape[dim], others.shape[dim])
    padded = []
    for part in (rows, others):
        shape = list(part.shape)
        shape[dim] = length - shape[dim]
        padded.append(torch.cat([part.new_zeros(shape), part], dim=dim))
    return torch.cat(padded)
