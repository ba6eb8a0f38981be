"""Training as people run it: killed and resumed, on two processes, with DeepSpeed, in 4 and 8 bits."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

import llasm
from llasm import weights
from llasm.train import guard
from llasm.train.recipe import load_recipe
from llasm.train.run import train

pytestmark = pytest.mark.slow
ROWS = 20


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Twenty spoken questions of several lengths, with answers of several lengths."""
    from llasm.data_gen.build import build
    from llasm.data_gen.recipe import Recipe, Respond, Verify

    folder = tmp_path_factory.mktemp("rows")
    with open(folder / "in.jsonl", "w") as out:
        for i in range(ROWS):
            words = (
                "apple",
                "river",
                "candle",
                "mountain",
                "pencil",
                "garden",
                "window",
                "soldier",
                "engine",
                "violin",
            )
            asked = f"Where is the {words[i % 10]}{' and the ' + words[(3 * i + 1) % 10] if i > 9 else ''}?"
            answer = f"It is {'very ' * (i % 7)}far."
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            out.write(json.dumps({"messages": turns}) + "\n")
    quick = {"respond": Respond(answers="never"), "verify": Verify(asr="none")}
    build(Recipe(output=str(folder / "out"), input=str(folder / "in.jsonl"), workers=1, **quick))
    return str(folder / "out")


@pytest.fixture
def options(bases, rows, tmp_path):
    """A run of stage chat on random bases, as YAML."""
    recipe = {
        "stage": "chat", "data": [rows], "output": "out", **bases,
        "adapter": {"width": 32, "n_layers": 1, "n_heads": 2, "rate": "heard", "dropout": 0.1},
        "lora": {"rank": 4}, "n_negatives": 50, "n_steps": 20, "batch_size": 4, "held_out": 2,
        "warmup_steps": 2, "lora_learning_rate": 1e-2, "bf16": False, "logging_steps": 1, "eval_steps": 10,
        "save_steps": 5, "n_examples": 1, "report_to": [],
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    # A random LLM writes nothing to guard.
    digest, n = weights.content_hash(bases["text_base"])[:16], guard.N_TEXTS + guard.N_HELD_OUT
    texts = tmp_path / "home/guard" / f"{digest}-{n}.json"
    texts.parent.mkdir(parents=True)
    texts.write_text(json.dumps([[f"Ask {i}.", f"So it is {i}.", False] for i in range(n)]))

    def write(**changes):
        path.write_text(json.dumps(recipe | changes))  # JSON is YAML
        return path

    return write


def losses(output):
    log = json.loads((output / "metrics.json").read_text())["log"]
    return {line["step"]: line["loss"] for line in log if "loss" in line}


def llasm_train(recipe, output, tmp_path, n_processes=1, *more):
    launch = [sys.executable, "-m"]
    if n_processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        launch += ["torch.distributed.run", f"--nproc_per_node={n_processes}", f"--master_port={port}", "-m"]
    command = [*launch, "llasm.cli", "train", str(recipe), "--output", str(output), *more]
    return subprocess.Popen(
        command,
        env={**os.environ, "LLASM_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
    )


def finish(process):
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said[-3000:]


# ---- killed and resumed


def test_killed_at_random_steps_and_resumed_the_losses_are_the_undisturbed_ones(options, tmp_path):
    recipe, draw = options(), random.Random(4)
    finish(llasm_train(recipe, tmp_path / "whole", tmp_path))
    for kill in range(3):
        process = llasm_train(recipe, tmp_path / "cut", tmp_path, 1, *["--resume"] * (kill > 0))
        n_lines = draw.randint(1, 6)
        for line in process.stdout:
            n_lines -= ": loss " in line
            if n_lines == 0:
                break
        time.sleep(draw.random() / 20)
        assert process.poll() is None, "it ended before it was killed"
        process.kill()
        process.communicate()
    finish(llasm_train(recipe, tmp_path / "cut", tmp_path, 1, "--resume"))
    found, expected = losses(tmp_path / "cut"), losses(tmp_path / "whole")
    assert len(found) == 20 and found == pytest.approx(expected, abs=1e-4)


def test_sigterm_saves_and_says_how_to_go_on(options, tmp_path):
    process = llasm_train(options(n_steps=5000), tmp_path / "out", tmp_path)
    for line in process.stdout:
        if ": loss " in line:
            process.send_signal(signal.SIGTERM)
            break
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "with --resume goes on" in said and "Traceback" not in said
    assert list((tmp_path / "out/snapshots").glob("checkpoint-*/trainer_state.json"))


# ---- two processes


# Dropout and the sampled vocabulary are drawn anew in every process, and a token heard or not is a step in the loss:
# without the first, with all of the second and at a fixed rate, nothing is left but the means over processes.
CALM = {
    "adapter": {"width": 32, "n_layers": 1, "n_heads": 2, "rate": "fixed", "dropout": 0.0},
    "n_negatives": 5000, "learning_rate": 3e-4, "lora_learning_rate": 3e-3,
}  # fmt: skip


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_two_processes_follow_one(zero, options, tmp_path):
    recipe = options(**CALM)
    finish(llasm_train(recipe, tmp_path / "one", tmp_path))
    finish(llasm_train(recipe, tmp_path / "two", tmp_path, 2, "--zero", str(zero)))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == two.keys() and len(one) == 20
    assert max(abs(one[step] - two[step]) for step in one) < 1e-2
    assert one[20] < one[1]
    question = [{"role": "user", "content": [{"type": "audio", "audio": torch.sin(torch.arange(16000) / 20).numpy()}]}]
    answers = [llasm.load(tmp_path / name).chat(question, max_new_tokens=8).text for name in ("one", "two")]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_two_processes_go_on_from_their_snapshot(zero, options, tmp_path):
    recipe = options(n_steps=30, save_steps=3, batch_size=2)  # 9 steps an epoch
    finish(llasm_train(recipe, tmp_path / "whole", tmp_path, 2, "--zero", str(zero)))
    process = llasm_train(recipe, tmp_path / "cut", tmp_path, 2, "--zero", str(zero))
    while not list((tmp_path / "cut/snapshots").glob("checkpoint-12/trainer_state.json")):
        assert process.poll() is None and process.stdout.readline()
    process.terminate()  # torchrun passes it on
    process.communicate(timeout=120)
    assert not (tmp_path / "cut/metrics.json").exists(), "it ended before it was told to stop"
    snapshots = {int(folder.name.split("-")[1]): folder for folder in (tmp_path / "cut/snapshots").glob("checkpoint-*")}
    if max(snapshots) % 9 == 0:  # between two epochs, where every order goes on: from the one before
        shutil.rmtree(snapshots.pop(max(snapshots)))
    assert max(snapshots) % 9
    finish(llasm_train(recipe, tmp_path / "cut", tmp_path, 2, "--zero", str(zero), "--resume"))
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), abs=1e-4)


# ---- fewer bits


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantised_llms_train_and_their_checkpoints_load(quantization, options, tmp_path, monkeypatch):
    monkeypatch.setenv("LLASM_HOME", str(tmp_path / "home"))
    changes = {"quantization": quantization, "optimizer": "adamw_8bit", "bf16": True}
    recipe = load_recipe(str(options(**changes)), ["--output", str(tmp_path / "out")])
    train(recipe)
    found = losses(tmp_path / "out")
    assert found[20] < 0.9 * found[1]
    model = llasm.load(tmp_path / "out")
    assert model.model.model.language_model.layers[0].self_attn.q_proj.weight.dtype == torch.float32
    assert model.chat([{"role": "user", "content": "What is 1?"}], max_new_tokens=4).n_audio_tokens == 0
