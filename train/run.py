"""`llasm train`: a recipe → a checkpoint.

llasm train tiny_ground
llasm train my_recipe.yaml --n_steps 500 --resume
llasm train my_recipe.yaml --dry-run
torchrun --nproc_per_node 8 -m llasm.cli train my_recipe.yaml --zero 2
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, replace
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed

from llasm import checkpoint
from llasm.errors import LlasmError
from llasm.features import FeatureCache
from llasm.files import check_claimable, claimed, write_whole

from .card import METRICS, write_results
from .conversation import Rendered, Renderer, stop_ids_of
from .data import Sample, Samples, encode_missing, open_cache, read_samples
from .ground import GroundCollator, GroundModel, unseen_words
from .guard import guard_texts
from .preflight import Plan, bases_of, preflight
from .recipe import Recipe
from .size import check_memory, lora_config
from .spoken import GUARD_SHARE, SpokenCollator, SpokenModel
from .trainer import StageTrainer, gathered, last_snapshot, stopped_outside_the_steps

SNAPSHOTS = "snapshots"
# What a run may be resumed with another value of: nothing of it changes the losses.
_MAY_CHANGE = (
    *("resume", "dry_run", "output", "data", "cache", "cache_gb"),
    *("report_to", "logging_steps", "eval_steps", "save_steps", "n_examples"),
)
_CLAIM = ("llasm train", "--output")


def train(recipe: Recipe) -> Path | None:
    """Runs a recipe; returns the folder of the checkpoint, or None after a dry run and in processes but the first.

    Raises LlasmError before any long work where data, settings or room are wrong, and SystemExit (128 + signal) where
    a signal ended the run behind a snapshot.
    """
    output = Path(recipe.output)
    rank, n_processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # before a quantised LLM is put on it
    if recipe.resume and (output / METRICS).exists():
        print(f"llasm: {output}: is finished already", file=sys.stderr)
        return output
    with ExitStack() as while_it_runs:
        while_it_runs.enter_context(stopped_outside_the_steps(output))
        if rank == 0 and recipe.dry_run:
            check_claimable(output, (output / METRICS, output / SNAPSHOTS), *_CLAIM)
        elif rank == 0:
            while_it_runs.enter_context(_claimed(output))
        snapshot = None if recipe.dry_run else _snapshot(recipe, output)
        plan = preflight(recipe, read_samples(recipe.data), n_processes)
        if rank == 0:
            plan.show(recipe)
            check_memory(recipe, plan.parameters, plan.memory_bytes, n_processes)
        if recipe.dry_run:
            return None
        if rank == 0:
            _check_continued(recipe, output, plan.samples)
        _run(recipe, output, plan, snapshot, rank, n_processes)
    return output if rank == 0 else None


def _claimed(output: Path) -> AbstractContextManager[None]:
    snapshots = output / SNAPSHOTS
    return claimed(output, (output / METRICS, snapshots), snapshots / "lock", *_CLAIM)


def _run(recipe: Recipe, output: Path, plan: Plan, snapshot: str | None, rank: int, n_processes: int) -> None:
    """Trains, and the first process writes what came of it."""
    set_seed(recipe.seed)
    model, processor, peft = _start(recipe)
    # Only now: with ZeRO-3 the arguments would make transformers share the weights out while it loads them.
    arguments = _arguments(recipe, output, n_processes)
    model.to(arguments.device)
    cache = _encoded(recipe, model, processor, plan.samples, arguments)
    weights = dict(plan.losses)
    repeats_by_ce = recipe.stage == "chat" and any(sample.repeats for sample in plan.samples)
    if weights["kl"] and not repeats_by_ce and not any(sample.silent for sample in plan.samples):
        weights["ce"] = 0.0  # nothing to learn by it
    stage, collator, eval_collator = _stage(recipe, weights, model, processor, peft, cache)
    set_seed(recipe.seed)  # the same draws whether the guard's text had to be written or not
    trainer = StageTrainer(
        recipe=recipe,
        eval_collator=eval_collator,
        describe=lambda sample, ids: _described(sample, ids, processor.tokenizer),
        model=stage,
        args=arguments,
        data_collator=collator,
        train_dataset=Samples(plan.train, cache),
        eval_dataset=Samples(plan.held_out, cache),
    )
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=snapshot)
    seconds = time.perf_counter() - started
    if trainer.stop.received and trainer.state.global_step < recipe.n_steps:
        _stopped(trainer, recipe, output, rank)
    held = trainer.evaluate()
    figures = {
        "held_out": {name.removeprefix("eval_"): value for name, value in held.items()},
        "examples": trainer.examples,
        "seconds": round(seconds, 1),
        "hours_of_speech": round(plan.hours, 3),
    }
    if recipe.stage == "ground":
        figures["unseen_words"] = unseen_words(plan.train, plan.held_out)
    with gathered(parameter for parameter in stage.parameters() if parameter.requires_grad):
        if rank == 0:
            checkpoint.save(peft or model, processor, output)
            trained = replace(recipe, adapter=model.config.adapter_config)  # of a run from `init`, the checkpoint's
            write_results(trained, output, model.config.bases, plan, figures, trainer.state.log_history)
            for folder in (output / SNAPSHOTS).glob("checkpoint-*"):  # the run is over
                shutil.rmtree(folder)


def _stopped(trainer: StageTrainer, recipe: Recipe, output: Path, rank: int) -> None:
    number = trainer.stop.received or 0
    if rank == 0:
        print(
            f"llasm: stopped behind step {trainer.state.global_step} of {recipe.n_steps}; the same command with "
            f"--resume goes on from {output / SNAPSHOTS}",
            file=sys.stderr,
        )
    sys.exit(128 + number)


def _snapshot(recipe: Recipe, output: Path) -> str | None:
    """The snapshot to continue from; refuses to overwrite an earlier run unless asked to resume it."""
    if (output / METRICS).exists():  # written last
        raise LlasmError(f"{output}: holds a finished checkpoint; choose another --output")
    found = last_snapshot(output / SNAPSHOTS, recipe.n_steps)
    if found and not recipe.resume:
        raise LlasmError(f"{output}: holds an interrupted run; add --resume, or choose another --output")
    return found


def _check_continued(recipe: Recipe, output: Path, samples: list[Sample]) -> None:
    """A run goes on with the settings and rows that it began with; raises LlasmError, naming what differs."""
    file = output / SNAPSHOTS / "started.json"
    rows = sha256(json.dumps(sorted([sample.id, sample.keys] for sample in samples)).encode()).hexdigest()
    settings = {name: value for name, value in asdict(recipe).items() if name not in _MAY_CHANGE} | {"rows": rows}
    if recipe.resume and file.exists():
        try:
            began = json.loads(file.read_text(encoding="utf-8")).items()
        except (ValueError, AttributeError) as error:
            raise LlasmError(
                f"{file}: is damaged ({error}), so nobody knows what the run began with; remove it to go on all the "
                "same, or choose another --output"
            ) from error
        for name, before in began:
            if settings.get(name) != before:
                was = "differ from those" if name == "rows" else f"is {settings.get(name)!r}, but was {before!r}"
                raise LlasmError(f"{output}: {name} {was} when this run began; choose another --output for a new run")
        return
    write_whole(file, json.dumps(settings))


def _start(recipe: Recipe) -> tuple[Any, Any, Any]:
    """(model, processor, PeftModel or None): frozen but for what the stage trains."""
    dtype = torch.bfloat16 if recipe.bf16 else torch.float32
    if recipe.init:
        model, processor, peft = checkpoint.load_to_train(recipe.init, dtype, recipe.quantization)
    else:
        model, processor = checkpoint.from_bases(
            *bases_of(recipe), recipe.adapter, dtype, recipe.quantization, recipe.template_text
        )
        peft = None
    model.requires_grad_(False)
    if recipe.stage == "chat":
        from peft import get_peft_model

        peft = peft or get_peft_model(model, lora_config(recipe.lora))
        for name, parameter in peft.named_parameters():
            parameter.requires_grad_("lora_" in name)
    model.model.multi_modal_projector.unfreeze(recipe.stage)
    llm = model.model.language_model
    if recipe.activation_checkpointing and recipe.stage != "ground":
        llm.activation_checkpointing_enable({"use_reentrant": False})
    if recipe.liger:
        _use_liger(llm)
    return model, processor, peft


def _use_liger(llm: Any) -> None:
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    # The head and the loss are ours: of the LLM's body alone, norms, rotary positions and the gated MLP.
    _apply_liger_kernel_to_instance(model=llm, fused_linear_cross_entropy=False, cross_entropy=False)


def _encoded(recipe: Recipe, model: Any, processor: Any, samples: list[Sample], arguments: Any) -> FeatureCache:
    """The cache with every clip's frames in it."""
    cache = open_cache(model, recipe.cache)
    if arguments.process_index == 0:
        missing = sum(sample.seconds + 1 for sample in samples if any(key not in cache for key in sample.keys))
        keys = [key for sample in samples for key in sample.keys]
        cache.make_room(cache.n_bytes(missing), int(recipe.cache_gb * 1e9), keys)
    _wait(arguments)
    cache.refresh()
    encode_missing(samples, cache, model, processor, arguments.process_index, arguments.world_size)
    _wait(arguments)
    cache.refresh()
    return cache


def _wait(arguments: Any) -> None:
    if arguments.world_size > 1:
        torch.distributed.barrier()


def _stage(
    recipe: Recipe, weights: dict[str, float], model: Any, processor: Any, peft: Any, cache: FeatureCache
) -> tuple[Any, Any, Any]:
    """(module with the loss, collator, collator of the held-out rows)."""
    if recipe.stage == "ground":
        table = model.get_input_embeddings().weight
        adapter = model.model.multi_modal_projector
        words = GroundCollator(cache, processor.tokenizer, getattr(adapter, "ear", None))
        return GroundModel(adapter, table, weights, recipe.n_negatives), words, words
    renderer = Renderer(processor, stop_ids_of(model, processor.tokenizer))
    guards: tuple[list[Rendered], list[Rendered]] = ([], [])
    if weights["guard"]:
        with peft.disable_adapter():
            guards = guard_texts(model, processor, renderer)
    collator, eval_collator = (
        SpokenCollator(
            cache, renderer, processor.tokenizer, weights, recipe.seed, guard, share,
            repeats_by_ce=recipe.stage == "chat",
        )
        for guard, share in zip(guards, (GUARD_SHARE, 1.0), strict=True)
    )  # fmt: skip
    return SpokenModel(model, weights, recipe.temperature, recipe.n_negatives, peft), collator, eval_collator


def _described(sample: Sample, ids: list[Any], tokenizer: Any) -> dict[str, str]:
    """A held-out example to read: what was said, what the model made of it, what was wanted."""
    said = " / ".join(text for text in sample.texts if text)
    answers = " / ".join(tokenizer.decode(answer, skip_special_tokens=True) for answer in ids)
    wanted = [part.get("text") or "" for m in sample.messages[-1:] for part in m["content"]]
    return {"said": said, "answer": answers, "wanted": " ".join(wanted)}


def _arguments(recipe: Recipe, output: Path, n_processes: int) -> TrainingArguments:
    on_cpu = not torch.cuda.is_available()
    size = recipe.batch_size // (n_processes * recipe.accumulation)
    return TrainingArguments(
        output_dir=str(output / SNAPSHOTS),
        max_steps=recipe.n_steps,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=recipe.accumulation,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=1.0,
        optim="adamw_bnb_8bit" if recipe.optimizer == "adamw_8bit" else "adamw_torch",
        bf16=recipe.bf16,
        use_cpu=on_cpu,
        disable_tqdm=True,  # StageTrainer has a bar of its own
        ddp_backend="gloo" if on_cpu and n_processes > 1 else None,
        deepspeed=str(files("llasm.train") / "zero" / f"zero{recipe.zero}.json") if recipe.zero else None,
        dataloader_pin_memory=not on_cpu,
        logging_steps=recipe.logging_steps,
        eval_strategy="steps",
        eval_steps=recipe.eval_steps,
        save_steps=recipe.save_steps,
        save_total_limit=2,  # a kill while one is written leaves the other
        report_to=list(recipe.report_to),
        remove_unused_columns=False,
        ddp_broadcast_buffers=False,  # the embedding table is one, a gigabyte for a large LLM
        seed=recipe.seed,
        data_seed=recipe.seed,
    )
