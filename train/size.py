"""What a run needs, before any weight is loaded: parameters, memory and disk.

Shapes: H LLM width, L tokens of a micro-batch.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from llasm import audio
from llasm.adapter import DecoderAdapter
from llasm.errors import LlasmError
from llasm.features import FeatureCache

from .data import Sample, cache_folder
from .recipe import Lora, Recipe
from .spoken import GUARD_SHARE, LOGIT_ROWS

GB = 1e9
RUNTIME_BYTES = 1.6e9  # torch, transformers, PEFT and the allocator's slack, measured on a CPU
# Bytes of a parameter by how the frozen LLM is stored; nf4 with its scales (arXiv 2305.14314, section 3).
STORED_BYTES = {"none": 2.0, "int8": 1.0, "nf4": 0.52}
TRAINED_BYTES = {"adamw": 4 + 4 + 8, "adamw_8bit": 4 + 4 + 2}  # weight, gradient, the optimiser's two moments


def parameters_of(recipe: Recipe, model: Any, lora: Lora | None) -> dict[str, tuple[int, int]]:
    """Part of the model → its parameters and those that the stage trains; LlasmError where LoRA finds no layer."""

    def count(module: Any) -> int:
        return sum(p.numel() for p in module.parameters())

    projector = model.model.multi_modal_projector
    adapter = count(projector)
    projector.unfreeze(recipe.stage)
    llm = count(model.model.language_model)
    if model.lm_head.weight is not model.get_input_embeddings().weight:
        llm += count(model.lm_head)
    parts = {
        "encoder": (count(model.model.audio_tower), 0),
        **({"decoder": (count(model.model.audio_decoder), 0)} if isinstance(projector, DecoderAdapter) else {}),
        "adapter": (adapter, sum(p.numel() for p in projector.parameters() if p.requires_grad)),
        "LLM": (llm, 0),
    }
    if lora:
        from peft import inject_adapter_in_model

        try:
            inject_adapter_in_model(lora_config(lora), model, low_cpu_mem_usage=True)
        except ValueError as error:
            names = ", ".join(lora.targets)
            raise LlasmError(f"recipe: lora.targets {names}: the LLM has no such linear layer") from error
        n = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)
        parts["LoRA"] = (n, n)
    return parts


def lora_config(lora: Lora) -> Any:
    """PEFT's configuration: on the language model alone, for bare names would hit Whisper's layers too."""
    from peft import LoraConfig

    targets = "|".join(lora.targets)
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=rf".*language_model\.layers\.\d+\.\w+\.({targets})",
    )


def memory_of(
    recipe: Recipe, config: Any, parameters: dict[str, tuple[int, int]], longest: int, n_processes: int
) -> dict[str, float]:
    """An estimate in bytes for one process, from the longest rows."""
    text = config.text_config
    base = 2.0 if recipe.bf16 else 4.0
    llm = parameters["LLM"][0]
    table = text.vocab_size * text.hidden_size * (1 if text.tie_word_embeddings else 2)
    stored = base if recipe.quantization == "none" else STORED_BYTES[recipe.quantization]
    whisper = 2 * parameters["encoder"][0] + parameters.get("decoder", (0, 0))[0]  # the encoder has a bf16 copy
    frozen = (llm - table) * stored + table * base + whisper * base
    trained = sum(n for _, n in parameters.values())
    optimiser = 1.0 * trained * (TRAINED_BYTES[recipe.optimizer] - 4)
    kept = trained * 4.0
    if recipe.zero:
        optimiser /= n_processes
    if recipe.zero == 3:  # the frozen weights as well, but only once each process has loaded them whole
        kept /= n_processes
    adapter, hearing = config.adapter_config, config.audio_config
    rows = recipe.batch_size // (n_processes * recipe.accumulation)
    n_frames = rows * audio.CHUNK_SECONDS * 50 / 3  # clips of 10 s
    n_tokens = rows * min(longest, text.max_position_embeddings)
    memory = {"frozen weights": frozen, "trained weights": kept, "gradients and optimiser": optimiser}
    if recipe.stage != "ground":
        # What a layer keeps for its backward pass, in bytes a token and width: 34 for GPT's in 16 bits (Korthikanti et
        # al., arXiv 2205.05198, section 4.1), about 60 with a gated MLP and LoRA's float32 branches. Of a checkpointed
        # layer only its input stays.
        layer = 60 * n_tokens * text.hidden_size * base / 2
        layers = text.num_hidden_layers
        whole = layer + layers * 2 * n_tokens * text.hidden_size if recipe.activation_checkpointing else layers * layer
        guarded = bool(recipe.loss_weights["guard"]) * (2 if recipe.loss_weights["kl"] else 1)
        runs = 1 + GUARD_SHARE * guarded
        logits = min(n_tokens, LOGIT_ROWS) * text.vocab_size * 4 * 4  # student, teacher, both softened
        memory["activations"] = runs * whole + logits
    elif adapter.name == "decoder":
        deep = 60 * hearing.d_model * hearing.decoder_layers * base / 2  # bytes a token, as a layer of the LLM above
        both = 2 * hearing.d_model * hearing.decoder_layers * base  # keys and values that a frame has in the decoder
        logits = 3 * 4 * hearing.vocab_size  # in float32, softened, and their gradient
        memory["activations"] = n_frames * both + rows * longest * (deep + logits)
    else:
        sampled = (recipe.n_negatives + 40 * rows) * 4 * 3
        token = adapter.n_layers * 34 * adapter.width * base / 2 + sampled
        memory["activations"] = n_frames / adapter.stack * token
    memory["runtime"] = RUNTIME_BYTES
    return memory


def check_memory(
    recipe: Recipe, parameters: dict[str, tuple[int, int]], memory: dict[str, float], n_processes: int = 1
) -> None:
    """Says what to change where the estimate is above what is free; raises where the weights alone are."""
    free = _free_memory(n_processes)
    needed = sum(memory.values())
    if needed <= free:
        return
    hints = []
    if recipe.batch_size // recipe.accumulation > n_processes:
        hints.append(f"--accumulation {2 * recipe.accumulation}")
    if recipe.stage != "ground" and not recipe.activation_checkpointing:
        hints.append("--activation_checkpointing")
    if recipe.stage != "ground" and recipe.quantization == "none":
        hints.append("--quantization nf4")
    if n_processes > 1 and recipe.zero < 3 and "decoder" not in parameters:  # with which preflight refuses it
        hints.append("--zero 3")
    advice = "; try " + ", ".join(hints) if hints else "; take a smaller LLM or a larger machine"
    text = f"about {needed / GB:.1f} GB are needed and {free / GB:.1f} GB are free{advice}"
    certain = memory["frozen weights"] + memory["trained weights"]
    if certain > free:
        raise LlasmError(f"memory: {text}")
    print(f"llasm: warning: {text}", flush=True)


def _free_memory(n_processes: int) -> float:
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    import psutil

    return psutil.virtual_memory().available / n_processes


def check_disk(recipe: Recipe, config: Any, samples: list[Sample], parameters: dict[str, tuple[int, int]]) -> None:
    """Room for the encoder's frames and for two snapshots."""
    frames = sum(s.seconds + 1 for s in samples) * 50 * config.audio_config.d_model * 2
    trained = sum(n for _, n in parameters.values())
    cache = cache_folder(config, recipe.cache)
    wanted = (
        (
            "the encoder's frames",
            cache,
            "--cache",
            _missing_share(cache, config.audio_config.d_model, samples) * frames,
        ),
        ("snapshots", Path(recipe.output), "--output", 3 * 12 * trained),
    )
    taken: dict[int, float] = {}  # disk → what the wants before this one take of it
    for name, folder, option, needed in wanted:
        place = _existing(folder)
        disk = place.stat().st_dev
        free = shutil.disk_usage(place).free - taken.get(disk, 0.0)
        if needed > free:
            beside = f" beside {taken[disk] / GB:.2f} GB for the encoder's frames" if taken.get(disk) else ""
            raise LlasmError(
                f"{folder}: {name} take about {needed / GB:.2f} GB, and {free / GB:.2f} GB are free{beside}; free "
                f"some, or choose another {option}"
            )
        taken[disk] = taken.get(disk, 0.0) + needed


def _missing_share(folder: Path, d_encoder: int, samples: list[Sample]) -> float:
    """The share of the clips that the cache does not hold yet."""
    if not folder.is_dir():
        return 1.0
    known = FeatureCache(folder, d_encoder)
    keys = [key for sample in samples for key in sample.keys]
    return sum(key not in known for key in keys) / max(1, len(keys))


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder
