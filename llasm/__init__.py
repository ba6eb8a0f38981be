"""llasm: a speech-language chat model to run, fine-tune and evaluate.

import llasm
model = llasm.load()
print(model.chat([{"role": "user", "content": [{"type": "audio", "audio": "question.wav"}]}]).text)
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from llasm.errors import LlasmError

if TYPE_CHECKING:
    from llasm.chat import ChatModel, Reply, load

__all__ = ["ChatModel", "LlasmError", "Reply", "load"]

# bitsandbytes, installed but not asked for, need not speak of a kernel for 4 bits. Here, before any module of ours,
# since transformers imports it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import: the command line's `--help` should not wait for them.
    if name in ("ChatModel", "Reply", "load"):
        from llasm import chat

        return getattr(chat, name)
    raise AttributeError(f"module 'llasm' has no attribute {name!r}")
