"""`llasm data build` from end to end: stages, engines, runners, interruptions."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from programs import needs_espeak

from llasm import asr, audio, effects
from llasm.data_gen import respond
from llasm.data_gen.build import build
from llasm.data_gen.recipe import Recipe, Respond, Source, Speak, Vary, Verify, load_recipe
from llasm.data_gen.respond import Respond as RespondStage
from llasm.data_gen.runner import read_block
from llasm.data_gen.vary import NOTHING_HEARD
from llasm.data_gen.vary import Vary as VaryStage
from llasm.data_gen.verify import fewest_errors
from llasm.errors import LlasmError
from llasm.records import records
from llasm.tts import load_voice

SHORT = ["Is it far?", "Where is the station?", "What time is it now?", "Who wrote this book?", "How old is the king?"]


def questions(path, n=5, text="{}"):
    rows = [{"id": f"q{i}", "messages": [{"role": "user", "content": text.format(SHORT[i % 5], i)}]} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def quick(source, output, **fields):
    """A recipe that needs neither the LLM nor Whisper."""
    settings = {"respond": Respond(answers="never"), "verify": Verify(asr="none"), "workers": 1, **fields}
    return Recipe(output=str(output), sources=[Source(path=str(source))], **settings)


def rows_of(output):
    return [record for _, record in records(str(output))]


def tree(folder):
    """Every file below a folder by the hash of its content."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


# ---- the whole


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The default recipe on a few questions: the real LLM answers, the real voice speaks, the real Whisper listens."""
    folder = tmp_path_factory.mktemp("built")
    rows = [
        {"id": "a", "messages": [{"role": "user", "content": "What is the capital of France?"}]},
        {
            "id": "b/2",
            "meta": {"source": "mine", "licence": "CC0-1.0"},
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "What do 3 apples cost at $2 each?"},
                {"role": "assistant", "content": "Six dollars."},
                {"role": "user", "content": "And ten apples?"},
            ],
        },
        {"id": "c", "messages": [{"role": "user", "content": "Visit https://example.org now"}]},
        {
            "id": "d",
            "messages": [{"role": "user", "content": "Qzxv wrlpt fnghk?"}, {"role": "assistant", "content": "So."}],
        },
    ]
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    respond = Respond(max_new_tokens=16)
    build(Recipe(output=str(folder / "out"), input=str(source), respond=respond, workers=1))
    return folder / "out"


def test_the_data_set_is_read_by_datasets_and_holds_the_contract(built):
    from datasets import Audio, List, load_dataset

    files = str(built / "data/*.parquet")
    found = load_dataset("parquet", data_files=files, split="train", cache_dir=str(built / "cache"))
    assert found.features["audios"] == List(Audio(sampling_rate=16_000))
    first, second = found.cast_column("audios", List(Audio(decode=False)))
    assert first["id"] == "a" and second["id"] == "b/2"
    assert [m["role"] for m in second["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert [p["type"] for m in second["messages"] for p in m["content"]] == ["text", "audio", "text", "audio", "text"]
    meta = second["meta"]
    assert meta["texts"] == ["What do 3 apples cost at $2 each?", "And ten apples?"]
    assert meta["source"] == "mine" and meta["licence"] == "CC0-1.0" and meta["language"] == "en"
    assert meta["voice"] == "heart" and meta["engine"] == "hibari"
    assert meta["answered_by"] == "smollm2-135m-instruct" and second["messages"][-1]["content"][0]["text"]
    for clip, seconds in zip(second["audios"], meta["seconds"]):
        assert len(audio.decode(clip["bytes"])) / 16_000 == pytest.approx(seconds, abs=0.01)


def test_whisper_heard_what_was_written(built):
    for row in rows_of(built):
        for text, heard, wer in zip(row["meta"]["texts"], row["meta"]["heard"], row["meta"]["wer"]):
            n_errors, n_words = fewest_errors(text, heard, "en")
            assert wer == pytest.approx(n_errors / n_words) and n_errors <= max(1, 0.2 * n_words)


def test_what_was_left_out_is_kept_aside_with_its_reason_and_both_texts(built):
    dropped = {row["id"]: row for row in map(json.loads, (built / "dropped.jsonl").read_text().splitlines())}
    assert dropped["c"]["reason"] == "url" and dropped["c"]["texts"] == ["Visit https://example.org now"]
    assert dropped["d"]["stage"] == "verify" and dropped["d"]["voice"] == "heart"
    assert "said: Qzxv wrlpt fnghk? | heard: " in dropped["d"]["detail"]
    assert dropped["c"]["origin"].endswith("in.jsonl:3")


def test_card_and_report_tell_the_figures(built):
    figures = json.loads((built / "stats.json").read_text())
    assert figures["total"]["rows"] == 2 and figures["voices"]["hibari:heart"]["misheard"] == 1
    assert figures["voices"]["hibari:heart"]["drop_rate"] == pytest.approx(1 / 3, abs=1e-3)
    card = (built / "README.md").read_text()
    assert "| mine | 1 |" in card and "CC0-1.0" in card and "hibari:heart" in card and "1 of 3 (33.3 %)" in card
    page = (built / "report.html").read_text()
    assert page.count("<audio") == 3 and page.count("<svg") == 3 and "What is the capital of France?" in page


def test_a_changed_recipe_redoes_just_what_the_change_touches(tmp_path):
    source = questions(tmp_path / "in.jsonl")
    build(quick(source, tmp_path / "out"))
    spoken = {file: file.stat().st_mtime_ns for file in (tmp_path / "out/.stages/speak").iterdir()}
    varied = Vary(variants=2, no_speech_share=0.5)
    build(quick(source, tmp_path / "out", vary=varied))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out/.stages/speak").iterdir()} == spoken
    rows = rows_of(tmp_path / "out")
    assert sum("~" in row["id"] for row in rows) == 10
    silent = [row for row in rows if row["id"].startswith("no-speech-")]
    assert silent and all(row["meta"]["texts"] == [""] and said(row) in NOTHING_HEARD["en"] for row in silent)
    clean = {row["id"]: row["audios"][0]["bytes"] for row in rows}
    assert all(clean[row["id"]] != clean[row["id"].partition("~")[0]] for row in rows if "~" in row["id"])


def test_nobody_speaks_for_a_moment_and_for_half_a_minute():
    rows = [{"id": str(i), "meta": {"language": "en", "seconds": []}} for i in range(80)]
    silent = VaryStage(Vary(no_speech_share=1.0), audio.MAX_PIECE_SECONDS, 0)(rows)[len(rows) :]
    seconds = sorted(row["meta"]["seconds"][0] for row in silent)
    assert seconds[0] >= 0.5 and seconds[20] < 2 and seconds[-1] > 20 and seconds[-1] <= audio.MAX_PIECE_SECONDS
    waves = [audio.decode(row["audios"][0]["bytes"]) for row in silent if row["meta"]["source"].endswith("silence")]
    assert 0 < sum(not wave.any() for wave in waves) < len(waves) / 2  # of a file


def test_whose_noise_it_is_stands_in_the_card(tmp_path):
    source = questions(tmp_path / "in.jsonl", 12, "{1} {0}")
    (tmp_path / "noise").mkdir()
    wave = effects.generated_noise(16_000, np.random.default_rng(0))
    audio.write_wav(tmp_path / "noise" / "hum.wav", wave, 16_000)
    vary = Vary(noise=[str(tmp_path / "noise")], no_speech_share=1.0, licence="CC-BY-3.0", attribution="Hum & Sons")
    build(quick(source, tmp_path / "out", vary=vary))
    rights = {
        row["meta"]["source"]: (row["meta"]["licence"], row["meta"]["attribution"]) for row in rows_of(tmp_path / "out")
    }
    assert rights["no speech: noise"] == ("CC-BY-3.0", "Hum & Sons")
    assert rights["no speech: music"] == ("generated", "")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Recordings of others, for noise: licence CC-BY-3.0, Hum & Sons." in card


def said(row):
    return row["messages"][-1]["content"][0]["text"]


@needs_espeak
def test_recordings_without_words_are_transcribed_in_the_language_that_is_heard(tmp_path):
    chinese, voice = load_voice("espeak-ng:cmn-latn-pinyin+f2")
    wave = chinese.synthesize("你好，今天天气很好，我们去公园散步吧。", voice)
    audio.write_wav(tmp_path / "zh.wav", audio.decode((chinese.sample_rate, wave)), 16_000)
    shutil.copy("examples/france.wav", tmp_path / "en.wav")
    (tmp_path / "broken.wav").write_bytes(wav_bytes(np.zeros(800), 16_000)[:600])  # a header that promises more
    names = ("zh", "en", "broken")
    (tmp_path / "clips.csv").write_text("audio\n" + "".join(f"{name}.wav\n" for name in names))
    sources = [Source(path=str(tmp_path / "clips.csv"), kind="speech", ask=["detail"])]
    recipe = quick(tmp_path, tmp_path / "out", verify=Verify(asr="none"))
    recipe.sources = sources
    build(recipe)
    rows = {row["meta"]["language"]: row for row in rows_of(tmp_path / "out")}
    assert asr.error_rate("What is the capital of France?", rows["en"]["meta"]["texts"][0]) == 0
    assert rows["zh"]["meta"]["transcribed_by"] == "whisper-base"
    [dropped] = map(json.loads, (tmp_path / "out/dropped.jsonl").read_text().splitlines())
    assert dropped["stage"] == "write" and dropped["reason"] == "unreadable audio"


def test_recordings_without_speech_or_sound_are_left_out_and_the_others_cut(tmp_path):
    folder = tmp_path / "talks"
    folder.mkdir()
    shutil.copy("examples/data/talk.ogg", folder)
    audio.write_wav(folder / "silent.wav", np.zeros(32_000, np.float32), 16_000)
    (folder / "broken.wav").write_bytes(wav_bytes(np.zeros(800), 16_000)[:600])
    recipe = quick(tmp_path, tmp_path / "out", verify=Verify(asr="none"), respond=Respond(max_new_tokens=32))
    recipe.sources = [Source(path=str(folder), kind="long_audio", ask=["conversation", "reply"])]
    build(recipe)
    dropped = {
        row["id"]: row["reason"] for row in map(json.loads, (tmp_path / "out/dropped.jsonl").read_text().splitlines())
    }
    assert dropped["silent"] == "no speech found" and dropped["broken"] == "unreadable audio"
    rows = rows_of(tmp_path / "out")
    assert rows and all(row["id"].startswith("talk-") and row["meta"]["texts"][0] for row in rows)
    assert all(row["messages"][-1]["role"] == "assistant" for row in rows)
    # The segments are one block of the LLM's, whatever recording they are cut from.
    assert len(list((tmp_path / "out/.stages/cut").iterdir())) == 3
    [written] = (tmp_path / "out/.stages/write").iterdir()
    assert {row["wish"] for row in read_block(tmp_path / "out/.stages", f"write/{written.stem}", clips=False)} == {
        row["id"] for row in rows
    }


@needs_espeak
def test_what_would_fail_late_is_told_before_any_work(tmp_path):
    source = questions(tmp_path / "in.jsonl")
    for fields, named in (
        ({"verify": Verify(asr="nosuch-asr")}, "nosuch-asr"),
        ({"vary": Vary(variants=1, noise=["nosuch_noise"])}, "nosuch_noise"),
    ):
        with pytest.raises(LlasmError, match=named):
            build(quick(source, tmp_path / "out", **fields))
        assert not (tmp_path / "out").exists()
    source.write_text(json.dumps({"messages": [{"role": "user", "content": "你好吗？"}]}) + "\n")
    chinese = Speak(voices=["espeak-ng:cmn-latn-pinyin+f2"])
    with pytest.raises(LlasmError, match=r"in\.jsonl:1: is in 'zh', and whisper-tiny\.en knows only English"):
        build(quick(source, tmp_path / "out", speak=chinese, verify=Verify(asr="whisper-tiny.en")))


def test_two_builds_in_one_folder_do_not_meet(tmp_path):
    from filelock import FileLock

    build(quick(questions(tmp_path / "in.jsonl"), tmp_path / "out"))
    with FileLock(tmp_path / "out/.stages/lock"), pytest.raises(LlasmError, match="another llasm data build"):
        build(quick(tmp_path / "in.jsonl", tmp_path / "out"))


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("mine")
    with pytest.raises(LlasmError, match="choose another --output"):
        build(quick(questions(tmp_path / "in.jsonl"), tmp_path / "out"))


# ---- stages


def test_answers_come_from_the_words_of_recordings_and_truncation_is_marked(monkeypatch):
    class Generator:
        def generate(self, batch, max_new_tokens):
            self.batch = batch
            return [("Paris.", False), ("It is a long story that", True), ("I don't know.", False)]

    generator = Generator()
    parts = [{"type": "audio", "text": "France is nice."}, {"type": "text", "text": "Its capital?"}]
    rows = [
        {"id": str(i), "messages": [{"role": "user", "content": parts}], "audios": [None], "meta": {}} for i in range(3)
    ]
    mute = {**rows[0], "messages": [{"role": "user", "content": [{"type": "audio", "text": None}]}]}
    monkeypatch.setattr(respond, "generator_for", lambda llm, url: generator)
    done = RespondStage("x", None, False, 8, Recipe(output="x", input="y").filter, 0.0, 0)([*rows, mute])
    assert generator.batch[0] == [{"role": "user", "content": "France is nice.\nIts capital?"}]
    assert [row["meta"].get("truncated") for row in done] == [False, True, False, None]
    assert [row.get("dropped", {}).get("reason") for row in done] == [
        None, None, "answer without information", "no transcript to answer",
    ]  # fmt: skip


def test_the_round_trip_takes_either_spelling():
    assert fewest_errors("It costs $5.", "It costs five dollars", "en")[0] == 0
    assert fewest_errors("It costs $5.", "It costs $5.", "en")[0] == 0
    assert fewest_errors("Burkes first name", "Burke's first name", "en")[0] == 0
    assert fewest_errors("Is it far?", "Is it near?", "en") == (1, 3)
    assert fewest_errors("我花了100元", "我花了一百元", "zh")[0] == 0
    assert fewest_errors("頭髮", "头发", "zh")[0] == 0


# ---- engines from elsewhere


def test_an_openai_server_speaks_and_answers(monkeypatch, tmp_path):
    """A server of one's own with OpenAI's shapes, over HTTP: speech, answers, truncation, and an error."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    engine, heart = load_voice("hibari")
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body))
            if self.path.endswith("/speech"):
                wave = engine.synthesize(body["input"], heart, body["speed"])
                content, kind = wav_bytes(wave, engine.sample_rate), "audio/wav"
            else:
                message = {"role": "assistant", "content": "Fine."}
                choice = {"index": 0, "message": message, "finish_reason": "length"}
                answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                content, kind = json.dumps(answer).encode(), "application/json"
            refused = any("forbidden" in message["content"] for message in body.get("messages", []))
            self.send_response(404 if body["model"] == "nosuch" else 400 if refused else 200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("LLASM_TTS_VOICES", "ann, 李=zh-CN")
    try:
        source = questions(tmp_path / "in.jsonl", n=2)
        respond = Respond(llm="m", url=url, max_new_tokens=7)
        build(quick(source, tmp_path / "out", respond=respond, speak=Speak(voices=["openai:ann"])))
        rows = rows_of(tmp_path / "out")
        assert [said(row) for row in rows] == ["Fine.", "Fine."] and all(row["meta"]["truncated"] for row in rows)
        assert {body["voice"] for path, body in asked if path == "/v1/audio/speech"} == {"ann"}
        assert {body["max_tokens"] for path, body in asked if path == "/v1/chat/completions"} == {7}
        stage = RespondStage("m", url, False, 7, Recipe(output="x", input="y").filter, 0.0, 0)
        texts = ["Fine?", "A forbidden thing?", "And a forbidden one?"]
        rows = [
            {"id": text, "messages": [{"role": "user", "content": [{"type": "audio", "text": text}]}], "meta": {}}
            for text in texts
        ]
        done = stage(rows)
        assert said(done[0]) == "Fine." and [row["dropped"]["reason"] for row in done[1:]] == 2 * [
            "refused by the server"
        ]
        assert "400" in done[1]["dropped"]["detail"]
        with pytest.raises(LlasmError, match=r"refuses every request: .*400"):
            stage(rows[1:])
        bad = quick(source, tmp_path / "bad", respond=Respond(llm="nosuch", url=url))
        with pytest.raises(LlasmError, match=r"v1: .*404"):
            build(bad)
    finally:
        server.shutdown()


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_answered_rows_goes_on_up_to_the_fourth_turn(monkeypatch, share):
    asked = []

    class Echo:
        def generate(self, conversations, max_new_tokens):
            asked.extend(conversations)
            return [(f"About {len(turns)} turns.", False) for turns in conversations]

    monkeypatch.setattr(respond, "generator_for", lambda llm, url: Echo())
    stage = RespondStage("m", None, False, 7, Recipe(output="x", input="y").filter, share, 0)

    def row(name, text, language="en", source="a", more=()):
        turn = {"role": "user", "content": [{"type": "audio", "text": text}]}
        meta = {"language": language, "source": source, "answered_by": "", "truncated": False}
        return {"id": name, "messages": [turn, *more], "audios": [None], "meta": meta}

    answer = {"role": "assistant", "content": [{"type": "text", "text": "Water."}]}
    questions = [f"What is number {i}?" for i in range(80)]
    rows = [row(str(i), text) for i, text in enumerate(questions)]
    given = row("given", "What is a fjord?", more=[answer])
    recorded = {**row("recorded", "A mumbled line."), "audios": [{"bytes": b""}]}
    chinese, licensed = row("zh", "你好吗？", "zh"), row("licensed", "Who owns it?", source="b")
    *done, untouched, heard, other, apart = stage([*rows, given, recorded, chinese, licensed])
    assert untouched == given
    # The only ones of a language or a source have nobody's question to go on with.
    for single, language in ((other, "zh"), (apart, "en")):
        asked_next = [p["text"] for m in single["messages"][2::2] for p in m["content"]]
        assert set(asked_next) <= set(respond.FOLLOW_UPS[language])
    for n_turns in (2, 3, 4):
        n = sum(len(row["messages"]) >= 2 * n_turns for row in done)
        before = sum(len(row["messages"]) >= 2 * n_turns - 2 for row in done)
        assert share * before - 15 <= n <= share * before + 15 and (share not in (0, 1) or n == share * 80)
    assert max(len(row["messages"]) for row in done) == (2 if share == 0 else 8)
    for row in done:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert row["audios"] == [None] * (len(roles) // 2) and said(row) == f"About {len(roles) - 1} turns."
    turns = [m["content"][0]["text"] for row in done for m in row["messages"][2::2]]
    changes = [text for text in turns if text in questions]
    assert len(turns) * 0.35 <= len(changes) <= len(turns) * 0.65
    assert all(text in respond.FOLLOW_UPS["en"] for text in turns if text not in questions)
    for row in done:  # nobody asks again what is already asked
        words = [m["content"][0]["text"] for m in row["messages"][::2] if m["content"][0]["text"] in questions]
        assert len(words) == len(set(words))
    longer = [len(row["messages"]) // 2 - 1 for row in (heard, other, apart)]
    assert len(asked) == 83 + len(turns) + sum(longer)


def test_an_answer_cut_off_in_the_middle_marks_the_conversation(monkeypatch):
    class Cut:
        def generate(self, conversations, max_new_tokens):
            return [("About it.", len(turns) == 1) for turns in conversations]

    monkeypatch.setattr(respond, "generator_for", lambda llm, url: Cut())
    stage = RespondStage("m", None, True, 7, Recipe(output="x", input="y").filter, 1.0, 0)
    turn = {"role": "user", "content": [{"type": "audio", "text": "What is a fjord?"}]}
    old = {"role": "assistant", "content": [{"type": "text", "text": "Wat"}]}
    meta = {"language": "en", "source": "a", "truncated": True}
    whole = [turn, {**old, "content": [{"type": "text", "text": "Water."}]}, turn, old]
    rows = [
        {"id": "cut", "messages": [turn, old], "audios": [None], "meta": meta},
        {"id": "whole", "messages": whole, "audios": [None, None], "meta": meta},
    ]
    cut, answered = stage(rows)
    assert len(cut["messages"]) == 8 and cut["meta"]["truncated"]
    assert len(answered["messages"]) == 4 and not answered["meta"]["truncated"]  # the answer cut off is gone


def wav_bytes(wave, sample_rate):
    import io

    import soundfile

    out = io.BytesIO()
    soundfile.write(out, wave, sample_rate, format="WAV")
    return out.getvalue()


def test_an_engine_from_outside_is_one_file(monkeypatch, tmp_path):
    """A package that is not ours, found by its entry point, with a voice for each language."""
    (tmp_path / "beeper.py").write_text(
        "import numpy as np\n"
        "from llasm.tts import Voice, find_voice, with_peak\n"
        "class Beeper:\n"
        "    name, sample_rate = 'beeper', 8000\n"
        "    def voices(self):\n"
        "        pairs = (('low', 'en-US'), ('high', 'zh-CN'), ('mid', 'en-GB'))\n"
        "        return [Voice(name, language, 'none', 'CC0-1.0') for name, language in pairs]\n"
        "    def synthesize(self, text, voice, speed=1.0, seed=0):\n"
        "        find_voice(self, voice)\n"
        "        tone = {'low': 200, 'mid': 400, 'high': 800}[voice]\n"
        "        return with_peak(np.sin(np.arange(int(400 * len(text) / speed)) * tone / 1300), text)\n"
    )
    info = tmp_path / "beeper-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: beeper\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[llasm.tts]\nbeeper = beeper:Beeper\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = questions(tmp_path / "in.jsonl", n=30, text="{} Number {}?")
    with open(source, "a") as out:
        out.write(json.dumps({"id": "zh", "messages": [{"role": "user", "content": "你好吗？"}]}) + "\n")
    build(quick(source, tmp_path / "out", speak=Speak(voices=["beeper:*"], speed=(1.0, 1.0))))
    voices = {row["id"]: row["meta"]["voice"] for row in rows_of(tmp_path / "out")}
    assert voices.pop("zh") == "high" and set(voices.values()) == {"low", "mid"} and len(voices) == 30
    build(quick(source, tmp_path / "english", speak=Speak(voices=["beeper:low"])))
    [dropped] = map(json.loads, (tmp_path / "english/dropped.jsonl").read_text().splitlines())
    assert dropped["id"] == "zh" and dropped["reason"] == "no voice"


# ---- runners and interruptions


@pytest.mark.slow
def test_one_worker_two_workers_and_ray_make_the_same_data_set(tmp_path):
    source = questions(tmp_path / "in.jsonl", n=140, text="{} I mean number {}.")
    verify, vary = Verify(asr="whisper-tiny.en"), Vary(variants=1, no_speech_share=0.1)
    made = {}
    for name, fields in {"one": {"workers": 1}, "two": {"workers": 2}, "ray": {"workers": 2, "runner": "ray"}}.items():
        respond = Respond(max_new_tokens=4)
        build(quick(source, tmp_path / name, respond=respond, verify=verify, vary=vary, **fields))
        made[name] = tree(tmp_path / name)
    assert len(rows_of(tmp_path / "one")) > 200
    # The report names the folder; everything else is the same, file by file, the stages' blocks too.
    assert len({json.dumps({k: v for k, v in files.items() if k != "report.html"}) for files in made.values()}) == 1


@pytest.mark.slow
def test_killed_at_random_it_ends_as_if_undisturbed_and_redoes_nothing(tmp_path):
    source = questions(tmp_path / "in.jsonl", n=400, text="{} I mean number {}.")

    (tmp_path / "clips").mkdir()
    for number in range(24):
        shutil.copy("examples/france.wav", tmp_path / f"clips/{number}.wav")
    recipe = {
        "sources": [{"path": str(source)}, {"kind": "long_audio", "path": str(tmp_path / "clips"), "ask": ["reply"]}],
        "respond": {"max_new_tokens": 4}, "verify": {"asr": "whisper-tiny.en"}, "vary": {"variants": 1},
        "filter": {"near_duplicates": 1.0}, "workers": 2, "shard_rows": 128,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))

    def start(output):
        command = [sys.executable, "-m", "llasm.cli", "data", "build", str(tmp_path / "recipe.yaml")]
        command += ["--output", str(output)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    def finished(output):
        files = (output / ".stages").rglob("*.parquet")
        return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files if file.name[0] != "."}

    (tmp_path / "calm").mkdir()
    assert start(tmp_path / "calm/out").wait() == 0
    n_blocks = len(finished(tmp_path / "calm/out"))

    (tmp_path / "killed").mkdir()
    output = tmp_path / "killed/out"
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed of the moments:", seed)
    draw = random.Random(seed)
    before: dict = {}
    for n_finished in sorted(draw.sample(range(1, n_blocks - 4), 3)):
        process = start(output)
        while len(finished(output)) < n_finished:
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.3))
        assert process.poll() is None  # it is at work
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive  # no worker outlives its parent
        now = finished(output)
        assert len(now) >= n_finished and before.items() <= now.items()
        before = now
    assert start(output).wait() == 0
    assert before.items() <= finished(output).items()
    assert tree(tmp_path / "calm/out") == tree(output)


@pytest.mark.slow
@needs_espeak
def test_the_long_recipe_in_two_languages_runs_with_a_tiny_model(tmp_path):
    recipe = load_recipe(["zh_en", "--output", str(tmp_path / "out"), "--respond.max_new_tokens", "16"])
    build(recipe)
    rows = rows_of(tmp_path / "out")
    sources = {row["meta"]["source"] for row in rows}
    assert {"conversations", "sharegpt", "self", "questions", "talk"} <= sources
    assert {row["meta"]["language"] for row in rows} == {"en", "zh"}
    assert {"espeak-ng", "hibari", ""} == {row["meta"]["engine"] for row in rows}
    assert any(source.startswith("no speech") for source in sources)
    clean = [row for row in rows if not row["meta"]["variation"] and not row["meta"]["source"].startswith("no speech")]
    assert len([row for row in rows if row["meta"]["variation"]]) == len(clean)
    recordings = [row for row in clean if row["meta"]["source"] in ("questions", "talk")]
    assert any(part["type"] == "text" for row in recordings for part in row["messages"][0]["content"])
    [tea] = [row for row in clean if row["id"] == "tea"]
    assert len(tea["audios"]) == 2 and len(tea["messages"]) == 4
