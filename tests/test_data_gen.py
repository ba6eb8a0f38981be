"""Conversations in, spoken parquet out; interruptions, mistakes and rows that cannot be spoken."""

import json

import numpy as np
import pytest

from llasm import audio
from llasm.data_gen.build import BuildConfig, build, read_conversations
from llasm.data_gen.prompts import Truecaser, speakable
from llasm.data_gen.respond import respond
from llasm.errors import LlasmError
from llasm.tts import load_engine, load_voice


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def question(text, **fields):
    return {"messages": [{"role": "user", "content": text}], **fields}


def test_build_makes_a_readable_data_set_once(tmp_path):
    from datasets import Audio, List, load_dataset

    rows = [question("Is it far?", id="a"), question("…", id="b"), question("Is it near?", id="c")]
    config = BuildConfig(input=write(tmp_path / "in.jsonl", rows), output=tmp_path / "out", respond=False, workers=2)
    data = build(config)
    found = load_dataset("parquet", data_files=str(data / "*.parquet"), split="train", cache_dir=str(tmp_path / "hf"))
    found = found.cast_column("audios", List(Audio(decode=False)))
    assert found["id"] == ["a", "c"]
    wave = audio.decode(found[0]["audios"][0]["bytes"])
    assert len(wave) / audio.SAMPLE_RATE == pytest.approx(found[0]["meta"]["seconds"][0], abs=0.01)
    assert found[0]["meta"]["texts"] == ["Is it far?"]
    assert found[0]["messages"][0]["content"][0]["type"] == "audio"
    dropped = json.loads((tmp_path / "out/dropped.jsonl").read_text())
    assert dropped["id"] == "b" and "nothing to speak" in dropped["reason"]
    made = (data / "shard-00000.parquet").stat().st_mtime_ns
    build(config)
    assert (data / "shard-00000.parquet").stat().st_mtime_ns == made
    with pytest.raises(LlasmError, match="other input or settings"):
        build(BuildConfig(input=config.input, output=config.output, respond=False, seed=1))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "not JSON"),
        ('{"messages": "\udcff"}', "not JSON"),  # a byte that is no UTF-8
        ("{}", "messages"),
        (json.dumps({"messages": [{"role": "robot", "content": "x"}]}), "role"),
        (json.dumps(question(" ")), "not empty"),
        (json.dumps({"messages": [{"role": "assistant", "content": "x"}]}), "no user"),
        (json.dumps(question("Hi there", id="first")), "before"),
    ],
)
def test_mistakes_are_named_by_file_and_line(tmp_path, line, named):
    path = tmp_path / "in.jsonl"
    text = json.dumps(question("Hello", id="first")) + "\n" + line + "\n"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(LlasmError, match=rf"in\.jsonl:2: .*{named}"):
        read_conversations(path)


def test_answers_written_before_an_interruption_are_kept(tmp_path):
    class Generator:
        identity = "fake"

        def __init__(self, fail_at):
            self.calls, self.fail_at = [], fail_at

        def generate(self, batch, max_new_tokens):
            if len(self.calls) == self.fail_at:
                raise KeyboardInterrupt
            self.calls.append(batch)
            return [(m[0]["content"].upper(), True) for m in batch]

    conversations = [[{"role": "user", "content": c}] for c in ("a", "bb", "ccc", "dddd")]
    cut = Generator(fail_at=1)
    with pytest.raises(KeyboardInterrupt):
        list(respond(conversations, cut, tmp_path / "answers.jsonl", 8, batch_size=2))
    rest = Generator(fail_at=9)
    answers = sorted(respond(conversations, rest, tmp_path / "answers.jsonl", 8, batch_size=2))
    assert answers == [(0, "A", True), (1, "BB", True), (2, "CCC", True), (3, "DDDD", True)]
    assert len(rest.calls) == 1


def test_prompts_are_written_one_way():
    truecase = Truecaser(["He met Justin Bieber", "We saw Justin Bieber there"])
    assert truecase("who is justin bieber") == "Who is Justin Bieber?"
    assert truecase("play what i like") == "Play what I like."
    assert speakable("Where is the station?") and not speakable("See https://example.org for more")


def test_hibari_is_deterministic_and_normalised():
    engine, voice = load_voice("hibari")
    first, second = (engine.synthesize("Hello there.", voice, seed=3) for _ in range(2))
    assert first.dtype == np.float32 and np.array_equal(first, second)
    assert np.abs(first).max() == pytest.approx(0.9)


def test_what_cannot_be_spoken_is_a_clear_error():
    with pytest.raises(LlasmError, match="unknown speech engine 'nosuch'"):
        load_engine("nosuch")
    with pytest.raises(LlasmError, match="unknown voice 'nosuch'"):
        load_voice("hibari:nosuch")
    with pytest.raises(LlasmError, match="nothing to speak"):
        load_engine("hibari").synthesize("", "heart")
