"""A conversation → token ids and which of them are learned: the one place that makes a loss mask.

Shapes: L tokens of a conversation, one placeholder for each of its clips; U of them learned.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from llasm.errors import LlasmError

Messages = list[dict[str, Any]]


class Rendered(NamedTuple):
    """A conversation as the LLM reads it."""

    ids: Tensor  # [L] int64
    learned: Tensor  # [L] bool: the tokens that the model is to say itself, each turn's end included

    @property
    def answer(self) -> Tensor:
        """[U] ids of the learned tokens."""
        return self.ids[self.learned]


class Renderer:
    """Renders through the processor's chat template, whatever LLM it is of."""

    def __init__(self, processor: Any, stop_ids: set[int]) -> None:
        """stop_ids: tokens that end a turn."""
        self._tokenizer, self._processor = processor.tokenizer, processor
        self._stop_ids = stop_ids
        if not self._tokenizer.is_fast:
            raise LlasmError(
                f"{self._tokenizer.name_or_path}: has no tokenizer.json, which tells where a token stands in the text"
            )

    def __call__(self, messages: Messages, truncated: bool = False) -> Rendered:
        """truncated: answers were cut off, nobody knows which, so no turn's end is one to learn."""
        text = self._text(messages)
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, starts = encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]
        learned = torch.zeros(len(ids), dtype=torch.bool)
        for turn in (i for i, message in enumerate(messages) if message["role"] == "assistant"):
            first, last = self._span(messages, turn, text)
            for i, (token, start) in enumerate(zip(ids, starts, strict=True)):
                if first <= start < last:
                    ends = token in self._stop_ids
                    learned[i] = not (ends and truncated)
                    if ends:  # what the template writes behind it is no part of the answer
                        break
        return Rendered(torch.tensor(ids), learned)

    def _text(self, messages: Messages, open_turn: bool = False) -> str:
        return self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn)

    def _span(self, messages: Messages, turn: int, text: str) -> tuple[int, int]:
        """Where in the text the turn's answer begins and ends."""
        before, after = self._text(messages[:turn], open_turn=True), self._text(messages[: turn + 1])
        if not (after.startswith(before) and text.startswith(after)):
            raise LlasmError(
                f"the chat template of {self._tokenizer.name_or_path} writes an earlier turn differently when others "
                "follow it, so its answers cannot be marked; train on conversations of one turn"
            )
        return len(before), len(after)


def with_texts(messages: Messages, texts: list[str]) -> Messages:
    """The same conversation typed: each audio part replaced by its transcript."""
    rest = iter(texts)
    return [
        {
            "role": m["role"],
            "content": [{"type": "text", "text": next(rest)} if p["type"] == "audio" else p for p in m["content"]],
        }
        for m in messages
    ]


def stop_ids_of(model: Any, tokenizer: Any) -> set[int]:
    """The tokens at which generation ends."""
    stops = model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    return {token for token in [*stops, tokenizer.eos_token_id] if token is not None}
