"""Evaluation of the real default model by the command that the README shows."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from llasm import asr, audio, checkpoint
from llasm.chat import ChatModel
from llasm.evals import predict, run
from llasm.evals.settings import Settings

ROOT = Path(__file__).parent.parent
SAME = ("run.json", "items/*", "predictions/*", "verdicts.jsonl", "scores.json")  # from run to run
CUSTOM = ["--task", "custom", "--data", "examples/eval"]
SHORT = ["--max-new-tokens", "10", "--latency-items", "0"]


def files(out):
    return {str(f.relative_to(out)): f.read_bytes() for pattern in SAME for f in sorted(out.glob(pattern))}


def command(out, *options):
    return [sys.executable, "-m", "llasm.cli", "eval", *CUSTOM, *SHORT, "--out", str(out), *options]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "out"
    subprocess.run(command(out), cwd=ROOT, check=True)
    return out


def test_a_transcript_does_not_depend_on_its_batch():
    recogniser = asr.Recogniser("whisper-tiny.en", exact=True)
    waves = [audio.decode(file) for file in sorted((ROOT / "examples").glob("*.wav"))]
    waves.append(np.concatenate([waves[0], np.zeros(40000, np.float32), waves[1]]))
    assert recogniser.transcribe(waves) == [recogniser.transcribe([wave])[0] for wave in waves]


@pytest.mark.slow
def test_ten_wavs_and_a_table_are_evaluated_by_one_command(whole):
    scores = json.loads((whole / "scores.json").read_text())["custom"]
    assert set(scores["conditions"]) == {"speech", "text", "cascade"}
    assert all(found["n"] == 10 and found["errors"] == 0 for found in scores["conditions"].values())
    assert scores["conditions"]["text"]["score"][0] >= 0.2
    assert (whole / "report.html").stat().st_size > 10_000
    facts = json.loads((whole / "run.json").read_text())
    assert facts["model"]["sha256"] and facts["asr"] and facts["data"]["custom"]


@pytest.mark.slow
def test_one_by_one_gives_the_same_answers_as_batches(whole, tmp_path):
    subprocess.run(command(tmp_path / "out", "--batch-size", "1"), cwd=ROOT, check=True)
    assert files(tmp_path / "out") == files(whole)


@pytest.mark.slow
def test_ray_gives_the_same_answers(whole, tmp_path):
    pytest.importorskip("ray")
    subprocess.run(command(tmp_path / "out", "--runner", "ray", "--batch-size", "5"), cwd=ROOT, check=True)
    assert files(tmp_path / "out") == files(whole)


@pytest.mark.slow
def test_killed_three_times_it_goes_on_to_the_same_files(whole, tmp_path):
    out, rng = tmp_path / "out", random.Random(5)
    log = out / "events/1-of-1.jsonl"
    n_lines = 0
    for _ in range(3):
        running = subprocess.Popen(command(out, "--resume", "--batch-size", "3"), cwd=ROOT, stderr=subprocess.DEVNULL)
        n_lines += rng.randint(1, 8)
        deadline = time.monotonic() + 300
        while not (log.exists() and log.read_bytes().count(b"\n") >= n_lines) and time.monotonic() < deadline:
            assert running.poll() is None
            time.sleep(0.01)
        time.sleep(rng.random())  # in the middle of a batch
        running.send_signal(signal.SIGKILL)
        running.wait()
        n_lines = log.read_bytes().count(b"\n")
    assert n_lines < 30 and not (out / "scores.json").exists()
    subprocess.run(command(out, "--resume", "--batch-size", "3"), cwd=ROOT, check=True)
    assert files(out) == files(whole)
    keys = [json.loads(line)["key"] for line in log.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 30  # nothing was done twice


@pytest.mark.slow
def test_an_untrained_adapter_answers_nothing_right(monkeypatch, tmp_path):
    bases = json.loads((checkpoint.locate("llasm-tiny") / "config.json").read_text())["bases"]
    adapter = checkpoint.AdapterConfig(rate="fixed")  # at rate `heard` it might pass no frame at all
    model = ChatModel(*checkpoint.from_bases(bases["audio"]["id"], bases["text"]["id"], adapter))
    monkeypatch.setattr(predict, "chat_model", lambda name: model)
    data, out = str(ROOT / "examples/eval"), str(tmp_path)
    run.evaluate(Settings(task="custom", data=data, out=out, conditions="speech", max_new_tokens=10, latency_items=0))
    assert json.loads((tmp_path / "scores.json").read_text())["custom"]["conditions"]["speech"]["score"][0] <= 0.1
