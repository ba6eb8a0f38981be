"""Typed text that the LLM wrote itself: what `guard` keeps as it was.

Given nothing but the chat template's user prefix, an instruct model continues with an instruction (Magpie, arXiv
2406.08464, section 2), which it then answers. No data set is needed. Both are sampled at temperature 1: greedy answers
lie where the LLM is sure, and hold just that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from llasm import weights
from llasm.errors import LlasmError
from llasm.files import open_log, read_log, write_whole
from llasm.generator import LocalGenerator

from .conversation import Rendered, Renderer

N_TEXTS, N_HELD_OUT = 192, 16
BATCH = 52  # more take no longer a step, but the memory of the training itself
TRIES = 4  # how many times the texts wanted are asked for
PROMPT_TOKENS, ANSWER_TOKENS = 24, 64


def guard_texts(model: Any, processor: Any, renderer: Renderer) -> tuple[list[Rendered], list[Rendered]]:
    """(training, held-out) conversations of the model's LLM, written once and kept under LLASM_HOME."""
    digest = model.config.bases["text"]["sha256"]
    file = weights.home() / "guard" / f"{digest[:16]}-{N_TEXTS + N_HELD_OUT}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):  # other processes and runs wait, and read
        if not file.exists():
            parts = file.with_suffix(".parts.jsonl")
            written = _write(LocalGenerator(model, processor.tokenizer, digest), parts)
            write_whole(file, json.dumps(written, ensure_ascii=False))
            parts.unlink(missing_ok=True)
    conversations = [
        renderer([_message("user", asked), _message("assistant", answer)], truncated)
        for asked, answer, truncated in json.loads(file.read_text(encoding="utf-8"))
    ]
    return conversations[N_HELD_OUT:], conversations[:N_HELD_OUT]


def _write(generator: LocalGenerator, parts: Path) -> list[tuple[str, str, bool]]:
    """(prompt, answer, whether it was cut off) of every text.

    parts: a log with a line of texts for each batch; what a stopped run has left in it is not written again.
    """
    n = N_TEXTS + N_HELD_OUT
    with open_log(parts) as log, tqdm(total=n, desc="guard", unit="text") as bar:
        done = list(read_log(parts))
        written = [(asked, answer, cut_off) for batch in done for asked, answer, cut_off in batch]
        bar.update(len(written))
        for seed in range(len(done), -(-TRIES * n // BATCH)):
            if len(written) >= n:
                break
            invented = generator.invent(None, BATCH, PROMPT_TOKENS, seed)
            prompts = [text for text, _ in invented if any(map(str.isalnum, text))]
            typed = [[{"role": "user", "content": prompt}] for prompt in prompts]
            answers = generator.generate(typed, ANSWER_TOKENS, seed)
            pairs = zip(prompts, answers, strict=True)
            good = [(prompt, answer, cut_off) for prompt, (answer, cut_off) in pairs if answer]
            written += good
            print(json.dumps(good, ensure_ascii=False), file=log, flush=True)
            bar.update(len(good))
    if len(written) >= n:
        return written[:n]
    raise LlasmError(
        f"the LLM wrote only {len(written)} of {n} texts of its own, which losses.guard needs; use --losses.guard 0"
    )


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}
