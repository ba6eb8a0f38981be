"""Other formats of weights (GGUF, CTranslate2, openai-whisper's .pt) to and from transformers directories.

Each `convert_*` writes into `work`/model and returns that path.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llasm.errors import LlasmError

if TYPE_CHECKING:
    import torch

DIMS = (
    *("n_mels", "n_audio_ctx", "n_audio_state", "n_audio_head", "n_audio_layer"),
    *("n_vocab", "n_text_ctx", "n_text_state", "n_text_head", "n_text_layer"),
)
# openai-whisper's name of a module → transformers' name, less the leading 'model.'.
TOP_MODULES = {
    "encoder.conv1": "encoder.conv1",
    "encoder.conv2": "encoder.conv2",
    "encoder.ln_post": "encoder.layer_norm",
    "decoder.ln": "decoder.layer_norm",
}
BLOCK_MODULES = {
    "attn.query": "self_attn.q_proj",
    "attn.key": "self_attn.k_proj",
    "attn.value": "self_attn.v_proj",
    "attn.out": "self_attn.out_proj",
    "attn_ln": "self_attn_layer_norm",
    "cross_attn.query": "encoder_attn.q_proj",
    "cross_attn.key": "encoder_attn.k_proj",
    "cross_attn.value": "encoder_attn.v_proj",
    "cross_attn.out": "encoder_attn.out_proj",
    "cross_attn_ln": "encoder_attn_layer_norm",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "mlp_ln": "final_layer_norm",
}
MULTILINGUAL_VOCAB = 51865  # and one more from large-v3 on; the English-only models have one less


def convert_gguf(weights: Path, work: Path) -> Path:
    """SmolLM2 from GGUF to a plain float16 LlamaForCausalLM with its tokenizer."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    folder, gguf_file = str(weights.parent), weights.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)
    # GGUF names the pre-tokenizer ('smollm') but does not hold it, and transformers puts GPT-2's in its
    # place. SmolLM2 cuts digits apart first, which shows in spaces before numbers.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # Without dequantize the blocks stay packed, and a packed model cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=gguf_file, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.config.rms_norm_eps = round(model.config.rms_norm_eps, 9)  # GGUF's float32 of 1e-5
    vars(model.config).pop("_model_name_or_path", None)  # the name of a training run
    model.generation_config._from_model_config = False
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.half().save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")
    return work / "model"


def convert_ctranslate2(weights: Path, work: Path) -> Path:
    """A CTranslate2 Whisper `model.bin` to a transformers directory."""
    from llasm._ctranslate2 import read_whisper

    return save_whisper(*read_whisper(weights), work / "model")


def convert_pt(path: Path, work: Path) -> Path:
    """An openai-whisper checkpoint to a transformers directory."""
    import torch

    wanted = f"{path} is not an openai-whisper checkpoint: expected a dict with 'dims' and 'model_state_dict'"
    try:
        # weights_only: a pickle can run code when it is loaded; tensors and plain containers cannot.
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here, and all mean that it cannot be read safely
        raise LlasmError(f"{wanted} of tensors ({type(error).__name__})") from error
    if not isinstance(checkpoint, dict) or not {"dims", "model_state_dict"} <= checkpoint.keys():
        raise LlasmError(wanted)
    dims, state = checkpoint["dims"], checkpoint["model_state_dict"]
    if not isinstance(dims, dict) or set(dims) != set(DIMS) or not isinstance(state, dict):
        raise LlasmError(f"{wanted}; its dims must be {', '.join(DIMS)}")
    return save_whisper(dims, state, work / "model")


def save_whisper(dims: dict[str, int], state: dict[str, torch.Tensor], folder: Path) -> Path:
    """openai-whisper's layout as a transformers directory: config, safetensors, feature extractor."""
    from safetensors.torch import save_file
    from transformers import WhisperFeatureExtractor

    table = _key_table(dims)
    if table.keys() != state.keys():
        odd = sorted(table.keys() ^ state.keys())
        raise LlasmError(f"not a Whisper model of these dimensions: {len(odd)} tensors differ, {odd[0]} first")
    tensors = {table[name]: tensor.contiguous() for name, tensor in state.items()}
    dtype = str(state["decoder.token_embedding.weight"].dtype).removeprefix("torch.")
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config, generation = _whisper_configs(dims)
    config.dtype = dtype
    config.save_pretrained(folder)
    generation.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=dims["n_mels"]).save_pretrained(folder)
    return folder


def openai_whisper_state_dict(directory: Path | str) -> tuple[dict[str, int], dict[str, torch.Tensor]]:
    """(dims, state_dict) of a transformers Whisper directory, as openai-whisper wants them.

    Example:
        >>> dims, state = openai_whisper_state_dict(resolve("whisper-base"))
        >>> model = whisper.model.Whisper(whisper.model.ModelDimensions(**dims))
        >>> model.load_state_dict(state)
    """
    from safetensors import safe_open

    directory = Path(directory)
    config = json.loads((directory / "config.json").read_text()) if (directory / "config.json").is_file() else {}
    if config.get("model_type") != "whisper":
        raise LlasmError(f"{directory} is not a transformers Whisper directory")
    dims = _dims_of(config)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            tensors.update({name: shard.get_tensor(name) for name in shard.keys()})  # noqa: SIM118
    table = _key_table(dims)
    missing = sorted(set(table.values()) - tensors.keys())
    if missing:
        raise LlasmError(f"{directory} lacks {len(missing)} of Whisper's tensors, {missing[0]} first")
    return dims, {name: tensors[key] for name, key in table.items()}


def _key_table(dims: dict[str, int]) -> dict[str, str]:
    """Every tensor of a Whisper model of these dimensions: openai-whisper's name → transformers' name."""
    table = {f"{side}.positional_embedding": f"{side}.embed_positions.weight" for side in ("encoder", "decoder")}
    table["decoder.token_embedding.weight"] = "decoder.embed_tokens.weight"
    modules = list(TOP_MODULES.items())
    for side, n_layers in (("encoder", dims["n_audio_layer"]), ("decoder", dims["n_text_layer"])):
        for i in range(n_layers):
            for theirs, ours in BLOCK_MODULES.items():
                if side == "decoder" or not theirs.startswith("cross"):
                    modules.append((f"{side}.blocks.{i}.{theirs}", f"{side}.layers.{i}.{ours}"))
    for theirs, ours in modules:
        table[f"{theirs}.weight"] = f"{ours}.weight"
        if not theirs.endswith(".key"):  # Whisper's keys have no bias
            table[f"{theirs}.bias"] = f"{ours}.bias"
    return {theirs: f"model.{ours}" for theirs, ours in table.items()}


def _dims_of(config: dict[str, Any]) -> dict[str, int]:
    names = (
        *("num_mel_bins", "max_source_positions", "d_model", "encoder_attention_heads", "encoder_layers"),
        *("vocab_size", "max_target_positions", "d_model", "decoder_attention_heads", "decoder_layers"),
    )
    return {dim: config[name] for dim, name in zip(DIMS, names)}


def _whisper_configs(dims: dict[str, int]) -> tuple[Any, Any]:
    """The (WhisperConfig, GenerationConfig) that belong to the dimensions, token numbers included."""
    from transformers import GenerationConfig, WhisperConfig
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    multilingual = dims["n_vocab"] >= MULTILINGUAL_VOCAB
    end = 50257 if multilingual else 50256
    # After the end come: start, the languages, translate, transcribe, startoflm, startofprev, nospeech,
    # notimestamps, and 1501 timestamps up to the end of the vocabulary.
    no_timestamps = dims["n_vocab"] - 1502
    tokens: dict[str, Any] = {
        "bos_token_id": 50257,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": end + 1,
        "begin_suppress_tokens": [220, end],
    }
    config = WhisperConfig(
        vocab_size=dims["n_vocab"],
        num_mel_bins=dims["n_mels"],
        d_model=dims["n_audio_state"],
        encoder_layers=dims["n_audio_layer"],
        encoder_attention_heads=dims["n_audio_head"],
        encoder_ffn_dim=4 * dims["n_audio_state"],
        max_source_positions=dims["n_audio_ctx"],
        decoder_layers=dims["n_text_layer"],
        decoder_attention_heads=dims["n_text_head"],
        decoder_ffn_dim=4 * dims["n_text_state"],
        max_target_positions=dims["n_text_ctx"],
        architectures=["WhisperForConditionalGeneration"],
        **tokens,
    )
    decoding = {**tokens, "max_length": dims["n_text_ctx"], "no_timestamps_token_id": no_timestamps}
    decoding["is_multilingual"] = multilingual
    if multilingual:
        languages = list(LANGUAGES)[: no_timestamps - 5 - 50259]
        first_task = 50259 + len(languages)
        decoding["lang_to_id"] = {f"<|{code}|>": 50259 + i for i, code in enumerate(languages)}
        decoding["task_to_id"] = {"translate": first_task, "transcribe": first_task + 1}
    return config, GenerationConfig(**decoding)
