"""What `llasm serve` says and hears: sentences out of text as it comes, turns out of real speech."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import soxr

from llasm import audio, vad
from llasm.serve.speech import LONG_PIECE, Sentences, Speaker, sentences
from llasm.serve.turns import PAUSE_SECONDS, Microphone, TurnDetector
from llasm.tts import UnspeakableText

FRANCE, SKY = (audio.decode(f"examples/{name}.wav") for name in ("france", "sky"))
PAUSE = np.zeros(round(1.5 * audio.SAMPLE_RATE), np.float32)
NOISE = (0.05 * np.random.default_rng(0).standard_normal(10 * audio.SAMPLE_RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def speaker():
    return Speaker()


# ---- sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith paid $3.14. Then he left!", ["Dr. Smith paid $3.14.", "Then he left!"]),
        ('"Really?" J. R. said. See example.org now.', ['"Really?"', "J. R. said.", "See example.org now."]),
        ("Three steps:\n1. Wash.\n2. Cut\n\nDone", ["Three steps:", "1. Wash.", "2. Cut", "Done"]),
        ("你好。很好！再见", ["你好。", "很好！", "再见"]),
        ("  \n ", []),
    ],
)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_sentences(text, expected, step):
    cutter = Sentences()
    found = [sentence for i in range(0, len(text), step) for sentence in cutter.feed(text[i : i + step])]
    assert found + cutter.finish() == expected


@pytest.mark.parametrize("text", ["word " * 200, "one, two, " * 100, "a" * 1000])
def test_a_text_without_stops_is_spoken_in_pieces(text):
    cutter = Sentences()
    pieces = cutter.feed(text) + cutter.finish()
    assert all(0 < len(piece) <= LONG_PIECE for piece in pieces)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")


def test_the_first_sentence_comes_before_the_second_is_written():
    async def run():
        gate = asyncio.Event()

        async def deltas():
            yield "One is done. Tw"
            await asyncio.wait_for(gate.wait(), 5)
            yield "o is not."

        found = []
        async for sentence in sentences(deltas()):
            found.append(sentence)
            gate.set()
        return found

    assert asyncio.run(run()) == ["One is done.", "Two is not."]


def test_speaker(speaker):
    assert speaker.voices()[0] == speaker.voice == "hibari:heart"
    wave, rate = speaker.speak("It is 3 o'clock.")
    assert rate == 24_000 and wave.dtype == np.float32 and 0.5 < len(wave) / rate < 3
    with pytest.raises(UnspeakableText):
        speaker.speak("***")


# ---- turns


def test_turns_of_real_speech():
    sound = np.concatenate([PAUSE, FRANCE, PAUSE, SKY, PAUSE])
    detector = TurnDetector()
    turns, spoke = [], []
    for start in range(0, len(sound), 4000):
        turns += detector.feed(sound[start : start + 4000])
        spoke.append(detector.speaking)
    assert len(turns) == 2
    for turn, said in zip(turns, (FRANCE, SKY)):
        assert abs(len(turn) - len(said)) < 0.5 * audio.SAMPLE_RATE
        assert len(vad.speech_spans(turn)) == 1
    assert True in spoke and not spoke[-1]


@pytest.mark.parametrize("sound", [NOISE, np.zeros(80_000, np.float32), np.eye(1, 80_000, 40_000, dtype=np.float32)[0]])
def test_no_turn_in_noise_silence_or_a_click(sound):
    detector = TurnDetector()
    assert detector.feed(sound) == [] and not detector.speaking


def test_a_pause_shorter_than_the_limit_does_not_end_the_turn():
    spoken = np.concatenate([FRANCE, SKY])
    (_, first_end), (second_start, _) = vad.speech_spans(spoken)
    assert 0.2 < (second_start - first_end) / audio.SAMPLE_RATE < PAUSE_SECONDS
    [turn] = TurnDetector().feed(np.concatenate([PAUSE, spoken, PAUSE]))
    assert len(vad.speech_spans(turn)) == 2


def test_a_turn_ends_by_itself_when_it_gets_too_long():
    turns = TurnDetector(longest_seconds=1).feed(np.concatenate([PAUSE, *[FRANCE] * 3, PAUSE]))
    assert len(turns) > 3 and all(len(turn) <= 1.1 * audio.SAMPLE_RATE for turn in turns)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_microphone_press_to_talk(rate):
    pcm = (32767 * soxr.resample(FRANCE, audio.SAMPLE_RATE, rate)).astype("<i2").tobytes()
    microphone = Microphone(rate, hands_free=False)
    assert microphone.feed(pcm[:20_001]) == []  # a torn sample is no harm
    [wave] = microphone.feed(pcm[20_000:], last=True)
    assert abs(len(wave) - len(FRANCE)) < 800
    assert np.corrcoef(wave[: len(FRANCE) - 800], FRANCE[: len(wave)][: len(FRANCE) - 800])[0, 1] > 0.99
