"""`llasm train`: a recipe → a checkpoint.

llasm train tiny_ground
llasm train my_recipe.yaml --n_steps 500 --resume true
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from llasm import checkpoint
from llasm.errors import LlasmError

from .align import AlignCollator, AlignModel, held_out_loss
from .data import LengthGroupedOrder, Samples, cached_samples, split
from .ground import GroundCollator, GroundModel, token_error_rate
from .recipe import Recipe

SNAPSHOTS = "snapshots"


def train(recipe: Recipe) -> Path:
    """Runs a recipe; returns the folder of the checkpoint."""
    output = Path(recipe.output)
    snapshot = _snapshot(recipe, output)
    set_seed(recipe.seed)
    model, processor = _start(recipe)
    samples, cache = cached_samples(recipe.data, model, processor, recipe.cache)
    seen, held_out = split(samples, recipe.held_out, recipe.seed)
    print(f"{recipe.stage}: {len(seen)} rows to learn from, {len(held_out)} held out", flush=True)
    stage, collator, evaluate = _stage(recipe, model, processor, cache)
    trainer = _StageTrainer(
        evaluate_stage=evaluate,
        model=stage,
        args=_arguments(recipe, output),
        data_collator=collator,
        train_dataset=Samples(seen, cache),
        eval_dataset=Samples(held_out, cache),
    )
    trainer.train(resume_from_checkpoint=snapshot)
    metrics = {"loss": trainer.state.log_history, **trainer.evaluate()}
    checkpoint.save(model, processor, output)
    (output / "recipe.yaml").write_text(yaml.safe_dump(_plain(recipe), sort_keys=False), encoding="utf-8")
    (output / "metrics.json").write_text(json.dumps(metrics, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return output


def _plain(recipe: Recipe) -> dict[str, Any]:
    return {**vars(recipe), "adapter": vars(recipe.adapter)}


def _snapshot(recipe: Recipe, output: Path) -> str | None:
    """The snapshot to continue from; refuses to overwrite an earlier run unless asked to resume it."""
    folder = output / SNAPSHOTS
    found = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if found and not recipe.resume:
        raise LlasmError(f"{output}: holds an interrupted run; add --resume true, or choose another --output")
    if (output / checkpoint.WEIGHTS).exists() and not recipe.resume:
        raise LlasmError(f"{output}: holds a finished checkpoint; choose another --output")
    return found


def _start(recipe: Recipe) -> tuple[Any, Any]:
    """The model to train, frozen but for its adapter."""
    if recipe.init:
        model, processor = checkpoint.load(recipe.init)
    else:
        model, processor = checkpoint.from_bases(recipe.audio_base, recipe.text_base, recipe.adapter)
    if recipe.stage == "ground" and model.config.adapter_config.name != "aligner":
        raise LlasmError(f"stage ground trains the adapter 'aligner', not {model.config.adapter_config.name!r}")
    model.requires_grad_(False)
    model.model.multi_modal_projector.requires_grad_(True)
    return model, processor


def _stage(recipe: Recipe, model: Any, processor: Any, cache: Any) -> tuple[Any, Any, Any]:
    if recipe.stage == "ground":
        table = model.get_input_embeddings().weight
        stage = GroundModel(model.model.multi_modal_projector, table, recipe.n_negatives)
        return (
            stage,
            GroundCollator(cache, processor.tokenizer),
            lambda s, batches: token_error_rate(s, batches, processor.tokenizer),
        )
    align = AlignModel(model, recipe.temperature, recipe.ctc_weight, recipe.n_negatives)
    return align, AlignCollator(cache, processor, recipe.repeat_share, recipe.seed), held_out_loss


def _arguments(recipe: Recipe, output: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(output / SNAPSHOTS),
        max_steps=recipe.n_steps,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=1.0,
        bf16=recipe.bf16,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=recipe.logging_steps,
        eval_strategy="steps",
        eval_steps=recipe.eval_steps,
        save_steps=recipe.save_steps,
        save_total_limit=1,
        report_to=["tensorboard"],
        remove_unused_columns=False,
        seed=recipe.seed,
        data_seed=recipe.seed,
    )


class _StageTrainer(Trainer):
    """Batches of like length; only the adapter is saved in a snapshot; held-out figures by the stage."""

    model: Any

    def __init__(self, evaluate_stage: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.evaluate_stage = evaluate_stage
        self.parts: dict[str, list[float]] = {}

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset: Any = self.train_dataset
        return LengthGroupedOrder(dataset.lengths, self.args.per_device_train_batch_size, self.args.seed)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        for name, value in outputs.items():
            if name != "loss":
                self.parts.setdefault(name, []).append(float(value))
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean of each part of the loss since the last line."""
        if "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self.parts.items()}
            self.parts = {}
        super().log(logs, *args, **kwargs)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, Any]:
        self.model.eval()
        device = self.args.device
        batches = ({k: _to(v, device) for k, v in b.items()} for b in self.get_eval_dataloader())
        with torch.no_grad(), self.compute_loss_context_manager():
            metrics = self.evaluate_stage(self.model, batches)
        self.model.train()
        self.log({f"eval_{k}": v for k, v in metrics.items() if isinstance(v, float)})
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        from safetensors.torch import save_file

        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        trained = {k: p.detach().contiguous() for k, p in self.model.named_parameters() if p.requires_grad}
        save_file(trained, folder / "model.safetensors")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        self.model.load_state_dict(load_file(Path(resume_from_checkpoint) / "model.safetensors"), strict=False)


def _to(value: Any, device: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, list):
        return [_to(v, device) for v in value]
    return value
