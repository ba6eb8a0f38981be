"""A chat model that keeps what it heard for a while: clients send a conversation's recordings again with each turn."""

from __future__ import annotations

import hashlib

from torch import Tensor

from llasm import audio
from llasm.chat import ChatModel

KEPT_TOKENS = 8_192  # of recordings that may come again: about a conversation's context


class RecallingChat(ChatModel):
    """As the one it is made of, in one thread at a time; a recording's embeddings leave when others need the room."""

    def __init__(self, chat: ChatModel) -> None:
        super().__init__(chat.model, chat.processor, chat.name)
        self._heard: dict[bytes, Tensor] = {}  # hash of a wave → its embeddings, the latest last

    def encode(self, waves: list[audio.Wave]) -> list[Tensor]:
        keys = [hashlib.blake2b(wave.tobytes()).digest() for wave in waves]
        new = {key: wave for key, wave in zip(keys, waves, strict=True) if key not in self._heard}
        found = self._heard | dict(zip(new, super().encode(list(new.values())), strict=True))
        for key in keys:
            self._heard.pop(key, None)
            self._heard[key] = found[key]
        n_tokens = sum(map(len, self._heard.values()))
        while n_tokens > KEPT_TOKENS:
            n_tokens -= len(self._heard.pop(next(iter(self._heard))))
        return [found[key] for key in keys]
