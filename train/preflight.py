"""Before any long work: is the data right, does it fit, and what will be trained? `llasm train RECIPE --dry-run`.

No weight is loaded here: parameters are counted on torch's meta device, lengths by the tokenizer.

Shapes: H LLM width, L tokens of a micro-batch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from tqdm import tqdm

from llasm import audio, checkpoint, weights
from llasm.ear import CONTEXT_SPARE, as_written, whisper_tokenizer
from llasm.errors import LlasmError

from .conversation import Renderer, with_texts
from .data import Sample, cache_folder, split
from .recipe import Lora, Recipe
from .size import GB, check_disk, memory_of, parameters_of
from .spoken import as_repetition

SHOWN_ROWS = 5  # faulty rows that an error names


@dataclass
class Plan:
    """What a run is going to do."""

    losses: dict[str, float]  # weights of the parts of the loss
    train: list[Sample]
    held_out: list[Sample]
    left_out: int  # of the data's rows, without speech
    recordings: int  # of the rows used, to repeat since nobody answers them
    twins: int  # left out for what is held out: other copies of it, and in ground what says the same
    n_tokens: int
    n_learned: int
    longest: int
    hours: float
    parameters: dict[str, tuple[int, int]]  # part → (all, trained)
    memory_bytes: dict[str, float]

    @property
    def samples(self) -> list[Sample]:
        """To train on and held out."""
        return self.train + self.held_out

    def show(self, recipe: Recipe) -> None:
        losses = ", ".join(f"{name} × {weight:g}" for name, weight in self.losses.items() if weight)
        print(f"stage {recipe.stage}: {losses}; {recipe.n_steps} steps of {recipe.batch_size} samples")
        if recipe.warmup_steps >= recipe.n_steps:
            print(
                f"llasm: warning: warmup_steps {recipe.warmup_steps} takes all {recipe.n_steps} steps, so the learning "
                "rate does not reach its peak"
            )
        if self.losses["speech"] and not any(sample.silent for sample in self.train):
            print(
                "llasm: warning: no row without speech, so the detector learns that every sound is speech; "
                "`llasm data build --vary.no_speech_share 0.1` makes such rows"
            )
        twins = f", {self.twins} that copy what is held out" if self.twins else ""
        repeated = f", {self.recordings} without an answer to repeat" if self.recordings else ""
        print(
            f"data: {len(self.samples)} rows ({self.left_out} without speech left out{twins}{repeated}), "
            f"{self.hours:.2f} h of speech, {self.n_tokens:,} tokens, {self.n_learned:,} of them learned, "
            f"longest row {self.longest}"
        )
        for part, (total, trained) in self.parameters.items():
            state = f"{trained / 1e6:.2f} M trained" if trained else "frozen"
            print(f"  {part:10} {total / 1e6:10.2f} M parameters, {state}")
        needed = ", ".join(f"{name} {size / GB:.2f}" for name, size in self.memory_bytes.items())
        print(f"memory: about {sum(self.memory_bytes.values()) / GB:.1f} GB a process ({needed})", flush=True)


def preflight(recipe: Recipe, samples: list[Sample], n_processes: int = 1) -> Plan:
    """Checks data and settings; raises LlasmError on the first thing that cannot work."""
    config, processor, lora = _described(recipe)
    name = config.adapter_config.name
    if recipe.stage == "ground" and name not in ("aligner", "decoder"):
        raise LlasmError(f"stage ground trains the adapters 'aligner' and 'decoder', not {name!r}; use align")
    if name == "decoder" and recipe.stage != "ground" and not recipe.init:
        raise LlasmError(
            f"recipe: stage {recipe.stage} leaves what the adapter 'decoder' hears as it is, and untrained it hears "
            "nothing right: give init a checkpoint of stage ground"
        )
    if recipe.zero == 3 and name == "decoder":
        raise LlasmError(
            "recipe: zero 3 needs all processes to call the same layers as often, but the adapter 'decoder' runs "
            "Whisper's decoder once a word; use zero 2"
        )
    if recipe.batch_size % (n_processes * recipe.accumulation):
        raise LlasmError(
            f"recipe: batch_size {recipe.batch_size} cannot be shared by {n_processes} processes × "
            f"accumulation {recipe.accumulation}"
        )
    losses = recipe.weights_for(name)
    _check_packages(recipe)
    model = checkpoint.outline(config)
    kept = _with_content(recipe, samples)
    # ground learns texts by heart: one that is held out in another voice would say nothing of unheard ones.
    train, held_out = split(kept, recipe.held_out, recipe.seed, texts_apart=recipe.stage == "ground")
    twins = len(kept) - len(train) - len(held_out)
    if len(train) < recipe.batch_size:
        raise LlasmError(
            f"recipe: held_out {recipe.held_out} and a step of batch_size {recipe.batch_size} take more rows than the "
            f"{len(kept)} that the data has to use"
            + (f", {twins} of which copy what is held out" if twins else "")
            + "; make more, or choose a smaller --batch_size or --held_out"
        )
    used = train + held_out
    lengths, n_learned = _lengths(recipe, used, config, processor)
    parameters = parameters_of(recipe, model, lora)
    plan = Plan(
        losses=losses,
        train=train,
        held_out=held_out,
        left_out=len(samples) - len(kept),
        recordings=0 if recipe.stage == "ground" else sum(sample.is_recording for sample in samples),
        twins=twins,
        n_tokens=sum(lengths),
        n_learned=n_learned,
        longest=max(lengths),
        hours=sum(s.seconds for s in used) / 3600,
        parameters=parameters,
        memory_bytes=memory_of(recipe, config, parameters, max(lengths), n_processes),
    )
    check_disk(recipe, config, used, parameters)
    return plan


def _described(recipe: Recipe) -> tuple[Any, Any, Lora | None]:
    """Configuration and processor of what the recipe starts from, and the LoRA it will have."""
    if not recipe.init:
        audio_base, text_base = bases_of(recipe)
        config, processor = checkpoint.describe_bases(audio_base, text_base, recipe.adapter, recipe.template_text)
        # The encoder's hash names the folder of its frames, where there are any.
        if cache_folder(config, recipe.cache).is_dir():
            audio_dir = weights.resolve(audio_base, with_weights=False)
            if any(audio_dir.glob("*.safetensors")):
                config.bases = {"audio": {"sha256": weights.content_hash(audio_dir)}}
        return config, processor, recipe.lora if recipe.stage == "chat" else None
    directory = checkpoint.locate(recipe.init)
    checkpoint.refuse_merged(directory)
    config, processor = checkpoint.describe(directory)
    for part, given in (("audio", recipe.audio_base), ("text", recipe.text_base)):
        if given is not None:
            found = weights.content_hash(weights.resolve(given))
            if found != config.bases[part]["sha256"]:
                raise LlasmError(
                    f"recipe: {part}_base {given} has sha256 {found}, but init {recipe.init} was trained on "
                    f"{config.bases[part]['id']} with {config.bases[part]['sha256']}; leave {part}_base out, or choose "
                    "another init"
                )
    if not (directory / checkpoint.LORA_CONFIG).exists():
        return config, processor, recipe.lora if recipe.stage == "chat" else None
    if recipe.stage != "chat":
        raise LlasmError(f"recipe: init {recipe.init} holds LoRA, which stage {recipe.stage} would lose; use chat")
    from peft import LoraConfig

    own: Any = LoraConfig.from_pretrained(str(directory))
    return config, processor, Lora(rank=own.r, alpha=own.lora_alpha, targets=recipe.lora.targets)


def _check_packages(recipe: Recipe) -> None:
    """Names what is not installed now, not after the encoder's work."""
    wanted: dict[str, str] = {name: "train" if name == "tensorboard" else name for name in recipe.report_to}
    if recipe.quantization != "none" or recipe.optimizer == "adamw_8bit":
        wanted["bitsandbytes"] = "quant"
    if recipe.zero:
        wanted["deepspeed"] = "deepspeed"
    if recipe.liger:
        wanted["liger_kernel"] = "liger"
        if not torch.cuda.is_available():
            raise LlasmError("recipe: liger is true, but Liger's kernels need CUDA; leave it out")
    for name, extra in wanted.items():
        if find_spec(name) is None:
            package = name if extra == name == "wandb" else f"'llasm[{extra}]'"
            raise LlasmError(f"recipe: {name} is not installed: pip install {package}")


def bases_of(recipe: Recipe) -> tuple[str, str]:
    """The bases of a run that starts from none but them."""
    return recipe.audio_base or "whisper-base", recipe.text_base or "smollm2-135m-instruct"


# ---- data


def _with_content(recipe: Recipe, samples: list[Sample]) -> list[Sample]:
    """The rows that the stage can learn from; raises where one is wrong."""
    if not any(sample.keys for sample in samples):
        raise LlasmError(f"{', '.join(recipe.data)}: no row has audio; `llasm data build` speaks a typed data set")
    faults = [fault for sample in samples if (fault := _fault(recipe, sample))]
    if faults:
        more = f" (and {len(faults) - SHOWN_ROWS} more)" if len(faults) > SHOWN_ROWS else ""
        raise LlasmError("; ".join(faults[:SHOWN_ROWS]) + more)
    # ground learns words, align speech; a typed conversation is something to learn in chat alone.
    if recipe.stage == "ground":
        return [sample for sample in samples if any(sample.texts) or sample.silent]
    spoken = [sample for sample in samples if sample.keys] if recipe.stage == "align" else samples
    return [as_repetition(sample, recipe.share_repeated, recipe.seed) for sample in spoken]


def _fault(recipe: Recipe, sample: Sample) -> str:
    where = f"{sample.origin}: row {sample.id!r}"
    limit = audio.MAX_PIECE_SECONDS
    n_parts = sum(part["type"] == "audio" for message in sample.messages for part in message["content"])
    if n_parts != len(sample.keys):
        return f"{where}: {n_parts} audio parts, but {len(sample.keys)} audios"
    if max(sample.clip_seconds, default=0.0) > limit:
        return f"{where}: a clip is longer than {limit} s; `llasm data build` cuts long audio"
    if recipe.stage == "ground":
        return ""
    if sample.is_recording and not sample.texts[0].strip():
        return f"{where}: has neither an answer nor a transcript to repeat"
    ends = sample.messages[0]["role"], sample.messages[-1]["role"]
    if not sample.is_recording and (ends[0] == "assistant" or ends[1] != "assistant"):
        return f"{where}: must begin with the user or system and end with the assistant's answer"
    if recipe.loss_weights["kl"] and not all(sample.texts) and not sample.silent:
        return f"{where}: a clip has no transcript, which kl compares with; leave it out, or switch kl off"
    return ""


def _lengths(recipe: Recipe, samples: list[Sample], config: Any, processor: Any) -> tuple[list[int], int]:
    """(tokens of each row, learned tokens of all); raises where a row is longer than the LLM's context."""
    if recipe.stage == "ground":
        return _target_lengths(samples, config, processor)
    render = Renderer(processor, {processor.tokenizer.eos_token_id})
    lengths, n_learned, too_long = [], 0, []
    for sample in tqdm(samples, desc="count tokens", unit="row", disable=_rank() > 0):
        if config.adapter_config.heard:  # as many as the transcript has, more or less
            rendered = render(with_texts(sample.messages, sample.texts), sample.truncated)
            n = len(rendered.ids)
        else:
            rendered = render(sample.messages, sample.truncated)
            each = int(sample.seconds / max(1, len(sample.keys)) * audio.SAMPLE_RATE)
            n = len(rendered.ids) + len(sample.keys) * (processor.n_audio_tokens(each) - 1)
        lengths.append(n)
        n_learned += int(rendered.learned.sum())
        if n > config.text_config.max_position_embeddings:
            too_long.append(f"{sample.id!r} ({n} tokens)")
    if too_long:
        raise LlasmError(
            f"{', '.join(recipe.data)}: {len(too_long)} rows are longer than the LLM's context of "
            f"{config.text_config.max_position_embeddings} tokens: {', '.join(too_long[:SHOWN_ROWS])}; shorten them or "
            "leave them out"
        )
    return lengths, n_learned


def _target_lengths(samples: list[Sample], config: Any, processor: Any) -> tuple[list[int], int]:
    """As `_lengths`, of the transcripts in the tokens that `ground` teaches; raises where Whisper's decoder has no room
    for one."""
    pairs = [(sample, text) for sample in samples for text in sample.texts if text]
    adapter = config.adapter_config
    if adapter.name != "decoder":
        counts = list(map(len, processor.tokenizer([text for _, text in pairs], add_special_tokens=False)["input_ids"]))
        return counts, sum(counts)
    whisper = whisper_tokenizer(config.audio_config.vocab_size, adapter.language)
    counts = [len(as_written(whisper, text)) for _, text in pairs]
    limit = config.audio_config.max_target_positions - CONTEXT_SPARE
    if faults := [(sample, n) for (sample, _), n in zip(pairs, counts, strict=True) if n > limit]:
        sample, n = faults[0]
        raise LlasmError(
            f"{sample.origin}: row {sample.id!r}: a transcript of {n} tokens, and Whisper's decoder has room for "
            f"{limit} ({len(faults)} such rows); a clip of 30 s says less, so leave them out"
        )
    return counts, sum(counts)


def _rank() -> int:
    return int(os.environ.get("RANK", 0))
