"""The voices: each speaks, the same twice, and says what it lacks."""

import os
import subprocess
import sys

import numpy as np
import pytest
from programs import needs_espeak, needs_flite

from llasm import asr, audio
from llasm.errors import LlasmError
from llasm.tts import load_engine, load_voice, load_voices


@pytest.mark.parametrize(
    "spec",
    [
        "hibari",
        "kokoro:jm_kumo",
        "piper",
        pytest.param("flite:rms", marks=needs_flite),
        pytest.param("espeak-ng:en-us+f2", marks=needs_espeak),
    ],
)
def test_each_engine_says_the_same_thing_twice_and_faster_when_asked(spec):
    engine, voice = load_voice(spec)
    first, second = (engine.synthesize("What is the capital of France?", voice, seed=3) for _ in range(2))
    assert first.dtype == np.float32 and np.array_equal(first, second)
    assert np.abs(first).max() == pytest.approx(0.9)
    assert len(engine.synthesize("What is the capital of France?", voice, speed=1.4)) < 0.9 * len(first)
    heard = asr.Recogniser("whisper-tiny.en").transcribe([audio.decode((engine.sample_rate, first))])
    assert asr.error_rate("What is the capital of France?", heard[0]) <= 0.5
    with pytest.raises(LlasmError, match="nothing to speak"):
        engine.synthesize("", voice)
    with pytest.raises(LlasmError, match="unknown voice 'nosuch'"):
        engine.synthesize("Hi", "nosuch")


def test_workers_that_need_kokoro_for_the_first_time_do_not_spoil_it(tmp_path):
    says = """
import sys, time
from pathlib import Path
from llasm.tts import load_voice
here, engine, voice = Path(sys.argv[1]), *load_voice("kokoro:jm_kumo")
(here / sys.argv[2]).touch()
for _ in range(30_000):  # half a minute or more for the others, should one of them fail before
    if len(list(here.iterdir())) == 3:
        break
    time.sleep(0.001)
assert len(engine.synthesize("Hi.", voice))
"""
    (tmp_path / "here").mkdir()
    home = os.environ | {"KOKORO_JA_CACHE": str(tmp_path / "model"), "LLASM_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", says, str(tmp_path / "here")]
    workers = [subprocess.Popen([*command, str(i)], env=home) for i in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]


@needs_espeak
def test_espeak_speaks_mandarin():
    engine, voices = load_voices("espeak-ng:*")
    [voice, *_] = [v for v in voices if v.language == "zh-CN"]
    short, long = (engine.synthesize(text, voice.id) for text in ("你好", "你好，今天天气很好，我们去公园散步吧"))
    assert len(long) > 2 * len(short) > 0


def test_what_kokoro_lacks_is_told_before_it_speaks(monkeypatch, tmp_path):
    np.savez(tmp_path / "voices.npz", af_heart=np.zeros((510, 1, 256)), zf_xiaoni=np.zeros((510, 1, 256)))
    monkeypatch.setenv("LLASM_KOKORO", str(tmp_path))
    engine = load_engine("kokoro")
    for name in (r"\*\.onnx", r"config\.json"):
        with pytest.raises(LlasmError, match=f"holds no {name}"):
            engine.identity("af_heart")
        (tmp_path / "model.onnx").write_bytes(b"x")
    (tmp_path / "config.json").write_text('{"vocab": {}}')
    assert engine.identity("af_heart")
    monkeypatch.setitem(sys.modules, "misaki.zh", None)
    with pytest.raises(LlasmError, match=r"pip install 'misaki\[zh\]'"):
        engine.identity("zf_xiaoni")


def test_what_cannot_be_spoken_is_a_clear_error():
    with pytest.raises(LlasmError, match="unknown speech engine 'nosuch'"):
        load_engine("nosuch")
    with pytest.raises(LlasmError, match="unknown voice 'nosuch'"):
        load_voice("hibari:nosuch")
