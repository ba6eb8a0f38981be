"""Losses, data order and recipes, and both stages run for real on tiny random bases."""

import itertools
import json
import os
import re
import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMultimodalLM, AutoProcessor

import llasm
from llasm import checkpoint
from llasm.adapter import AdapterConfig, build_adapter
from llasm.data_gen.build import build
from llasm.data_gen.recipe import Recipe as DataRecipe
from llasm.data_gen.recipe import Respond, Vary, Verify
from llasm.errors import LlasmError
from llasm.options import recipe_names, recipe_path
from llasm.train import guard
from llasm.train.conversation import Renderer, with_texts
from llasm.train.data import LengthGroupedOrder, Sample, split
from llasm.train.losses import sampled_ctc, softened_kl
from llasm.train.recipe import Losses, Recipe, load_recipe
from llasm.train.run import train
from llasm.train.spoken import SpokenCollator, SpokenModel, as_repetition
from llasm.train.trainer import StageTrainer, last_snapshot, stopped_outside_the_steps

SMALL = {"width": 32, "n_layers": 1, "n_heads": 2, "rate": "heard"}
ANSWER = [{"role": "assistant", "content": "Yes."}]


def recipe(stage, bases, spoken, output, **fields):
    small = AdapterConfig(**SMALL)
    defaults = {"n_steps": 2, "batch_size": 2, "held_out": 2, "eval_steps": 2, "save_steps": 2, "bf16": False}
    where = {"data": [spoken], "output": str(output), "cache": str(output.parent / "features")}
    small_run = {"adapter": small, "warmup_steps": 0, "n_negatives": 20, "n_examples": 1, "logging_steps": 1}
    bases = {} if "init" in fields else bases
    return Recipe(stage=stage, **small_run | where | bases | defaults | fields)


def logged(output, name="loss"):
    """step → value, of the training's log lines."""
    return {line["step"]: line[name] for line in metrics_of(output)["log"] if name in line}


def metrics_of(output):
    return json.loads((output / "metrics.json").read_text())


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLASM_HOME", str(tmp_path / "home"))


# ---- the stages


@pytest.fixture
def few_guard_texts(monkeypatch):
    """A random LLM writes nothing that anybody would read."""
    monkeypatch.setattr(guard, "N_TEXTS", 4)
    monkeypatch.setattr(guard, "N_HELD_OUT", 2)
    monkeypatch.setattr(
        guard, "_write", lambda generator, parts: [(f"Ask {i}.", "So it is.", i == 1) for i in range(6)]
    )


def test_ground_align_chat_and_what_they_leave(bases, spoken, tmp_path, few_guard_texts):
    ground = train(recipe("ground", bases, spoken, tmp_path / "ground"))
    assert "token_error_rate" in metrics_of(ground)["held_out"]
    assert metrics_of(ground)["unseen_words"]["words"]  # the held-out rows' numbers
    with pytest.raises(LlasmError, match="finished checkpoint"):
        train(recipe("ground", bases, spoken, tmp_path / "ground"))
    align = train(recipe("align", bases, spoken, tmp_path / "align", init=str(ground)))
    held_out = metrics_of(align)["held_out"]
    assert held_out["kl"] >= 0 and held_out["ctc"] > 0
    before, after = load_file(ground / "adapter_model.safetensors"), load_file(align / "adapter_model.safetensors")
    assert before.keys() == after.keys() and any((before[k] != after[k]).any() for k in before)
    chat = train(recipe("chat", bases, spoken, tmp_path / "chat", init=str(align), lora_learning_rate=1e-2))
    held_out = metrics_of(chat)["held_out"]
    assert held_out["ce"] > 0 and held_out["guard"] > 0 and held_out["ctc"] > 0
    assert {"README.md", "loss.png", "recipe.yaml", "adapter_config.json"} <= {file.name for file in chat.iterdir()}
    assert {"loss", "ce", "guard", "ctc", "samples_per_second", "tokens_per_second"} <= set(metrics_of(chat)["log"][0])
    assert metrics_of(chat)["examples"][0].keys() == {"said", "answer", "wanted"}
    assert load_recipe(str(chat / "recipe.yaml")).lora.rank == 16
    changed = llasm.load(chat).model.model.language_model.layers[0].self_attn.q_proj.weight
    assert not torch.equal(changed, llasm.load(align).model.model.language_model.layers[0].self_attn.q_proj.weight)
    again = train(recipe("chat", bases, spoken, tmp_path / "again", init=str(chat)))  # LoRA is trained on
    assert load_file(again / "adapter_model.safetensors").keys() == load_file(chat / "adapter_model.safetensors").keys()
    with pytest.raises(LlasmError, match="holds LoRA, which stage align would lose"):
        train(recipe("align", bases, spoken, tmp_path / "lost", init=str(chat)))
    checkpoint.copy_adapter(chat, tmp_path / "shared")
    shared = {file.name for file in (tmp_path / "shared").iterdir()}
    assert shared.isdisjoint({"snapshots", "metrics.json", "loss.png"}) and llasm.load(tmp_path / "shared")
    card = (tmp_path / "shared/README.md").read_text()
    assert "## Held-out figures" in card and "loss.png" not in card
    checkpoint.merge(chat, tmp_path / "merged")
    assert (tmp_path / "merged/README.md").read_text() == card
    for folder in (chat, tmp_path / "shared", tmp_path / "merged"):
        modes = {file.stat().st_mode for file in folder.iterdir() if file.is_file() and file.name != "recipe.yaml"}
        assert len(modes) == 1, f"{folder}: weights are for as many to read as the rest"


def test_sound_without_speech_is_learned_as_such(bases, tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"Question {i}?"}, *ANSWER]} for i in range(6)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    quick = {"respond": Respond(answers="never"), "verify": Verify(asr="none"), "workers": 1}
    data = tmp_path / "data"
    build(DataRecipe(output=str(data), input=str(tmp_path / "in.jsonl"), vary=Vary(no_speech_share=1.0), **quick))
    ground = train(recipe("ground", bases, str(data), tmp_path / "ground", batch_size=4))
    before = load_file(ground / "adapter_model.safetensors")
    [blank] = [name for name in before if name.endswith("blank.bias")]
    before[blank] += 100  # a random aligner would hear something: CTC teaches it not to
    save_file(before, ground / "adapter_model.safetensors", {"format": "pt"})
    few = {"batch_size": 4, "n_steps": 8, "eval_steps": 1, "learning_rate": 1e-2}
    align = train(recipe("align", bases, str(data), tmp_path / "align", init=str(ground), **few))
    assert metrics_of(align)["held_out"].keys() == {"ce", "ctc", "kl"}
    after = load_file(align / "adapter_model.safetensors")
    [silence] = [name for name in after if name.endswith("silence")]
    assert not before[silence].any() and after[silence].any()
    surprise = logged(align, "eval_ce")
    assert surprise[8] < surprise[1] - 1e-3, "the answer to silence has not become more likely"


def test_each_answer_has_one_teacher(bases, spoken, tmp_path):
    """`kl` on answers to words, `ce` on answers to sound; CTC's target of the sound is nothing."""
    model, processor = checkpoint.from_bases(bases["audio_base"], bases["text_base"], AdapterConfig(**SMALL))
    weights = {"ctc": 1.0, "kl": 1.0, "ce": 1.0, "guard": 0.0}
    turns = [
        {"role": "user", "content": [{"type": "audio"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
    ]
    said = Sample("said", turns, ["hello"], ["k"], False, False, [1.0])
    silent, unknown = replace(said, id="silent", texts=[""], silent=True), replace(said, id="unknown", texts=[""])

    class Cache:
        d_encoder = model.config.audio_config.d_model

        def get(self, key):
            return torch.randn(50, self.d_encoder)

    collate = SpokenCollator(Cache(), Renderer(processor, {0}), processor.tokenizer, weights)
    batch = collate([(sample, 0) for sample in (said, silent)])
    n_learned = int(batch["spoken"][0].learned.sum())
    assert batch["counts"]["kl"] == batch["counts"]["ce"] == n_learned > 0
    assert [len(target) for target in batch["targets"]] == [5, 0]
    assert SpokenCollator(Cache(), Renderer(processor, {0}), processor.tokenizer, {**weights, "kl": 0})([(unknown, 0)])[
        "targets"
    ] == [None]
    stage = SpokenModel(model, weights, 2.0, 20).eval()
    wanted = stage(**batch)
    alone = stage(**collate([(silent, 0)]))
    assert float(alone["kl"]) == 0 < float(alone["ce"]) and float(wanted["kl"]) > 0
    for by_ce, learned in ((False, "kl"), (True, "ce")):  # LoRA learns to repeat from the words themselves
        collate = SpokenCollator(Cache(), Renderer(processor, {0}), processor.tokenizer, weights, repeats_by_ce=by_ce)
        repeat = collate([(as_repetition(said, 1, 0), 0)])
        assert repeat["counts"][learned] == repeat["spoken"][0].learned.sum() > len("hello")
        assert float(stage(**repeat)[learned]) > 0


def test_the_guard_has_text_of_the_llms_own_and_what_a_teacher_answers_as_if_typed(bases):
    _, processor = checkpoint.from_bases(bases["audio_base"], bases["text_base"], AdapterConfig(**SMALL))
    renderer = Renderer(processor, {0})
    turns = [
        {"role": "user", "content": [{"type": "audio"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
    ]
    said = Sample("said", turns, ["hello"], ["k"], False, False, [1.0])
    silent, repeated = replace(said, id="silent", texts=[""], silent=True), as_repetition(said, 1, 0)
    cache = type("Cache", (), {"d_encoder": 8, "get": lambda self, key: torch.randn(50, 8)})()
    own = renderer([{"role": "user", "content": [{"type": "text", "text": "Ask me."}]}, turns[1]])

    def guarded(share, **weights):
        weights = {"ctc": 0.0, "kl": 1.0, "ce": 1.0, "guard": 1.0} | weights
        collate = SpokenCollator(cache, renderer, processor.tokenizer, weights, 0, [own], share, repeats_by_ce=True)
        batch = collate([(said, 0), (silent, 0), (repeated, 0)])
        assert batch["has_guard"] == (share > 0)
        return [processor.tokenizer.decode(row.ids) for row in batch["guard"]]

    texts = [processor.tokenizer.decode(row.ids) for row in (own, renderer(with_texts(turns, ["hello"])))]
    assert guarded(1.0) == [texts[0], texts[1], texts[0], texts[0]]
    assert guarded(1.0, kl=0.0) == [texts[0]] * 3  # a custom answer is to be learned when typed, too
    assert guarded(0.0) == [texts[0]]  # a stand-in


def test_whispers_decoder_learns_to_hear_and_then_what_it_means(bases, spoken, tmp_path, few_guard_texts):
    adapter = AdapterConfig(**SMALL | {"name": "decoder"})
    ground = train(recipe("ground", bases, spoken, tmp_path / "ground", adapter=adapter))
    align = train(recipe("align", bases, spoken, tmp_path / "align", init=str(ground)))
    chat = train(recipe("chat", bases, spoken, tmp_path / "chat", init=str(align)))
    prefix = "base_model.model.model.multi_modal_projector."
    untrained, _ = checkpoint.from_bases(bases["audio_base"], bases["text_base"], adapter)
    start = {prefix + name: p.bfloat16() for name, p in untrained.model.multi_modal_projector.named_parameters()}
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (ground, align))
    assert before.keys() == after.keys() == start.keys()  # nothing of Whisper's own
    tail = prefix + "tail"
    assert torch.equal(before[tail], after[tail]) and not torch.equal(start[tail], before[tail])
    detector = [name for name in start if name.startswith(prefix + "detector.")]
    assert detector and all(torch.equal(before[name], after[name]) for name in detector)
    assert not all(torch.equal(start[name], before[name]) for name in detector)
    meaning = prefix + "out.weight"
    assert torch.equal(start[meaning], before[meaning]) and not torch.equal(before[meaning], after[meaning])
    log = metrics_of(ground)["log"][0]
    assert log["ce"] > 0 and log["speech"] > 0 and "ctc" not in log and "ctc" not in metrics_of(align)["log"][0]
    assert metrics_of(ground)["held_out"].keys() == {"token_error_rate", "speech_error_rate"}
    checkpoint.merge(chat, tmp_path / "merged")
    question = [{"role": "user", "content": [{"type": "audio", "audio": torch.sin(torch.arange(16000) / 20).numpy()}]}]
    answers = [llasm.load(folder).chat(question, max_new_tokens=8).text for folder in (chat, tmp_path / "merged")]
    assert answers[0] == answers[1]
    plain = AutoModelForMultimodalLM.from_pretrained(tmp_path / "merged")  # without llasm's own loading
    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    inputs = processor(text=f"{processor.audio_token} Hm?", audio=question[0]["content"][0]["audio"])
    assert plain.generate(**inputs, max_new_tokens=4).shape[1] > 4
    with pytest.raises(LlasmError, match="zero 3 needs all processes"):
        train(recipe("align", bases, spoken, tmp_path / "zero", init=str(ground), zero=3, dry_run=True))


def test_recordings_are_repeated_by_ce_in_chat(bases, spoken, tmp_path, few_guard_texts):
    rows = [{"messages": [{"role": "user", "content": f"Say number {i}."}]} for i in range(7)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataRecipe(output=str(tmp_path / "data"), input=str(tmp_path / "in.jsonl"), workers=1)
    build(replace(data, respond=Respond(answers="never"), verify=Verify(asr="none")))
    made = recipe("chat", bases, spoken, tmp_path / "out", losses=Losses(ctc=0, guard=0), n_steps=4)
    out = train(replace(made, data=[spoken, str(tmp_path / "data")], held_out=7))
    assert metrics_of(out)["held_out"]["ce"] > 0
    assert "7 without an answer, so they are repeated" in (out / "README.md").read_text()


@pytest.mark.parametrize("name", ["swiglu", "mlp", "linear", "conv"])
def test_the_simpler_adapters_train_with_align_alone(name, bases, spoken, tmp_path):
    out = train(recipe("align", bases, spoken, tmp_path / "out", adapter=AdapterConfig(name=name, width=32, stack=8)))
    assert metrics_of(out)["held_out"].keys() == {"kl"}


def test_losses_are_switched_by_name(bases, spoken, tmp_path, few_guard_texts):
    only_ce = Losses(ctc=0, guard=0)
    out = train(recipe("chat", bases, spoken, tmp_path / "out", losses=only_ce, activation_checkpointing=True))
    assert metrics_of(out)["held_out"].keys() == {"ce"}
    both = train(recipe("align", bases, spoken, tmp_path / "both", losses=Losses(ctc=0), init=None, **bases))
    assert metrics_of(both)["held_out"].keys() == {"kl"}


def test_accumulated_parts_give_the_step_of_the_whole(bases, spoken, tmp_path):
    same = {"adapter": AdapterConfig(name="swiglu", width=32, stack=8), "batch_size": 4}  # without dropout
    runs = {n: train(recipe("align", bases, spoken, tmp_path / str(n), accumulation=n, **same)) for n in (1, 4)}
    assert logged(runs[4], "kl") == pytest.approx(logged(runs[1], "kl"), abs=1e-5)
    assert logged(runs[4]) == pytest.approx(logged(runs[1]), abs=1e-5)


# ---- resuming


def test_a_run_interrupted_by_sigterm_goes_on_where_it_was(bases, spoken, tmp_path, monkeypatch):
    whole = train(recipe("ground", bases, spoken, tmp_path / "whole", n_steps=6, save_steps=4))
    cut = recipe("ground", bases, spoken, tmp_path / "cut", n_steps=6, save_steps=4)
    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "evaluate", _terminate_at(4))
        with pytest.raises(SystemExit) as stopped:
            train(cut)
    assert stopped.value.code == 128 + signal.SIGTERM
    with pytest.raises(LlasmError, match="interrupted run"):
        train(cut)
    cut.resume = True
    with pytest.raises(LlasmError, match=r"seed is 1, but was 0 when this run began"):
        train(replace(cut, seed=1))
    started = tmp_path / "cut/snapshots/started.json"
    whole_text = started.read_text()
    started.write_text(whole_text[:20])
    with pytest.raises(LlasmError, match=r"started\.json: is damaged"):
        train(cut)
    started.write_text(whole_text)
    train(cut)
    assert logged(tmp_path / "cut") == pytest.approx(logged(whole), abs=1e-4)


def test_how_often_it_is_evaluated_changes_no_loss(bases, spoken, tmp_path):
    runs = {n: recipe("align", bases, spoken, tmp_path / str(n), n_steps=4, eval_steps=n) for n in (1, 4)}
    often, once = (train(run) for run in runs.values())
    assert len(logged(often)) == 4 and logged(often) == logged(once)
    assert logged(often, "eval_ctc")[4] == logged(once, "eval_ctc")[4]


def test_a_bar_and_lines_to_read(bases, spoken, tmp_path, capsys):
    train(recipe("ground", bases, spoken, tmp_path / "out"))
    said = capsys.readouterr()
    assert re.search(r"^step 1/2: loss \d", said.out, re.M) and "held-out token_error_rate" in said.out
    assert re.search(r"train: 100%.*2/2 \[\d\d:\d\d<\d\d:\d\d", said.err) and "{" not in said.out


class Writer:
    """Writes texts that name their batch; SIGTERM comes at one of them."""

    def __init__(self, stop_at=None):
        self.stop_at, self.asked = stop_at, []

    def invent(self, prompt, n, max_new_tokens, seed):
        self.asked.append(seed)
        if seed == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return [(f"Ask {seed}.", False)] * n

    def generate(self, batch, max_new_tokens, seed):
        return [(f"So {seed}.", False)] * len(batch)


def test_sigterm_before_the_first_step_keeps_the_guards_texts(tmp_path, capsys):
    log, first, second = tmp_path / "parts.jsonl", Writer(stop_at=2), Writer()
    with pytest.raises(SystemExit) as stopped, stopped_outside_the_steps(tmp_path):
        guard._write(first, log)
    assert stopped.value.code == 128 + signal.SIGTERM and "with --resume goes on" in capsys.readouterr().err
    assert guard._write(second, log) == guard._write(Writer(), tmp_path / "other.jsonl")
    assert (first.asked, second.asked) == ([0, 1, 2], [2, 3])


def _terminate_at(step):
    def evaluate(self, *args, **kwargs):
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, *args, **kwargs)

    whole = StageTrainer.evaluate
    return evaluate


def test_a_snapshot_cut_short_is_passed_over(tmp_path):
    for step, state in ((10, '{"global_step": 10}'), (20, '{"glob'), (30, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state:
            (tmp_path / f"checkpoint-{step}/trainer_state.json").write_text(state)
    assert last_snapshot(tmp_path, 40) == str(tmp_path / "checkpoint-10")
    assert last_snapshot(tmp_path, 10) is None


# ---- recipes and bad input


@pytest.mark.parametrize("name", recipe_names("train"))
def test_shipped_recipes_say_how_to_launch_them(name):
    found = load_recipe(name)
    assert found.stage in name
    header = recipe_path("train", name).read_text().splitlines()[:12]
    for field in ("launch:", "data:", "memory:", "time:"):
        assert any(line.startswith(f"#   {field}") for line in header), field


@pytest.mark.parametrize(
    "fields",
    [
        {"data": []},
        {"n_steps": 0},
        {"repeat_share": 2},
        {"accumulation": 3},
        {"learning_rate": 0.0},
        {"seed": -1},
        {"chat_template": "llama2", "init": "llasm-tiny"},
        {"losses": Losses(ctc=-1)},
        {"losses": Losses(kl=1)},
        {"losses": Losses(speech=1), "stage": "align"},
        {"losses": Losses(speech=-1)},
    ],
)
def test_impossible_settings_are_refused(fields):
    with pytest.raises(LlasmError, match=next(iter(fields)).replace("losses", "loss")):
        Recipe(**{"stage": "ground", "data": ["x"], "output": "y", **fields})


def test_an_adapter_has_the_losses_that_it_can_be_trained_by():
    ground = Recipe(stage="ground", data=["x"], output="y")
    assert [ground.weights_for(name)["ctc"] for name in ("aligner", "decoder")] == [1, 0]
    for loss in ("ce", "speech"):
        assert [ground.weights_for(name)[loss] for name in ("aligner", "decoder")] == [0, 1]
    with pytest.raises(LlasmError, match="every loss that adapter 'aligner' has is switched off"):
        replace(ground, losses=Losses(ctc=0)).weights_for("aligner")


def test_an_unknown_key_is_named_where_it_stands(tmp_path):
    with pytest.raises(LlasmError, match=r"^command line: .*nonsense"):
        load_recipe("tiny_chat", ["--nonsense", "1"])
    (tmp_path / "mine.yaml").write_text("stage: chat\ndata: [x]\noutput: y\nnonsense: 1\n")
    with pytest.raises(LlasmError, match=r"mine.yaml: .*nonsense"):
        load_recipe(str(tmp_path / "mine.yaml"), ["--seed", "1"])


def test_one_data_set_needs_no_brackets(tmp_path):
    for argv in (["--data", "data/mine"], ["--data=data/mine"], ["--data", '["data/mine"]']):
        assert load_recipe("tiny_chat", argv).data == ["data/mine"]
    (tmp_path / "mine.yaml").write_text("stage: chat\ndata: data/mine\noutput: y\n")
    with pytest.raises(LlasmError, match=r"mine.yaml: .*Got value: data/mine; a list is written \["):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_a_vocabulary_sampled_whole_gives_the_full_ctc_loss():
    torch.manual_seed(0)
    adapter = build_adapter(AdapterConfig(width=32, n_layers=1, n_heads=2), 8, 16).eval()
    table, targets = torch.randn(12, 16), [torch.tensor([3, 3, 5]), torch.tensor([1])]
    states, blank, steps = torch.randn(2, 9, 16), torch.randn(2, 9), torch.tensor([9, 6])
    logits = torch.cat([blank[..., None], adapter.token_logits(states, table)], -1)
    losses = F.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), torch.cat(targets) + 1, steps, torch.tensor([3, 1]), reduction="none"
    )
    found = sampled_ctc(adapter, states, blank, steps, targets, table, n_negatives=5000)
    torch.testing.assert_close(found, losses.sum())


def test_kl_is_zero_between_equals_and_reaches_the_student():
    teacher, student = torch.randn(3, 7), torch.randn(3, 7, requires_grad=True)
    assert softened_kl(teacher, teacher, 2.0).abs() < 1e-6
    loss = softened_kl(student, teacher, 2.0)
    loss.backward()
    assert loss > 0 and student.grad.abs().sum() > 0


def test_repetition_and_transcripts():
    audio_turn = {"role": "user", "content": [{"type": "audio", "text": None}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "no"}]}
    sample = Sample("a", [audio_turn, answer], ["hello"], ["k"], True, False, [1.0])
    assert as_repetition(sample, 0.0, 0) == sample
    longer = [audio_turn, answer, audio_turn, answer]
    two_turns = replace(sample, messages=longer, texts=["hello", "you"], keys=["k", "l"], clip_seconds=[1.0, 2.0])
    recording = replace(sample, messages=[audio_turn])
    for repeated in (as_repetition(two_turns, 1.0, 0), as_repetition(recording, 0.0, 0)):
        assert repeated.messages[-1]["content"][0]["text"] == "hello" and not repeated.truncated and repeated.repeats
        assert repeated.keys == ["k"] and repeated.texts == ["hello"] and repeated.seconds == 1
    for text in ("", " "):  # nobody knows what was said
        assert as_repetition(replace(sample, texts=[text]), 1.0, 0).messages == sample.messages
    assert with_texts(sample.messages, sample.texts)[0]["content"] == [{"type": "text", "text": "hello"}]


def test_order_follows_from_seed_and_epoch():
    order, other = (LengthGroupedOrder(list(range(102)), 4, seed=1) for _ in range(2))
    assert len(order) == 100 and len(set(order)) == 100 and list(order) == list(other)
    other.set_epoch(1)
    assert all(102 <= i < 204 for i in other) and [i - 102 for i in other] != list(order)


def test_batches_are_of_like_length_and_their_lengths_of_no_order():
    lengths = [(7 * i) % 800 for i in range(800)]
    rows = [lengths[i] for i in LengthGroupedOrder(lengths, 8, seed=0)]
    batches = [rows[i : i + 8] for i in range(0, 800, 8)]
    assert rows[0] == max(lengths)  # where memory that is too small shows at once
    assert all(max(batch) - min(batch) < 100 for batch in batches[1:])
    means = [sum(batch) / 8 for batch in batches]
    assert 35 < sum(after > before for before, after in itertools.pairwise(means)) < 64
    assert all(min(some) < 200 and max(some) > 600 for some in (means[i : i + 25] for i in range(0, 100, 25)))


def test_held_out_rows_do_not_depend_on_the_order():
    samples = [Sample(str(i), [], [], [], False, False, []) for i in range(30)]
    assert {s.id for s in split(samples, 5, 0)[1]} == {s.id for s in split(samples[::-1], 5, 0)[1]}


def test_what_is_held_out_is_trained_on_in_no_other_voice():
    samples = [Sample(str(i), [], [f"text {i % 10}" if i < 20 else ""], [], False, i >= 20, []) for i in range(30)]
    train, held_out = split(samples, 6, 0, texts_apart=True)
    said = {text for sample in held_out for text in sample.texts} - {""}
    assert said and said.isdisjoint(text for sample in train for text in sample.texts)
    assert len(train) + len(held_out) < 30 and any(sample.silent for sample in train)
    train, held_out = split(samples, 6, 0)
    assert len(train) + len(held_out) == 30


def test_no_noisy_copy_of_what_is_held_out_is_trained_on():
    samples = [Sample(f"{i}{copy}", [], ["Why?"], [], False, False, []) for i in range(15) for copy in ("", "~1", "~2")]
    train, held_out = split(samples, 5, 0)
    kept, apart = ({sample.id.split("~")[0] for sample in some} for some in (train, held_out))
    assert len(held_out) == 5 and kept.isdisjoint(apart) and len(train) == 45 - 3 * len(apart)
