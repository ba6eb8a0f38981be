"""What a user can get wrong on the command line: one line that names it, exit code 2, no traceback."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile

from llasm import cli
from llasm.cli import main
from llasm.errors import LlasmError
from llasm.terminal import parse_turn


def bad_files(folder):
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("this is no audio at all, just words in a file\n" * 9)
    soundfile.write(folder / "whole.wav", np.zeros(16000, np.float32), 16000)
    (folder / "truncated.wav").write_bytes((folder / "whole.wav").read_bytes()[:9000])
    soundfile.write(folder / "none.wav", np.zeros(0, np.float32), 16000)
    soundfile.write(folder / "nan.wav", np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    (folder / "folder.wav").mkdir()


@pytest.mark.parametrize("name", ["missing", "empty", "text", "truncated", "none", "nan", "folder"])
def test_bad_audio(tmp_path, capsys, name):
    bad_files(tmp_path)
    assert main(["chat", str(tmp_path / f"{name}.wav")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{name}.wav" in error


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["chat", "--text", "hi", "--model", "nosuch"], "nosuch"),
        (["chat", "--text", "hi", "--speak", "nosuch/out.wav"], "nosuch"),
        (["models", "pull", "nosuch"], "nosuch"),
        (["models", "pull"], "smollm2-135m-instruct"),
        (["train"], "tiny_ground"),
        (["train", "nosuch"], "nosuch"),
        (["train", "tiny_ground", "--nosuch", "1"], "nosuch"),
        (["train", "tiny_ground", "--n_steps", "x"], "n_steps"),
        (["train", "tiny_ground", "--n_steps", "0"], "n_steps"),
        (["train", "tiny_ground", "--adapter.name", "nosuch"], "nosuch"),
        (["data", "nosuch"], "nosuch"),
        (["data", "build", "--input", "nosuch.jsonl", "--output", "nosuch"], "nosuch.jsonl"),
    ],
)
def test_bad_options(capsys, argv, named):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and named in error


def test_no_library_speaks_beside_the_one_line(tmp_path):
    command = [sys.executable, "-m", "llasm.cli", "train", "tiny_align"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "llasm data build" in done.stderr


def test_turns_of_the_interactive_chat(tmp_path):
    soundfile.write(tmp_path / "a b.wav", np.zeros(1600, np.float32), 16000)
    audio_part, text = parse_turn(f"/audio '{tmp_path / 'a b.wav'}' what is this")
    assert len(audio_part["audio"]) == 1600 and text["text"] == "what is this"
    assert parse_turn("hello")[0]["text"] == "hello"
    with pytest.raises(LlasmError, match="unknown command"):
        parse_turn("/nosuch")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "runs/mine/x"), "llasm: runs/mine/x: No space left on device\n"),
        (OSError("the server has gone"), "llasm: the server has gone\n"),
    ],
)
def test_what_the_disk_refuses_is_one_line(monkeypatch, capsys, error, said):
    def fails(argv):
        raise error

    monkeypatch.setitem(cli._OWN_OPTIONS, "train", fails)
    assert main(["train", "x"]) == 2
    assert capsys.readouterr().err == said
