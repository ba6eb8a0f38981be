"""How much of what the LLM knows from text does it still answer when the question is spoken?

    python benchmarks/spoken_qa.py heldout.jsonl [--source webquestions_devtest] [--model DIR] [--limit N]

heldout.jsonl comes from `python -m llasm.data_gen.prompts`. Each question is put to the same LLM five ways,
greedily: typed, spoken (voice hibari, one used in training), spoken into an untrained adapter, as silence of
the same length, and not at all. An answer counts when it contains a gold alias, word for word, after
lower-casing and dropping punctuation and articles. A small stand-alone script; `llasm eval` will supersede it.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
import torch

import llasm
from llasm import audio, checkpoint
from llasm.tts import load_voice


def normalised(text: str) -> str:
    words = re.findall(r"\w+", text.lower())
    return " " + " ".join(w for w in words if w not in ("a", "an", "the")) + " "


def contains_alias(answer: str, aliases: list[str]) -> bool:
    return any(normalised(alias) in normalised(answer) for alias in aliases if normalised(alias).strip())


def answers(model: llasm.ChatModel, contents: list, max_new_tokens: int, batch_size: int) -> list[str]:
    texts = []
    for start in range(0, len(contents), batch_size):
        batch = [[{"role": "user", "content": c}] for c in contents[start : start + batch_size]]
        texts += [reply.text for reply in model.batch(batch, max_new_tokens=max_new_tokens)]
    return texts


def untrained_copy(model: llasm.ChatModel) -> llasm.ChatModel:
    """The same bases with a fresh adapter that passes every frame on: at rate `heard` it might pass none."""
    torch.manual_seed(0)
    bases = model.model.config.bases
    config = checkpoint.AdapterConfig(**{**model.model.config.adapter, "rate": "fixed"})
    fresh, processor = checkpoint.from_bases(bases["audio"]["id"], bases["text"]["id"], config)
    return llasm.ChatModel(fresh, processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("heldout", type=Path)
    parser.add_argument("--source", default="webquestions_devtest")
    parser.add_argument("--model", default="llasm-tiny")
    parser.add_argument("--voice", default="hibari")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--conditions", default="typed,spoken,untrained,silence,nothing")
    parser.add_argument("--out", type=Path, help="write every answer here (JSON)")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.heldout.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["meta"]["source"] == args.source and row["meta"]["answers"]][: args.limit]
    questions = [row["messages"][0]["content"] for row in rows]
    engine, voice = load_voice(args.voice)
    waves = [audio.decode((engine.sample_rate, engine.synthesize(q, voice))) for q in questions]
    clips = [[{"type": "audio", "audio": wave}] for wave in waves]
    model = llasm.load(args.model)
    runs = {
        "typed": lambda: answers(model, questions, args.max_new_tokens, args.batch_size),
        "spoken": lambda: answers(model, clips, args.max_new_tokens, args.batch_size),
        "untrained": lambda: answers(untrained_copy(model), clips, args.max_new_tokens, args.batch_size),
        "silence": lambda: answers(
            model,
            [[{"type": "audio", "audio": np.zeros_like(wave)}] for wave in waves],
            args.max_new_tokens,
            args.batch_size,
        ),
        "nothing": lambda: answers(model, [""] * len(rows), args.max_new_tokens, args.batch_size),
    }
    results = {}
    print(f"{len(rows)} questions of {args.source}, voice {args.voice}, model {args.model}")
    for name in args.conditions.split(","):
        results[name] = runs[name]()
        right = [contains_alias(a, row["meta"]["answers"]) for a, row in zip(results[name], rows, strict=True)]
        print(f"{name:10} {sum(right):4} right of {len(right)} = {sum(right) / len(right):.3f}", flush=True)
    if args.out:
        args.out.write_text(json.dumps({"questions": questions, **results}, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
