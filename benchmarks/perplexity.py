"""Typed chat before and after training: how well a model and its LLM as it was foretell answers that people wrote.

    python benchmarks/perplexity.py tests/data/typed.jsonl instruction-data.json

Files: JSONL or JSON rows with the columns asked and answer, or instruction, input and output. Prints the perplexity of
the answers' tokens under both, and the growth, with its 95 % interval (bootstrap over the rows).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import llasm
from llasm.evals.predict import base_model


def exchanges(file: Path) -> list[tuple[str, str]]:
    text = file.read_text(encoding="utf-8")
    rows = json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    pairs = []
    for row in rows:
        asked = row["asked"] if "asked" in row else f"{row['instruction']} {row['input']}".strip()
        pairs.append((asked, row.get("answer") or row["output"]))
    return pairs


@torch.inference_mode()
def surprise(model: Any, asked: str, answer: str) -> tuple[float, int]:
    """(Σ -log p of the answer's tokens, their number)."""
    template = model.processor.apply_chat_template
    prompt = template([{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True)
    tokenize = model.processor.tokenizer
    start, ids = (tokenize(text, return_tensors="pt")["input_ids"] for text in (prompt, prompt + answer))
    logits = model.model(input_ids=ids.to(model.model.device)).logits[0, start.shape[1] - 1 : -1].float()
    targets = ids[0, start.shape[1] :].to(logits.device)
    return float(F.cross_entropy(logits, targets, reduction="sum")), len(targets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--model", default="llasm-tiny")
    args = parser.parse_args()
    models = {"as it was": base_model(args.model), "trained": llasm.load(args.model)}
    for file in args.files:
        pairs = exchanges(file)
        found = {
            name: np.array([surprise(model, *pair) for pair in tqdm(pairs, desc=name, unit="answer")])
            for name, model in models.items()
        }
        for name, rows in found.items():
            total, n_tokens = rows.sum(0)
            print(f"{file.name}: {name}: {np.exp(total / n_tokens):.4f} on {n_tokens:.0f} tokens")
        drawn = np.random.default_rng(0).integers(len(pairs), size=(2000, len(pairs)))
        before, after = (rows[:, 0] for rows in found.values())
        tokens = found["trained"][:, 1]
        growth = np.expm1((after - before)[drawn].sum(1) / tokens[drawn].sum(1))
        mean = np.expm1((after - before).sum() / tokens.sum())
        low, high = np.quantile(growth, (0.025, 0.975))
        print(f"{file.name}: growth {mean:+.2%}, 95 % interval {low:+.2%} to {high:+.2%}")


if __name__ == "__main__":
    main()
