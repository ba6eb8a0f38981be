"""`llasm eval` with a model that answers at once: what is scored, reported, resumed, joined and refused."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from evals_fakes import evaluated, gold, questions, scores_of, use
from filelock import FileLock
from safetensors.torch import load_file, save_file

from llasm import checkpoint
from llasm.cli import main
from llasm.errors import LlasmError
from llasm.evals import compare, judge, predict, results, run
from llasm.evals.items import Item
from llasm.evals.settings import Settings

SAME = ("run.json", "items/*", "predictions/*", "verdicts.jsonl", "scores.json")  # from run to run


def files(out):
    return {str(f.relative_to(out)): f.read_bytes() for pattern in SAME for f in sorted(out.glob(pattern))}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- scores that tell the truth


def test_gold_answers_score_all_and_shuffled_ones_nearly_none(tmp_path, monkeypatch):
    data = questions(tmp_path / "data", 40)
    use(monkeypatch, gold)
    found = scores_of(evaluated(data, tmp_path / "gold"))["conditions"]
    assert set(found) == {"speech", "text", "cascade"}
    assert all(of["score"][0] == of["exact"] == of["f1"] == 1 and of["n"] == 40 for of in found.values())
    order = list(range(40))
    random.Random(0).shuffle(order)
    use(monkeypatch, lambda index, typed: f"right {order[index]}")
    found = scores_of(evaluated(data, tmp_path / "shuffled", conditions="speech"))["conditions"]["speech"]
    assert found["score"][0] <= 0.1 and found["score"][2] < 0.25


def test_always_a_scores_the_share_of_a_and_no_letter_is_no_guess(tmp_path, monkeypatch):
    labels = ["A", "B", "C", "A", "D", "A", "B", "C", "A", "D"]
    data = questions(tmp_path / "data", 10, [[x] for x in labels], choices=[["red", "green", "blue", "grey"]] * 10)
    use(monkeypatch, lambda index, typed: "A")
    found = scores_of(evaluated(data, tmp_path / "a"))["conditions"]["speech"]
    assert found["score"][0] == pytest.approx(0.4) and found["parse_failures"] == 0
    use(monkeypatch, lambda index, typed: "Hard to say.")
    found = scores_of(evaluated(data, tmp_path / "none"))["conditions"]["speech"]
    assert found["score"][0] == 0 and found["parse_failures"] == 1


def test_a_model_that_answers_silence_is_reported(tmp_path, monkeypatch):
    use(monkeypatch, lambda index, typed: "The capital of France is Paris.")
    out = evaluated(None, tmp_path / "talks", task="no_speech")
    assert set(scores_of(out, "no_speech")["conditions"]) == {"speech", "cascade"}
    assert "yet the model answers: 100.0 % (speech), 100.0 % (cascade)" in (out / "report.md").read_text()
    use(monkeypatch, lambda index, typed: "I didn't hear anyone speak. Could you say that again?")
    out = evaluated(None, tmp_path / "quiet", task="no_speech")
    assert scores_of(out, "no_speech")["conditions"]["speech"]["score"][0] == 0


def test_typed_chat_is_compared_with_the_llm_before_training(tmp_path, monkeypatch):
    use(monkeypatch, lambda index, typed: "as before" if "capital" in typed else "otherwise")
    found = scores_of(evaluated(None, tmp_path / "out", task="typed", limit=4), "typed")
    assert list(found["conditions"]) == ["text"]
    assert found["conditions"]["text"]["score"][0] == pytest.approx(0.25)


def test_repeating_is_scored_in_errors_a_word(tmp_path, monkeypatch):
    data = questions(tmp_path / "data", 4)
    use(monkeypatch, lambda index, typed: f"question {index}" if index else "question zero or so")
    found = scores_of(evaluated(data, tmp_path / "out", task="transcription", conditions="speech"), "transcription")
    assert found["conditions"]["speech"]["score"][0] == pytest.approx(2 / 8)  # "or so" of 8 words


def test_repeating_is_compared_with_the_recognisers_own_words(tmp_path, monkeypatch):
    data = questions(tmp_path / "data", 4)
    use(monkeypatch, lambda index, typed: f"question {index}" if index else "question zero or so")
    misheard = type("Recogniser", (), {"transcribe": lambda self, waves, language: ["a question"] * len(waves)})
    monkeypatch.setattr(predict, "recogniser", lambda name: misheard())
    out = evaluated(data, tmp_path / "out", task="transcription", conditions="speech,cascade", snr="10")
    found = scores_of(out, "transcription")
    assert found["conditions"]["transcript"]["score"][0] == 1  # a word too many and one missing, of two each
    assert {"transcript", "transcript@snr10"} <= set(found["conditions"])
    assert found["gaps"]["speech - transcript"]["ratio"][0] == pytest.approx(2 / 8)
    assert "speech@snr10 - transcript@snr10" in found["gaps"]
    assert "transcript: what the recogniser wrote down" in (out / "report.md").read_text()


def test_the_gap_is_paired_and_the_report_shows_it_with_latencies_and_sound(tmp_path, monkeypatch):
    data = questions(tmp_path / "data", 40)
    use(monkeypatch, lambda index, typed: "no" if index is not None and index % 4 == 0 else gold(index, typed))
    out = evaluated(data, tmp_path / "out", latency_items=5, snr="10,0")
    gap = scores_of(out)["gaps"]["speech - text"]
    assert gap["gap"] == -0.25 and gap["low"] < -0.25 < gap["high"] < 0 and gap["n"] == 40
    assert gap["p"] == pytest.approx(2 * 0.5**10)  # ten lost, none won
    ratio, low, high = gap["ratio"]
    assert ratio == 0.75 and low < 0.75 < high < 1
    assert set(scores_of(out)["conditions"]) >= {"speech@snr10", "cascade@snr0"}
    text, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    assert "| speech - text | -25.0 points |" in text and "| 0.75 |" in text and "## Latency in ms" in text
    assert "| custom | cascade |" in text and page.count("<svg") >= 4 and "data:audio/flac;base64," in page
    latencies = [row for row in lines(out / "timings.jsonl") if row["kind"] == "latency"]
    assert len(latencies) == 15 and all(
        "transcribe" in r["timings_ms"] for r in latencies if r["condition"] == "cascade"
    )


# ---- interruptions, shards, batches


def test_an_interrupted_run_goes_on_and_asks_nothing_twice(tmp_path, monkeypatch):
    data = questions(tmp_path / "data", 12)
    use(monkeypatch, gold)
    whole = evaluated(data, tmp_path / "whole", batch_size=4)
    model = use(monkeypatch, gold)
    batch = model.batch

    def tired(conversations, max_new_tokens):
        if len(model.asked) >= 16:
            raise KeyboardInterrupt
        return batch(conversations, max_new_tokens)

    model.batch = tired
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluated(data, out, batch_size=4)
    log = out / "events/1-of-1.jsonl"
    log.write_text(log.read_text() + '{"kind": "answer", "key": "cut of')  # as a kill leaves it
    with pytest.raises(LlasmError, match="--resume"):
        evaluated(data, out, batch_size=4)
    model.batch, n_asked = batch, len(model.asked)
    evaluated(data, out, batch_size=5, resume=True)
    assert n_asked == 16 and len(model.asked) == 36
    assert files(out) == files(whole)
    evaluated(data, out, resume=True)
    assert len(model.asked) == 36


def test_another_run_is_not_mixed_into_a_folder(tmp_path, monkeypatch):
    data = questions(tmp_path / "data", 3)
    use(monkeypatch, gold)
    out = evaluated(data, tmp_path / "out")
    with pytest.raises(LlasmError, match="max_new_tokens 64, now 8; choose another"):
        evaluated(data, out, resume=True, max_new_tokens=8)
    questions(data, 4)
    with pytest.raises(LlasmError, match="run with data custom"):
        evaluated(data, out, resume=True)


def test_what_answers_depend_on_beside_weights_is_part_of_the_run(tmp_path, monkeypatch):
    data = questions(tmp_path / "data", 2)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/chat_template.jinja").write_text("{{ messages }}")
    before = run._small_files(tmp_path / "model")
    (tmp_path / "model/chat_template.jinja").write_text("{{ other }}")
    assert run._small_files(tmp_path / "model") != before
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise/a.wav", np.full(800, 0.1, np.float32), 16000)
    use(monkeypatch, gold)
    out = evaluated(data, tmp_path / "out", snr="5", noise=str(tmp_path / "noise"))
    soundfile.write(tmp_path / "noise/a.wav", np.full(800, 0.2, np.float32), 16000)  # as many bytes
    with pytest.raises(LlasmError, match="run with noise"):
        evaluated(data, out, snr="5", noise=str(tmp_path / "noise"), resume=True)
    out = evaluated(data, tmp_path / "plain")
    monkeypatch.setattr(run, "_device", lambda: "another")
    with pytest.raises(LlasmError, match="run with device"):
        evaluated(data, out, resume=True)


def test_moved_data_are_the_same_data(tmp_path, monkeypatch):
    data = questions(tmp_path / "data", 3)
    model = use(monkeypatch, gold)
    out = evaluated(data, tmp_path / "out")
    evaluated(data.rename(tmp_path / "moved"), out, resume=True)
    assert len(model.asked) == 9


def test_one_process_a_shard(tmp_path, monkeypatch):
    use(monkeypatch, gold)
    (tmp_path / "out/events").mkdir(parents=True)
    with (
        FileLock(tmp_path / "out/events/1-of-1.lock"),
        pytest.raises(LlasmError, match="another llasm eval is at work"),
    ):
        evaluated(questions(tmp_path / "data", 3), tmp_path / "out")


def test_two_shards_are_one_run(tmp_path, monkeypatch, capsys):
    data = questions(tmp_path / "data", 11)
    use(monkeypatch, gold)
    whole = evaluated(data, tmp_path / "whole")
    out = evaluated(data, tmp_path / "shards", shard="1/2")
    assert "answers of others are missing" in capsys.readouterr().err and not (out / "scores.json").exists()
    assert main(["eval", "score", str(out)]) == 2
    assert "are missing" in capsys.readouterr().err
    evaluated(data, out, shard="2/2")
    assert files(out) == files(whole)
    # From two machines: the logs are put into one folder.
    apart = [evaluated(data, tmp_path / f"apart{i}", shard=f"{i}/2") for i in (1, 2)]
    (apart[0] / "events/2-of-2.jsonl").write_bytes((apart[1] / "events/2-of-2.jsonl").read_bytes())
    assert main(["eval", "score", str(apart[0])]) == 0
    assert files(apart[0]) == files(whole)


def test_saved_answers_are_scored_and_compared_without_a_model(tmp_path, monkeypatch, capsys):
    data = questions(tmp_path / "data", 20)
    use(monkeypatch, gold)
    good = evaluated(data, tmp_path / "good")
    use(monkeypatch, lambda index, typed: "no" if index in (1, 2, 3) else gold(index, typed))
    bad = evaluated(data, tmp_path / "bad")
    monkeypatch.setattr(predict, "chat_model", None)
    before = files(bad)
    (bad / "scores.json").unlink()
    assert main(["eval", "score", str(bad)]) == 0 and files(bad) == before
    (bad / "report.html").unlink()
    assert main(["eval", "report", str(bad)]) == 0 and (bad / "report.html").exists()
    capsys.readouterr()
    assert main(["eval", "compare", str(bad), str(good)]) == 0
    shown = capsys.readouterr().out
    assert "| custom | speech | accuracy | 85.0 % | 100.0 % | -15.0 points |" in shown and "| 0.25 | 20 | 0 |" in shown


# ---- what can be wrong with the input


def test_bad_items_are_reported_and_never_scored(tmp_path, monkeypatch):
    data = questions(tmp_path / "data", 6)
    soundfile.write(data / "1.wav", np.full(800, np.nan, np.float32), 16000, subtype="FLOAT")
    (data / "2.wav").unlink()
    (data / "3.wav").write_bytes(b"no audio")
    rows = lines(data / "questions.jsonl")
    rows[4]["answers"] = []
    text = "".join(json.dumps(row) + "\n" for row in rows) + "not json\n"
    (data / "questions.jsonl").write_text(
        text + json.dumps({"id": "mute", "audio": "", "question": "x", "answers": "y"})
    )
    use(monkeypatch, gold)
    out = evaluated(data, tmp_path / "out", latency_items=Settings.latency_items)
    timed = [(row["condition"], row["id"]) for row in lines(out / "timings.jsonl") if row["kind"] == "latency"]
    assert [name for condition, name in timed if condition == "speech"] == ["q0", "q5"]  # what was answered
    evaluated(data, out, latency_items=Settings.latency_items, resume=True)
    found = scores_of(out)["conditions"]
    assert (found["speech"]["n"], found["speech"]["errors"]) == (2, 6) and found["speech"]["score"][0] == 1
    assert (found["text"]["n"], found["text"]["errors"]) == (5, 3)  # the words are there though the wavs are not
    errors = {row["id"]: row["error"] for row in lines(out / "predictions/custom.speech.jsonl") if "error" in row}
    assert "NaN" in errors["q1"] and "no such file" in errors["q2"] and "not audio" in errors["q3"]
    assert errors["q4"] == "no answer to compare with" and errors["mute"] == "its audio is not named"
    assert "not JSON" in errors["questions-7"]
    assert scores_of(out)["gaps"]["speech - text"]["n"] == 2
    soundfile.write(data / "2.wav", np.full(480, 0.1, np.float32), 16000)
    with pytest.raises(LlasmError, match="run with data"):
        evaluated(data, out, resume=True)


def test_a_conversation_that_the_model_refuses_costs_only_itself(tmp_path, monkeypatch):
    data = questions(tmp_path / "data", 5)
    model = use(monkeypatch, gold)
    batch = model.batch

    def picky(conversations, max_new_tokens):
        if any("question 3" in str(message) for [message] in conversations):
            raise LlasmError("the conversation is too long")
        return batch(conversations, max_new_tokens)

    model.batch = picky
    found = scores_of(evaluated(data, tmp_path / "out", conditions="text"))["conditions"]["text"]
    assert (found["n"], found["errors"], found["score"][0]) == (4, 1, 1)


def test_a_clip_that_is_gone_when_its_latency_is_taken_has_none(tmp_path, monkeypatch):
    data = questions(tmp_path / "data", 3)
    model = use(monkeypatch, gold)
    batch = model.batch

    def removes(conversations, max_new_tokens):
        (data / "0.wav").unlink(missing_ok=True)
        return batch(conversations, max_new_tokens)

    model.batch = removes
    out = evaluated(data, tmp_path / "out", latency_items=3, conditions="speech")
    assert [row["id"] for row in lines(out / "timings.jsonl") if row["kind"] == "latency"] == ["q1", "q2"]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--task", "nosuch", "--out", "x"], "webquestions"),
        (["--task", "custom", "--out", "x"], "--data"),
        (["--task", "custom", "--data", "nosuch/dir/x", "--out", "x"], "nosuch/dir/x"),
        (["--task", "custom", "--data", "evv", "--out", "x"], "evv: no such file or folder; a hub id is owner/name"),
        (["--task", "no_speech", "--out", "x", "--conditions", "smell"], "smell"),
        (["--task", "no_speech", "--out", "x", "--model", "nosuch"], "nosuch"),
        (["--task", "no_speech", "--out", "x", "--asr", "nosuch"], "nosuch"),
        (["--task", "no_speech", "--out", "x", "--voice", "nosuch"], "nosuch"),
        (["--task", "no_speech", "--out", "x", "--snr", "loud"], "loud"),
        (["--task", "no_speech", "--out", "x", "--noise", "nosuch"], "nosuch"),
        (["--task", "no_speech", "--out", "x", "--shard", "3/2"], "3/2"),
        (["--task", "no_speech", "--out", "x", "--nosuch", "1"], "nosuch"),
        (["--task", "no_speech", "--out", "x", "--batch-size", "0"], "batch_size"),
        (["report", "nosuch"], "nosuch"),
        (["compare", "nosuch", "nosuch"], "nosuch"),
        (["nosuch"], "nosuch"),
    ],
)
def test_bad_options_are_one_line_before_any_weights(tmp_path, monkeypatch, capsys, argv, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict.chat, "load", None)
    assert main(["eval", *argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and named in error


def test_a_task_that_cannot_be_asked_so_is_refused(tmp_path, monkeypatch):
    use(monkeypatch, gold)
    with pytest.raises(LlasmError, match="nothing to ask under conditions text"):
        evaluated(None, tmp_path / "out", task="no_speech", conditions="text")


def test_a_repeated_id_is_refused(tmp_path, monkeypatch):
    data = questions(tmp_path / "data", 3)
    table = data / "questions.jsonl"
    table.write_text(table.read_text() + table.read_text().splitlines()[1])
    use(monkeypatch, gold)
    with pytest.raises(LlasmError, match="id 'q1' is there twice"):
        evaluated(data, tmp_path / "out")


def test_a_broken_folder_is_one_line(tmp_path, monkeypatch, capsys):
    data = questions(tmp_path / "data", 2)
    use(monkeypatch, gold)
    out = evaluated(data, tmp_path / "out", conditions="text")
    (out / "items/custom.jsonl").rename(tmp_path / "custom.jsonl")
    capsys.readouterr()
    assert main(["eval", "score", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "items/custom.jsonl: no such file" in error
    for broken in ("{", "[]", "{}"):
        (out / "run.json").write_text(broken)
        with pytest.raises(LlasmError, match="is broken"):
            evaluated(data, out, conditions="text", resume=True)


def test_one_question_is_scored_without_a_test(tmp_path, monkeypatch):
    use(monkeypatch, gold)
    out = evaluated(questions(tmp_path / "data", 1), tmp_path / "out")
    gap = {"gap": 0.0, "low": None, "high": None, "p": None, "n": 1, "ratio": [1.0, None, None]}
    assert scores_of(out)["gaps"]["speech - text"] == gap
    assert "NaN" not in (out / "scores.json").read_text()


def test_a_run_in_which_nothing_could_be_answered_is_an_error(tmp_path, monkeypatch):
    data = questions(tmp_path / "data", 2)
    for i in range(2):
        (data / f"{i}.wav").unlink()
    use(monkeypatch, gold)
    with pytest.raises(LlasmError, match="none of 2 could be answered"):
        evaluated(data, tmp_path / "out", conditions="speech")


# ---- the judge


def test_a_judge_s_replies_are_kept_and_unreadable_ones_are_no_score(tmp_path, monkeypatch):
    data = questions(tmp_path / "data", 4)
    asked = []

    class Server:
        def __init__(self, model, url):
            pass

        def generate(self, batch, max_new_tokens):
            asked.extend(batch)
            said = ["CORRECT", "INCORRECT", "hard to say", "CORRECT, or INCORRECT"]
            return [(said[int(messages[0]["content"].split("question ")[1][0])], False) for messages in batch]

    monkeypatch.setattr(judge, "ServerGenerator", Server)
    use(monkeypatch, gold)
    out = evaluated(data, tmp_path / "out", conditions="text", judge_url="http://localhost:1/v1")
    found = scores_of(out)["conditions"]["text"]
    assert found["judge"][0] == 0.5 and found["judge_failures"] == 2 and len(asked) == 4
    assert {row["reply"] for row in lines(out / "judge.jsonl")} >= {"hard to say", "CORRECT"}
    run.rescore(out, "http://localhost:1/v1", "judge")
    run.rescore(out, None, "judge")  # as it was judged before
    assert len(asked) == 4 and scores_of(out)["conditions"]["text"]["judge_failures"] == 2


@pytest.mark.parametrize(
    ("reply", "kind", "score"),
    [
        ("CORRECT", "qa", 1), ("**Incorrect.**", "qa", 0), ("Not correct", "qa", None), ("Correct? No.", "qa", None),
        ("partially correct", "qa", None), ("", "qa", None), ("4/5", "open", 4), (" 3. ", "open", 3),
        ("-1", "open", None),
        ("between 3 and 4", "open", None), ("10", "open", None), ("4.5", "open", None), ("6", "open", None),
    ],
)  # fmt: skip
def test_a_judge_s_reply_is_one_word_or_no_score(reply, kind, score):
    assert judge.parse(reply, kind) == score


def test_the_plan_of_a_folder_is_the_plan_of_its_data(tmp_path, monkeypatch):
    data = questions(tmp_path / "data", 3)
    use(monkeypatch, gold)
    out = evaluated(data, tmp_path / "out", snr="5")
    settings = Settings(task="custom", out=str(out), data=str(data), snr="5")
    keys = [p.key for p in results.plan(run.run_facts(settings), run.items_of(settings, "custom"))]
    assert len(keys) == len(set(keys)) == 15
    events = {event["key"] for event in lines(out / "events/1-of-1.jsonl")}
    assert events == set(keys)


# ---- typed chat before and after training


def asked_before_training(bases, folder):
    """A checkpoint whose LLM has no chat template of its own."""
    llm = folder / "llm"
    shutil.copytree(bases["text_base"], llm)
    (llm / "chat_template.jinja").unlink()
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    model, processor = checkpoint.from_bases(
        bases["audio_base"], str(llm), checkpoint.AdapterConfig(), chat_template=template
    )
    checkpoint.save(model, processor, folder / "model")
    return str(folder / "model"), llm


def test_the_llm_before_training_is_asked_under_the_checkpoint_s_template(tmp_path, bases):
    model, _ = asked_before_training(bases, tmp_path)
    out = evaluated(None, tmp_path / "out", task="typed", limit=2, model=model, max_new_tokens=4)
    assert scores_of(out, "typed")["conditions"]["text"]["score"][0] == 1  # nothing was trained
    said = [{"role": "user", "content": "Hello"}]
    assert predict.base_model(model).processor.apply_chat_template(said, tokenize=False) == "[Hello]"


def test_another_llm_than_before_training_is_told_before_anything_is_asked(tmp_path, bases):
    model, llm = asked_before_training(bases, tmp_path)
    weights = load_file(llm / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, llm / "model.safetensors", {"format": "pt"})
    with pytest.raises(LlasmError, match="was trained on"):
        evaluated(None, tmp_path / "out", task="no_speech,typed", model=model)
    assert not (tmp_path / "out").exists()


def test_another_conversation_before_a_question_is_another_question(tmp_path, monkeypatch):
    use(monkeypatch, gold)
    one = Item(id="1", task="custom", question="And now?", answers=("x",), before=(("Hello", "Hi."),))
    other = replace(one, before=(("Goodbye", "Bye."),))
    assert compare._same(one, one) and not compare._same(one, other)
    assert not compare._same(one, replace(one, language="zh"))
    facts = run.run_facts(Settings(task="custom", out="", conditions="text"))
    [first], [second] = results.plan(facts, [one]), results.plan(facts, [other])
    assert first.key != second.key
    old = facts | {"format": 2}  # whose answers are found by their keys still
    assert results.plan(old, [one])[0].key == results.plan(old, [other])[0].key


# ---- what the report says of a run


def test_the_report_names_only_what_took_part(tmp_path, monkeypatch):
    use(monkeypatch, gold)
    data = questions(tmp_path / "data", 2)
    text = (evaluated(data, tmp_path / "spoken") / "report.md").read_text()
    assert "Recogniser whisper-base." in text and "Voice" not in text  # the clips are the data's own
    assert "counts for May" in text
    [told] = [line for line in text.splitlines() if "MB" in line]
    assert "Over the whole run a process held at most" in told
    out = evaluated(data, tmp_path / "typed", conditions="text")
    assert "Recogniser" not in (out / "report.md").read_text()
    monkeypatch.setenv("LLASM_HOME", str(tmp_path / "home"))
    (tmp_path / "q.jsonl").write_text('{"question": "Question 1?", "answers": "x"}\n')
    out = evaluated(tmp_path / "q.jsonl", tmp_path / "voiced", conditions="speech")
    assert "Voice hibari." in (out / "report.md").read_text()


def test_noise_at_no_ratio_is_refused(tmp_path):
    with pytest.raises(LlasmError, match="give snr too"):
        Settings(task="no_speech", out="x", noise=str(tmp_path))


# ---- folders and tables that are not what they should be


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    data = questions(tmp_path / "data", 2)
    use(monkeypatch, gold)
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file/x", Path("/proc/x/y")):
        with pytest.raises(LlasmError, match=r"(is a file|written.*); choose another --out"):
            evaluated(data, out)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk")
def test_answers_that_cannot_be_written_are_one_line(tmp_path, monkeypatch):
    use(monkeypatch, gold)
    monkeypatch.setattr(run, "open_log", lambda path: open("/dev/full", "a"))  # noqa: SIM115 - the run closes it
    with pytest.raises(LlasmError, match=r"cannot write answers \(No space left on device\)"):
        evaluated(questions(tmp_path / "data", 2), tmp_path / "out")


def test_a_table_of_which_no_row_can_be_asked_leaves_no_folder(tmp_path, monkeypatch):
    data = questions(tmp_path / "data", 2)
    table = data / "questions.jsonl"
    right = table.read_text()
    table.write_text(right.replace('"answers"', '"gold"'))
    use(monkeypatch, gold)
    with pytest.raises(LlasmError, match=r"none of 2 items can be asked.*no column answers.*its columns are 'id', "):
        evaluated(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_in_which_nothing_was_answered_can_be_begun_again(tmp_path, monkeypatch):
    data = questions(tmp_path / "data", 3)
    clips = {file: file.read_bytes() for file in data.glob("*.wav")}
    for clip in clips:
        clip.write_bytes(b"no audio")
    use(monkeypatch, gold)
    with pytest.raises(LlasmError, match="none of 3 could be answered"):
        evaluated(data, tmp_path / "out", conditions="speech")
    for clip, content in clips.items():
        clip.write_bytes(content)
    evaluated(data, tmp_path / "out")
    assert files(tmp_path / "out") == files(evaluated(data, tmp_path / "fresh"))
