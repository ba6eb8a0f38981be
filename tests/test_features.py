"""The cache of encoder frames: torn lines, several runs at once, room made."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from llasm.audio import decode, to_flac_bytes
from llasm.errors import LlasmError
from llasm.features import FeatureCache, mel


def encode_mels(mels, mask):
    return mels.transpose(1, 2)[:, ::2], mask.sum(1) // 2


def some_clips(**lengths):
    return {k: to_flac_bytes(np.sin(np.arange(n) / 9).astype(np.float32)) for k, n in lengths.items()}


def test_feature_cache_survives_reopening_and_a_torn_line(tmp_path):
    clips, extractor = some_clips(a=3000, b=20000), WhisperFeatureExtractor()
    cache = FeatureCache(tmp_path, 80)
    cache.add_all(clips.items(), extractor, encode_mels)
    with open(next(tmp_path.glob("*.jsonl")), "a") as index:
        index.write('["c", 1')
    again = FeatureCache(tmp_path, 80)
    assert "c" not in again
    expected = mel(extractor, decode(clips["b"])).T[::2].to(torch.bfloat16)
    torch.testing.assert_close(again.get("b"), expected)


def test_runs_share_the_cache_and_see_what_others_added(tmp_path):
    clips, extractor = some_clips(a=3000, b=4000, c=5000), WhisperFeatureExtractor()
    one, other = FeatureCache(tmp_path, 80), FeatureCache(tmp_path, 80)
    one.add_all(list(clips.items())[:2], extractor, encode_mels)
    other.add_all(list(clips.items())[2:], extractor, encode_mels)
    one.refresh()
    assert all(key in one for key in clips) and one.n_frames("c") == len(one.get("c"))
    assert one.n_frames("c") * 160 <= one.n_bytes(5000 / 16000)
    n_files = len(list(tmp_path.iterdir()))
    one.add_all(clips.items(), extractor, encode_mels)
    assert len(list(tmp_path.iterdir())) == n_files  # nothing was encoded again


def test_the_longest_unused_frames_make_room(tmp_path):
    clips, extractor = some_clips(a=16000, b=16000), WhisperFeatureExtractor()
    for number, (key, data) in enumerate(clips.items()):
        cache = FeatureCache(tmp_path, 80)
        cache.add_all([(key, data)], extractor, encode_mels)
        for file in tmp_path.glob("*.frames"):
            os.utime(file, (number, number)) if file.stat().st_mtime > 1000 else None
    size = next(tmp_path.glob("*.frames")).stat().st_size
    cache = FeatureCache(tmp_path, 80)
    cache.make_room(n_bytes=size, limit_bytes=2 * size, keys=["a"])  # a is in use now, b is not
    assert "a" in cache and "b" not in cache
    with pytest.raises(LlasmError, match="raise cache_gb"):
        cache.make_room(n_bytes=2 * size, limit_bytes=2 * size, keys=["a"])


def test_what_a_live_run_uses_or_writes_is_not_removed_for_another(tmp_path):
    clips, extractor = some_clips(a=16000, b=16000, c=16000), WhisperFeatureExtractor()
    for key in ("a", "b"):  # a segment each, of runs that are over
        FeatureCache(tmp_path, 80).add_all([(key, clips[key])], extractor, encode_mels)
    size = next(tmp_path.glob("*.frames")).stat().st_size
    code = (
        "import sys; from llasm.features import FeatureCache; from pathlib import Path\n"
        f"cache = FeatureCache(Path({str(tmp_path)!r}), 80); cache.make_room(0, {9 * size}, ['a'])\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "ready\n"
        writing = FeatureCache(tmp_path, 80)
        writing.add_all([("c", clips["c"])], extractor, encode_mels)
        cache = FeatureCache(tmp_path, 80)
        with pytest.raises(LlasmError, match=r"of this data take .* beside .* of other runs at work; raise cache_gb"):
            cache.make_room(n_bytes=size, limit_bytes=size, keys=[])
        assert [key for key in clips if key in FeatureCache(tmp_path, 80)] == ["a", "c"]
        other.kill()
    cache.make_room(n_bytes=size, limit_bytes=2 * size, keys=[])
    assert "a" not in cache and "c" in cache
    del writing
    cache.make_room(n_bytes=size, limit_bytes=size, keys=[])
    assert len(list(tmp_path.glob("*.held"))) == 1 and not list(tmp_path.glob("*.frames"))
