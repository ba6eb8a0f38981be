"""Scores against verdicts made by hand, and statistics against values known from elsewhere."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from llasm.evals import scoring, statistics
from llasm.evals.items import Item, checked

TABLE = [json.loads(line) for line in (Path(__file__).parent / "data/verdicts.jsonl").read_text().splitlines()]


def test_the_table_covers_what_it_must():
    about = {case["about"] for case in TABLE}
    assert len(TABLE) >= 60
    assert about >= {
        "numbers",
        "dates",
        "articles",
        "aliases",
        "accents",
        "Chinese",
        "empty",
        "refusing",
        "signs",
        "no speech",
    }


@pytest.mark.parametrize("case", TABLE, ids=lambda case: f"{case['about']}: {case['prediction'][:40]}")
def test_verdicts_agree_with_those_made_by_hand(case):
    kind = "no_speech" if case["about"] == "no speech" else "qa"
    item = Item(id="1", task="custom", kind=kind, answers=tuple(case["answers"]))
    found = scoring.verdict(item, case["prediction"])
    assert found["right"] == case["right"]
    assert found["refused"] == (case["about"] == "refusing")
    assert found.get("exact", False) <= found["right"]  # what is nothing but an alias also contains one


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("A", "A"),
        ("B.", "B"),
        ("(D)", "D"),
        ("C: New York", "C"),
        ("The answer is C", "C"),
        ("answer: **B**", "B"),
        ("Rome", "B"),
        ("It is New York City.", "D"),
        ("A dog is an animal", None),
        ("Rome or Paris", None),
        ("Option A and option B", None),
        ("I cannot say.", None),
        ("", None),
        ("The answer is a dog.", None),
        ("A. Paris\nB. Rome", None),
        ("A, B and C are all wrong", None),
        ("Option A is wrong; it is B.", "B"),
        ("Options A and B", None),
        ("D.C. is the capital", None),
        ("C. elegans", None),
        ("B negative", None),
        ("Vitamin C", None),
        ("It's B", "B"),
        ("It is B.", "B"),
        ("I think B", "B"),
        ("I'd go with (B).", "B"),
        ("B is correct", "B"),
        ("B because it is old", "B"),
        ("B, because it is old", "B"),
        ("B, not A", "B"),
        ("The answer is not B", None),
        ("b", "B"),
        ("(b)", "B"),
        ("b) Rome", "B"),
        ("the answer is b.", "B"),
        ("B. Paris", None),
        ("The answer is B: Rome, which is not Paris.", "B"),
        ("The answer is B. Rome is older than Paris.", "B"),
        ("The answer is B or C.", None),
        ("**B. Rome**", "B"),
        ("The correct answer is:\nB) Rome", "B"),
        ("答案是B", "B"),
        ("选B", "B"),
        ("答案：B。", "B"),
        ("正确答案是B，因为罗马更古老。", "B"),
        ("B是正确的", "B"),
        ("不是A，是B。", "B"),
        ("答案不是B", None),
        ("我的血型是B型", None),
        ("选A和B", None),
        ("**Answer:** B", "B"),
        ("B\n\nBecause it is old.", "B"),
        ("A\nB\nC\nD", None),
        ("It is old.\n\n$\\boxed{B}$", "B"),
    ],
)
def test_a_choice_is_read_and_never_guessed(answer, label):
    assert scoring.choice(answer, {"A": "Paris", "B": "Rome", "C": "New York", "D": "New York City"}) == label


def test_options_that_name_letters():
    options = {"A": "a cat", "B": "a dog", "C": "Vitamin C", "D": "Both A and B"}
    assert scoring.choice("A. cat\nB. dog", options) is None
    assert scoring.choice("The answer is a dog.", options) == "B"
    assert scoring.choice("D. Both A and B", options) == "D"
    assert scoring.choice("It is vitamin C.", options) == "C"
    assert scoring.choice("C++", {"A": "C", "B": "C++", "C": "C#", "D": "Rust"}) == "B"


def test_options_without_letters():
    assert scoring.choice("The argument is invalid.", {"valid": "valid", "invalid": "invalid"}) == "invalid"
    assert scoring.choice("Yes, you would.", {"yes": "Yes", "no": "No"}) == "yes"
    assert scoring.choice("It is not valid.", {"valid": "valid", "invalid": "invalid"}) is None


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I don't know.",
        "As an AI language model, I have no body.",
        "I am not sure.",
        "我不知道。",
        "No idea.",
        "I'm afraid I don't know.",
        "As a large language model, I cannot taste.",
    ],
)
def test_refusals(text):
    assert scoring.refuses(text)


@pytest.mark.parametrize(
    "text", ["Paris", "I think it is Rome.", "Not far from here.", "Sorry is a song by Bieber.", "As an aid to memory."]
)
def test_answers_are_no_refusals(text):
    assert not scoring.refuses(text)


@pytest.mark.parametrize(
    ("text", "nothing"),
    [
        ("I didn't hear anyone speak. Could you say that again?", True),
        ("There was no speech in that recording. Please ask me again.", True),
        ("I heard no words. Could you repeat your question?", True),
        ("我没有听到有人说话，请再说一遍好吗？", True),
        ("录音里没有听到说话声，请您重试。", True),
        ("", True),
        ("...", True),
        ("The Sound of Silence is a song.", False),
        ("I'm sorry, I don't know.", False),
        ("I couldn't hear any words. Could you try again, please?", True),
        ("The recording is silent.", True),
        ("There was no speech.", True),
        ("Beethoven could not hear his own music.", False),
        ("In space there is no sound, as there is no air.", False),
        ("History may repeat itself again.", False),
        ("贝多芬听不到自己的音乐。", False),
    ],
)
def test_what_says_that_nothing_was_heard(text, nothing):
    assert scoring.hears_nothing(text) == nothing


def test_gold_answers_that_begin_with_a_denial_are_right():
    for gold in (
        "Not the Nine O'Clock News",
        "Never Let Me Go",
        "Why Not?",
        "US",
        "He",
        "-5",
        "$5",
        "Rome's Colosseum",
    ):
        assert scoring.contains(gold, (gold,)), gold


def test_an_alias_of_which_nothing_is_left_is_a_fault():
    [item] = checked([Item(id="1", task="custom", question="q", answers=("?!",))])
    assert "no word" in item.fault


def test_token_f1():
    assert scoring.f1("the cat sat", ("a cat",)) == pytest.approx(2 * (1 / 2) * 1 / (1 / 2 + 1))
    assert scoring.f1("dog", ("cat", "the dog")) == 1
    assert scoring.f1("", ("cat",)) == 0


def test_chinese_repeating_is_scored_in_characters():
    item = Item(id="1", task="transcription", kind="transcription", answers=("今天天气很好",), language="zh")
    assert scoring.verdict(item, "今天天氣好")["errors"] == 1


def test_intervals_cover_what_they_should():
    """Of 95 % intervals about 95 % hold the truth; too few samples to say more than 88 %."""
    rng = np.random.default_rng(0)
    inside = [
        low <= 0.3 <= high for low, high in (statistics.mean_interval(rng.random(120) < 0.3)[1:] for _ in range(60))
    ]
    assert sum(inside) >= 53


def test_an_interval_of_all_or_nothing_is_the_exact_one():
    mean, low, high = statistics.mean_interval(np.zeros(10))
    assert (mean, low) == (0, 0) and high == pytest.approx(1 - 0.025**0.1)
    assert statistics.mean_interval([3.0, 3.0])[1:] == (None, None)


def test_paired_tests():
    ours, theirs = np.zeros(20), np.zeros(20)
    ours[:8], theirs[7:9] = 1, 1  # wins 7, losses 1
    found = statistics.paired(ours, theirs)
    assert found["gap"] == pytest.approx(0.3) and found["low"] < 0.3 < found["high"]
    assert found["p"] == pytest.approx(2 * sum(math.comb(8, k) for k in (0, 1)) / 2**8)
    assert statistics.paired(ours, ours)["p"] == 1
    graded = statistics.paired([3.0, 4, 5, 4, 5, 4, 3, 5], [1.0, 2, 3, 1, 2, 2, 2, 1])
    assert graded["p"] == pytest.approx(2 / 2**8)
    assert statistics.ratio_interval([1, 0, 2, 0], [5, 5, 5, 5])[0] == pytest.approx(0.15)


def test_too_few_or_identical_answers_give_no_false_certainty():
    assert statistics.paired([1], [0]) == {"gap": 1.0, "low": None, "high": None, "p": None, "n": 1}
    assert statistics.paired([2.0], [2.0])["p"] is None
    alike = statistics.paired(np.ones(10), np.ones(10))
    assert alike["gap"] == 0 and alike["high"] == -alike["low"] == pytest.approx(1 - 0.025**0.1)
    assert statistics.paired([3.0, 4], [3.0, 4])["low"] is None
    assert statistics.ratio_interval([1, 0], [0, 0]) == (None, None, None)


def test_the_gap_of_error_rates_is_one_of_all_words():
    found = statistics.paired_ratio([1, 0, 0, 2, 0, 1], [0, 0, 0, 0, 0, 0], [1, 100, 50, 10, 3, 36])
    assert found["gap"] == pytest.approx(4 / 200) and found["low"] < 0.02 < found["high"] and found["p"] > 0.05
    assert statistics.paired_ratio([1], [0], [4]) == {"gap": 0.25, "low": None, "high": None, "p": None, "n": 1}


def test_words_of_which_nothing_is_left_cannot_be_repeated():
    [item] = checked([Item(id="1", task="t", kind="transcription", question="q", answers=("?!",))])
    assert "no word" in item.fault
