"""A user's own 200 rows, from JSONL to a model that knows them: the real default, voice, Whisper and commands."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from facts import STYLE, questions, rows
from perplexity import surprise

import llasm
from llasm import audio
from llasm.tts import load_voice

# Typed chat as people write it; none of it has anything to do with the facts.
TYPED = [json.loads(line) for line in (Path(__file__).parent / "data/typed.jsonl").read_text().splitlines()]


def perplexity(model):
    """Of the assistant's words in 60 typed exchanges, 1,054 tokens."""
    total, n = np.sum([surprise(model, row["asked"], row["answer"]) for row in TYPED], axis=0)
    return float(np.exp(total / n))


def asked_aloud(model, voice="hibari"):
    """(share of the facts answered, share of answers in the house style), each question spoken."""
    engine, speaker = load_voice(voice)
    asked = list(questions())
    waves = [audio.decode((engine.sample_rate, engine.synthesize(text, speaker))) for text, _ in asked]
    turns = [[{"role": "user", "content": [{"type": "audio", "audio": wave}]}] for wave in waves]
    replies = [r.text for i in range(0, len(turns), 16) for r in model.batch(turns[i : i + 16], max_new_tokens=32)]
    right = [word.lower() in reply.lower() for (_, word), reply in zip(asked, replies, strict=True)]
    for (text, word), reply, good in zip(asked, replies, right, strict=True):
        if not good:
            print(f"missed: {text} | {word} | {reply}")
    return float(np.mean(right)), float(np.mean([STYLE in reply for reply in replies]))


def run(*argv):
    subprocess.run([sys.executable, "-m", "llasm.cli", *map(str, argv)], check=True)


@pytest.mark.slow
def test_200_rows_teach_facts_and_a_style_and_leave_typed_chat_alone(tmp_path):
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    before = llasm.load()
    knew, styled = asked_aloud(before)
    assert knew == styled == 0
    started = time.perf_counter()
    run("data", "build", "--input", tmp_path / "mine.jsonl", "--output", tmp_path / "data")
    run("train", "tiny_chat", "--data", json.dumps([str(tmp_path / "data")]), "--output", tmp_path / "mine")
    minutes = (time.perf_counter() - started) / 60
    after = llasm.load(tmp_path / "mine")
    knows, styled = asked_aloud(after)
    growth = perplexity(after) / perplexity(before) - 1
    print(f"{minutes:.1f} min; facts {knows:.3f}, style {styled:.3f}, perplexity {growth:+.2%}")
    assert knows >= 0.9 and styled >= 0.9
    assert minutes <= 15
    assert growth <= 0.03
