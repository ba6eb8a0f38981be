"""Public texts → prompts of the embedded default: what is held out, and how it is written."""

import json

import pytest

from llasm.data_gen import prompts


@pytest.fixture
def texts(tmp_path):
    """A folder with a few rows of each source, as their authors publish them."""
    qa, instructions = tmp_path / "text" / "qa", tmp_path / "text" / "instructions"
    for name, n in (("webquestions_devtest", 3), ("open_trivia", 100)):
        rows = [
            {
                "question": f"Who met {name.replace('_', ' ')} person number {i}?",
                "answers": [f"Zorblatt {i}"],
                "licence": "CC",
            }
            for i in range(n)
        ]
        rows.append({**rows[0], "question": "WHO met webquestions devtest person, number 1"})
        (qa / f"{name}.jsonl").parent.mkdir(parents=True, exist_ok=True)
        (qa / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {
        "disfl_qa/train.json": {"a": {"original": "What is a river called?"}},
        "disfl_qa/dev.json": {},
        "self_instruct/seed_tasks.jsonl": {
            "instruction": "Write a short poem about rain.",
            "instances": [{"input": "", "output": "Rain falls on the roof. Is it wet? It stops at 9."}],
        },
        "llms_from_scratch_instructions/instruction-data.json": [
            {"instruction": "Name three colours.", "input": "", "output": "Red, blue: green."}
        ],
        "open_assistant_sample/en_100_tree.jsonl": {
            "prompt": {
                "text": "How do I bake bread?",
                "replies": [{"text": "Mix it well.\nThen wait.\nLet it rise.\nBake it hot.", "replies": []}],
            }
        },
        "slurp_text/devel.jsonl": {"sentence": "wake me up at seven"},
        "clinc_oos/data_full.json": {
            "train": [["how much is my bill", "bill"], ["yes please", "yes"], ["no", "no"], ["seven", "n"]]
        },
        "snips_nlu/PlayMusic/train_PlayMusic_full.json": {"PlayMusic": [{"data": [{"text": "play some jazz please"}]}]},
    }
    for name, content in files.items():
        (instructions / name).parent.mkdir(parents=True, exist_ok=True)
        (instructions / name).write_text(json.dumps(content))
    return tmp_path / "text"


def test_a_prompt_is_written_one_way():
    truecase = prompts.Truecaser(["He met Justin Bieber", "We saw Justin Bieber there"])
    assert truecase("who is justin bieber") == "Who is Justin Bieber?"
    assert truecase("play what i like") == "Play what I like."
    assert prompts.plain("Where is the station?") and not prompts.plain("See https://example.org for more")


def test_no_list_says_what_is_held_out(texts):
    (texts / "asked.jsonl").write_text('{"before": [["Open trivia, who?", ""]], "question": "Play some JAZZ, please!"}')
    made = prompts.build(texts, 10**9, 10, 10, n_repeat=10, n_short=10, aside=prompts.kept_out([texts / "asked.jsonl"]))
    aside = {prompts.normalise(row["text"]) for row in made.pop("heldout")}
    assert len(aside) == 3 + 5  # all of devtest, and every 20th of the trivia
    for name, rows in made.items():
        assert rows and not aside & {prompts.normalise(row["text"]) for row in rows}, name
        assert "snips_nlu-0" not in {row["id"] for row in rows}  # --keep_out asks the same
    learned = [{row["id"] for row in rows} for rows in made.values()]
    assert sum(map(len, learned)) == len(set.union(*learned)) and len(made["repeat"]) == 10


def test_three_quarters_of_what_is_repeated_are_statements(texts):
    made = prompts.build(texts, 10**9, 5, 5, n_repeat=4)
    said = {row["text"] for row in made["repeat"] if "-said-" in row["id"]}
    assert said < {"Mix it well.", "Let it rise.", "Bake it hot.", "Rain falls on the roof."}
    assert len(said) == 3 and len(made["repeat"]) == 4


def test_a_word_or_two_are_for_ground(texts):
    made = prompts.build(texts, 10**9, 10, 10, n_short=10**9, aside={"no"})
    short = {row["id"]: row["text"] for row in made["short"]}
    assert short["clinc_oos-1"] == "Yes please." and not {"clinc_oos-2", "clinc_oos-3"} & set(short)
    answers = {row["text"] for row in made["short"] if row["id"].endswith("-answer")}
    assert answers and all(answer.startswith("Zorblatt ") for answer in answers)
    held = {f"{answer}." for row in made["heldout"] for answer in row["meta"]["answers"]}
    assert held and not held & set(short.values())
    assert len(prompts.build(texts, 9, 0, 0, n_short=1)["short"]) == 1


def test_questions_to_choose_by_are_not_those_to_report(texts, tmp_path, monkeypatch):
    speech, out = tmp_path / "speech", tmp_path / "out"
    recordings = {
        "speechocean762_adult_train": [f"s{i % 20}" for i in range(40)],
        "kathleen_cc0": ["kathleen"] * 3,
    }
    for name, speakers in recordings.items():
        (speech / name).mkdir(parents=True)
        rows = [
            {"id": f"{name}-{i}", "audio": f"{i}.flac", "text": "GOOD DAY", "speaker": s}
            for i, s in enumerate(speakers)
        ]
        (speech / name / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (speech / "fsdd/recordings").mkdir(parents=True)
    (speech / "fsdd/recordings/7_ann_0.wav").touch()
    (speech / "ljspeech_bits").mkdir()
    (speech / "ljspeech_bits" / "metadata.csv").write_text("LJ1|Printing.|Printing.\n")
    monkeypatch.setattr(prompts, "N_TRIVIA", 2)
    monkeypatch.setattr("sys.argv", ["prompts", str(texts), str(out), "--align", "5", "--speech", str(speech)])
    prompts.main()

    def read(name):
        return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]

    assert [row["id"] for row in read("trivia")] == ["open_trivia-19", "open_trivia-39"]
    assert [row["id"] for row in read("dev")] == ["open_trivia-59", "open_trivia-79", "open_trivia-99"]
    assert read("speech_heldout")[-1]["text"] == "Seven." and read("speech_heldout")[-1]["meta"]["source"] == "fsdd"
    trained, held_out = ({row.get("speaker") for row in read(name)} for name in ("speech", "speech_heldout"))
    assert len(held_out) == 15 + 1 + 1 and "kathleen" in held_out and len(trained) == 5 + 1 and not trained & held_out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--speech", "nowhere"], "nowhere: there is no such folder"),
        (["--keep_out", "nowhere.jsonl"], "--keep_out nowhere.jsonl: cannot be read as JSONL"),
        (["--keep_out", "README.md"], "--keep_out README.md: cannot be read as JSONL (Expecting value"),
        (["--align", "1", "--repeat", "1000"], "--repeat 1000: leaves none of the texts to ground"),
    ],
)
def test_what_is_not_there_is_one_line(texts, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.setattr("sys.argv", ["prompts", str(texts), str(tmp_path / "out"), *options])
    with pytest.raises(SystemExit):
        prompts.main()
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_source_that_is_missing_is_named(texts, tmp_path, monkeypatch, capsys):
    (texts / "instructions" / "disfl_qa" / "dev.json").unlink()
    monkeypatch.setattr("sys.argv", ["prompts", str(texts), str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        prompts.main()
    assert "disfl_qa/dev.json: there is no such file" in capsys.readouterr().err.splitlines()[-1]
