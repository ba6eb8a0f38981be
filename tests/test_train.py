"""Losses, data order and recipes, and both stages run for real on tiny random bases."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from llasm.adapter import AdapterConfig, build_adapter
from llasm.data_gen.build import build
from llasm.data_gen.recipe import Recipe as DataRecipe
from llasm.data_gen.recipe import Respond, Verify
from llasm.errors import LlasmError
from llasm.features import FeatureCache, mel
from llasm.options import recipe_names
from llasm.train.align import as_repetition, softened_kl, with_texts
from llasm.train.data import LengthGroupedOrder, Sample, split
from llasm.train.ground import sampled_ctc_loss
from llasm.train.recipe import Recipe, load_recipe
from llasm.train.run import _StageTrainer, train

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Random Whisper and Llama directories, and a byte-level tokenizer."""
    torch.manual_seed(0)
    whisper, llm = tmp_path_factory.mktemp("whisper"), tmp_path_factory.mktemp("llm")
    sizes = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    sizes |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_model": 32}
    WhisperForConditionalGeneration(WhisperConfig(**sizes)).save_pretrained(whisper)
    WhisperFeatureExtractor().save_pretrained(whisper)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(llm)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), tie_word_embeddings=True, **shape)).save_pretrained(llm)
    return {"audio_base": str(whisper), "text_base": str(llm)}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Eight spoken questions with answers, one of them with two turns."""
    folder = tmp_path_factory.mktemp("spoken")
    rows = [[("user", f"Question number {i}?"), ("assistant", "Yes.")] for i in range(8)]
    rows[0] = [("user", "Who is it?"), ("assistant", "Me."), ("user", "And now?"), ("assistant", "Still me.")]
    with open(folder / "in.jsonl", "w") as out:
        for row in rows:
            out.write(json.dumps({"messages": [{"role": r, "content": c} for r, c in row]}) + "\n")
    source, quick = str(folder / "in.jsonl"), {"respond": Respond(answers="never"), "verify": Verify(asr="none")}
    build(DataRecipe(output=str(folder / "out"), input=source, workers=1, **quick))
    return str(folder / "out")


def recipe(stage, bases, spoken, output, **fields):
    small = AdapterConfig(width=32, n_layers=1, n_heads=2, rate="heard")
    defaults = {"n_steps": 2, "batch_size": 2, "held_out": 2, "eval_steps": 2, "save_steps": 2, "bf16": False}
    where = {"data": [spoken], "output": str(output), "cache": str(output.parent / "features")}
    return Recipe(stage=stage, adapter=small, warmup_steps=0, n_negatives=20, **where, **bases, **defaults | fields)


def test_ground_then_align(bases, spoken, tmp_path, monkeypatch):
    monkeypatch.setenv("LLASM_HOME", str(tmp_path / "home"))
    ground = train(recipe("ground", bases, spoken, tmp_path / "ground"))
    assert "token_error_rate" in json.loads((ground / "metrics.json").read_text())
    with pytest.raises(LlasmError, match="holds"):
        train(recipe("ground", bases, spoken, tmp_path / "ground"))
    align = train(recipe("align", bases, spoken, tmp_path / "align", init=str(ground), ctc_weight=0.3))
    metrics = json.loads((align / "metrics.json").read_text())
    assert metrics["kl"] >= 0 and metrics["ctc"] > 0
    before, after = load_file(ground / "adapter_model.safetensors"), load_file(align / "adapter_model.safetensors")
    assert before.keys() == after.keys() and any((before[k] != after[k]).any() for k in before)


def test_a_resumed_run_ends_like_an_undisturbed_one(bases, spoken, tmp_path, monkeypatch):
    monkeypatch.setenv("LLASM_HOME", str(tmp_path / "home"))
    whole = train(recipe("ground", bases, spoken, tmp_path / "whole", n_steps=6))
    cut = recipe("ground", bases, spoken, tmp_path / "cut", n_steps=6)
    with monkeypatch.context() as patch:
        patch.setattr("llasm.train.run._StageTrainer.evaluate", _interrupt_at(4))
        with pytest.raises(KeyboardInterrupt):
            train(cut)
    with pytest.raises(LlasmError, match="interrupted run"):
        train(cut)
    cut.resume = True
    train(cut)
    expected, found = (load_file(f / "adapter_model.safetensors") for f in (whole, tmp_path / "cut"))
    for name in expected:
        torch.testing.assert_close(found[name].float(), expected[name].float(), atol=1e-3, rtol=1e-2)


def _interrupt_at(step):
    def evaluate(self, *args, **kwargs):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    whole = _StageTrainer.evaluate
    return evaluate


@pytest.mark.parametrize("name", recipe_names("train"))
def test_shipped_recipes_are_read(name):
    assert load_recipe(name).stage in name


@pytest.mark.parametrize("fields", [{"data": []}, {"n_steps": 0}, {"repeat_share": 2}])
def test_impossible_settings_are_refused(fields):
    with pytest.raises(LlasmError, match=next(iter(fields))):
        Recipe(**{"stage": "ground", "data": ["x"], "output": "y", **fields})


def test_a_vocabulary_sampled_whole_gives_the_full_ctc_loss():
    torch.manual_seed(0)
    adapter = build_adapter(AdapterConfig(width=32, n_layers=1, n_heads=2), 8, 16).eval()
    table, targets = torch.randn(12, 16), [torch.tensor([3, 3, 5]), torch.tensor([1])]
    states, blank, steps = torch.randn(2, 9, 16), torch.randn(2, 9), torch.tensor([9, 6])
    logits = torch.cat([blank[..., None], adapter.token_logits(states, table)], -1)
    losses = F.ctc_loss(
        logits.log_softmax(-1).transpose(0, 1), torch.cat(targets) + 1, steps, torch.tensor([3, 1]), reduction="none"
    )
    found = sampled_ctc_loss(adapter, states, blank, steps, targets, table, n_negatives=5000)
    torch.testing.assert_close(found, losses.sum() / 4)


def test_kl_is_zero_between_equals_and_reaches_the_student():
    teacher, student = torch.randn(3, 7), torch.randn(3, 7, requires_grad=True)
    assert softened_kl(teacher, teacher, 2.0).abs() < 1e-6
    loss = softened_kl(student, teacher, 2.0)
    loss.backward()
    assert loss > 0 and student.grad.abs().sum() > 0


def test_repetition_and_transcripts():
    audio_turn = {"role": "user", "content": [{"type": "audio", "text": None}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "no"}]}
    sample = Sample("a", [audio_turn, answer], ["hello"], ["k"], truncated=True)
    assert as_repetition(sample, 0.0, 0) == (sample.messages, True)
    repeated, truncated = as_repetition(sample, 1.0, 0)
    assert repeated[-1]["content"][0]["text"] == "hello" and not truncated
    assert with_texts(sample.messages, sample.texts)[0]["content"] == [{"type": "text", "text": "hello"}]


def test_order_follows_from_seed_and_epoch():
    order, other = (LengthGroupedOrder(list(range(100)), 4, seed=1) for _ in range(2))
    assert sorted(order) == list(range(100)) and list(order) == list(other)
    other.set_epoch(1)
    assert list(order) != list(other)


def test_held_out_rows_do_not_depend_on_the_order():
    samples = [Sample(str(i), [], [], [], False) for i in range(30)]
    assert {s.id for s in split(samples, 5, 0)[1]} == {s.id for s in split(samples[::-1], 5, 0)[1]}
    with pytest.raises(LlasmError, match="held_out"):
        split(samples, 30, 0)


def test_feature_cache_survives_reopening_and_a_torn_line(tmp_path):
    from llasm.audio import to_flac_bytes

    clips = {k: to_flac_bytes(np.sin(np.arange(n) / 9).astype(np.float32)) for k, n in (("a", 3000), ("b", 20000))}
    extractor = WhisperFeatureExtractor()
    cache = FeatureCache(tmp_path, 80)
    cache.add_all(clips.items(), extractor, lambda m, mask: (m.transpose(1, 2)[:, ::2], mask.sum(1) // 2))
    with open(tmp_path / "index.jsonl", "a") as index:
        index.write('["c", 1')
    again = FeatureCache(tmp_path, 80)
    assert "c" not in again
    from llasm.audio import decode

    expected = mel(extractor, decode(clips["b"])).T[::2].to(torch.bfloat16)
    torch.testing.assert_close(again.get("b"), expected)
