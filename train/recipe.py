"""A recipe: every setting of a training run, as YAML and as `--key value`.

Each field is documented here once; `llasm train --help` prints the same text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from llasm.adapter import AdapterConfig
from llasm.errors import LlasmError
from llasm.options import option_parser, parse_options, recipe_names, recipe_path


@dataclass
class Recipe:
    stage: Literal["ground", "align"]
    """`ground`: the adapter learns by CTC to emit the LLM's tokens. `align`: KL to the same LLM on the transcript."""
    data: list[str]
    """Spoken data sets: folders that `llasm data build` wrote."""
    output: str
    """Folder for the checkpoint; an interrupted run in it is continued with --resume true."""
    audio_base: str = "whisper-base"
    """Whisper: an embedded name, a hub id, a directory or an openai-whisper .pt file."""
    text_base: str = "smollm2-135m-instruct"
    """The LLM: an embedded name, a hub id or a directory."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """The projection adapter; ignored where `init` names a checkpoint."""
    init: str | None = None
    """Checkpoint whose adapter the training starts from."""
    n_steps: int = 1000
    """Optimiser steps; the learning rate follows a cosine to zero over them."""
    batch_size: int = 32
    """Samples a step."""
    learning_rate: float = 1e-3
    """Peak learning rate of the adapter (AdamW)."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    bf16: bool = True
    """Mixed precision: bfloat16 products, float32 weights."""
    n_negatives: int = 3000
    """ground: random tokens beside the batch's own in the sampled vocabulary."""
    ctc_weight: float = 0.3
    """align: weight of the CTC term that keeps the adapter among the LLM's word embeddings (aligner only)."""
    temperature: float = 2.0
    """align: temperature of both distributions in the KL (AZeroS and Ultravox use 2)."""
    repeat_share: float = 0.15
    """align: share of samples that ask to repeat what was said instead of answering it."""
    held_out: int = 256
    """Rows kept aside for the held-out figures (drawn by id)."""
    eval_steps: int = 500
    """Steps between held-out evaluations."""
    save_steps: int = 250
    """Steps between resumable snapshots; the last one is kept."""
    logging_steps: int = 25
    """Steps between log lines."""
    seed: int = 0
    """Seed of initial weights, data order and sampled vocabulary."""
    resume: bool = False
    """Continue from the newest snapshot in `output`."""
    cache: str | None = None
    """Folder of the encoder-frame cache; default: `features` under LLASM_HOME."""

    def __post_init__(self) -> None:
        if not self.data:
            raise LlasmError("recipe: data is empty; name at least one folder that `llasm data build` wrote")
        for name in ("n_steps", "batch_size", "eval_steps", "save_steps", "logging_steps"):
            if getattr(self, name) < 1:
                raise LlasmError(f"recipe: {name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.repeat_share <= 1:
            raise LlasmError(f"recipe: repeat_share is {self.repeat_share}; it must lie between 0 and 1")


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """Reads a recipe and applies `--key value` overrides; unknown keys and wrong types are a LlasmError."""
    path = recipe_path("train", name)
    values = parse_options(_parser(), [f"--config={path}", *(overrides or [])], path)
    try:
        values["adapter"] = AdapterConfig(**vars(values["adapter"]))
    except ValueError as error:
        raise LlasmError(f"{path}: {error}") from error
    return Recipe(**values)


def print_help() -> None:
    _parser().print_help()


def _parser() -> Any:
    return option_parser(Recipe, "llasm train RECIPE", f"Shipped recipes: {', '.join(recipe_names('train'))}.")
