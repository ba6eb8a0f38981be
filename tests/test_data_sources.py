"""Reading: every layout, what is wrong with a row, the mixture, the filter, and what export writes back."""

import json
import tarfile
from itertools import pairwise

import numpy as np
import pytest

from llasm import audio, vad
from llasm.cli import main
from llasm.data_gen.check import check
from llasm.data_gen.export import FORMATS, export
from llasm.data_gen.filter import answer_fault, filter_rows, prompt_fault
from llasm.data_gen.pack import opus_bytes, to_record, write_shard
from llasm.data_gen.recipe import Filter, Recipe, Source, load_recipe
from llasm.data_gen.rows import messages_of
from llasm.data_gen.sources import mixed, read
from llasm.errors import LlasmError
from llasm.options import recipe_names
from llasm.records import BadRow, locate, records


def tone(seconds=0.5, frequency=440):
    time = np.arange(int(seconds * audio.SAMPLE_RATE)) / audio.SAMPLE_RATE
    return (0.3 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def question(text, **fields):
    return {"messages": [{"role": "user", "content": text}], **fields}


def read_all(*sources, **fields):
    faults = []
    recipe = Recipe(output="unused", sources=list(sources), **fields)
    rows, notes = mixed(read(recipe, faults.append), recipe)
    return rows, faults + notes


def said(row):
    return [part["text"] for message in row["messages"] for part in message["content"]]


# ---- layouts


def test_messages_llava_and_sharegpt_are_the_same_conversation(tmp_path):
    audio.write_wav(tmp_path / "a.wav", tone(), audio.SAMPLE_RATE)
    ours = {
        "messages": [
            {"role": "user", "content": [{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "Which note?"}]},
            {"role": "assistant", "content": "An A."},
        ]
    }
    llava = {
        "audio": "a.wav",
        "conversations": [{"from": "human", "value": "<audio>\nWhich note?"}, {"from": "gpt", "value": "An A."}],
    }
    jsonl(tmp_path / "ours.jsonl", [ours])
    (tmp_path / "llava.json").write_text(json.dumps([llava]))
    rows, faults = read_all(Source(path=str(tmp_path / "ours.jsonl")), Source(path=str(tmp_path / "llava.json")))
    assert not faults
    first, second = rows
    assert first["messages"] == second["messages"]
    assert first["audios"][0]["sha256"] == second["audios"][0]["sha256"]


def test_columns_of_tables_parquet_and_saved_data_sets_are_mapped(tmp_path):
    from datasets import Dataset

    rows = {"question": ["Is it far?", "Is it near?"], "response": ["No.", "Yes."]}
    Dataset.from_dict(rows).save_to_disk(str(tmp_path / "saved"))
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "rows.parquet"))
    (tmp_path / "rows.csv").write_text("question,response\nIs it far?,No.\nIs it near?,Yes.\n")
    (tmp_path / "rows.tsv").write_text("question\tresponse\nIs it far?\tNo.\nIs it near?\tYes.\n")
    for name in ("saved", "rows.parquet", "rows.csv", "rows.tsv"):
        columns = {"prompt": "question", "answer": "response"}
        found, faults = read_all(Source(path=str(tmp_path / name), columns=columns))
        assert not faults
        assert [said(row) for row in found] == [["Is it far?", "No."], ["Is it near?", "Yes."]]


def test_the_split_of_a_saved_dict_and_the_configuration_of_a_hub_set_are_respected(tmp_path, monkeypatch):
    import datasets

    parts = {name: datasets.Dataset.from_dict({"q": [f"Is it for {name}?"]}) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    for split in ("train", "test"):
        rows, _ = read_all(Source(path=str(tmp_path / "saved"), split=split, columns={"prompt": "q"}))
        assert [said(row) for row in rows] == [[f"Is it for {split}?"]]
    with pytest.raises(LlasmError, match=r"no split 'dev'; .*train, test"):
        read_all(Source(path=str(tmp_path / "saved"), split="dev"))
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        return parts["test"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for path in ("some/set", "some/set:en-v1.0", "some/set:en:dev"):
        assert [where for where, _ in records(path)] == ["some/set:1"]
    assert asked == [("some/set", None, "train"), ("some/set", "en-v1.0", "train"), ("some/set", "en", "dev")]


def test_json_lines_are_read_under_the_name_of_json(tmp_path):
    path = jsonl(tmp_path / "rows.json", [question("One?"), question("Two?")])
    rows, faults = read_all(Source(path=str(path)))
    assert not faults and [said(row) for row in rows] == [["One?"], ["Two?"]]


def test_recordings_with_transcripts_keep_their_audio(tmp_path):
    audio.write_wav(tmp_path / "a.wav", tone(), audio.SAMPLE_RATE)
    (tmp_path / "m.tsv").write_text('file\tsentence\na.wav\tShe said "hello" to me\nmissing.wav\tNot there\n')
    source = Source(path=str(tmp_path / "m.tsv"), kind="speech", columns={"audio": "file", "text": "sentence"})
    rows, faults = read_all(source)
    assert rows[0]["audios"][0]["path"] == str(tmp_path / "a.wav")
    assert said(rows[0]) == ['She said "hello" to me'] and rows[0]["audios"][0]["path"].endswith("a.wav")
    assert [fault.where for fault in faults] == [f"{tmp_path / 'm.tsv'}:3"]
    assert "No such file" in faults[0].reason


def test_paths_of_recordings_do_not_depend_on_the_folder_of_the_worker(tmp_path, monkeypatch):
    audio.write_wav(tmp_path / "a.wav", tone(), audio.SAMPLE_RATE)
    (tmp_path / "m.tsv").write_text("audio\ttext\na.wav\tHello\n")
    monkeypatch.chdir(tmp_path)
    [row], _ = read_all(Source(path="m.tsv", kind="speech"))
    assert row["audios"][0]["path"] == str(tmp_path / "a.wav")


def test_what_is_no_audio_is_told_when_it_is_read(tmp_path):
    (tmp_path / "talks").mkdir()
    (tmp_path / "talks/a.wav").write_bytes(b"RIFF no audio at all")
    audio.write_wav(tmp_path / "talks/b.wav", tone(), audio.SAMPLE_RATE)
    clips = [{"type": "audio", "audio": "talks/a.wav"}]
    path = jsonl(tmp_path / "in.jsonl", [{"messages": [{"role": "user", "content": clips}]}])
    rows, faults = read_all(Source(path=str(path)), Source(path=str(tmp_path / "talks"), kind="long_audio"))
    assert [row["id"] for row in rows] == ["b"]
    assert [fault.where for fault in faults] == [f"{path}:1", str(tmp_path / "talks/a.wav")]
    assert all("a.wav' is no audio, or damaged" in fault.reason for fault in faults)


def test_the_language_is_that_of_what_is_said(tmp_path):
    audio.write_wav(tmp_path / "a.wav", tone(), audio.SAMPLE_RATE)
    asked = {"type": "text", "text": "What is said?"}
    clips = [{"type": "audio", "audio": "a.wav"}, {"type": "audio", "audio": "a.wav", "text": "你好吗"}]
    rows = [{"messages": [{"role": "user", "content": [clip, asked]}]} for clip in clips]
    found, _ = read_all(Source(path=str(jsonl(tmp_path / "in.jsonl", rows))))
    assert [row["meta"]["language"] for row in found] == ["auto", "zh"]


def test_a_long_recording_is_cut_at_pauses():
    wave = audio.decode("examples/data/talk.ogg")
    spans = vad.segments(wave)
    assert len(spans) > 1 and all(0 < end - start <= 30 * audio.SAMPLE_RATE for start, end in spans)
    assert all(first[1] <= second[0] for first, second in pairwise(spans))
    speech = sum(end - start for start, end in vad.speech_spans(wave))
    assert sum(end - start for start, end in spans) >= speech  # nothing spoken is lost
    for start, _ in spans[1:]:  # cut in a pause: quieter than the talk
        assert np.abs(wave[start : start + 800]).mean() < 0.2 * np.abs(wave).mean()
    assert vad.segments(np.zeros(audio.SAMPLE_RATE, np.float32)) == []


def test_sources_are_mixed_by_weight_in_one_order(tmp_path):
    a = jsonl(tmp_path / "a.jsonl", [question(f"Question a {i}?", id=i) for i in range(40)])
    b = jsonl(tmp_path / "b.jsonl", [question(f"Question b {i}?", id=i) for i in range(40)])
    sources = [Source(path=str(a), weight=3), Source(path=str(b), weight=1)]
    rows, _ = read_all(*sources, rows=20)
    assert sum("a" in said(row)[0].split() for row in rows) == 15
    assert len({row["id"] for row in rows}) == 20  # equal ids of two sources are told apart
    assert [row["id"] for row in rows] == [row["id"] for row in read_all(*sources, rows=20)[0]]
    assert [row["id"] for row in rows] != [row["id"] for row in read_all(*sources, rows=20, seed=1)[0]]
    _, notes = read_all(*sources, rows=200)
    assert "40 rows, fewer than its share of 150" in notes[0]
    with pytest.raises(LlasmError, match="weights share out"):
        Recipe(output="x", sources=sources)


def test_ids_that_repeat_are_told_apart_and_none_is_refused(tmp_path):
    jsonl(tmp_path / "a.jsonl", [question("One?", id="x"), question("Two?", id="x"), question("Three?")])
    jsonl(tmp_path / "b.jsonl", [question("Four?", id="x-2"), question("Five?"), question("Six?")])
    rows, faults = read_all(Source(path=str(tmp_path)))
    assert not faults and [row["id"] for row in rows] == ["x", "x-2", "a-3", "x-2-2", "b-2", "b-3"]


def test_an_empty_cell_of_an_answer_is_one_to_write(tmp_path):
    (tmp_path / "rows.csv").write_text("q,a\nIs it far?,\nIs it near?,Yes.\n")
    rows, faults = read_all(Source(path=str(tmp_path / "rows.csv"), columns={"prompt": "q", "answer": "a"}))
    assert not faults and [said(row) for row in rows] == [["Is it far?"], ["Is it near?", "Yes."]]


# ---- what is wrong with a row

BAD_LINES = {
    "{": "not JSON",
    '{"messages": "\udcff"}': "not JSON",  # a byte that is no UTF-8
    "[1]": "expected an object",
    "{}": "expected",
    json.dumps({"messages": []}): "at least one message",
    json.dumps({"messages": [{"role": "robot", "content": "x"}]}): "unknown role 'robot'",
    json.dumps({"conversations": [{"from": "robot", "value": "x"}]}): "unknown role 'robot'",
    json.dumps(question(" ")): "empty",
    json.dumps(question("😀😀")): "no letter",
    json.dumps(question("a\x00b")): "control character '\\x00'",
    json.dumps(question("x" * 10_000_000)): "10000",
    json.dumps(question("x" * 200_000)): "200000 characters",
    json.dumps({"messages": [{"role": "assistant", "content": "x"}]}): "no user",
    json.dumps({"messages": [{"role": "user", "content": [{"type": "audio", "audio": "gone.wav"}]}]}): "No such file",
    json.dumps({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}): "without audio",
    json.dumps({"messages": [{"role": "user", "content": [{"type": "image"}]}]}): "type text or audio",
    json.dumps({"conversations": [{"from": "human", "value": "<audio> what?"}]}): "more <audio> placeholders",
    json.dumps({"audio": "a.wav", "conversations": [{"from": "human", "value": "Hi"}]}): "1 audio files more",
    json.dumps({"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "x"}]}): "turn 1 is the",
    json.dumps({"conversations": [{"from": name, "value": "x"} for name in ("human", "human", "gpt")]}): "turn 2 is",
    json.dumps(
        {
            "audio": "a.wav",
            "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "<audio>"}],
        }
    ): "<audio> in the gpt's turn",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=list(BAD_LINES.values()))
def test_a_bad_row_is_named_by_file_and_line_and_nothing_else_is_lost(tmp_path, line):
    good = [json.dumps(question("Hello", id="first")), json.dumps(question("Good bye", id="last"))]
    path = tmp_path / "in.jsonl"
    path.write_bytes("\n".join([good[0], line, good[1], ""]).encode("utf-8", "surrogateescape"))
    rows, faults = read_all(Source(path=str(path)))
    assert [row["id"] for row in rows] == ["first", "last"]
    assert [fault.where for fault in faults] == [f"{path}:2"]
    assert BAD_LINES[line] in faults[0].reason


def test_a_bad_row_of_a_table_takes_no_good_one_with_it(tmp_path):
    lines = [
        b"q",
        b"One?",
        b'"Two?',
        b"Three?",
        b'"Four',
        b'and more?"',
        b"F\xffve?",
        b"",
        b"S\xc3\xacx?",
        b'"a" b',
        b"7?",
    ]
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\n".join(lines))
    rows, faults = read_all(Source(path=str(path), columns={"prompt": "q"}))
    assert [said(row) for row in rows] == [["One?"], ["Three?"], ["Four\nand more?"], ["Sìx?"], ["7?"]]
    assert [fault.where for fault in faults] == [f"{path}:{number}" for number in (3, 7, 10)]
    assert "not UTF-8" in faults[1].reason and "not a row of a table" in faults[0].reason
    path.write_bytes(b"\xff\xfeq\n")
    with pytest.raises(LlasmError, match=r"rows\.csv:1: the header is not UTF-8"):
        read_all(Source(path=str(path)))


def test_a_damaged_parquet_file_is_told_by_file_and_row(tmp_path):
    import pyarrow
    from pyarrow import parquet

    texts = [f"Is it {n}?".encode() for n in range(600)]
    texts[299] = b"Is it \xff?"
    words = pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"q": words}), path, use_dictionary=False, compression="none")
    source = Source(path=str(path), columns={"prompt": "q"})
    rows, [fault] = read_all(source)
    assert len(rows) == 599 and fault.where == f"{path}:300" and "not UTF-8" in fault.reason
    form = {"use_dictionary": False, "compression": "zstd", "row_group_size": 300}
    parquet.write_table(pyarrow.table({"q": [f"Is it {n}?" for n in range(600)]}), path, **form)
    start = parquet.read_metadata(path).row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start + 60 : start + 160] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(LlasmError, match=r"rows\.parquet: is damaged behind row \d+ "):
        read_all(source)


def test_what_others_keep_as_meta_is_no_fault(tmp_path):
    rows, faults = read_all(Source(path=str(jsonl(tmp_path / "in.jsonl", [question("Hello?", meta="v2")]))))
    assert not faults and said(rows[0]) == ["Hello?"]


def test_fail_names_every_bad_row(tmp_path, capsys):
    path = jsonl(tmp_path / "in.jsonl", [question("😀")] * 30)
    for on_error, shown in (("fail", 30), ("skip", 20)):
        assert main(["data", "build", "--input", str(path), "--output", "x", "--on-error", on_error]) == 2
        assert capsys.readouterr().err.count("no letter") == shown


def test_on_error_fail_stops_before_any_work_and_skip_goes_on(tmp_path, capsys):
    rows = [question("Is it far?", id="a"), question("😀"), {"messages": 3}, question("Is it near?", id="b")]
    options = ["--input", str(jsonl(tmp_path / "in.jsonl", rows)), "--output", str(tmp_path / "out")]
    quick = ["--respond.answers", "never", "--verify.asr", "none", "--workers", "1"]
    assert main(["data", "build", *options, *quick]) == 2
    told = capsys.readouterr().err
    assert "in.jsonl:2:" in told and "in.jsonl:3:" in told and "2 bad rows" in told
    assert not (tmp_path / "out").exists()
    assert main(["data", "build", *options, *quick, "--on-error", "skip"]) == 0
    kept = [record["id"] for _, record in records(str(tmp_path / "out"))]
    assert kept == ["a", "b"]
    dropped = [json.loads(line) for line in (tmp_path / "out/dropped.jsonl").read_text().splitlines()]
    assert [(d["stage"], d["origin"].rpartition(":")[2]) for d in dropped] == [("read", "2"), ("read", "3")]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["data", "build", "--output", "x"], "no source"),
        (["data", "build", "--input", "nosuch.jsonl", "--output", "x"], "no such file"),
        (["data", "build", "nosuch_recipe"], "unknown recipe"),
        (["data", "build", "--input", "x.jsonl", "--output", "x", "--speak.voices", "[nosuch]"], "engine"),
        (["data", "build", "--input", "x.jsonl", "--output", "x", "--speak.speed", "[9,10]"], "speed"),
        (["data", "build", "--input", "x", "--output", "x", "--respond.max_new_tokens", "0"], "max_new_tokens is 0"),
        (["data", "build", "--nosuch", "1"], "nosuch"),
        (["data", "frobnicate"], "unknown action"),
        (["data", "check", "nosuch.jsonl"], "no such file"),
        (["data", "export", "nosuch.parquet", "--format", "llava", "--output", "x"], "no such file"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line_are_one_line(argv, named, capsys):
    assert main(argv) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and named in told[0]


def test_shipped_recipes_are_read():
    for name in recipe_names("data_gen"):
        assert load_recipe([name, "--seed", "3"]).seed == 3


# ---- filter


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("What is the capital of France?", None),
        ("It costs $5, or 20% less?", None),
        ("What does https://example.org say?", "url"),
        ("Mail me at me@example.org", "url"),
        ("Fix this: def f(x): return x + 1;", "code"),
        ("What does <div class='a'> mean?", "code"),
        ("| a | b | c |", "table"),
        ("Solve \\frac{1}{2} for x", "formula"),
        ("@@@ ### ^^^ what", "symbols"),
        ("12 + 5 = ?", None),
        ("Is there a public school (a free one) near?", None),
        ("public static void main(String[] args)", "code"),
        ("let x = 3", "code"),
        ("x" * 500, "too long"),
        ("Wer ist der König von Frankreich gewesen und warum?", "language"),
        ("月亮离地球有多远？", None),
    ],
)
def test_what_should_not_be_spoken_is_named(text, fault):
    language = "zh" if "月" in text else "en"
    assert prompt_fault(text, language, Filter()) == fault


def test_answers_without_information_are_named():
    rules = Filter()
    for text in ("I don't know.", "As an AI language model, I cannot", "", "N/A", "na.", "```python\nx\n```"):
        assert answer_fault(text, rules)
    good = ["Paris.", "I think it is Paris.", "None of them is taller than the other.", "Na and Cl make salt."]
    for text in [*good, "As an aid to memory, sing it.", "As an air traffic controller you guide planes."]:
        assert answer_fault(text, rules) is None


def test_near_duplicates_are_dropped_and_name_what_they_repeat(tmp_path):
    long = "Please tell me in a few words what the weather will be like in the city of Paris tomorrow"
    long += ", and whether I should take an umbrella with me when I walk to the market in the morning"
    texts = ["Where is it?", "where is it", long, long + " or not", "Who is it?"]
    rows, _ = read_all(Source(path=str(jsonl(tmp_path / "in.jsonl", [question(t, id=t) for t in texts]))))
    found = filter_rows(rows, Filter())
    assert [row.get("dropped", {}).get("reason") for row in found] == [None, "duplicate", None, "duplicate", None]
    assert found[3]["dropped"]["detail"] == f"of {long}"
    exact = filter_rows(rows, Filter(near_duplicates=1))
    assert [row.get("dropped", {}).get("reason") for row in exact] == [None, "duplicate", None, None, None]


def test_questions_about_one_recording_are_compared_without_it():
    def row(name, typed, recording="r" * 64):
        parts = [{"type": "audio", "text": "a long talk about the sea " * 20}, {"type": "text", "text": typed}]
        messages, audios = [{"role": "user", "content": parts}], [{"bytes": b"", "sha256": recording}]
        return {"id": name, "messages": messages, "audios": audios, "meta": {"language": "en"}}

    rows = [
        row("a", "Who speaks?"),
        row("b", "What is it about?"),
        row("c", "who speaks"),
        row("d", "Who speaks?", "s"),
    ]
    found = filter_rows(rows, Filter())
    assert [row["id"] for row in found if "dropped" in row] == ["c"]
    assert found[2]["dropped"]["detail"] == "of a"


def test_a_conversation_that_no_small_model_holds_is_left_out(tmp_path):
    systems = ["word " * 3000, "x" * 96_000, "月" * 3000, "word " * 300]
    turns = [
        {"messages": [{"role": "system", "content": s}, {"role": "user", "content": f"{i}?"}]}
        for i, s in enumerate(systems)
    ]
    rows, _ = read_all(Source(path=str(jsonl(tmp_path / "in.jsonl", turns))))
    reasons = [row.get("dropped", {}).get("reason") for row in filter_rows(rows, Filter())]
    assert reasons == 3 * ["conversation too long"] + [None]


# ---- export, import, check


@pytest.fixture
def data_set(tmp_path):
    """Two rows as `build` writes them, one with two clips."""

    def row(name, n_clips):
        clips = [{"type": "audio", "text": f"clip {i}"} for i in range(n_clips)]
        messages = [
            {"role": "user", "content": [*clips, {"type": "text", "text": "What is this?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A tone."}]},
        ]
        content = [audio.to_flac_bytes(tone(0.3 + i, 300 * (i + 1))) for i in range(n_clips)]
        meta = {"source": "test", "licence": "CC0-1.0", "language": "en", "seconds": [0.3] * n_clips, "speeds": []}
        return {"id": name, "messages": messages, "audios": [{"bytes": c} for c in content], "meta": meta}

    (tmp_path / "set/data").mkdir(parents=True)
    rows = [row("a/1.x", 1), row("b", 2)]
    write_shard([to_record(r, "flac") for r in rows], tmp_path / "set/data/shard-00000.parquet")
    return tmp_path / "set"


def contents(path):
    """(role, part's type, text) and the waves of every record, by id."""
    found = {}
    for where, record in records(str(path)):
        messages, audios = messages_of(record, where)
        parts = [(m["role"], p["type"], p["text"]) for m in messages for p in m["content"]]
        found[record["id"]] = (parts, [audio.decode(locate(a, where)).tobytes() for a in audios])
    return found


@pytest.mark.parametrize("form", FORMATS)
def test_what_export_writes_reads_back_the_same(data_set, tmp_path, form):
    if form == "audiofolder":
        with pytest.raises(LlasmError, match="2 clips"):
            export(str(data_set), form, tmp_path / "refused")
        assert not [file for file in tmp_path.iterdir() if "refused" in file.name]
        rows = [r for _, r in records(str(data_set)) if len(r["audios"]) == 1]
        (tmp_path / "one/data").mkdir(parents=True)
        write_shard(rows, tmp_path / "one/data/shard-00000.parquet")
        data_set = tmp_path / "one"
    out = export(str(data_set), form, tmp_path / "out")
    assert contents(out) == contents(data_set)
    with pytest.raises(LlasmError, match="not an empty folder"):
        export(str(data_set), form, out)


@pytest.mark.parametrize("form", FORMATS)
def test_long_ids_are_cut_in_the_names_of_files(tmp_path, form):
    source = jsonl(tmp_path / "in.jsonl", [question(text, id="月" * 300) for text in ("One?", "Two?")])
    rows, _ = read_all(Source(path=str(source)))
    for row in rows:
        row |= {"audios": [{"bytes": audio.to_flac_bytes(tone())}]}
        row["meta"] |= {"seconds": [0.5], "speeds": [1.0]}
    (tmp_path / "set/data").mkdir(parents=True)
    write_shard([to_record(row, "flac") for row in rows], tmp_path / "set/data/shard-00000.parquet")
    assert contents(export(str(tmp_path / "set"), form, tmp_path / "out")) == contents(tmp_path / "set")


def test_other_loaders_read_the_exports(data_set, tmp_path):
    out = export(str(data_set), "webdataset", tmp_path / "tar")
    with tarfile.open(out / "data-00000.tar") as archive:
        assert archive.getnames() == ["a_1_x.json", "a_1_x.0.flac", "b.json", "b.0.flac", "b.1.flac"]
    first = json.loads((export(str(data_set), "llava", tmp_path / "llava") / "conversations.json").read_text())[0]
    assert first["conversations"][0]["value"] == "<audio>\nWhat is this?" and len(first["audio"]) == 1


def test_check_names_every_fault(data_set, tmp_path, capsys):
    assert main(["data", "check", str(data_set)]) == 0
    assert "2 rows, 0 with faults, 2 answered, 3 clips" in capsys.readouterr().out
    audio.write_wav(tmp_path / "long.wav", tone(31), audio.SAMPLE_RATE)
    (tmp_path / "broken.wav").write_bytes(b"RIFF no audio at all")
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    clips = [{"type": "audio", "audio": name} for name in ("long.wav", "broken.wav")]
    rows = [
        {"messages": [user, answer], "id": "a"},
        {"messages": [user, user], "id": "a"},  # LLaVA's ids are pictures', and repeat
        {"messages": [{"role": "user", "content": clips}, {"role": "assistant", "content": ""}]},
        {"messages": [{"role": "user", "content": clips}, answer]},
        {"messages": [{"role": "user", "content": "word " * 3000}, answer]},
    ]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    faults = [fault for _, found in check(str(path)) for fault in found]
    lines = [fault.removeprefix(f"{path}:") for fault in faults]
    wanted = ["2: turn 2 is the user's", "3: the assistant's text is empty"]
    wanted += ["4: audio 1: 31.0 s", "4: audio 2: ", "5: 3001 words"]
    assert len(lines) == len(wanted) and all(line.startswith(w) for line, w in zip(lines, wanted)), lines
    assert main(["data", "check", str(path)]) == 2


def test_opus_takes_less_and_is_the_same_each_time():
    wave = audio.decode("examples/france.wav")
    content = opus_bytes(wave)
    assert content == opus_bytes(wave) and len(content) < len(audio.to_flac_bytes(wave)) / 2
    assert abs(len(audio.decode(content)) - len(wave)) < 0.03 * audio.SAMPLE_RATE


def test_a_bad_row_is_an_error_that_says_where():
    assert str(BadRow("file:3", "is empty")) == "file:3: is empty"
