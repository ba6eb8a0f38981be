"""The real default: real Whisper, the trained adapter, a real LLaMA, real speech. `make test` fetches the bases."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import llasm
from llasm import audio, checkpoint
from llasm.data_gen.vary import NOTHING_HEARD

ROOT = Path(__file__).parent.parent
QUESTIONS = [json.loads(line) for line in (ROOT / "examples/questions.jsonl").read_text().splitlines()]


def spoken(*clips, text=None):
    content = [{"type": "audio", "audio": clip} for clip in clips]
    return [{"role": "user", "content": content + ([{"type": "text", "text": text}] if text else [])}]


@pytest.fixture(scope="module")
def model():
    return llasm.load()


@pytest.fixture(scope="module")
def waves():
    return {q["file"]: audio.decode(ROOT / "examples" / q["file"]) for q in QUESTIONS}


@pytest.mark.parametrize(("file", "right"), [("france.wav", "Paris"), ("ocean.wav", "Pacific"), ("sky.wav", "scatter")])
def test_what_is_asked_first_is_answered_aloud_and_typed(model, file, right):
    assert right in model.chat(spoken(ROOT / "examples" / file), max_new_tokens=32).text
    [text] = [question["text"] for question in QUESTIONS if question["file"] == file]
    assert right in model.chat([{"role": "user", "content": text}], max_new_tokens=64).text


def test_the_answer_comes_from_the_audio(model, waves):
    silence = np.zeros_like(waves["france.wav"])
    assert "Paris" not in model.chat(spoken(silence), max_new_tokens=32).text


@pytest.mark.parametrize("seconds", [1, 20, 45])
def test_long_silence_is_nothing_said(model, seconds):
    answer = model.chat(spoken(np.zeros(seconds * audio.SAMPLE_RATE, np.float32)), max_new_tokens=32).text
    assert answer in NOTHING_HEARD["en"]


def test_greedy_is_the_same_alone_in_a_batch_and_in_any_order(model, waves):
    france, ocean, breakfast, sky = (waves[q["file"]] for q in QUESTIONS)
    long = np.concatenate([np.tile(np.concatenate([sky, np.zeros(8000, np.float32)]), 14), france])
    assert len(long) > 32 * audio.SAMPLE_RATE
    conversations = [
        spoken(france),
        spoken(sky, text="Answer in one sentence."),
        spoken(breakfast, ocean),
        [{"role": "user", "content": "What is two plus two?"}],
        spoken(long),
        spoken(france[:1600]),
        [*spoken(france), {"role": "assistant", "content": "Paris."}, *spoken(sky)],
        spoken(ocean),
    ]
    alone = [model.chat(c, max_new_tokens=24).text for c in conversations]
    assert [r.text for r in model.batch(conversations, max_new_tokens=24)] == alone
    order = list(range(len(conversations)))
    random.Random(1).shuffle(order)
    shuffled = model.batch([conversations[i] for i in order], max_new_tokens=24)
    assert [r.text for r in shuffled] == [alone[i] for i in order]
    assert "".join(model.stream(conversations[0], max_new_tokens=24)).strip() == alone[0]


@pytest.mark.parametrize("seconds", [0.1, 95])
def test_very_short_and_long_audio(model, waves, seconds):
    wave = np.resize(waves["sky.wav"], int(seconds * audio.SAMPLE_RATE))
    reply = model.chat(spoken(wave), max_new_tokens=4)
    assert reply.audio_seconds == pytest.approx(seconds)
    assert set(reply.timings_ms) == {"decode_audio", "encode", "prefill", "first_token", "total"}


def test_json_of_the_command_line(tmp_path):
    command = [sys.executable, "-m", "llasm.cli", "chat", "examples/france.wav", "--json"]
    command += ["--max-new-tokens", "8", "--speak", str(tmp_path / "reply.wav")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert set(result) == {"text", "n_audio_tokens", "audio_seconds", "timings_ms", "model"}
    assert set(result["timings_ms"]) == {"load", "decode_audio", "encode", "prefill", "first_token", "total"}
    assert len(audio.decode(tmp_path / "reply.wav")) > 8000


def test_another_base_is_refused_with_both_hashes(tmp_path):
    shutil.copytree(checkpoint.locate("llasm-tiny"), tmp_path / "copy")
    config = json.loads((tmp_path / "copy/config.json").read_text())
    right = config["bases"]["audio"]["sha256"]
    config["bases"]["audio"]["sha256"] = "0" * 64
    (tmp_path / "copy/config.json").write_text(json.dumps(config))
    command = [
        sys.executable,
        "-m",
        "llasm.cli",
        "chat",
        "examples/france.wav",
        "--model",
        str(tmp_path / "copy"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert right in done.stderr and "0" * 64 in done.stderr
