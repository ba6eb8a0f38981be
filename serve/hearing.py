"""An engine of two halves: this process hears, another server runs the LLM alone.

At rate `heard`, llasm-tiny's too, how many tokens a clip takes is known only once it was heard, so no other server can
lay out the prompt. Here it is laid out, at any rate, and sent as embeddings, which vLLM takes with
--enable-prompt-embeds. What it serves is what `llasm export --format llm` wrote.
"""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import torch
from torch import nn

from llasm.chat import ChatModel

from .engine import Request
from .recall import RecallingChat
from .remote import Heard, RemoteEngine


class HearingEngine(RemoteEngine):
    """`chat` hears, the server at `url` answers; otherwise as RemoteEngine."""

    def __init__(self, chat: ChatModel, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        chat.model.model.language_model.layers = nn.ModuleList()  # the server has them: their memory is free here
        self._chat = RecallingChat(chat)
        self._ears = asyncio.Lock()  # one request at a time: each takes all cores

    async def _open(self, request: Request, heard: Heard) -> Any:
        async with self._ears:
            embeddings = await asyncio.to_thread(self._hear, request, heard)
        return await self._server().completions.create(
            prompt=None, extra_body={"prompt_embeds": embeddings}, **self._generation(request)
        )

    def _text(self, choice: Any) -> str | None:
        return choice.text

    @torch.inference_mode()
    def _hear(self, request: Request, heard: Heard) -> str:
        """The whole prompt's embeddings [L, H] as vLLM reads them: torch.save's file in base64."""
        prepared = self._chat.prepare([request.messages])
        heard.n_audio_tokens, heard.timings_ms = prepared.n_audio_tokens[0], prepared.timings_ms
        embeddings = self._chat.model.model.embed(prepared.input_ids, prepared.audio_embeds)[0]
        content = io.BytesIO()
        torch.save(embeddings.cpu().clone(), content)
        return base64.b64encode(content.getvalue()).decode()
