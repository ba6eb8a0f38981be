"""What the voices read: numbers, dates, money, abbreviations and symbols in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llasm.tts.speakable import speakable


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("It cost $9.99.", "It cost nine dollars and ninety-nine cents."),
        ("$5 million, £1 and €2.50", "five million dollars, one pound and two euros and fifty cents"),
        ("On 3/4/2021", "On March fourth, twenty twenty-one"),
        ("2021-12-25", "December twenty-fifth, twenty twenty-one"),
        ("July 4th, 1776", "July fourth, seventeen seventy-six"),
        ("7 September 1999", "the seventh of September, nineteen ninety-nine"),
        ("in 1900, 2000 and 2007", "in nineteen hundred, two thousand and two thousand seven"),
        ("from 1992-1993", "from nineteen ninety-two to nineteen ninety-three"),
        ("the 1980s", "the nineteen eighties"),
        ("at 5:30 pm, 7:05 and 9 a.m.", "at five thirty p m, seven oh five and nine a m"),
        ("20% of 1,234.5", "twenty percent of one thousand two hundred thirty-four point five"),
        ("½ cup, 3/4 mile, 1 1/2 hours", "one half cup, three quarters mile, one and a half hours"),
        ("39m at 100 km/h", "thirty-nine meters at one hundred kilometers per hour"),
        ("It is 5°C, or 6 ft", "It is five degrees Celsius, or six feet"),
        ("the 21st century", "the twenty-first century"),
        ("Dr. Smith vs. Mrs. Jones, No. 5", "Doctor Smith versus Missus Jones, number five"),
        ("Henry VIII, World War II, Malcolm X", "Henry the eighth, World War two, Malcolm X"),
        ("George Lucas met Alexander Conklin.", "George Lucas met Alexander Conklin."),
        ("A&B = 3 + 4", "A and B equals three plus four"),
        ("call 007 or 5551234567", "call zero zero seven or five five five one two three four five six seven"),
        ("It is -5 outside.", "It is minus five outside."),
        ("**Bold**\n- one thing\n- another", "Bold one thing another"),
        ("see https://www.example.com/x", "see example dot com"),
        ("hi 😀", "hi"),
        ("😀", ""),
        ("...", ""),
    ],
)  # fmt: skip
def test_english_is_written_as_it_is_read(text, said):
    assert speakable(text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2021年3月4日下午5:30", "二零二一年三月四日下午五点三十分"),
        ("我花了$100", "我花了一百美元"),
        ("增长了20%，共1,234元", "增长了百分之二十，共一千二百三十四元"),
        ("电话13800138000", "电话一三八零零一三八零零零"),
    ],
)
def test_mandarin_is_written_as_it_is_read(text, said):
    assert speakable(text, "zh") == said


@given(st.text(max_size=60), st.sampled_from(["en", "zh"]))
def test_any_text_gives_words_without_digits(text, language):
    said = speakable(text, language)
    assert not any(c in "0123456789" for c in said)
    assert said == "" or any(c.isalnum() for c in said)
