"""The model: a frozen Whisper encoder, a projection adapter, a Llama-family LLM; with the adapter `decoder`, Whisper's
frozen decoder as well.

Shapes: B conversations, L text positions, A audio clips of at most 30 s (over the whole batch, in the order
of their placeholders), M mel frames (100/s), T encoder frames (50/s), D encoder width, N audio tokens,
H LLM width.

Importing this module registers the classes with transformers' Auto factories.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.whisper.modeling_whisper import WhisperDecoder, WhisperEncoder

from llasm.adapter import AudioTokens, DecoderAdapter, build_adapter
from llasm.configuration_llasm import LlasmConfig
from llasm.ear import Ear
from llasm.processing_llasm import LlasmProcessor


class LlasmAudioTower(WhisperEncoder):
    """Whisper's encoder on the audio that is there instead of 30 s of padding."""

    def forward(self, input_features: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> BaseModelOutput:
        """input_features [A, mels, M], zeros past each clip; attention_mask [A, M], 1 where there is audio.

        M and every clip's length must be even: then the last position of the strided convolution never
        looks past the clip, and a clip's frames [T = M / 2] are the same alone as in any batch.
        """
        if input_features.shape[-1] % 2:
            raise ValueError(f"odd number of mel frames: {input_features.shape[-1]}; pad the clip with pad_chunk")
        x = input_features.to(self.conv1.weight.dtype)
        x = F.gelu(self.conv2(F.gelu(self.conv1(x)))).transpose(1, 2)
        x = x + self.embed_positions.weight[: x.shape[1]]
        mask = None
        if attention_mask is not None:
            mask = create_bidirectional_mask(
                config=self.config, inputs_embeds=x, attention_mask=attention_mask[:, ::2].bool()
            )
        for layer in self.layers:
            x = layer(x, mask)
        return BaseModelOutput(last_hidden_state=self.layer_norm(x))


class LlasmPreTrainedModel(PreTrainedModel):
    config_class = LlasmConfig
    base_model_prefix = "model"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["WhisperEncoderLayer", "LlamaDecoderLayer"]
    _skip_keys_device_placement = "past_key_values"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True


class LlasmModel(LlasmPreTrainedModel):
    """Encoder, adapter and LLM body."""

    def __init__(self, config: LlasmConfig) -> None:
        super().__init__(config)
        self.audio_tower = LlasmAudioTower(config.audio_config)
        self.multi_modal_projector = build_adapter(
            config.adapter_config,
            config.audio_config.d_model,
            config.text_config.hidden_size,
        )
        if isinstance(self.multi_modal_projector, DecoderAdapter):
            self.audio_decoder = WhisperDecoder(config.audio_config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def train(self, mode: bool = True) -> LlasmModel:
        """As nn.Module's, but Whisper, which no stage trains, hears without dropout."""
        super().train(mode)
        self.audio_tower.eval()
        if isinstance(self.multi_modal_projector, DecoderAdapter):
            self.audio_decoder.eval()
        return self

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self.audio_tower if modality == "audio" else super().get_encoder(modality=modality)

    def listen(self, tokenizer: Any) -> None:
        """Gives the adapter `decoder` Whisper's decoder and the LLM's tokenizer; others need neither."""
        if isinstance(self.multi_modal_projector, DecoderAdapter):
            language = self.config.adapter_config.language
            self.multi_modal_projector.ear = Ear(self.audio_decoder, tokenizer, language)

    def encode_frames(self, input_features: Tensor, input_features_mask: Tensor) -> tuple[Tensor, Tensor]:
        """[A, mels, M] with mask [A, M] → frames [A, T, D] and the number that is real [A]."""
        frames = self.audio_tower(input_features, input_features_mask).last_hidden_state
        return frames, input_features_mask.sum(1) // 2

    def project_frames(self, frames: Tensor, n_frames: Tensor) -> AudioTokens:
        """frames [A, T, D] (cached or fresh), n_frames [A] → what the LLM receives."""
        adapter = self.multi_modal_projector
        if isinstance(adapter, DecoderAdapter) and adapter.ear is None:
            # A merged model that transformers has loaded: its tokenizer lies beside its weights.
            self.listen(AutoTokenizer.from_pretrained(self.config.name_or_path))
        weight = next(adapter.parameters())
        table = self.get_input_embeddings().weight
        return adapter(frames.to(weight.dtype), n_frames, table)

    def get_audio_features(self, input_features: Tensor, input_features_mask: Tensor, **kwargs: Any) -> AudioTokens:
        return self.project_frames(*self.encode_frames(input_features, input_features_mask))

    def embed(self, input_ids: Tensor, audio_embeds: Tensor | None) -> Tensor:
        """input_ids [B, L], audio_embeds [ΣN, H] → [B, L, H]; the placeholders take the audio embeddings in order."""
        placeholder = input_ids == self.config.audio_token_id
        # The placeholder's id may have no row in the LLM's table.
        embeds = self.get_input_embeddings()(input_ids.masked_fill(placeholder, 0))
        n_given = 0 if audio_embeds is None else len(audio_embeds)
        n_placeholders = int(placeholder.sum())
        if n_given != n_placeholders:
            raise ValueError(f"{n_placeholders} audio placeholders in the prompt, but {n_given} audio embeddings")
        if audio_embeds is None or n_given == 0:
            return embeds
        return embeds.masked_scatter(placeholder[..., None], audio_embeds.to(embeds.device, embeds.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        audio_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("give input_ids or inputs_embeds")
            if input_features is not None:
                if input_features_mask is None:
                    raise ValueError("input_features need input_features_mask")
                audio_embeds = flatten(self.get_audio_features(input_features, input_features_mask))
            inputs_embeds = self.embed(input_ids, audio_embeds)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )


class LlasmForConditionalGeneration(LlasmPreTrainedModel, GenerationMixin):
    """The model with its language-modelling head.

    Audio comes as `input_features` (mel; encoded here) or as `audio_embeds` (already projected).
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: LlasmConfig) -> None:
        super().__init__(config)
        self.model = LlasmModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self.model.get_encoder(modality=modality)

    def get_audio_features(self, input_features: Tensor, input_features_mask: Tensor, **kwargs: Any) -> AudioTokens:
        return self.model.get_audio_features(input_features, input_features_mask)

    def forward(
        self,
        input_ids: Tensor | None = None,
        input_features: Tensor | None = None,
        input_features_mask: Tensor | None = None,
        audio_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """labels [B, L] with -100 where nothing is learned; logits_to_keep: how many last positions, 0 for all."""
        output = self.model(
            input_ids=input_ids,
            input_features=input_features,
            input_features_mask=input_features_mask,
            audio_embeds=audio_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(output.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """As in transformers; the audio is encoded once, before the first step.

        At rate `heard` the number of audio tokens is known only now: the prompt's one placeholder a clip
        becomes as many as were heard.
        """
        features = kwargs.pop("input_features", None)
        mask = kwargs.pop("input_features_mask", None)
        if features is not None:
            with torch.no_grad():
                tokens = self.get_audio_features(features, mask)
            kwargs["audio_embeds"] = flatten(tokens)
            if self.config.adapter_config.heard:
                input_ids = inputs if inputs is not None else kwargs.pop("input_ids")
                inputs = None
                kwargs["input_ids"], kwargs["attention_mask"] = self._expand(
                    input_ids, kwargs.get("attention_mask"), tokens.counts
                )
        return super().generate(inputs, **kwargs)

    def _expand(self, input_ids: Tensor, attention_mask: Tensor | None, counts: Tensor) -> tuple[Tensor, Tensor]:
        """One placeholder a clip → counts[i] placeholders for clip i; left-padded [B, L'], with its mask."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        real = attention_mask.bool()
        repeats = torch.ones_like(input_ids)
        repeats[input_ids == self.config.audio_token_id] = counts
        rows = [
            ids[keep].repeat_interleave(times[keep]) for ids, times, keep in zip(input_ids, repeats, real, strict=True)
        ]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
        masks = [torch.ones_like(row) for row in rows]
        return ids, nn.utils.rnn.pad_sequence(masks, batch_first=True, padding_side="left")

    def prepare_inputs_for_generation(self, *args: Any, is_first_iteration: bool = False, **kwargs: Any) -> dict:
        inputs = super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            inputs.pop("audio_embeds", None)  # it is in the key-value cache by now
        return inputs


def flatten(tokens: AudioTokens) -> Tensor:
    """AudioTokens of A clips → [ΣN, H], clip after clip, without the padding."""
    parts = [row[:n] for row, n in zip(tokens.embeddings, tokens.counts.tolist(), strict=True)]
    return torch.cat(parts) if parts else tokens.embeddings.flatten(0, 1)


AutoConfig.register(LlasmConfig.model_type, LlasmConfig)
AutoModel.register(LlasmConfig, LlasmModel)
AutoModelForMultimodalLM.register(LlasmConfig, LlasmForConditionalGeneration)
AutoProcessor.register(LlasmConfig, LlasmProcessor)
