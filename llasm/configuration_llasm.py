"""Configuration of a speech-language model: encoder, adapter, LLM, and which weights the first and last came from."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from llasm.adapter import AdapterConfig


class LlasmConfig(PreTrainedConfig):
    """
    audio_config: a WhisperConfig (its decoder is used by the adapter `decoder` alone).
    text_config: the config of any Llama-family causal LM.
    adapter: the fields of `llasm.adapter.AdapterConfig`.
    audio_token_id: id of the placeholder token; it may lie past the LLM's embedding table.
    bases: `{"audio": {...}, "text": {...}}`, each with `id`, `revision` and the `sha256` of its weights.
    """

    model_type = "llasm"
    sub_configs = {"audio_config": AutoConfig, "text_config": AutoConfig}

    def __init__(
        self,
        audio_config: Any = None,
        text_config: Any = None,
        adapter: dict[str, Any] | None = None,
        audio_token_id: int = 0,
        bases: dict[str, dict[str, str | None]] | None = None,
        **kwargs: Any,
    ) -> None:
        self.audio_config = _sub_config(audio_config, "whisper")
        self.text_config = _sub_config(text_config, "llama")
        self.adapter = dict(adapter or {})
        self.audio_token_id = audio_token_id
        self.bases = dict(bases or {})
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        super().__init__(**kwargs)

    @property
    def adapter_config(self) -> AdapterConfig:
        return AdapterConfig(**self.adapter)


def _sub_config(config: Any, default_type: str) -> PreTrainedConfig:
    if isinstance(config, PreTrainedConfig):
        return config
    fields = dict(config or {})
    return AutoConfig.for_model(fields.pop("model_type", default_type), **fields)
