"""A recipe: every setting of a training run, as YAML and as `--key value`.

Each field is documented here once; `llasm train --help` prints the same text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from llasm.adapter import AdapterConfig
from llasm.errors import LlasmError
from llasm.options import check_numbers, option_parser, parse_options, recipe_names, recipe_path

# What the numbers of a recipe must be, as `check_numbers` says it.
BOUNDS = {
    "at least 1": ("n_steps", "batch_size", "accumulation", "eval_steps", "save_steps", "logging_steps", "n_negatives",
                   "lora.rank"),
    "above 0": ("learning_rate", "lora_learning_rate", "temperature", "cache_gb"),
    "at least 0": ("held_out", "n_examples", "warmup_steps", "seed", "losses.ctc", "losses.kl", "losses.ce",
                   "losses.speech", "losses.guard"),
    "between 0 and 1": ("repeat_share", "lora.dropout"),
}  # fmt: skip


@dataclass
class Losses:
    """Weights of the parts of the loss; 0 switches one off, and what is not given is the stage's own."""

    ctc: float | None = None
    """CTC of the aligner against the transcript, in the LLM's tokens (ground 1, align 0.3, chat 0.1; aligner only)."""
    kl: float | None = None
    """KL to the same LLM, without LoRA, that reads the transcript (align 1)."""
    ce: float | None = None
    """Cross-entropy of the assistant's turns (chat 1); beside `kl` only of those that answer sound without speech
    (align 1), and of what LoRA is to repeat. In ground, of what Whisper's decoder is to write (ground 1; adapter
    `decoder` only)."""
    speech: float | None = None
    """Cross-entropy of whether anybody speaks in a clip (ground 1; adapter `decoder` only)."""
    guard: float | None = None
    """KL to the LLM without LoRA on typed text that it wrote itself, so that typed chat stays as it was (chat 1)."""


STAGE_LOSSES: dict[str, dict[str, float]] = {
    "ground": {"ctc": 1.0, "kl": 0.0, "ce": 1.0, "speech": 1.0, "guard": 0.0},
    "align": {"ctc": 0.3, "kl": 1.0, "ce": 1.0, "speech": 0.0, "guard": 0.0},
    "chat": {"ctc": 0.1, "kl": 0.0, "ce": 1.0, "speech": 0.0, "guard": 1.0},
}


@dataclass
class Lora:
    """Low-rank updates of the LLM (arXiv 2106.09685), trained in stage `chat`; ignored where `init` brings its own."""

    rank: int = 16
    """Rank of the updates."""
    alpha: int = 32
    """The updates are scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout before the updates."""
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """The LLM's linear layers that get one."""


@dataclass
class Recipe:
    stage: Literal["ground", "align", "chat"]
    """`ground`: the adapter learns to hear words (aligner, decoder). `align`: KL to the same LLM on the transcript.
    `chat`: adapter and LoRA learn the assistant's turns of conversations."""
    data: list[str]
    """Spoken data sets: folders that `llasm data build` wrote."""
    output: str
    """Folder for the checkpoint; an interrupted run in it is continued with --resume."""
    audio_base: str | None = None
    """Whisper: an embedded name, a hub id, a directory or an openai-whisper .pt file. Default: init's, else
    whisper-base."""
    text_base: str | None = None
    """The LLM: an embedded name, a hub id or a directory. Default: init's, else smollm2-135m-instruct."""
    chat_template: str | None = None
    """For an LLM whose tokenizer brings none: `llama2`, or a file with a Jinja template."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """The projection adapter; ignored where `init` names a checkpoint."""
    init: str | None = None
    """Checkpoint that the training starts from: llasm-tiny, a folder or a hub id."""
    lora: Lora = field(default_factory=Lora)
    """chat: the LLM's low-rank updates."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """The frozen LLM in 8 or 4 bits (bitsandbytes; nf4 with LoRA is QLoRA, arXiv 2305.14314)."""
    losses: Losses = field(default_factory=Losses)
    """Weights of the parts of the loss."""
    n_steps: int = 1000
    """Optimiser steps; the learning rate follows a cosine to zero over them."""
    batch_size: int = 32
    """Samples a step, over all processes and accumulated parts together."""
    accumulation: int = 1
    """Parts that a step's samples are cut into, one after the other, to save memory; the result stays the same."""
    learning_rate: float = 1e-3
    """Peak learning rate of the adapter."""
    lora_learning_rate: float = 2e-4
    """chat: peak learning rate of LoRA."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """AdamW, or bitsandbytes' with its moments in 8 bits."""
    bf16: bool = True
    """bfloat16 for the frozen weights and for products; what is trained stays float32."""
    activation_checkpointing: bool = False
    """Compute the LLM's activations again in the backward pass instead of keeping them."""
    liger: bool = False
    """Liger's fused kernels in the LLM (CUDA only; pip install 'llasm[liger]')."""
    zero: Literal[0, 2, 3] = 0
    """DeepSpeed ZeRO: 2 shares gradients and optimiser over the processes, 3 the weights as well."""
    n_negatives: int = 3000
    """Random tokens beside the batch's own in the vocabulary that CTC is computed over."""
    temperature: float = 2.0
    """Temperature of both distributions in `kl` (AZeroS and Ultravox use 2)."""
    repeat_share: float | None = None
    """align and chat: share of samples that ask to repeat what was said instead of answering it (align 0.15, chat
    0), beside the rows that have no answer. LoRA learns them by `ce`, since a small LLM repeats badly even what it
    reads; align, without LoRA, by `kl`."""
    held_out: int = 256
    """Rows kept aside for the held-out figures (drawn by id)."""
    n_examples: int = 4
    """Held-out rows that are answered aloud at each evaluation, to read (none with zero 3)."""
    eval_steps: int = 500
    """Steps between held-out evaluations."""
    save_steps: int = 250
    """Steps between resumable snapshots; the last two are kept."""
    logging_steps: int = 25
    """Steps between log lines."""
    report_to: list[Literal["tensorboard", "wandb"]] = field(default_factory=lambda: ["tensorboard"])
    """Where the log lines go beside the screen."""
    seed: int = 0
    """Seed of initial weights, data order and sampled vocabulary."""
    resume: bool = False
    """Continue from the newest snapshot in `output`."""
    dry_run: bool = False
    """Only check the data, count tokens, estimate memory and say what would be trained."""
    cache: str | None = None
    """Folder of the encoder-frame cache; default: `features` under LLASM_HOME."""
    cache_gb: float = 100.0
    """Bound on its size for one encoder; what no run has used for longest goes first."""

    def __post_init__(self) -> None:
        if not self.data:
            raise LlasmError("recipe: data is empty; name at least one folder that `llasm data build` wrote")
        for bound, names in BOUNDS.items():
            check_numbers(self, bound, *names, where="recipe: ")
        if self.lora.dropout == 1:
            raise LlasmError("recipe: lora.dropout is 1; nothing would pass, so it must be below 1")
        if self.init and self.chat_template:
            raise LlasmError(
                f"recipe: chat_template {self.chat_template} is for new runs; init {self.init} has its own"
            )
        if self.batch_size % self.accumulation:
            raise LlasmError(
                f"recipe: batch_size {self.batch_size} cannot be cut into accumulation = {self.accumulation} parts"
            )
        self._check_losses()

    def _check_losses(self) -> None:
        weights = self.loss_weights
        needs_llm = [name for name in ("kl", "guard") if weights[name]]
        if self.stage == "ground" and needs_llm:
            raise LlasmError(f"recipe: stage ground does not run the LLM, so losses.{needs_llm[0]} needs align or chat")
        if self.stage != "chat" and weights["guard"]:
            raise LlasmError("recipe: losses.guard holds LoRA back, which only stage chat trains")
        if self.stage != "ground" and weights["speech"]:
            raise LlasmError("recipe: losses.speech is learned in stage ground alone")

    @property
    def template_text(self) -> str | None:
        """The Jinja text that `chat_template` names."""
        if self.chat_template is None:
            return None
        shipped = Path(str(files("llasm.train") / "templates" / f"{self.chat_template}.jinja"))
        path = shipped if shipped.is_file() else Path(self.chat_template)
        if not path.is_file():
            raise LlasmError(f"recipe: chat_template {self.chat_template!r} is neither llama2 nor a file")
        return path.read_text(encoding="utf-8")

    @property
    def share_repeated(self) -> float:
        """`repeat_share`, or the stage's own."""
        return (0.15 if self.stage == "align" else 0.0) if self.repeat_share is None else self.repeat_share

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of each part: what the recipe says, else the stage's own."""
        given = {name: weight for name, weight in vars(self.losses).items() if weight is not None}
        return {**STAGE_LOSSES[self.stage], **given}

    def weights_for(self, adapter: str) -> dict[str, float]:
        """`loss_weights` without what this adapter cannot be trained by; raises LlasmError when nothing is left."""
        lacking = {"ctc"} if adapter != "aligner" else {"ce", "speech"} if self.stage == "ground" else set()
        weights = {name: 0.0 if name in lacking else weight for name, weight in self.loss_weights.items()}
        if not any(weights.values()):
            raise LlasmError(f"recipe: every loss that adapter {adapter!r} has is switched off; give one a weight")
        return weights


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """Reads a recipe and applies `--key value` overrides; unknown keys and wrong types are a LlasmError."""
    path = recipe_path("train", name)
    values = parse_options(_parser(), [f"--config={path}", *(overrides or [])], path)
    try:
        values["adapter"] = AdapterConfig(**vars(values["adapter"]))
    except ValueError as error:
        raise LlasmError(f"{path}: {error}") from error
    values["losses"], values["lora"] = Losses(**vars(values["losses"])), Lora(**vars(values["lora"]))
    return Recipe(**values)


def print_help() -> None:
    _parser().print_help()


def _parser() -> Any:
    return option_parser(Recipe, "llasm train RECIPE", f"Shipped recipes: {', '.join(recipe_names('train'))}.")
