"""Whisper's own decoder, frozen, as the adapter `decoder` uses it: frames of any length → what it writes down.

Shapes: A clips, T encoder frames (50/s), D width of encoder and decoder, U tokens of Whisper's vocabulary.
"""

from __future__ import annotations

import codecs
from bisect import bisect_left, bisect_right
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llasm._convert import MULTILINGUAL_VOCAB
from llasm.errors import LlasmError

CONTEXT_SPARE = 8  # of the decoder's positions, for what stands before the text
LOOP_TIMES, LOOP_TOKENS = 5, 8  # the same up to 8 tokens five times in a row are no speech, but a decoder that loops


class Written(NamedTuple):
    """What the decoder wrote down of each clip."""

    tokens: list[list[int]]  # of Whisper's vocabulary, without the end
    states: Tensor  # [A, U, D] last hidden states: the one that each token was read off


def whisper_tokenizer(n_vocab: int, language: str) -> Any:
    """openai-whisper's tokenizer of a decoder with so many tokens, for a language or `auto`; LlasmError where it is an
    English-only one and the language another."""
    from whisper.tokenizer import get_tokenizer

    multilingual = n_vocab >= MULTILINGUAL_VOCAB
    if not multilingual and language not in ("en", "auto"):
        raise LlasmError(f"adapter language is {language!r}, but the Whisper is an English-only one")
    return get_tokenizer(
        multilingual,
        num_languages=n_vocab - 51765 - int(multilingual),
        language=(None if language == "auto" else language) if multilingual else None,
        task="transcribe" if multilingual else None,
    )


def loop_of(tokens: list[int]) -> int:
    """How many tokens at the end are what stands there LOOP_TIMES, or 0."""
    for n in range(1, LOOP_TOKENS + 1):
        end = tokens[-LOOP_TIMES * n :]
        if len(end) == LOOP_TIMES * n and end == end[:n] * LOOP_TIMES:
            return n
    return 0


def as_written(whisper: Any, text: str) -> list[int]:
    """The tokens of a text behind the prompt, by `whisper_tokenizer`."""
    return whisper.encode(" " + text.strip()) if text.strip() else []


class Ear:
    """A Whisper decoder between two vocabularies: its own, in which it writes, and an LLM's, in which it is read.

    No module: the decoder's weights are the model's, not the adapter's.
    """

    def __init__(self, decoder: Any, tokenizer: Any, language: str) -> None:
        """decoder: a transformers WhisperDecoder; tokenizer: the LLM's; language of the speech: a code of Whisper's, or
        auto."""
        self.decoder, self.tokenizer = decoder, tokenizer
        n_vocab = decoder.config.vocab_size
        self.whisper = whisper_tokenizer(n_vocab, language)
        heard = n_vocab >= MULTILINGUAL_VOCAB and language == "auto"
        self._languages = torch.tensor(self.whisper.all_language_tokens if heard else [])
        self._prompt = torch.tensor(self.whisper.sot_sequence_including_notimestamps)
        self.end = self.whisper.eot
        # Of sound without words Whisper would write a note or a bracket; no marks of language or time either.
        self._never = torch.tensor([*self.whisper.non_speech_tokens, *range(self.end + 1, n_vocab)])

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Whisper's tokens of texts, as it writes them."""
        return [as_written(self.whisper, text) for text in texts]

    def logits(self, states: Tensor) -> Tensor:
        """[..., D] → [..., Whisper's vocabulary]."""
        return (states @ self.decoder.embed_tokens.weight.to(states.dtype).T).float()

    def states(self, tokens: Tensor, frames: Tensor, real: Tensor, cache: Any = None) -> Tensor:
        """tokens [A, U], frames [A, T, D] of which `real` [A, T] count → last hidden states [A, U, D].

        As WhisperDecoder's own forward, but that one would attend to the padding of shorter clips.
        """
        from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

        decoder, config = self.decoder, self.decoder.config
        past = cache.get_seq_length() if cache is not None else 0
        x = decoder.embed_tokens(tokens) + decoder.embed_positions.weight[past : past + tokens.shape[1]]
        before = create_causal_mask(config=config, inputs_embeds=x, attention_mask=None, past_key_values=cache)
        heard = create_bidirectional_mask(
            config=config, inputs_embeds=x, attention_mask=real, encoder_hidden_states=frames
        )
        for layer in decoder.layers:
            x = layer(x, before, frames, heard, cache)
        return decoder.layer_norm(x)

    @torch.no_grad()
    def prompts(self, frames: Tensor, real: Tensor) -> Tensor:
        """frames [A, T, D] of which `real` [A, T] count → what stands before each text [A, 4], or [A, 2] of an
        English-only Whisper; its language is heard where it is auto."""
        prompts = self._prompt.to(frames.device).repeat(len(frames), 1)
        if len(self._languages) and len(frames):
            languages = self._languages.to(frames.device)
            scores = self.logits(self.states(prompts[:, :1], frames, real)[:, 0])
            prompts[:, 1] = languages[scores[:, languages].argmax(-1)]
        return prompts

    @torch.no_grad()
    def listen(self, frames: Tensor, real: Tensor, limits: Tensor) -> Written:
        """frames [A, T, D] of which `real` [A, T] count → what is written greedily, `limits` [A] tokens at most, and up
        to where it loops."""
        from transformers import DynamicCache, EncoderDecoderCache

        frames = frames.to(self.decoder.embed_tokens.weight.dtype)
        never = self._never.to(frames.device)
        limits = limits.clamp(max=self.decoder.config.max_target_positions - CONTEXT_SPARE)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        given = self.prompts(frames, real)
        written: list[list[int]] = [[] for _ in frames]
        states: list[Tensor] = []
        room = limits.tolist()
        writing = {i for i, limit in enumerate(room) if limit > 0}
        while writing:
            states.append(self.states(given, frames, real, cache)[:, -1])
            scores = self.logits(states[-1])
            scores[:, never] = -torch.inf
            best = scores.argmax(-1)
            said = best.tolist()
            writing = {i for i in writing if said[i] != self.end}
            for i in list(writing):
                written[i].append(said[i])
                loop = loop_of(written[i])
                if loop:
                    del written[i][-(LOOP_TIMES - 1) * loop :]
                if loop or len(written[i]) >= room[i]:
                    writing.remove(i)
            given = best[:, None]
        if not states:
            return Written(written, frames.new_zeros(len(frames), 0, frames.shape[-1]))
        return Written(written, torch.stack(states, 1))

    def in_llm(self, tokens: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """Whisper's tokens of one clip → the LLM's of the same text, as it would have been typed, and for each the
        range [first, last + 1) of Whisper's that it lies in."""
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode  # a character may take several tokens
        text, ends = "", []
        for token in tokens:
            text += decode(self.whisper.encoding.decode_single_token_bytes(token))
            ends.append(len(text))
        before = len(text) - len(text.lstrip())
        found = self.tokenizer(text.strip(), add_special_tokens=False, return_offsets_mapping=True)
        ranges = []
        for first, last in found["offset_mapping"]:
            start = bisect_right(ends, first + before)
            ranges.append((start, max(start, bisect_left(ends, last + before)) + 1))
        return found["input_ids"], ranges
