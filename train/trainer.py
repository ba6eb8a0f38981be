"""Hugging Face's Trainer with what all stages share: exact means over processes, held-out figures, small snapshots.

Each part of the loss is a mean over the tokens of the whole optimiser step, so a step gives the same gradient on any
number of processes and however it is cut into accumulated parts.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback

from .data import LengthGroupedOrder
from .recipe import Recipe

WEIGHTS_NAME, STATE_NAME = "model.safetensors", "trainer_state.json"
EXAMPLE_TOKENS = 48  # of a held-out answer that is shown


class StageTrainer(Trainer):
    """Trains a GroundModel or SpokenModel."""

    model: Any

    def __init__(
        self,
        recipe: Recipe,
        eval_collator: Any,
        describe: Callable[[Any, list[Tensor]], dict[str, str]],
        **kwargs: Any,
    ) -> None:
        """describe: (sample, token ids of its answers) → what is shown of a held-out example."""
        super().__init__(**kwargs)
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the step's tokens
        self.recipe, self.eval_collator, self.describe = recipe, eval_collator, describe
        self.examples: list[dict[str, str]] = []
        self.stop = StopSignal()
        self.add_callback(self.stop)
        self.remove_callback(PrinterCallback)
        self.add_callback(Progress())
        self._evaluated: tuple[int, dict[str, float]] = (-1, {})
        self._parts: dict[str, Tensor] = {}
        self._steps_with: Counter[str] = Counter()  # steps that had tokens for a part
        self._n_tokens, self._n_steps, self._since = 0, 0, time.perf_counter()

    # ---- data

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset: Any = self.train_dataset
        self._order = LengthGroupedOrder(dataset.lengths, self.recipe.batch_size, self.recipe.seed)
        return self._order

    def _run_epoch(self, model: Any, epoch: int, *args: Any, **kwargs: Any) -> None:
        # The Trainer's own word does not reach it where several processes skip what was seen before a resume.
        self._order.set_epoch(epoch)
        super()._run_epoch(model, epoch, *args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: Any) -> tuple[list, None]:
        """The parts of one optimiser step; `counts` becomes the step's own, over all parts and processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            names = sorted(batches[0]["counts"])
            counts = torch.tensor([[batch["counts"][name] for name in names] for batch in batches]).sum(0).to(device)
            if self.args.world_size > 1:
                counts = self.accelerator.reduce(counts, "sum")
            totals = dict(zip(names, counts.tolist()))
            for batch in batches:
                batch["counts"] = totals
            self._n_tokens += totals["tokens"]
            self._n_steps += 1
            self._steps_with.update(name for name, n in totals.items() if n)
        return batches, None

    def _prepare_input(self, data: Any) -> Any:
        if isinstance(data, tuple) and hasattr(data, "_fields"):  # the Trainer's own would call it with a generator
            return type(data)(*(self._prepare_input(value) for value in data))
        return super()._prepare_input(data)

    # ---- loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(**inputs)
        for name, value in outputs.items():
            if name != "loss":
                self._parts[name] = self._parts.get(name, 0.0) + value.detach().float()
        # DDP and DeepSpeed average the gradients of the processes; these are shares of one sum.
        loss = outputs["loss"] * self.args.world_size
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> Any:
        """Adapter and LoRA each with a learning rate of its own; no decay for norms, biases and scales."""
        if self.optimizer is None:
            cls, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            rate = settings.pop("lr")
            rates = {"lora": self.recipe.lora_learning_rate, "adapter": rate}
            groups: dict[tuple[str, bool], list[Any]] = {}
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    part = "lora" if "lora_" in name else "adapter"
                    groups.setdefault((part, parameter.ndim > 1), []).append(parameter)
            self.optimizer = cls(
                [
                    {"params": found, "lr": rates[part], "weight_decay": self.args.weight_decay * decays}
                    for (part, decays), found in groups.items()
                ],
                **settings,
            )
        return self.optimizer

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the mean of each part of the loss since the last line, and the speed."""
        if "loss" in logs and self._n_steps:
            # One process may have had nothing for a part: all reduce the same ones.
            names = [name for name, weight in self.recipe.loss_weights.items() if weight]
            zero = torch.zeros((), device=self.args.device)
            totals = torch.stack([self._parts.get(name, zero) for name in names])
            if self.args.world_size > 1:
                totals = self.accelerator.reduce(totals, "sum")
            for name, total in zip(names, totals.tolist(), strict=True):
                if total or name in self._parts:
                    logs[name] = total / max(1, self._steps_with[name])
            elapsed = time.perf_counter() - self._since
            logs["samples_per_second"] = round(self._n_steps * self.recipe.batch_size / elapsed, 2)
            logs["tokens_per_second"] = round(self._n_tokens / elapsed, 1)
            self._parts, self._n_tokens, self._n_steps = {}, 0, 0
            self._steps_with.clear()
            self._since = time.perf_counter()
        super().log(logs, *args, **kwargs)

    # ---- held-out figures

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Every process computes the same figures over all held-out rows, so none waits for another."""
        if self._evaluated[0] == self.state.global_step:
            return self._evaluated[1]
        started = time.perf_counter()
        rows: Any = self.eval_dataset
        samples = [rows[i] for i in range(len(rows))]
        size = self.args.per_device_train_batch_size
        sums: dict[str, tuple[float, int]] = {}
        self.model.eval()
        # The training goes on with its own draws whenever it is evaluated, and each evaluation has the same ones.
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad(), self._autocast():
            torch.manual_seed(self.recipe.seed)
            for start in range(0, len(samples), size):
                batch = self._prepare_input(self.eval_collator(samples[start : start + size]))
                for name, (value, n) in self.model.held_out(**batch).items():
                    total, count = sums.get(name, (0.0, 0))
                    sums[name] = (total + float(value), count + n)
            # With ZeRO-3, generation would gather every layer for every token.
            n_examples = 0 if self.recipe.zero == 3 else self.recipe.n_examples
            self.examples = [self._example(*item) for item in samples[:n_examples]]
        self.model.train()
        metrics = {f"eval_{name}": total / max(1, n) for name, (total, n) in sums.items()}
        self.log(dict(metrics))  # which adds the epoch
        if self.is_world_process_zero():
            for example in self.examples:
                tqdm.write(" | ".join(f"{name}: {' '.join(text.split())[:120]}" for name, text in example.items()))
        self._since += time.perf_counter() - started
        self._evaluated = (self.state.global_step, metrics)
        return metrics

    def _example(self, sample: Any, epoch: int) -> dict[str, str]:
        batch = self._prepare_input(self.eval_collator([(sample, epoch)]))
        return self.describe(sample, self.model.answer(batch, EXAMPLE_TOKENS))

    def _autocast(self) -> Any:
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16)

    # ---- snapshots

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Just what is trained: the rest of the model is the bases' own."""
        from safetensors.torch import save_file

        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        with gathered(trained.values()):
            if self.args.should_save:
                folder = Path(output_dir or str(self.args.output_dir))
                folder.mkdir(parents=True, exist_ok=True)
                save_file({k: p.detach().cpu().contiguous() for k, p in trained.items()}, folder / WEIGHTS_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        self.model.load_state_dict(load_file(Path(resume_from_checkpoint) / WEIGHTS_NAME), strict=False)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        engine: Any = self.model_wrapped
        engine.save_checkpoint(output_dir, exclude_frozen_parameters=True)  # the Trainer's would save the LLM too
        if self.args.should_save:
            scheduler: Any = self.lr_scheduler
            torch.save(scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        if not (self.is_deepspeed_enabled and resume_from_checkpoint):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        # Not strict: the frozen weights are not in the snapshot.
        engine: Any = self.model_wrapped
        scheduler: Any = self.lr_scheduler
        engine.load_checkpoint(resume_from_checkpoint, load_module_strict=False)
        scheduler.load_state_dict(torch.load(Path(resume_from_checkpoint) / "scheduler.pt"))
        return prepared


@contextmanager
def gathered(parameters: Any) -> Iterator[None]:
    """The parameters whole, where DeepSpeed ZeRO-3 has shared them out; all processes must come here."""
    shared = [p for p in parameters if hasattr(p, "ds_id")]
    if not shared:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(shared):
        yield


class Progress(TrainerCallback):
    """A bar with steps and time left, and a line to read where the Trainer would print a dictionary."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        hidden = not state.is_world_process_zero
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train", unit="step", disable=hidden)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        figures = {name: value for name, value in logs.items() if not name.startswith(("train_", "total_flos"))}
        if state.is_world_process_zero and figures.keys() - {"epoch"}:  # the last line sums up what card and log tell
            said = ", ".join(f"{name.replace('eval_', 'held-out ')} {value:.4g}" for name, value in figures.items())
            tqdm.write(f"step {state.global_step}/{state.max_steps}: {said}")
            sys.stdout.flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


@contextmanager
def stopped_outside_the_steps(output: Path) -> Iterator[None]:
    """SIGTERM before the first step, or behind the last, ends the run at once, and says that it can go on."""

    def stop(number: int, frame: Any) -> None:
        if int(os.environ.get("RANK", 0)) == 0:
            print(
                f"llasm: {output}: stopped; the same command with --resume goes on with what is written so far",
                file=sys.stderr,
            )
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopSignal(TrainerCallback):
    """SIGTERM, or Ctrl-C, ends the run behind a snapshot at the next step; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._receive)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._anywhere(args):
            control.should_log = True  # what the next line's mean would not hold
            control.should_save = state.global_step < state.max_steps
            control.should_training_stop = True

    def _receive(self, number: int, frame: Any) -> None:
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _anywhere(self, args: Any) -> bool:
        """Whether any process has been told to stop: all must leave the loop together."""
        if args.world_size == 1:
            return self.received is not None
        flag = torch.tensor(self.received or 0, device=args.device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        self.received = int(flag) or None
        return self.received is not None


def last_snapshot(folder: Path, n_steps: int) -> str | None:
    """The newest whole snapshot before the last step; what a kill cut short is passed over (its state comes last)."""
    found = []
    for snapshot in folder.glob("checkpoint-*"):
        try:
            step = json.loads((snapshot / STATE_NAME).read_text(encoding="utf-8"))["global_step"]
        except (OSError, ValueError):
            continue
        if step < n_steps:  # the Trainer would go a step beyond the last
            found.append((step, snapshot))
    return str(max(found)[1]) if found else None
