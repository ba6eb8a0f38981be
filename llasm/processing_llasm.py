"""Text and audio → what the model reads: chat template, placeholders, mel features.

The placeholder token stands once for every audio embedding. At rate `fixed` the processor knows how many
there will be from the clip's length alone; at rate `heard` it writes one a clip and the model, which
counts what it heard, repeats it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ProcessorMixin

from llasm import audio, features
from llasm.errors import LlasmError

AUDIO_TOKEN = "<|audio|>"

# Put before the LLM's own template: a message whose content is a list of parts becomes plain text with one
# placeholder a clip, so that any Llama-family template can follow.
FLATTEN_PARTS = """\
{%- set llasm = namespace(messages=[]) -%}
{%- for message in messages -%}
{%- if message.content is string -%}
{%- set llasm.messages = llasm.messages + [message] -%}
{%- else -%}
{%- set llasm.text = '' -%}
{%- for part in message.content -%}
{%- if not loop.first -%}{%- set llasm.text = llasm.text + '\\n' -%}{%- endif -%}
{%- if part.type == 'audio' -%}{%- set llasm.text = llasm.text + '<|audio|>' -%}
{%- else -%}{%- set llasm.text = llasm.text + part.text -%}{%- endif -%}
{%- endfor -%}
{%- set llasm.messages = llasm.messages + [{'role': message.role, 'content': llasm.text}] -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = llasm.messages -%}
"""


class LlasmProcessor(ProcessorMixin):
    """
    feature_extractor: a WhisperFeatureExtractor.
    tokenizer: the LLM's, with the placeholder added; pads on the left.
    stack: encoder frames in one audio token. rate: `fixed` or `heard` (`llasm.adapter.AdapterConfig`).
    """

    def __init__(
        self,
        feature_extractor: Any,
        tokenizer: Any,
        chat_template: str | None = None,
        stack: int = 4,
        rate: str = "fixed",
    ) -> None:
        self.audio_token = AUDIO_TOKEN
        self.audio_token_id = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)
        self.stack, self.rate = stack, rate
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "input_features", "input_features_mask"]

    def n_audio_tokens(self, n_samples: int) -> int:
        """Audio tokens that a clip of n_samples (16 kHz, at most 30 s) takes at a fixed rate."""
        n_frames = audio.padded_length(n_samples) // audio.N_SAMPLES_PER_ENCODER_FRAME
        return -(-n_frames // self.stack)

    def placeholders(self, wave: np.ndarray) -> str:
        """The placeholders of one audio: one run for each of its chunks."""
        counts = [1 if self.rate == "heard" else self.n_audio_tokens(len(c)) for c in audio.chunk(wave)]
        return self.audio_token * sum(counts)

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: Any = None,
        padding: bool = True,
        return_tensors: str = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """text: one prompt or several, with one placeholder for each audio; audio: float32 16 kHz arrays,
        in the order of their placeholders over all prompts.

        Returns input_ids, attention_mask [B, L], input_features [A, mels, M], input_features_mask [A, M].
        Raises ValueError when the numbers of audios and placeholders differ.
        """
        texts = [text] if isinstance(text, str) else list(text or [])
        waves = _flat(audio)
        n_placeholders = sum(t.count(self.audio_token) for t in texts)
        if n_placeholders != len(waves):
            raise ValueError(f"{n_placeholders} audio placeholders in the text, but {len(waves)} audios")
        rest = iter(waves)
        texts = [self._expand(t, rest) for t in texts]
        data = dict(self.tokenizer(texts, padding=padding, return_tensors="pt", add_special_tokens=False))
        data.pop("token_type_ids", None)
        if waves:
            data |= self._process_audio(waves)
        return BatchFeature(data, tensor_type=return_tensors)

    def _expand(self, text: str, waves: Any) -> str:
        first, *others = text.split(self.audio_token)
        return first + "".join(self.placeholders(next(waves)) + other for other in others)

    def _process_audio(self, waves: list[np.ndarray], **kwargs: Any) -> dict[str, torch.Tensor]:
        mels = [features.mel(self.feature_extractor, c) for wave in waves for c in audio.chunk(wave)]
        input_features, mask = features.pad_mels(mels)
        return {"input_features": input_features, "input_features_mask": mask}


def _flat(audios: Any) -> list[np.ndarray]:
    """One array, a list of arrays, or a list of those for each prompt → a flat list of float32 arrays."""
    if audios is None:
        return []
    if isinstance(audios, list | tuple):
        return [wave for item in audios for wave in _flat(item)]
    if isinstance(audios, torch.Tensor):
        audios = audios.numpy()
    return [np.asarray(audios, dtype=np.float32)]


def build_processor(
    audio_dir: Any, text_dir: Any, stack: int, rate: str, chat_template: str | None = None
) -> LlasmProcessor:
    """The processor of two base directories: the LLM's tokenizer with the placeholder added.

    chat_template: Jinja text in the place of the tokenizer's own.
    """
    from transformers import AutoTokenizer, WhisperFeatureExtractor

    tokenizer = AutoTokenizer.from_pretrained(text_dir, padding_side="left")
    template = chat_template or tokenizer.chat_template
    if template is None:
        raise LlasmError(f"{text_dir}: the LLM has no chat template; take an instruction-tuned one, or give a template")
    tokenizer.chat_template = template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.add_special_tokens({"additional_special_tokens": [AUDIO_TOKEN]})
    return LlasmProcessor(
        WhisperFeatureExtractor.from_pretrained(audio_dir),
        tokenizer,
        chat_template=FLATTEN_PARTS + template,
        stack=stack,
        rate=rate,
    )
