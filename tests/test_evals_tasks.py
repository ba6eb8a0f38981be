"""Each task reads the layout that its authors publish (made here by hand, after theirs)."""

import json

import numpy as np
import pytest
import soundfile

from llasm import audio
from llasm.errors import LlasmError
from llasm.evals import task
from llasm.evals.conditions import Condition, Variation, heard, messages
from llasm.evals.items import Item, from_row, hashed
from llasm.evals.predict import transcribed
from llasm.evals.tasks import TASKS
from llasm.evals.voicebench import options_in
from llasm.evals.voiced import voiced


def clip(path, seconds=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.ones(int(16000 * seconds), np.float32), 16000)


def jsonl(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(task, place, limit=None):
    items = TASKS[task].read(str(place), limit)
    assert not [item.fault for item in items if item.fault]
    return items


def test_llama_questions(tmp_path):
    clip(tmp_path / "1.wav")
    table = 'Questions\tAnswer\tWav Filename\nWho painted "Mona Lisa"?\tLeonardo da Vinci \t1.wav\n'
    (tmp_path / "llama_questions_300.tsv").write_text(table)
    [item] = read("llama_questions", tmp_path)
    assert item.question == 'Who painted "Mona Lisa"?' and item.answers == ("Leonardo da Vinci",)
    assert len(audio.decode(item.audio[0])) == 1600


def test_webquestions_in_both_layouts(tmp_path):
    target = '(list (description "Jazmyn Bieber") (description Jaxon))'
    rows = [{"url": "u", "utterance": "who is bieber's sister?", "targetValue": target}]
    (tmp_path / "a").mkdir()
    (tmp_path / "a/webquestions.examples.test.json").write_text(json.dumps(rows))
    [item] = read("webquestions", tmp_path / "a")
    assert item.answers == ("Jazmyn Bieber", "Jaxon") and item.question == "who is bieber's sister?"
    jsonl(tmp_path / "b/webquestions_devtest.jsonl", {"id": "w-0", "question": "where?", "answers": ["Bali"]})
    jsonl(tmp_path / "b/webquestions_val.jsonl", {"id": "w-1", "question": "who?", "answers": ["Me"]})
    jsonl(tmp_path / "b/open_trivia.jsonl", {"id": "o"})
    assert [item.id for item in read("webquestions", tmp_path / "b", limit=200)] == ["w-0"]
    assert [item.id for item in read("webquestions", tmp_path / "b/webquestions_val.jsonl")] == ["w-1"]
    (tmp_path / "b/webquestions_devtest.jsonl").unlink()
    jsonl(tmp_path / "b/webquestions_trainmodel.jsonl", {"id": "w-2", "question": "who?", "answers": ["Me"]})
    with pytest.raises(LlasmError, match=r"give one as data: webquestions_trainmodel\.jsonl, webquestions_val\.jsonl"):
        TASKS["webquestions"].read(str(tmp_path / "b"))
    jsonl(tmp_path / "a/webquestions.examples.train.json", {"utterance": "no test", "targetValue": target})
    assert len(read("webquestions", tmp_path / "a")) == 1


def test_triviaqa(tmp_path):
    answer = {"Value": "Sinclair Lewis", "Aliases": ["Lewis", "Sinclair Lewis"], "NormalizedAliases": []}
    record = {"Question": "Who was first?", "QuestionId": "tc_1", "Answer": answer}
    (tmp_path / "qa").mkdir()
    (tmp_path / "qa/wikipedia-dev.json").write_text(json.dumps({"Data": [record], "Version": 1.0}))
    [item] = read("triviaqa", tmp_path)
    assert item.id == "tc_1" and item.answers == ("Sinclair Lewis", "Lewis")
    (tmp_path / "qa/web-dev.json").write_text(json.dumps({"Data": [record], "Version": 1.0}))
    assert len(read("triviaqa", tmp_path)) == 1
    (tmp_path / "qa/wikipedia-dev.json").write_text("[]")
    with pytest.raises(LlasmError, match="another layout"):
        TASKS["triviaqa"].read(str(tmp_path))


def test_nq_open(tmp_path):
    jsonl(tmp_path / "NQ-open.dev.jsonl", {"question": "when was it", "answer": ["14 December 1972", "1972"]})
    [item] = read("nq_open", tmp_path)
    assert item.answers == ("14 December 1972", "1972") and item.id == "NQ-open.dev-1"
    for name in ("NQ-open.train.jsonl", "NQ-open.efficientqa.dev.1.1.jsonl"):
        jsonl(tmp_path / name, {"question": "of another split", "answer": ["x"]})
    assert read("nq_open", tmp_path) == [item]


def test_sd_qa(tmp_path):
    folder = tmp_path / "dev/eng/aus"
    answered = {"example_id": -12, "question": "win was it", "answers": ["1920s"], "has_answer": True}
    unanswered = {"example_id": 13, "question": "why", "answers": [], "answer": "-1", "has_answer": False}
    for recogniser in ("en-AU", "en-US"):
        jsonl(folder / f"english.dev.aus-{recogniser}.triples.jsonl", answered, unanswered)
    (tmp_path / "dev/eng/english.dev.txt").write_text("ID\tin XOR dev\tsentence\n-12\tFalse\tWhen was it?\n")
    clip(folder / "wav_eng/-12.wav")
    [item] = read("sd_qa", tmp_path)
    assert item.question == "When was it?" and item.group == "eng/aus" and item.answers == ("1920s",)
    assert len(audio.decode(item.audio[0])) == 1600


def test_sd_qa_in_another_language(tmp_path):
    row = {"example_id": 1, "question": "q", "answers": ["x"], "has_answer": True}
    for language in ("swa", "kor"):
        jsonl(tmp_path / f"dev/{language}/xyz/a.triples.jsonl", row)
    found = read("sd_qa", tmp_path)  # without wav_*/, the clips lie beside the table
    assert [(i.id, i.group, i.language) for i in found] == [
        ("kor/xyz/1", "kor/xyz", "ko"),
        ("swa/xyz/1", "swa/xyz", "sw"),
    ]
    assert found[0].audio == (str(tmp_path / "dev/kor/xyz/1.wav"),)


def test_spoken_squad(tmp_path):
    answers = [{"answer_start": 1, "text": "denver broncos"}] * 3
    qas = [{"answers": answers, "question": "Which team?", "id": "56be"}]
    data = {"data": [{"title": "t", "paragraphs": [{"context": "super bowl fifty. it was.", "qas": qas}]}]}
    (tmp_path / "spoken_test-v1.1.json").write_text(json.dumps(data))
    for i in (0, 1, 10, 2):
        clip(tmp_path / f"dev_wav/0_0_{i}.wav")
    [item] = read("spoken_squad", tmp_path)
    assert item.answers == ("denver broncos",) and item.typed == "Which team?" and item.question.startswith("super")
    assert [path.rpartition("_")[2] for path in item.audio] == ["0.wav", "1.wav", "2.wav", "10.wav"]


def test_voicebench(tmp_path):
    import pyarrow
    import pyarrow.parquet

    clip(tmp_path / "x.wav")
    sound = {"bytes": (tmp_path / "x.wav").read_bytes(), "path": "x.wav"}

    def subset(name, **columns):
        (tmp_path / name).mkdir()
        table = pyarrow.table({"audio": [sound], **{key: [value] for key, value in columns.items()}})
        pyarrow.parquet.write_table(table, tmp_path / name / "test-00000-of-00001.parquet")

    prompt = "What is wet? \nA. fire\nB. water\nC. sand\nD. air"
    subset("commoneval", prompt="How are you?")
    subset("sd-qa", prompt="When was it?", reference="the 1920s")
    subset("openbookqa", prompt=prompt, reference="B")
    [item] = read("voicebench_open", tmp_path / "commoneval")
    assert item.kind == "open" and item.group == "commoneval" and len(audio.decode(item.audio[0])) == 1600
    [item] = read("voicebench_qa", tmp_path / "sd-qa")
    assert item.answers == ("the 1920s",)
    [item] = read("voicebench_choice", tmp_path / "openbookqa")
    assert item.answers == ("B",) and item.choices == {"A": "fire", "B": "water", "C": "sand", "D": "air"}
    assert options_in("Pick one: A) red B) dark blue") == {"A": "red", "B": "dark blue"}
    assert options_in("no options here") == {"A": "", "B": "", "C": "", "D": ""}


def test_big_bench_audio(tmp_path):
    rows = [
        {"id": 0, "category": "formal_fallacies", "official_answer": "invalid", "file_name": "data/question_0.mp3"},
        {"id": 1, "category": "object_counting", "official_answer": "7", "file_name": "data/question_1.mp3"},
    ]
    jsonl(tmp_path / "metadata.jsonl", *rows)
    first, second = read("big_bench_audio", tmp_path)
    assert first.kind == "choice" and first.answers == ("invalid",) and first.group == "formal_fallacies"
    assert second.kind == "qa" and second.audio == (str(tmp_path / "data/question_1.mp3"),)


def test_custom_tables(tmp_path):
    (tmp_path / "questions.csv").write_text("audio,question,answers\n1.wav,Which city?,Rome|Roma\n")
    [item] = read("custom", tmp_path)
    assert item.answers == ("Rome", "Roma") and item.audio == (str(tmp_path / "1.wav"),)
    jsonl(tmp_path / "c.jsonl", {"text": "Which?", "choices": ["red", "blue"], "answer": "Blue"})
    [item] = read("custom", tmp_path / "c.jsonl")
    assert item.kind == "choice" and item.answers == ("B",) and item.typed.startswith("A. red\nB. blue\n")
    jsonl(tmp_path / "d.jsonl", {"text": "Which?", "choices": ["red", "blue"], "answer": "green"})
    [item] = TASKS["custom"].read(str(tmp_path / "d.jsonl"))
    assert "none of the choices" in item.fault
    (tmp_path / "metadata.csv").write_text("file_name,question,answer\nx.flac,How many?,0\n")
    [item] = read("custom", tmp_path)
    assert item.answers == ("0",) and item.audio == (str(tmp_path / "x.flac"),)


@pytest.mark.parametrize(
    ("fields", "answers", "fault"),
    [
        ({"answers": {"text": ["Rome", None]}}, ("Rome",), ""),
        ({"answers": [7, 1.5, True]}, ("7", "1.5", "True"), ""),
        ({"answers": [None]}, (), "no answer to compare with"),
        ({"answers": [float("nan")]}, (), "found NaN"),
        ({"answers": {"value": "x"}}, (), "no field 'text'"),
        ({"answers": [{"x": 1}]}, (), "no field 'text'"),
        ({"question": ["a", "b"], "answers": "x"}, (), "expected text, found list"),
        ({"audio": 5, "answers": "x"}, (), "its audio is neither a path nor sound, but int"),
        ({"audio": {"path": None}, "answers": "x"}, (), "its audio is neither"),
    ],
)
def test_malformed_fields_are_faults_of_their_row(tmp_path, fields, answers, fault):
    jsonl(tmp_path / "a.jsonl", {"question": "q", **fields}, {"question": "good", "answers": "y"})
    bad, good = TASKS["custom"].read(str(tmp_path))
    assert good.answers == ("y",) and not good.fault
    assert bad.answers == answers and fault in bad.fault and bool(fault) == bool(bad.fault)


def test_rows_that_are_no_objects_are_faults(tmp_path):
    (tmp_path / "a.jsonl").write_text("5\n[1]\n")
    assert all("expected an object" in item.fault for item in TASKS["custom"].read(str(tmp_path)))


def test_heads_of_tables_in_another_case(tmp_path):
    (tmp_path / "q.csv").write_text("Audio,Question , ANSWERS\n1.wav,Which city?,Rome|Roma\n")
    [item] = read("custom", tmp_path)
    assert item.answers == ("Rome", "Roma") and item.question == "Which city?" and item.audio


def test_a_hub_subset_is_its_group(tmp_path, monkeypatch):
    row = {"prompt": "How?", "audio": {"bytes": b"x"}}
    monkeypatch.setattr(task, "records", lambda data, split: iter([("hlt-lab/voicebench:1", row)]))
    [item] = TASKS["voicebench_open"].read(None)
    assert item.group == "commoneval" and item.id == "commoneval/test-1"


def test_transcription_and_no_speech(tmp_path):
    jsonl(tmp_path / "manifest.jsonl", {"id": "a", "audio": "a.flac", "text": "It was late."})
    [item] = read("transcription", tmp_path)
    assert item.answers == ("It was late.",) and "Repeat" in item.typed
    generated = TASKS["no_speech"].read(None)
    assert {item.group for item in generated} == {"silence", "noise", "music"}
    assert [hashed(i).clip_hashes for i in generated] == [hashed(i).clip_hashes for i in TASKS["no_speech"].read(None)]
    clip(tmp_path / "fan/1.wav")
    [item] = TASKS["no_speech"].read(str(tmp_path / "fan"))
    assert item.id == "1.wav"


def test_a_folder_without_the_layout_is_an_error(tmp_path):
    with pytest.raises(LlasmError, match=r"holds no llama_questions_300\.tsv"):
        TASKS["llama_questions"].read(str(tmp_path))


def test_an_item_and_its_row(tmp_path):
    clip(tmp_path / "a.wav")
    item = hashed(Item(id="1", task="custom", question="q", answers=("a", "b"), audio=(str(tmp_path / "a.wav"),)))
    assert from_row(json.loads(json.dumps(item.row()))) == item


def test_questions_without_audio_are_spoken_once(tmp_path, monkeypatch):
    monkeypatch.setenv("LLASM_HOME", str(tmp_path))
    items = [Item(id="1", task="t", question="What is the capital of France?"), Item(id="2", task="t", question="?!")]
    first, second = voiced(items, "hibari")
    assert 1 < len(audio.decode(first.audio[0])) / 16000 < 4 and "nothing to speak" in second.fault
    [made] = (tmp_path / "voiced").glob("*.flac")
    stamp = made.stat().st_mtime_ns
    assert voiced(items, "hibari")[0] == first and made.stat().st_mtime_ns == stamp


def test_what_befalls_the_audio(tmp_path):
    rng = np.random.default_rng(0)
    wave = (0.3 * np.sin(np.arange(32000) * 0.2) + 0.001 * rng.standard_normal(32000)).astype(np.float32)
    item = Item(id="1", task="t", audio=(wave,))
    for name, value in (("snr", 10.0), ("speed", 2.0), ("telephone", None)):
        condition = Condition("speech", Variation(name, value))
        assert Condition.parse(str(condition)) == condition
        [changed] = heard(item, condition, None)
        assert np.array_equal(changed, heard(item, condition, None)[0])
        assert len(changed) == pytest.approx(16000 if name == "speed" else 32000, rel=0.02)
        if name == "snr":
            noise = changed * (np.abs(wave).max() / np.abs(wave).max()) - wave
            ratio = 10 * np.log10(np.mean(wave**2) / np.mean(noise**2))
            assert ratio == pytest.approx(10, abs=1.5)
    assert Condition.parse("cascade@snr-2.5") == Condition("cascade", Variation("snr", -2.5))


def test_follow_ups_of_our_own():
    items = TASKS["follow_up"].read(None)
    assert len(items) == 50 and all(len(item.before) == 1 and not item.fault for item in items)
    for item in items:  # the first turn must be needed: the question alone does not hold the answer
        told = item.before[0][0].lower()
        assert any(answer.lower()[:4] in told for answer in item.answers)
        assert not any(answer.lower() in item.question.lower().split() for answer in item.answers)


def test_earlier_turns_are_spoken_typed_and_transcribed(tmp_path, monkeypatch):
    monkeypatch.setenv("LLASM_HOME", str(tmp_path / "home"))
    before = [["Who painted the Mona Lisa?", "Leonardo da Vinci."]]
    jsonl(tmp_path / "q.jsonl", {"before": before, "question": "Where was he born?", "answers": ["Vinci"]})
    [item] = voiced(read("custom", tmp_path), "hibari")
    waves = heard(item, Condition("speech"), None)
    assert len(waves) == 2 and from_row(hashed(item).row()).before == item.before
    first, answer, second = messages(item, None, waves)
    assert [len(turn["content"]) for turn in (first, second)] == [1, 1]
    assert first["content"][0]["audio"] is waves[0] and second["content"][0]["audio"] is waves[1]
    assert answer == {"role": "assistant", "content": "Leonardo da Vinci."}

    class Lengths:
        def transcribe(self, waves, language):
            return [f"{len(wave)} " for wave in waves]

    [words] = transcribed(Lengths(), [item], [waves])
    assert words == [str(len(wave)) for wave in waves]
    assert [turn["content"] for turn in messages(item, words, [])] == [words[0], "Leonardo da Vinci.", words[1]]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"before": "Hello", "question": "And?"}, "it must be [[question, answer], …]"),
        ({"before": [["Hello", "Hi."]], "audio": "1.wav"}, "1 clips for 2 turns"),
    ],
)
def test_malformed_earlier_turns_are_faults(tmp_path, fields, fault):
    clip(tmp_path / "1.wav")
    jsonl(tmp_path / "q.jsonl", {"answers": ["a"], **fields})
    [item] = TASKS["custom"].read(str(tmp_path))
    assert fault in item.fault


def test_tables_of_one_name_in_several_folders(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "metadata.csv").write_text("question,answers\nWho?,Me\n")
    assert [(item.id, item.group) for item in read("custom", tmp_path)] == [
        ("test/metadata-2", "test/metadata"),
        ("train/metadata-2", "train/metadata"),
    ]


@pytest.mark.parametrize(("name", "wanted"), [("a.csv", "commas"), ("a.tsv", "tabs")])
def test_a_table_with_another_delimiter_is_told(tmp_path, name, wanted):
    (tmp_path / name).write_text("question;answers\nWho?;Me\n")
    with pytest.raises(LlasmError, match=f"one field, 'question;answers'; {wanted} must be between"):
        TASKS["custom"].read(str(tmp_path))


def test_a_column_of_answers_that_is_missing_is_named(tmp_path):
    (tmp_path / "a.csv").write_text("question,solution\nWho?,Me\n")
    [item] = TASKS["custom"].read(str(tmp_path))
    assert "no column answers, answer, reference or output; its columns are 'question', 'solution'" in item.fault
