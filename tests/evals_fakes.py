"""A model for the tests of evaluation that answers at once: what it hears is the length of a clip."""

import json

import numpy as np
import soundfile

from llasm.chat import Reply
from llasm.evals import predict, run
from llasm.evals.settings import Settings

STEP = 160  # samples: question i is i + 1 steps long


class FakeModel:
    """Answers by `answer(index of the question or None, typed text)`."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def batch(self, conversations, max_new_tokens):
        replies = []
        for [message] in conversations:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            waves = [part["audio"] for part in parts if part["type"] == "audio"]
            typed = "\n".join(part["text"] for part in parts if part["type"] == "text")
            index = len(waves[0]) // STEP - 1 if waves else None
            self.asked.append((index, typed))
            timings = {"decode_audio": 0.0, "encode": 1.0, "prefill": 2.0, "first_token": 3.0, "total": 4.0}
            replies.append(Reply(self.answer(index, typed), len(waves), 0.1 * len(waves), timings))
        return replies


class FakeRecogniser:
    def transcribe(self, waves, language):
        return [f"question {len(wave) // STEP - 1}" for wave in waves]


def use(monkeypatch, answer):
    """Evaluation asks this model; neither weights nor a voice are looked up."""
    model = FakeModel(answer)
    monkeypatch.setattr(predict, "chat_model", lambda name: model)
    monkeypatch.setattr(predict, "base_model", lambda name: FakeModel(lambda index, typed: "as before"))
    monkeypatch.setattr(predict, "recogniser", lambda name: FakeRecogniser())
    monkeypatch.setattr(run, "original_bases", lambda name: None)
    monkeypatch.setattr(run, "_model_facts", lambda name: {"sha256": "0" * 64, "bases": {}})
    monkeypatch.setattr(run.weights, "resolve", lambda name: name)
    monkeypatch.setattr(run.weights, "content_hash", lambda directory: "1" * 64)
    return model


def questions(folder, n, answers=None, **columns):
    """n clips and their table; answer i is `right i`, or answers[i]."""
    folder.mkdir(exist_ok=True)
    rows = []
    for i in range(n):
        tone = 0.1 * np.sin(np.arange(STEP * (i + 1)) / 5).astype(np.float32)
        soundfile.write(folder / f"{i}.wav", tone, 16000)
        right = answers[i] if answers else [f"right {i}"]
        row = {"id": f"q{i}", "audio": f"{i}.wav", "question": f"question {i}", "answers": right}
        rows.append(row | {name: values[i] for name, values in columns.items()})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def evaluated(data, out, **options):
    fields = {"task": "custom", "data": str(data) if data else None, "latency_items": 0, **options}
    return run.evaluate(Settings(out=str(out), **fields))


def gold(index, typed):
    """The right answer, heard or read."""
    return f"right {index if index is not None else typed.split()[-1]}"


def scores_of(out, task="custom"):
    return json.loads((out / "scores.json").read_text())[task]
