"""Whisper as a recogniser."""

import numpy as np
import pytest

from llasm import asr, audio
from llasm.errors import LlasmError


def test_whisper_hears_clips_of_all_lengths_in_one_batch():
    recogniser = asr.Recogniser("whisper-tiny.en")
    names = ["france", "ocean", "sky"]
    waves = [audio.decode(f"examples/{name}.wav") for name in names]
    heard = recogniser.transcribe([*waves, np.concatenate([*waves, *waves, *waves, *waves, *waves])])
    wanted = ["What is the capital of France?", "Which ocean is the largest?", "Why is the sky blue?"]
    assert [asr.error_rate(w, h) for w, h in zip(wanted, heard)] == [0, 0, 0]
    assert asr.error_rate(" ".join(wanted * 5), heard[3]) < 0.1
    assert recogniser.transcribe(waves[::-1]) == heard[2::-1]
    with pytest.raises(LlasmError, match="only English"):
        recogniser.transcribe(waves, "zh")
    with pytest.raises(LlasmError, match="no language 'xx'"):
        recogniser.transcribe(waves, "xx")
