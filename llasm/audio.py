"""Audio in and out: any file, bytes or array to float32 mono at 16 kHz, in chunks for Whisper, and back.

Everything inside the project is one shape and one rate: `wave`, float32 [n_samples] in [-1, 1] at
SAMPLE_RATE. `decode` is the only way in, so what can be wrong with a file is said here, in one line,
before any weights load. Other shapes: `samples` float32 [n_samples, n_channels] at the file's own rate.
"""

from __future__ import annotations

import base64
import binascii
import io
import itertools
import math
import os
import re
import stat
import struct
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llasm.errors import LlasmError
from llasm.files import write_whole

SAMPLE_RATE = 16_000  # samples per second (Hz)
HOP_LENGTH = 160  # samples per mel frame: 100 mel frames per second
N_SAMPLES_PER_ENCODER_FRAME = HOP_LENGTH * 2  # samples; the second conv has stride 2: 50 frames/s
CHUNK_SECONDS = 30  # seconds: the longest audio Whisper's encoder has positions for
CHUNK_SAMPLES = CHUNK_SECONDS * SAMPLE_RATE  # samples
TAIL_SECONDS = 0.32  # seconds of silence after the audio, so that the last word has context on its right
TAIL_SAMPLES = round(TAIL_SECONDS * SAMPLE_RATE)  # samples
TOKEN_SAMPLES = 1280  # samples; chunks are padded to a multiple of it: 8 mel frames, 4 encoder frames
MAX_PIECE_SAMPLES = CHUNK_SAMPLES - TAIL_SAMPLES  # samples of sound in one chunk: the tail needs its room
MAX_PIECE_SECONDS = MAX_PIECE_SAMPLES / SAMPLE_RATE

CUT_SEARCH_SECONDS = 3  # seconds at the end of a full window in which a place to cut is looked for
CUT_STEP_SAMPLES = 160  # samples (10 ms): how finely places to cut are compared
CUT_QUIET_STEPS = 10  # steps (100 ms): how long the quiet around a cut is

MIN_SAMPLE_RATE = 1_000  # Hz; below it, resampling a small broken file would fill the memory
MAX_SAMPLE_RATE = 1_000_000  # Hz
MAX_CHANNELS = 32  # channels; tells [n, channels] from a batch or a spectrogram
READ_BLOCK_VALUES = 1 << 20  # values (frames × channels) per read: a header's length is never trusted for an allocation
BOUNDED_VALUES = 192_000  # values a second of audio that `max_seconds` allows at most: 48 kHz × 4 or 96 kHz × 2
UNKNOWN_FRAMES = 1 << 60  # frames; libsndfile reports 2^63 - 1 where the header has no length
STREAMED_WAV_BYTES = 0x7FFFF000  # bytes; writers to a pipe claim this (sox) or more (ffmpeg, arecord)

KNOWN_FORMATS = "wav, flac, ogg, mp3, m4a or webm"
# FFmpeg also opens playlists and concat scripts, which read other files and addresses: only plain media here.
AV_FORMATS = (
    "matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,aac,amr,caf,asf,avi,flv,mpegts,mpeg,ac3,eac3,"
    "wav,w64,aiff,au,mp3,flac,ogg,wv,tta,ape"
)

Wave: TypeAlias = NDArray[np.float32]
Source: TypeAlias = "str | os.PathLike[str] | bytes | NDArray[Any] | tuple[int, NDArray[Any]] | Mapping[str, Any]"


class TooLong(LlasmError):
    """The audio is longer than the caller listens to."""


def decode(source: Source, name: str | None = None, max_seconds: float | None = None) -> Wave:
    """Any audio as float32 mono [n_samples] in [-1, 1] at SAMPLE_RATE.

    `source`: a path; the bytes of a whole file; a `data:audio/...;base64,` URI; an array at 16 kHz
    ([n], [n, channels] or [channels, n]; float, int16 or int32); `(sample_rate, array)` as Gradio gives;
    or a dict of `datasets`: `{"bytes", "path"}` or `{"array", "sampling_rate"}`.
    `name` is what an error calls the audio instead of its path. A file longer than `max_seconds` raises TooLong; no
    more of it is decoded than that, however well it was compressed.
    """
    if isinstance(source, Mapping):
        return _decode_mapping(source, name, max_seconds)
    if isinstance(source, str) and source[:5].lower() == "data:":
        name = _shown(name or "audio data URI")
        return _decode_bytes(data_uri_bytes(source, name), name, max_seconds)
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        name = _shown(name or path or "''")
        return _decode_bytes(_read_file(path, name), name, max_seconds)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode_bytes(bytes(source), _shown(name or "audio bytes"), max_seconds)
    name = _shown(name or "audio array")
    if isinstance(source, tuple) and len(source) == 2:
        rate, array = source
        return _to_wave(_array_samples(array, name), rate, name, max_seconds)
    if isinstance(source, np.ndarray):
        return _to_wave(_array_samples(source, name), SAMPLE_RATE, name, max_seconds)
    raise LlasmError(
        f"{name}: cannot read audio from a {type(source).__name__}; "
        "give a path, bytes, a data URI, a numpy array or (sample_rate, array)"
    )


def chunk(wave: Wave) -> list[Wave]:
    """Pieces of at most MAX_PIECE_SAMPLES, in order, that concatenate to `wave`; one if it fits.

    Each cut is in the middle of the quietest 100 ms of the last seconds of a full window, so that
    it falls between words. The limit is 30 s less the tail that `pad_chunk` adds.
    """
    pieces = []
    start = 0
    while len(wave) - start > MAX_PIECE_SAMPLES:
        end = start + _quiet_cut(wave[start : start + MAX_PIECE_SAMPLES])
        pieces.append(wave[start:end])
        start = end
    pieces.append(wave[start:])
    return pieces


def padded_length(n_samples: int) -> int:
    """The length in samples of `pad_chunk`'s result for a piece of `n_samples`."""
    if not 0 <= n_samples <= MAX_PIECE_SAMPLES:
        raise ValueError(
            f"a chunk of {n_samples} samples does not fit: 0 to {MAX_PIECE_SAMPLES} do "
            "(30 s less the tail); use chunk()"
        )
    return math.ceil((n_samples + TAIL_SAMPLES) / TOKEN_SAMPLES) * TOKEN_SAMPLES


def pad_chunk(wave: Wave) -> Wave:
    """`wave`, TAIL_SECONDS of zeros, then zeros up to a multiple of TOKEN_SAMPLES: at most CHUNK_SAMPLES."""
    return np.pad(wave, (0, padded_length(len(wave)) - len(wave)))


def write_wav(path: str | os.PathLike[str], wave: NDArray[Any], sample_rate: int) -> None:
    """Write a 16-bit PCM wav; a reader sees the old file or the whole new one, never a part."""
    target = Path(path)
    name = _shown(path)
    if target.is_dir():
        raise LlasmError(f"{name or repr(name)}: is a directory; give the name of a wav file")
    if not target.parent.is_dir():
        raise LlasmError(f"{name}: cannot write, its folder does not exist; create {_shown(target.parent)} first")
    content = _encode(wave, sample_rate, "WAV", name)
    try:
        write_whole(target, content)
    except OSError as error:
        reason = _reason(error)
        raise LlasmError(f"{name}: cannot write ({reason}); give a name in a writable folder") from error


def to_flac_bytes(wave: NDArray[Any], sample_rate: int = SAMPLE_RATE) -> bytes:
    """The content of a 16-bit flac file, packed at the quickest level: 3 % larger, in a third of the time."""
    return _encode(wave, sample_rate, "FLAC", "audio array")


# ---- where the bytes come from


def _decode_mapping(source: Mapping[str, Any], name: str | None, max_seconds: float | None) -> Wave:
    """A cell of a `datasets` Audio column, decoded or not."""
    path = source.get("path")
    if source.get("array") is not None:
        name = _shown(name or path or "audio array")
        return _to_wave(_array_samples(source["array"], name), source.get("sampling_rate"), name, max_seconds)
    if source.get("bytes") is not None:
        # The path beside bytes is only a label: the file need not exist here.
        name = _shown(name or path or "audio bytes")
        if not isinstance(source["bytes"], bytes):
            raise LlasmError(f"{name}: 'bytes' is a {type(source['bytes']).__name__}; give a file's bytes")
        return _decode_bytes(source["bytes"], name, max_seconds)
    if path is not None:
        return decode(path, name, max_seconds)
    raise LlasmError(
        f"{_shown(name or 'audio dict')}: has keys {sorted(map(str, source))} and no audio in them; "
        "give 'bytes', 'path', or 'array' with 'sampling_rate'"
    )


def _shown(name: object) -> str:
    """`name` on one printable line of bounded length: a path may hold anything."""
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))
    return line if len(line) <= 200 else line[:100] + "..." + line[-80:]


def data_uri_bytes(uri: str, name: str) -> bytes:
    """What a `data:audio/...;base64,` URI holds."""
    wanted = "a data URI looks like data:audio/wav;base64,UklGR..."
    head, comma, payload = uri.partition(",")
    kind = head[5:].split(";")[0].strip().lower()
    if not comma or not head.lower().rstrip().endswith(";base64"):
        raise LlasmError(f"{name}: is not base64-encoded; {wanted}")
    # Browsers call a recording video/webm too; no type at all comes from careless clients.
    if not re.match(r"(audio|video)/|application/(octet-stream|ogg)$|$", kind):
        raise LlasmError(f"{name}: holds {_shown(kind)}, not audio; {wanted}")
    text = re.sub(r"\s+", "", urllib.parse.unquote(payload))
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise LlasmError(f"{name}: bad base64 ({error}); {wanted}") from error


def _read_file(path: str, name: str) -> bytes:
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+)://", path)
    if scheme:
        raise LlasmError(f"{name}: is a {scheme[1]} address; download it first and give the path of the file")
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise LlasmError(f"{name}: is a directory; give one audio file ({KNOWN_FORMATS})")
        # A pipe ends, so it may be read; a device such as /dev/zero does not.
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise LlasmError(f"{name}: is a device or a socket; give one audio file ({KNOWN_FORMATS})")
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise LlasmError(f"{name}: no such file; check the path") from error
    except PermissionError as error:
        raise LlasmError(f"{name}: no permission to read it; make the file readable") from error
    except OSError as error:
        raise LlasmError(f"{name}: cannot read ({_reason(error)}); give the path of an audio file") from error
    except LlasmError:
        raise
    except ValueError as error:  # a null byte in the path
        raise LlasmError(f"{name}: is not a path ({error}); give the path of an audio file") from error


# ---- from bytes to samples


def _decode_bytes(content: bytes, name: str, max_seconds: float | None) -> Wave:
    if not content:
        raise LlasmError(f"{name}: is empty (0 bytes); give an audio file ({KNOWN_FORMATS})")
    content = _checked_wav(content, name)
    decoded = _decode_soundfile(content, name, max_seconds)
    if decoded is None:
        decoded = _decode_av(content, name, max_seconds)
    samples, rate = decoded
    return _to_wave(samples, rate, name, max_seconds)


def _checked_wav(content: bytes, name: str) -> bytes:
    """Refuse a wav whose data chunk claims more than the file has: libsndfile would quietly read less.

    A streamed wav, whose writer could not go back to fill in the sizes, is legal; where it claims 0
    bytes the size is filled in, because libsndfile takes 0 at its word. Other formats pass unchanged.
    """
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return content
    riff_end = 8 + struct.unpack_from("<I", content, 4)[0]  # where the header says that the file ends
    position, frame_bytes, unit = 12, 1, "bytes"
    while position + 8 <= len(content):
        kind, size = struct.unpack_from("<4sI", content, position)
        position += 8
        if kind == b"fmt " and position + 16 <= len(content):
            format_tag, _, _, _, block_bytes = struct.unpack_from("<HHIIH", content, position)
            # In PCM, float, a-law, mu-law and extensible files a block is one sample of every channel.
            if format_tag in (1, 3, 6, 7, 0xFFFE) and block_bytes:
                frame_bytes, unit = block_bytes, "samples"
        if kind == b"data":
            present = len(content) - position
            # An empty file may have further chunks after its data; then the header knows of them.
            if size == 0 and present and (riff_end <= position or riff_end >= STREAMED_WAV_BYTES):
                return content[: position - 4] + struct.pack("<I", present) + content[position:]
            if present // frame_bytes < size // frame_bytes and size < STREAMED_WAV_BYTES:
                counts = f"{present // frame_bytes} of {size // frame_bytes} {unit}"
                raise LlasmError(f"{name}: truncated: {counts} are there; copy the whole file again")
            return content
        position += size + size % 2  # chunks are padded to even sizes
    return content


def _decode_soundfile(content: bytes, name: str, max_seconds: float | None) -> tuple[NDArray[np.float32], int] | None:
    """Samples and rate, or None where libsndfile does not know the format or cannot read it."""
    import soundfile

    try:
        file = soundfile.SoundFile(io.BytesIO(content))
    except (soundfile.SoundFileError, OSError):
        return None
    with file:
        if file.frames >= UNKNOWN_FRAMES:
            return None  # a streamed flac: libsndfile cannot read one from memory, FFmpeg can
        blocks: list[NDArray[np.float32]] = []
        n_frames = 0
        try:
            while not blocks or len(blocks[-1]):
                blocks.append(file.read(max(1, READ_BLOCK_VALUES // file.channels), dtype="float32", always_2d=True))
                n_frames += len(blocks[-1])
                _check_length(n_frames, file.channels, file.samplerate, name, max_seconds)
        except soundfile.SoundFileError as error:
            raise LlasmError(f"{name}: is damaged ({_reason(error)}); copy the whole file again") from error
        return np.concatenate(blocks), file.samplerate


def _decode_av(content: bytes, name: str, max_seconds: float | None) -> tuple[NDArray[np.float32], int]:
    """Samples and rate of the first audio stream, by FFmpeg: webm/opus, m4a and the rest."""
    import av

    blocks: list[NDArray[np.float32]] = []
    options = {"format_whitelist": AV_FORMATS, "protocol_whitelist": ""}
    try:
        with av.open(io.BytesIO(content), mode="r", options=options) as container:
            stream = next(iter(container.streams.audio), None)
            if stream is None or stream.codec_context is None:  # None: a codec that FFmpeg does not know
                raise LlasmError(f"{name}: has no audio stream that can be read; give {KNOWN_FORMATS}")
            rate = stream.codec_context.sample_rate
            # Planar float is [channels, n] per frame, whatever the codec's own sample type.
            resampler = av.AudioResampler(format="fltp", layout=stream.codec_context.layout, rate=rate)
            n_frames = 0
            for frame in itertools.chain(container.decode(stream), [None]):  # None flushes
                new = [out.to_ndarray().T.astype(np.float32) for out in resampler.resample(frame)]
                n_frames += sum(map(len, new))
                _check_length(n_frames, stream.codec_context.channels, rate, name, max_seconds)
                blocks += new
    except LlasmError:
        raise
    except (av.error.FFmpegError, ValueError, OverflowError) as error:
        raise LlasmError(f"{name}: not audio, or damaged ({_reason(error)}); give {KNOWN_FORMATS}") from error
    if not blocks:
        raise LlasmError(f"{name}: has no samples; give a recording that is not empty")
    return np.concatenate(blocks), rate


def _check_length(n_frames: int, n_channels: int, rate: int, name: str, max_seconds: float | None) -> None:
    if max_seconds is None:
        return
    if n_frames > max_seconds * rate:
        raise TooLong(f"{name}: is longer than {max_seconds:.1f} s; cut it")
    if n_frames * n_channels > max_seconds * BOUNDED_VALUES:
        raise TooLong(f"{name}: is too large at {rate} Hz with {n_channels} channels; give 16 kHz mono")


def _reason(error: Exception) -> str:
    """A library's message without the repr of our BytesIO, on one line."""
    text = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return _shown(str(text).strip().rstrip("."))


# ---- from samples to a wave


def _array_samples(array: Any, name: str) -> NDArray[np.float32]:
    """[n], [n, channels] or [channels, n] of float, int16 or int32 as float32 [n, channels]."""
    try:
        values = np.asarray(array)
    except ValueError as error:
        raise LlasmError(f"{name}: is ragged; give [n_samples] or [n_samples, n_channels]") from error
    if values.ndim == 1:
        values = values[:, None]
    elif values.ndim == 2 and values.shape[0] < values.shape[1]:
        values = values.T  # there are fewer channels than samples
    if values.ndim != 2 or values.shape[1] > MAX_CHANNELS:
        raise LlasmError(f"{name}: has shape {np.shape(array)}; give [n_samples] or [n_samples, n_channels]")
    if values.dtype in (np.int16, np.int32):
        return (values / -float(np.iinfo(values.dtype).min)).astype(np.float32)
    if not np.issubdtype(values.dtype, np.floating):
        raise LlasmError(f"{name}: has dtype {values.dtype}; give floats in [-1, 1], int16 or int32")
    with np.errstate(over="ignore"):  # a float64 too big for float32 becomes inf, which is refused later
        return values.astype(np.float32)


def _checked_rate(rate: Any, name: str) -> int:
    number = isinstance(rate, (int, float, np.integer, np.floating)) and not isinstance(rate, bool)
    if not number or not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE or rate != int(rate):
        raise LlasmError(
            f"{name}: has sample rate {rate!r}; give a whole number from {MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz"
        )
    return int(rate)


def _check_finite(samples: NDArray[np.float32], name: str) -> None:
    n_bad = samples.size - int(np.count_nonzero(np.isfinite(samples)))
    if n_bad:
        raise LlasmError(f"{name}: {n_bad} of {samples.size} samples are NaN or infinite; give finite ones")


def _to_wave(samples: NDArray[np.float32], sample_rate: Any, name: str, max_seconds: float | None = None) -> Wave:
    """float32 [n, channels] at any rate as float32 mono [n_samples] at SAMPLE_RATE in [-1, 1]."""
    rate = _checked_rate(sample_rate, name)
    _check_length(len(samples), samples.shape[1], rate, name, max_seconds)
    if samples.size == 0:
        raise LlasmError(f"{name}: has no samples; give a recording that is not empty")
    _check_finite(samples, name)
    # Channels are averaged in float64: float32 sums near its limit would overflow.
    wave = samples.mean(axis=1, dtype=np.float64).astype(np.float32)
    # Scaled, not clipped: clipping a loud float file distorts the speech, a gain only shifts Whisper's
    # log-mel by a constant. Quiet files stay as they are. Before resampling, so that huge values cannot
    # overflow there; and after it, because the filter overshoots a little.
    wave = _limit_peak(wave)
    if rate != SAMPLE_RATE:
        import soxr

        n_samples = len(wave)
        wave = _limit_peak(soxr.resample(wave, rate, SAMPLE_RATE, quality="HQ"))
        if len(wave) == 0:
            raise LlasmError(f"{name}: is too short ({n_samples} samples at {rate} Hz); give at least 0.1 s")
    return np.ascontiguousarray(wave, dtype=np.float32)


def _limit_peak(wave: Wave) -> Wave:
    peak = float(np.max(np.abs(wave), initial=0.0))
    if peak <= 1:
        return wave
    return np.clip(wave / np.float32(peak), -1, 1)  # the division may round to just above 1


def _quiet_cut(window: Wave) -> int:
    """Where to cut `window`, in samples: the middle of the quietest 100 ms of its last seconds."""
    first = len(window) - CUT_SEARCH_SECONDS * SAMPLE_RATE
    steps = window[first:].astype(np.float64).reshape(-1, CUT_STEP_SAMPLES)  # [n_steps, samples of a step]
    energy = np.square(steps).sum(axis=1)
    quiet = np.convolve(energy, np.ones(CUT_QUIET_STEPS), mode="valid")
    # Of equally quiet places the last, which makes the fewest pieces.
    last = len(quiet) - 1 - int(np.argmin(quiet[::-1]))
    return first + (last + CUT_QUIET_STEPS // 2) * CUT_STEP_SAMPLES


# ---- from a wave to a file


def _encode(wave: NDArray[Any], sample_rate: int, file_format: str, name: str) -> bytes:
    """The content of a 16-bit file; int16 in or `decode`d int16 comes out bit for bit the same."""
    import soundfile

    samples = _array_samples(wave, name)
    _check_finite(samples, name)
    pcm = np.clip(np.round(samples * 32768), -32768, 32767).astype(np.int16)
    content = io.BytesIO()
    level = 0.0 if file_format == "FLAC" else None
    rate = _checked_rate(sample_rate, name)
    soundfile.write(content, pcm, rate, format=file_format, subtype="PCM_16", compression_level=level)
    return content.getvalue()
