"""Checkpoints: build a model from its bases, save what was trained, load it again, merge it.

A checkpoint is small: `config.json` (with the identity of both bases), `adapter_model.safetensors` (the
projection, and LoRA where there is any, under PEFT's names), `adapter_config.json` (LoRA only) and the
processor's files. The bases are fetched by name and compared by the hash of their weights. `merge` writes
everything into one ordinary transformers directory.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from transformers import AutoConfig, AutoModelForCausalLM, WhisperModel

from llasm import weights
from llasm.adapter import AdapterConfig, DecoderAdapter, build_adapter
from llasm.configuration_llasm import LlasmConfig
from llasm.errors import LlasmError
from llasm.files import write_whole
from llasm.modeling_llasm import LlasmAudioTower, LlasmForConditionalGeneration
from llasm.processing_llasm import LlasmProcessor, build_processor

DEFAULT_MODEL = "llasm-tiny"
WEIGHTS, LORA_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PEFT_PREFIX = "base_model.model."
_PROJECTOR = "model.multi_modal_projector."
_SHARED = (".safetensors", ".json", ".jinja", ".yaml", ".md", ".png", ".txt")
_LOGS = ("metrics.json", "loss.png")
_CARD, _LOSS_PICTURE = "README.md", "![loss](loss.png)\n\n"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")

# DeepSpeed, installed but not asked for, need not speak of having found no GPU.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def from_bases(
    audio_base: str,
    text_base: str,
    adapter: AdapterConfig,
    dtype: torch.dtype = torch.float32,
    quantization: str = "none",
    chat_template: str | None = None,
) -> tuple[LlasmForConditionalGeneration, LlasmProcessor]:
    """An untrained adapter between two bases: embedded names, hub ids or directories.

    dtype: of the bases; quantization: of the LLM, none, int8 or nf4; chat_template: Jinja text in the place of the
    tokenizer's own. The adapter is float32.
    """
    config, processor = describe_bases(audio_base, text_base, adapter, chat_template)
    audio_dir, text_dir = weights.resolve(audio_base), weights.resolve(text_base)
    config.bases = {"audio": _identity(audio_base, audio_dir), "text": _identity(text_base, text_dir)}
    return _assemble(config, processor, audio_dir, text_dir, dtype, quantization), processor


def describe_bases(
    audio_base: str, text_base: str, adapter: AdapterConfig, chat_template: str | None = None
) -> tuple[LlasmConfig, LlasmProcessor]:
    """Configuration and processor of two bases, without their weights, so without `bases`' hashes."""
    audio_dir, text_dir = (weights.resolve(base, with_weights=False) for base in (audio_base, text_base))
    audio_config, text_config = AutoConfig.from_pretrained(audio_dir), AutoConfig.from_pretrained(text_dir)
    if audio_config.model_type != "whisper":
        raise LlasmError(f"audio_base {audio_base}: is a {audio_config.model_type!r} model; it must be a Whisper model")
    if text_config.model_type == "whisper":
        raise LlasmError(f"text_base {text_base}: is a 'whisper' model; it must be an LLM")
    rate = "heard" if adapter.heard else "fixed"
    processor = build_processor(audio_dir, text_dir, adapter.stack, rate, chat_template)
    # Otherwise a checkpoint would tell where the bases lay on the machine that trained it.
    audio_config.name_or_path, text_config.name_or_path = audio_base, text_base
    config = LlasmConfig(
        audio_config=audio_config,
        text_config=text_config,
        adapter=vars(adapter),
        audio_token_id=processor.audio_token_id,
    )
    return config, processor


def _identity(name: str, directory: Path) -> dict[str, str | None]:
    # A hub snapshot lies in a folder named after its commit.
    revision = directory.name if directory.parent.name == "snapshots" else None
    return {"id": name, "revision": revision, "sha256": weights.content_hash(directory)}


def outline(config: LlasmConfig) -> LlasmForConditionalGeneration:
    """The model without weights, on torch's meta device: to count its parameters."""
    with torch.device("meta"):
        return LlasmForConditionalGeneration(config)


def _assemble(
    config: LlasmConfig,
    processor: LlasmProcessor,
    audio_dir: Path,
    text_dir: Path,
    dtype: torch.dtype,
    quantization: str = "none",
) -> LlasmForConditionalGeneration:
    """Puts the bases' own modules into the frame, so that nothing is initialised only to be overwritten."""
    model = outline(config)
    whisper = WhisperModel.from_pretrained(audio_dir, dtype=dtype)
    tower = whisper.encoder
    tower.__class__ = LlasmAudioTower  # same parameters, another forward
    llm = AutoModelForCausalLM.from_pretrained(text_dir, dtype=dtype, **_quantized(quantization))
    model.model.audio_tower = tower
    model.model.language_model = llm.model
    model.lm_head = llm.lm_head
    projector = build_adapter(config.adapter_config, config.audio_config.d_model, config.text_config.hidden_size)
    model.model.multi_modal_projector = projector
    if isinstance(projector, DecoderAdapter):
        model.model.audio_decoder = whisper.decoder
        model.model.listen(processor.tokenizer)
    model.generation_config = llm.generation_config
    return model.eval()


def _quantized(quantization: str) -> dict[str, Any]:
    """What loads an LLM in 8 or 4 bits; bitsandbytes leaves embeddings and head as they are."""
    if quantization == "none":
        return {}
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise LlasmError(f"quantization {quantization} needs bitsandbytes: pip install 'llasm[quant]'") from error
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        settings = BitsAndBytesConfig(load_in_8bit=True)
    else:  # QLoRA's (arXiv 2305.14314, section 3)
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": settings, "device_map": {"": device}}


def save(model: Any, processor: LlasmProcessor, directory: Path) -> None:
    """Writes the trained part of a model (LoRA too if it is a PeftModel); bf16, safetensors.

    Of a model from `from_bases` or `load_to_train`: `load` has merged the LoRA into the LLM, which is not written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        model.save_pretrained(directory, save_embedding_layers=False)
        base = model.get_base_model()
        tensors = load_file(directory / WEIGHTS)
    else:
        base, tensors = model, {}
        (directory / LORA_CONFIG).unlink(missing_ok=True)
    for name, tensor in base.model.multi_modal_projector.state_dict().items():
        tensors[f"{_PEFT_PREFIX}{_PROJECTOR}{name}"] = tensor
    tensors = {name: t.bfloat16() if t.is_floating_point() else t for name, t in tensors.items()}
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    # As bytes: save_file makes files that nobody else may read.
    write_whole(directory / WEIGHTS, serialised(tensors, metadata={"format": "pt"}))
    base.config.save_pretrained(directory)
    processor.save_pretrained(directory)


def load(
    name: str | Path = DEFAULT_MODEL, dtype: torch.dtype = torch.float32
) -> tuple[LlasmForConditionalGeneration, LlasmProcessor]:
    """A checkpoint, or a merged model, by name, directory or hub id; ready for inference.

    Raises LlasmError when there is no such model, a file is a pickle or damaged, or a base's hash differs.
    """
    directory = locate(name)
    config, processor = describe(directory)
    if not (directory / WEIGHTS).exists():
        loaded: Any = LlasmForConditionalGeneration.from_pretrained(directory, dtype=dtype, output_loading_info=True)
        merged, found = loaded
        if missing := sorted(found["missing_keys"]):  # transformers would draw them
            raise LlasmError(f"{directory}: lacks {missing[0]}; export it anew from its checkpoint")
        merged.model.listen(processor.tokenizer)
        return merged.eval(), processor
    model = _load_parts(config, processor, directory, dtype)
    if (directory / LORA_CONFIG).exists():
        from peft import PeftModel

        # Merged at load: same logits (to 2e-7), no cost per token.
        model = PeftModel.from_pretrained(model, directory).merge_and_unload()
    model.model.multi_modal_projector.to(dtype)
    return model, processor


def load_to_train(
    name: str | Path, dtype: torch.dtype = torch.float32, quantization: str = "none"
) -> tuple[LlasmForConditionalGeneration, LlasmProcessor, Any]:
    """A checkpoint with its adapter in float32 and its LoRA kept apart: (model, processor, PeftModel or None)."""
    directory = locate(name)
    config, processor = describe(directory)
    refuse_merged(directory)
    model = _load_parts(config, processor, directory, dtype, quantization)
    if not (directory / LORA_CONFIG).exists():
        return model, processor, None
    from peft import PeftModel

    return model, processor, PeftModel.from_pretrained(model, directory, is_trainable=True)


def refuse_merged(directory: Path) -> None:
    """LlasmError where the directory has no adapter of its own, to train on with."""
    if (directory / "config.json").is_file() and not (directory / WEIGHTS).exists():
        raise LlasmError(f"{directory}: is a merged model; train on from the checkpoint that it was exported from")


def describe(directory: Path) -> tuple[LlasmConfig, LlasmProcessor]:
    """Configuration and processor of a checkpoint's or merged model's directory; its weights are not read."""
    _refuse_pickles(directory)
    config_file = directory / "config.json"
    if not config_file.is_file():
        raise LlasmError(f"{directory}: no config.json, so this is not a llasm checkpoint")
    config = _read_config(config_file)
    try:
        return config, LlasmProcessor.from_pretrained(directory)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise LlasmError(f"{directory}: the processor's files are missing or damaged ({reason})") from error


def _load_parts(
    config: LlasmConfig, processor: LlasmProcessor, directory: Path, dtype: torch.dtype, quantization: str = "none"
) -> LlasmForConditionalGeneration:
    """Bases and projection of a checkpoint, without its LoRA."""
    tensors = _read_weights(directory / WEIGHTS)
    audio_dir, text_dir = (checked_base(config, part, directory) for part in ("audio", "text"))
    model = _assemble(config, processor, audio_dir, text_dir, dtype, quantization)
    _load_projector(model, tensors, directory / WEIGHTS)
    return model


def locate(name: str | Path) -> Path:
    """`llasm-tiny`, a directory or a hub id → the directory that holds the checkpoint."""
    if str(name) == DEFAULT_MODEL:
        return Path(str(files("llasm") / "default"))
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists() or not weights.is_hub_id(str(name)):
        raise LlasmError(
            f"unknown model {str(name)!r}: give {DEFAULT_MODEL}, a checkpoint's directory or a hub id (owner/name)"
        )
    try:
        return weights.resolve(str(name))
    except LlasmError as error:
        raise LlasmError(f"unknown model {str(name)!r}: no such directory here, and {error}") from error


def _read_config(path: Path) -> LlasmConfig:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields.get("model_type") != LlasmConfig.model_type:
            raise LlasmError(f"{path}: model_type is {fields.get('model_type')!r}, expected 'llasm'")
        return LlasmConfig.from_dict(fields)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LlasmError(f"{path}: not readable as JSON ({error})") from error


def _refuse_pickles(directory: Path) -> None:
    for path in sorted(directory.iterdir()):
        if path.suffix in _PICKLES:
            raise LlasmError(f"{path}: a pickle can run code when it is loaded; only safetensors are accepted")


def checked_base(config: LlasmConfig, part: str, directory: Path) -> Path:
    """The directory of a checkpoint's base, `audio` or `text`; LlasmError where its weights are other ones."""
    base = config.bases[part]
    base_dir = weights.resolve(str(base["id"]), revision=base.get("revision"))
    found = weights.content_hash(base_dir)
    if found != base["sha256"]:
        raise LlasmError(
            f"{directory}: was trained on {base['id']} with sha256 {base['sha256']}, but {base_dir} has {found}"
        )
    return base_dir


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise LlasmError(f"{path}: is damaged or not a safetensors file ({error})") from error


def _load_projector(model: LlasmForConditionalGeneration, tensors: dict[str, torch.Tensor], path: Path) -> None:
    prefix = _PEFT_PREFIX + _PROJECTOR
    own = {k[len(prefix) :]: t for k, t in tensors.items() if k.startswith(prefix)}
    if not any(name.startswith("detector.") for name in own):  # older than the detector: everything is speech, as then
        own |= {k: t for k, t in model.model.multi_modal_projector.state_dict().items() if k.startswith("detector.")}
    try:
        model.model.multi_modal_projector.load_state_dict(own)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise LlasmError(f"{path}: does not hold this adapter's weights ({reason})") from error


def merge(name: str | Path, output: Path) -> None:
    """Writes checkpoint and bases as one transformers directory, for `AutoModelForMultimodalLM` and others."""
    _refuse_to_overwrite(output)
    model, processor = load(name)
    model.config.architectures = [type(model).__name__]
    _save_whole(model, output)
    processor.save_pretrained(output)
    _copy_card(locate(name), output)


def _save_whole(model: Any, output: Path) -> None:
    model.save_pretrained(output)
    for file in output.glob("*.safetensors"):  # which nobody else could read
        shutil.copymode(output / "config.json", file)


def export_llm(name: str | Path, output: Path) -> None:
    """Writes the LLM alone, LoRA merged, as its own architecture has it: any server of LLMs loads it."""
    from transformers import AutoModelForCausalLM

    _refuse_to_overwrite(output)
    model, processor = load(name)
    with torch.device("meta"):  # its weights are replaced at once
        llm = AutoModelForCausalLM.from_config(model.config.text_config, dtype=model.dtype)
    llm.model, llm.lm_head = model.model.language_model, model.lm_head
    llm.generation_config = model.generation_config
    _save_whole(llm, output)
    processor.tokenizer.save_pretrained(output)


def copy_adapter(name: str | Path, output: Path) -> None:
    """Writes just what a checkpoint needs to be loaded, without snapshots and logs: to share it."""
    _refuse_to_overwrite(output)
    directory = locate(name)
    describe(directory)
    if not (directory / WEIGHTS).exists():
        raise LlasmError(f"{directory}: is a merged model and holds no adapter of its own")
    output.mkdir(parents=True, exist_ok=True)
    for file in sorted(directory.iterdir()):
        if file.is_file() and file.suffix in _SHARED and file.name not in (*_LOGS, _CARD):
            shutil.copyfile(file, output / file.name)
    _copy_card(directory, output)


def _copy_card(directory: Path, output: Path) -> None:
    """The model card, where there is one, without the picture of the log."""
    if (directory / _CARD).is_file():
        text = (directory / _CARD).read_text(encoding="utf-8").replace(_LOSS_PICTURE, "")
        write_whole(output / _CARD, text)


def _refuse_to_overwrite(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise LlasmError(f"{output}: is not empty; choose another output folder")
