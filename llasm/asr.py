"""Speech recognition by openai-whisper: the round-trip check of synthetic speech, transcripts, and the cascade.

Shapes: A clips of at most 30 s, T encoder frames (50/s), D encoder width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from llasm import audio, weights
from llasm.errors import LlasmError

# Whisper was trained on 30 s windows. Right behind the last word it begins to loop: of 128 spoken questions the
# word error rate is 0.253 with 0.5 s of silence after each, 0.089 with 2 s, and 0.083 in 30 s, which takes four
# times as long (float32, before apostrophes were compared as below).
MIN_WINDOW_SECONDS = 4.0
TAIL_SECONDS = 2.0
BATCH_CLIPS = 32
ENCODE_CLIPS = 4  # on a CPU the encoder's activations should stay in the cache
# A text longer than this is a loop: fast speech has about 6 tokens a second. That clip is heard again in 30 s.
TOKENS_PER_SECOND, SPARE_TOKENS = 9, 12
MAX_TOKENS = 224  # Whisper's own limit, half its text context


class Recogniser:
    """Whisper of any size, greedy, without timestamps; bfloat16 where float32 would only take longer."""

    def __init__(self, name: str = "whisper-base", device: str | None = None, exact: bool = False) -> None:
        """name: an embedded name, a hub id, a directory or an openai-whisper `.pt` file.

        exact: a clip's text does not depend on the batch it is in. In float32, in a window that follows from the
        clip's own length; twice as slow.
        """
        import whisper

        directory = weights.resolve(name)
        dims, state = weights.openai_whisper_state_dict(directory)
        self.identity = weights.content_hash(directory)
        self.name = name
        model = whisper.Whisper(whisper.ModelDimensions(**dims))
        model.load_state_dict(state)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.exact = exact
        self._dtype = torch.float32 if exact else torch.bfloat16
        self._model: Any = model.to(device).to(self._dtype).eval()
        for module in self._model.modules():
            if isinstance(module, torch.nn.LayerNorm):  # openai-whisper normalises in float32
                module.float()
        for block in self._model.decoder.blocks:
            block.cross_attn.qkv_attention = _CrossAttention(self._model.dims.n_text_head)

    def transcribe(self, waves: list[audio.Wave], language: str = "en") -> list[str]:
        """What each wave (16 kHz, any length) says. language: a code of Whisper's, such as en or zh."""
        from whisper.tokenizer import LANGUAGES

        if language not in LANGUAGES:
            raise LlasmError(f"Whisper knows no language {language!r}; it has en, zh and {len(LANGUAGES) - 2} others")
        if language != "en" and not self._model.is_multilingual:
            raise LlasmError(f"{self.name} knows only English, the speech is {language!r}; use one without .en")
        pieces = [(i, piece) for i, wave in enumerate(waves) for piece in audio.chunk(wave)]
        order = sorted(range(len(pieces)), key=lambda j: len(pieces[j][1]))
        texts = [""] * len(pieces)
        for batch in self._batches(order, [len(piece) for _, piece in pieces]):
            for j, text in zip(batch, self._decode([pieces[j][1] for j in batch], language), strict=True):
                texts[j] = text.strip()
        joined: list[list[str]] = [[] for _ in waves]
        for (i, _), text in zip(pieces, texts, strict=True):
            joined[i].append(text)
        return [" ".join(parts).strip() for parts in joined]

    @torch.inference_mode()
    def detect(self, waves: list[audio.Wave], among: tuple[str, ...]) -> list[str]:
        """The likeliest of these languages for each wave, by its first 30 s."""
        from whisper.tokenizer import get_tokenizer

        if not self._model.is_multilingual:
            return ["en" for _ in waves]
        tokenizer = get_tokenizer(True, num_languages=self._model.num_languages)
        tokens = [tokenizer.to_language_token(language) for language in among]
        found = []
        for start in range(0, len(waves), BATCH_CLIPS):
            batch = [wave[: audio.MAX_PIECE_SAMPLES] for wave in waves[start : start + BATCH_CLIPS]]
            frames = self._encode(batch, float(audio.CHUNK_SECONDS))
            first = torch.full((len(batch), 1), tokenizer.sot, device=frames.device)
            scores = self._model.logits(first, frames)[:, 0, tokens]
            found += [among[i] for i in scores.argmax(-1).tolist()]
        return found

    def _batches(self, order: list[int], lengths: list[int]) -> Iterator[list[int]]:
        """The clips in this order of their lengths (in samples), BATCH_CLIPS at most together."""
        batch: list[int] = []
        for j in order:
            full = len(batch) == BATCH_CLIPS
            if batch and (full or (self.exact and self._seconds(lengths[j]) != self._seconds(lengths[batch[0]]))):
                yield batch
                batch = []
            batch.append(j)
        if batch:
            yield batch

    def _seconds(self, n_samples: int) -> float:
        """How long a clip counts as: where it must not matter what else is in the batch, whole seconds."""
        seconds = n_samples / audio.SAMPLE_RATE
        return float(math.ceil(seconds)) if self.exact else seconds

    def _decode(self, waves: list[audio.Wave], language: str) -> list[str]:
        """Each wave, of at most 30 s, in a window that just holds the longest of them."""
        seconds = self._seconds(max(map(len, waves)))
        limit = min(MAX_TOKENS, int(TOKENS_PER_SECOND * seconds) + SPARE_TOKENS)
        window = min(float(audio.CHUNK_SECONDS), max(MIN_WINDOW_SECONDS, seconds + TAIL_SECONDS))
        results = self._run(waves, language, window, limit)
        looping = [i for i, result in enumerate(results) if len(result.tokens) >= limit]
        if looping and window < audio.CHUNK_SECONDS:
            again = self._run([waves[i] for i in looping], language, float(audio.CHUNK_SECONDS), MAX_TOKENS)
            for i, result in zip(looping, again, strict=True):
                results[i] = result
        return [result.text for result in results]

    @torch.inference_mode()
    def _run(self, waves: list[audio.Wave], language: str, window_seconds: float, limit: int) -> list[Any]:
        import whisper
        from whisper.model import disable_sdpa

        options = whisper.DecodingOptions(language=language, without_timestamps=True, fp16=False, sample_len=limit)
        frames = self._encode(waves, window_seconds)
        with disable_sdpa():  # see _CrossAttention
            return list(_decoding_task(self._model, options).run(frames))

    def _encode(self, waves: list[audio.Wave], window_seconds: float) -> Tensor:
        """[A, T, D] of the waves in windows of that length: fewer positions of the same encoder."""
        import whisper

        n_frames = -(-round(window_seconds * audio.SAMPLE_RATE) // audio.N_SAMPLES_PER_ENCODER_FRAME)
        n_samples = n_frames * audio.N_SAMPLES_PER_ENCODER_FRAME
        n_mels = self._model.dims.n_mels
        padded = [whisper.pad_or_trim(torch.from_numpy(wave), n_samples) for wave in waves]
        encoder = self._model.encoder
        device = encoder.conv1.weight.device
        n_clips = ENCODE_CLIPS if device.type == "cpu" else len(waves)
        frames = []
        for start in range(0, len(padded), n_clips):
            mels = [whisper.log_mel_spectrogram(wave, n_mels) for wave in padded[start : start + n_clips]]
            x = torch.stack(mels).to(device, self._dtype)
            x = torch.nn.functional.gelu(encoder.conv1(x))
            x = torch.nn.functional.gelu(encoder.conv2(x)).permute(0, 2, 1)  # [A, D, T] → [A, T, D]
            x = x + encoder.positional_embedding[: x.shape[1]]
            for block in encoder.blocks:
                x = block(x)
            frames.append(encoder.ln_post(x))
        return torch.cat(frames)


class _CrossAttention:
    """The decoder's attention over the frames, with the frames' heads laid out once for all tokens.

    For one query on a CPU two products of such tensors take 2 ms, torch's fused attention 23 ms.
    """

    def __init__(self, n_heads: int) -> None:
        self._n_heads = n_heads
        self._laid_out: tuple[Tensor, Tensor, Tensor] | None = None  # (k as given, k, v)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        if self._laid_out is None or self._laid_out[0] is not k:
            self._laid_out = (k, self._heads(k).contiguous(), self._heads(v).contiguous())
        _, k, v = self._laid_out
        q = self._heads(q) * k.shape[-1] ** -0.5
        probabilities = (q @ k.transpose(-1, -2)).float().softmax(-1).to(q.dtype)  # [A, heads, tokens, T]
        return (probabilities @ v).permute(0, 2, 1, 3).flatten(start_dim=2), None

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self._n_heads, -1).permute(0, 2, 1, 3)  # [A, T, D] → [A, heads, T, D / heads]


def _decoding_task(model: Any, options: Any) -> Any:
    """openai-whisper's decoder, given encoder frames of any length and in bfloat16."""
    from whisper.decoding import DecodingTask

    class FramesTask(DecodingTask):
        def _get_audio_features(self, frames: Tensor) -> Tensor:
            return frames

    return FramesTask(model, options)


@lru_cache(maxsize=1)
def _english_normaliser() -> Any:
    from whisper.normalizers import EnglishTextNormalizer

    return EnglishTextNormalizer()


@lru_cache(maxsize=1)
def _to_simplified() -> Any:
    from opencc import OpenCC

    return OpenCC("t2s")


def simplified(text: str) -> str:
    """Chinese in simplified characters; other text as it is."""
    return _to_simplified().convert(text)


def error_rate(said: str, heard: str, language: str = "en") -> float:
    """Errors a word (a character in Chinese) between two texts, both written in one way first; at most 1e3."""
    n_errors, n_units = count_errors(said, heard, language)
    return n_errors / n_units if n_units else float(bool(n_errors))


def count_errors(said: str, heard: str, language: str = "en") -> tuple[int, int]:
    """(substituted, deleted and inserted units, units of `said`); units are words, in Chinese characters."""
    import jiwer

    said, heard = units(said, language), units(heard, language)
    if not said:
        return len(heard.split()), 0
    found = jiwer.process_words(said, heard)
    return found.substitutions + found.deletions + found.insertions, len(said.split())


def units(text: str, language: str = "en") -> str:
    """What is compared, separated by spaces: numbers, case, punctuation and script written in one way."""
    if language == "zh":
        from whisper.normalizers import BasicTextNormalizer

        return BasicTextNormalizer(split_letters=True)(simplified(text)).strip()
    if language == "en":
        # An apostrophe before s has no sound, and the normaliser would make "is" of it: "Burke's" and "Burkes" agree.
        return _english_normaliser()(re.sub(r"['’]s\b", "s", text)).strip()
    from whisper.normalizers import BasicTextNormalizer

    return BasicTextNormalizer()(text).strip()
