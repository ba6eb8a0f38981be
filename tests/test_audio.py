"""llasm.audio: every format in, every bad input refused in one line, chunk and padding arithmetic."""

from __future__ import annotations

import base64
import io
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from llasm import audio
from llasm.audio import CHUNK_SAMPLES, MAX_PIECE_SAMPLES, SAMPLE_RATE, TAIL_SAMPLES, TOKEN_SAMPLES
from llasm.errors import LlasmError

soundfile = pytest.importorskip("soundfile")

TONE_HZ = 440


def tone(seconds: float, sample_rate: int = SAMPLE_RATE, n_channels: int = 1) -> np.ndarray:
    """float32 [n_samples] or [n_samples, n_channels]."""
    n_samples = round(seconds * sample_rate)
    wave = (0.5 * np.sin(2 * np.pi * TONE_HZ * np.arange(n_samples) / sample_rate)).astype(np.float32)
    return wave if n_channels == 1 else np.repeat(wave[:, None], n_channels, axis=1)


def pitch_hz(wave: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), n=1 << 18))
    return float(np.argmax(spectrum) * SAMPLE_RATE / (1 << 18))


def check_tone(wave: np.ndarray, seconds: float) -> None:
    assert wave.dtype == np.float32 and wave.ndim == 1 and wave.flags.c_contiguous
    assert len(wave) / SAMPLE_RATE == pytest.approx(seconds, abs=0.05)
    assert np.abs(wave).max() <= 1
    assert pitch_hz(wave[: 2 * SAMPLE_RATE]) == pytest.approx(TONE_HZ, abs=5 if seconds < 0.5 else 1)


def wav_bytes(wave: np.ndarray, sample_rate: int = SAMPLE_RATE, subtype: str = "PCM_16") -> bytes:
    content = io.BytesIO()
    soundfile.write(content, wave, sample_rate, format="WAV", subtype=subtype)
    return content.getvalue()


def av_bytes(container_format: str, codec: str, sample_rate: int, seconds: float) -> bytes:
    av = pytest.importorskip("av")
    content = io.BytesIO()
    with av.open(content, "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=sample_rate, layout="mono")
        stream.open()
        frame = av.AudioFrame.from_ndarray(tone(seconds, sample_rate)[None], format="fltp", layout="mono")
        frame.rate = sample_rate
        to_codec = av.AudioResampler(
            format=stream.format, layout="mono", rate=sample_rate, frame_size=stream.frame_size
        )
        for part in [*to_codec.resample(frame), *to_codec.resample(None), None]:
            container.mux(stream.encode(part))
    return content.getvalue()


def empty_wav_with_a_title() -> bytes:
    """No samples, but a chunk after the data: not to be taken for a streamed file."""
    content = wav_bytes(tone(0.1)[:0]) + b"LIST\4\0\0\0INFO"
    return content[:4] + struct.pack("<I", len(content) - 8) + content[8:]


def refused(source: object, match: str) -> str:
    with pytest.raises(LlasmError, match=match) as caught:
        audio.decode(source)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


# ---- what can be read


@pytest.mark.parametrize(
    ("file_name", "subtype", "sample_rate", "n_channels", "seconds"),
    [
        ("phone.wav", "PCM_16", 8000, 1, 1.0),
        ("studio.wav", "PCM_16", 48000, 2, 1.0),
        ("deep.wav", "PCM_24", 44100, 2, 1.0),
        ("float.wav", "FLOAT", 16000, 1, 1.0),
        ("double.wav", "DOUBLE", 22050, 1, 1.0),
        ("ulaw.wav", "ULAW", 8000, 1, 1.0),
        ("bytes.wav", "PCM_U8", 16000, 1, 1.0),
        ("a.flac", "PCM_16", 44100, 1, 1.0),
        ("a.ogg", "VORBIS", 44100, 1, 1.0),
        ("a.opus.ogg", "OPUS", 48000, 1, 1.0),
        ("a.mp3", "MPEG_LAYER_III", 44100, 2, 1.0),
        ("many.wav", "PCM_16", 16000, 6, 0.5),
        ("short.wav", "PCM_16", 48000, 1, 0.1),
        ("long.wav", "PCM_16", 16000, 1, 95.0),
        ("name without ending", "PCM_16", 16000, 1, 0.5),
        ("Größe \u97f3.WAV", "PCM_16", 16000, 1, 0.5),
    ],
)
def test_reads_files(tmp_path, file_name, subtype, sample_rate, n_channels, seconds):
    path = tmp_path / file_name
    kinds = {".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}
    samples = tone(seconds, sample_rate, n_channels)
    soundfile.write(path, samples, sample_rate, format=kinds.get(path.suffix, "WAV"), subtype=subtype)
    check_tone(audio.decode(path), seconds)
    check_tone(audio.decode(str(path)), seconds)


@pytest.mark.parametrize(
    ("container_format", "codec", "sample_rate"),
    [("webm", "libopus", 48000), ("mp4", "aac", 44100), ("ipod", "aac", 48000)],
)
def test_reads_what_browsers_and_phones_record(container_format, codec, sample_rate):
    content = av_bytes(container_format, codec, sample_rate, 1.5)
    wave = audio.decode(content)
    assert len(wave) / SAMPLE_RATE == pytest.approx(1.5, abs=0.05)
    assert pitch_hz(wave) == pytest.approx(TONE_HZ, abs=1)


def test_webm_file(tmp_path):
    path = tmp_path / "recording.webm"
    path.write_bytes(av_bytes("webm", "libopus", 48000, 1.0))
    check_tone(audio.decode(path), 1.0)


def test_channels_are_averaged():
    stereo = np.stack([np.full(100, 0.5), np.full(100, 0.1)], axis=1)
    np.testing.assert_allclose(audio.decode(stereo), 0.3, rtol=1e-6)
    np.testing.assert_allclose(audio.decode(stereo.T), 0.3, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_integer_arrays(dtype):
    limits = np.iinfo(dtype)
    wave = audio.decode(np.array([limits.min, 0, limits.max], dtype=dtype))
    np.testing.assert_allclose(wave, [-1, 0, 1], atol=1e-4)
    assert wave.dtype == np.float32 and np.abs(wave).max() <= 1


def test_int16_array_equals_its_wav():
    pcm = (tone(0.2) * 32767).astype(np.int16)
    np.testing.assert_array_equal(audio.decode(pcm), audio.decode(wav_bytes(pcm)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_arrays(dtype):
    check_tone(audio.decode(tone(1.0).astype(dtype)), 1.0)


def test_array_is_copied():
    wave = tone(0.1)
    audio.decode(wave)[:] = 7
    assert wave.max() <= 0.5


def test_rate_and_array():
    check_tone(audio.decode((48000, (tone(1.0, 48000, 2) * 32767).astype(np.int16))), 1.0)
    check_tone(audio.decode((np.int64(8000), tone(1.0, 8000))), 1.0)


def test_datasets_dicts(tmp_path):
    content = wav_bytes(tone(0.5, 8000), 8000)
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    expected = audio.decode(content)
    for cell in (
        {"bytes": content, "path": "not-here.wav"},
        {"bytes": content, "path": None},
        {"bytes": None, "path": str(path)},
        {"path": str(path), "array": tone(0.5, 8000), "sampling_rate": 8000},
        {"array": tone(0.5, 8000).tolist(), "sampling_rate": 8000},
    ):
        np.testing.assert_allclose(audio.decode(cell), expected, atol=1e-4)


@pytest.mark.parametrize("head", ["data:audio/wav;base64,", "data:video/webm;codecs=opus;base64,", "DATA:;base64,"])
def test_data_uri(head):
    content = wav_bytes(tone(0.5))
    text = base64.b64encode(content).decode()
    expected = audio.decode(content)
    lines = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    for payload in (text, text.replace("=", "%3D"), lines):
        np.testing.assert_array_equal(audio.decode(head + payload), expected)


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000, 0x80000000])
def test_streamed_wav(size):
    content = bytearray(wav_bytes(tone(0.5)))
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", size)
    for riff_size in (0, 36, 0xFFFFFFFF):
        content[4:8] = struct.pack("<I", riff_size)
        check_tone(audio.decode(bytes(content)), 0.5)


def test_streamed_flac():
    content = bytearray(audio.to_flac_bytes(tone(0.5)))
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples
    content[22:26] = bytes(4)
    check_tone(audio.decode(bytes(content)), 0.5)


@pytest.mark.parametrize(
    "file_format, subtype, rate, n_channels",
    [("FLAC", "PCM_16", 16_000, 1), ("OGG", "OPUS", 48_000, 2), ("FLAC", "PCM_16", 655_350, 1)],
)
def test_a_small_file_of_long_silence_is_not_decoded_beyond_the_limit(file_format, subtype, rate, n_channels):
    content = io.BytesIO()
    silence = np.zeros((60 * rate, n_channels), np.float32)
    soundfile.write(content, silence, rate, format=file_format, subtype=subtype)
    assert len(content.getvalue()) < silence.nbytes / 50
    tracemalloc.start()
    with pytest.raises(audio.TooLong, match=r"clip: is (longer than 10.0 s|too large at)"):
        audio.decode(content.getvalue(), "clip", max_seconds=10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * audio.BOUNDED_VALUES * 4 + 3 * audio.READ_BLOCK_VALUES * 4 + len(content.getvalue())


def test_the_limit_lets_what_fits_through():
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000).astype(np.float32)
    content = audio.to_flac_bytes(wave)
    assert np.array_equal(audio.decode(content, max_seconds=1), audio.decode(content))
    with pytest.raises(audio.TooLong):
        audio.decode(wave, max_seconds=0.99)


@pytest.mark.parametrize("peak", [1.5, 40.0, 32768.0, 3e38])
def test_loud_floats_are_scaled_not_clipped(peak):
    wave = tone(0.5) * 2
    loud = (wave * np.float32(peak)).astype(np.float32)
    for sample_rate in (16000, 48000):
        decoded = audio.decode(wav_bytes(np.repeat(loud[:, None], 2, axis=1), sample_rate, "FLOAT"))
        assert np.abs(decoded).max() == pytest.approx(1, abs=1e-3) and np.abs(decoded).max() <= 1
    np.testing.assert_allclose(audio.decode(loud), wave / np.abs(wave).max(), atol=1e-6)


def test_quiet_floats_stay_quiet():
    np.testing.assert_allclose(audio.decode(tone(0.1) * 0.01), tone(0.1) * 0.01, atol=1e-7)


# ---- what is refused


def test_bad_paths(tmp_path, monkeypatch):
    refused(tmp_path / "gone.wav", r"gone\.wav: no such file")
    refused(tmp_path / "gone" / "a.wav", r"a\.wav: no such file")
    refused("", "'': no such file")
    refused("a\0b.wav", r"a\\x00b\.wav: is not a path")
    refused("x" * 5000, "xxx: cannot read")
    refused(os.devnull, "null: is a device")
    folder = tmp_path / "folder.wav"
    folder.mkdir()
    refused(folder, r"folder\.wav: is a directory")
    refused("https://example.org/a.wav", r"https://example\.org/a\.wav: is a https address; download")
    refused("s3://bucket/a.wav", "is a s3 address")
    locked = tmp_path / "locked.wav"
    locked.write_bytes(wav_bytes(tone(0.1)))

    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    # Tests may run as root, whom no mode of a file stops.
    monkeypatch.setattr(Path, "read_bytes", denied)
    refused(locked, r"locked\.wav: no permission to read it")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"Dear diary, this is text.\n" * 50, "not audio, or damaged"),
        (bytes(5000), "not audio, or damaged"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.wav\n#EXT-X-ENDLIST\n", "not audio"),
        (b"ffconcat version 1.0\nfile other.wav\n", "not audio"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "not audio"),
        (wav_bytes(tone(0.1))[:30], "not audio"),
        (wav_bytes(tone(0.1)[:0]), "has no samples"),
        (empty_wav_with_a_title(), "has no samples"),
        (wav_bytes(np.array([0, np.nan, 0.5, np.inf]), subtype="FLOAT"), "2 of 4 samples are NaN"),
        (wav_bytes(tone(0.1)).replace(b"fmt \x10\0\0\0\1\0", b"fmt \x10\0\0\0\x99\x99"), "that can be read"),
        (wav_bytes(tone(0.1), 1), "has sample rate 1;"),
        (wav_bytes(tone(0.1)[:1], 768000), "is too short"),
        (audio.to_flac_bytes(tone(1.0))[:6000], "is damaged"),
    ],
)
def test_bad_files(tmp_path, content, match):
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    refused(path, r"bad\.wav: .*" + match)
    refused(content, "^audio bytes: .*" + match)
    refused({"bytes": content, "path": "label.wav"}, r"^label\.wav: .*" + match)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
def test_truncated_wav(tmp_path, subtype):
    path = tmp_path / "cut.wav"
    content = wav_bytes(tone(1.0, n_channels=2), subtype=subtype)
    data = content.index(b"data") + 8
    frame_bytes = (len(content) - data) // 16000
    path.write_bytes(content[: data + 1000 * frame_bytes + 1])
    refused(path, r"cut\.wav: truncated: 1000 of 16000 samples are there")


def test_truncated_adpcm_wav_counts_bytes():
    refused(wav_bytes(tone(1.0), subtype="IMA_ADPCM")[:2000], r"truncated: \d+ of \d+ bytes are there")


def test_video_without_audio():
    av = pytest.importorskip("av")
    content = io.BytesIO()
    with av.open(content, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=5, width=16, height=16, pix_fmt="yuv420p")
        for frame in (av.VideoFrame(16, 16, "yuv420p"), None):
            container.mux(stream.encode(frame))
    refused(content.getvalue(), "has no audio stream")


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("data:audio/wav;base64,!!!!", "^audio data URI: bad base64"),
        ("data:audio/wav;base64,abcde", "bad base64"),
        ("data:audio/wav;base64,é", "bad base64"),
        ("data:audio/wav,abcd", "is not base64-encoded"),
        ("data:audio/wav;base64", "is not base64-encoded"),
        ("data:text/plain;base64,YWJj", "holds text/plain, not audio"),
        ("data:audio/wav;base64,", "is empty"),
        ("data:audio/wav;base64,YWJj", "^audio data URI: not audio"),
        (np.zeros(0, np.float32), "^audio array: has no samples"),
        (np.zeros((2, 0), np.float32), "has no samples"),
        (np.zeros((2, 3, 4)), r"has shape \(2, 3, 4\)"),
        (np.zeros((80, 3000)), r"has shape \(80, 3000\)"),
        (np.zeros(()), r"has shape \(\)"),
        (np.array([0.0, np.nan]), "^audio array: 1 of 2 samples are NaN"),
        (np.array([0.0, 1e300]), "1 of 2 samples are NaN or infinite"),
        (np.arange(9), "has dtype int64"),
        (np.array(["a"]), "has dtype <U1"),
        (np.zeros(9, complex), "has dtype complex128"),
        ((0, np.zeros(9)), "has sample rate 0;"),
        ((True, np.zeros(9)), "has sample rate True;"),
        ((float("nan"), np.zeros(9)), "has sample rate nan;"),
        (("16000", np.zeros(9)), "has sample rate '16000';"),
        ((16000, [[1.0], [1.0, 2.0]]), "is ragged"),
        ({"array": np.zeros(9), "sampling_rate": None, "path": "a.wav"}, r"^a\.wav: has sample rate None"),
        ({"bytes": None, "path": None}, r"^audio dict: has keys \['bytes', 'path'\] and no audio"),
        ({"bytes": "abc", "path": None}, "'bytes' is a str"),
        ({"path": 3}, "cannot read audio from a int"),
        (None, "cannot read audio from a NoneType"),
        ([0.0, 0.1], "cannot read audio from a list"),
    ],
)
def test_bad_values(source, match):
    refused(source, match)


def test_name_replaces_the_path(tmp_path):
    with pytest.raises(LlasmError, match=r"^turn 3: no such file"):
        audio.decode(tmp_path / "gone.wav", name="turn 3")
    with pytest.raises(LlasmError, match=r"^two\\nlines: is empty"):
        audio.decode(b"", name="two\nlines")


def test_damaged_bytes_raise_only_our_error():
    rng = np.random.default_rng(0)
    good = [wav_bytes(tone(0.2)), audio.to_flac_bytes(tone(0.2)), av_bytes("webm", "libopus", 48000, 0.2)]
    for content in good:
        for _ in range(40):
            damaged = np.frombuffer(content, np.uint8).copy()
            damaged[rng.integers(0, min(len(damaged), 400), 5)] = rng.integers(0, 256, 5)
            try:
                wave = audio.decode(damaged.tobytes()[: rng.integers(1, len(damaged))])
            except LlasmError:
                continue
            assert np.isfinite(wave).all() and np.abs(wave).max() <= 1


# ---- chunks


def test_constants_agree():
    assert audio.N_SAMPLES_PER_ENCODER_FRAME == 320 and CHUNK_SAMPLES == 480_000
    assert TOKEN_SAMPLES % (4 * audio.N_SAMPLES_PER_ENCODER_FRAME) == 0 and CHUNK_SAMPLES % TOKEN_SAMPLES == 0


@pytest.mark.parametrize(
    "n_samples", [0, 1, MAX_PIECE_SAMPLES, MAX_PIECE_SAMPLES + 1, CHUNK_SAMPLES + 1, 95 * SAMPLE_RATE]
)
def test_chunk_loses_nothing(n_samples):
    wave = np.random.default_rng(n_samples).uniform(-1, 1, n_samples).astype(np.float32)
    pieces = audio.chunk(wave)
    np.testing.assert_array_equal(np.concatenate(pieces), wave)
    assert all(len(piece) <= MAX_PIECE_SAMPLES for piece in pieces)
    assert (len(pieces) == 1) == (n_samples <= MAX_PIECE_SAMPLES)
    assert all(len(piece) >= MAX_PIECE_SAMPLES - 3 * SAMPLE_RATE for piece in pieces[:-1])
    assert all(len(audio.pad_chunk(piece)) <= CHUNK_SAMPLES for piece in pieces)


def test_chunk_cuts_in_the_pause():
    wave = np.random.default_rng(0).uniform(-1, 1, 40 * SAMPLE_RATE).astype(np.float32)
    pause = slice(round(27.9 * SAMPLE_RATE), round(28.1 * SAMPLE_RATE))
    wave[pause] *= 0.01
    pieces = audio.chunk(wave)
    assert len(pieces) == 2 and pause.start < len(pieces[0]) < pause.stop


def test_chunk_of_silence_makes_few_pieces():
    assert len(audio.chunk(np.zeros(59 * SAMPLE_RATE, np.float32))) == 2


def test_pad_chunk():
    for n_samples in [0, 1, 1279, 1280, 1281, 16000, MAX_PIECE_SAMPLES - 1, MAX_PIECE_SAMPLES]:
        wave = np.full(n_samples, 0.5, np.float32)
        padded = audio.pad_chunk(wave)
        assert len(padded) == audio.padded_length(n_samples) and padded.dtype == np.float32
        assert len(padded) % TOKEN_SAMPLES == 0 and len(padded) <= CHUNK_SAMPLES
        assert TAIL_SAMPLES <= len(padded) - n_samples < TAIL_SAMPLES + TOKEN_SAMPLES
        np.testing.assert_array_equal(padded[:n_samples], wave)
        assert not padded[n_samples:].any()


@pytest.mark.parametrize("n_samples", [-1, MAX_PIECE_SAMPLES + 1, CHUNK_SAMPLES])
def test_pad_chunk_refuses(n_samples):
    with pytest.raises(ValueError, match=f"a chunk of {n_samples} samples does not fit"):
        audio.padded_length(n_samples)
    if n_samples > 0:
        with pytest.raises(ValueError, match="use chunk"):
            audio.pad_chunk(np.zeros(n_samples, np.float32))


# ---- out


def test_write_wav(tmp_path):
    path = tmp_path / "out.wav"
    path.write_bytes(b"old")
    audio.write_wav(path, tone(0.5, 24000), 24000)
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (24000, 1, "PCM_16", 12000)
    check_tone(audio.decode(path), 0.5)
    assert [p.name for p in tmp_path.iterdir()] == ["out.wav"]


def test_write_wav_clips_and_keeps_int16(tmp_path):
    path = tmp_path / "out.wav"
    audio.write_wav(path, np.array([2.0, -2.0, 0.0]), SAMPLE_RATE)
    np.testing.assert_array_equal(soundfile.read(path, dtype="int16")[0], [32767, -32768, 0])
    pcm = np.arange(-32768, 32768, 7).astype(np.int16)
    audio.write_wav(path, pcm, SAMPLE_RATE)
    np.testing.assert_array_equal(soundfile.read(path, dtype="int16")[0], pcm)


def test_write_wav_refuses(tmp_path, monkeypatch):
    with pytest.raises(LlasmError, match=r"out\.wav: cannot write, its folder does not exist"):
        audio.write_wav(tmp_path / "gone" / "out.wav", tone(0.1), SAMPLE_RATE)
    for folder in (tmp_path, ""):
        with pytest.raises(LlasmError, match="is a directory"):
            audio.write_wav(folder, tone(0.1), SAMPLE_RATE)
    with pytest.raises(LlasmError, match=r"out\.wav: 1 of 1 samples are NaN"):
        audio.write_wav(tmp_path / "out.wav", np.array([np.nan]), SAMPLE_RATE)
    with pytest.raises(LlasmError, match=r"out\.wav: has sample rate 0"):
        audio.write_wav(tmp_path / "out.wav", tone(0.1), 0)

    def full(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LlasmError, match=r"out\.wav: cannot write \(No space left on device\)"):
        audio.write_wav(tmp_path / "out.wav", tone(0.1), SAMPLE_RATE)
    assert not list(tmp_path.iterdir())


def test_flac_round_trip():
    wave = tone(0.5)
    content = audio.to_flac_bytes(wave)
    assert content[:4] == b"fLaC"
    decoded = audio.decode(content)
    np.testing.assert_allclose(decoded, wave, atol=1 / 32768)
    np.testing.assert_array_equal(audio.decode(audio.to_flac_bytes(decoded)), decoded)
    check_tone(audio.decode(audio.to_flac_bytes(tone(0.5, 22050), 22050)), 0.5)
