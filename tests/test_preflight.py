"""What is wrong is said before any long work; every shipped recipe fits the machine that its header names."""

import copy
import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import soundfile
from filelock import FileLock
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, WhisperConfig

from llasm import checkpoint
from llasm.adapter import AdapterConfig
from llasm.configuration_llasm import LlasmConfig
from llasm.errors import LlasmError
from llasm.options import recipe_names, recipe_path
from llasm.train import preflight as module
from llasm.train import size
from llasm.train.data import read_samples
from llasm.train.preflight import preflight
from llasm.train.recipe import Lora, Recipe, load_recipe
from llasm.train.run import train


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLASM_HOME", str(tmp_path / "home"))


def recipe(data, output, stage="align", **fields):
    small = AdapterConfig(width=32, n_layers=1, n_heads=2)
    return Recipe(
        stage=stage,
        **{"data": data if isinstance(data, list) else [data], "output": str(output), "adapter": small, "held_out": 2}
        | fields,
    )


def planned(*args, **fields):
    made = recipe(*args, **{"batch_size": 2} | fields)
    return preflight(made, read_samples(made.data))


def rewritten(spoken, folder, change):
    """The data set with every row changed by `change`."""
    (folder / "data").mkdir(parents=True)
    for file in Path(spoken).glob("data/*.parquet"):
        table = parquet.read_table(file)
        rows = [change(row) for row in table.to_pylist()]
        schema = table.schema if set(rows[0]) == set(table.column_names) else None
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), folder / "data" / file.name)
    return str(folder)


def test_a_dry_run_counts_and_leaves_nothing(bases, spoken, tmp_path, capsys):
    assert train(recipe(spoken, tmp_path / "out", batch_size=2, dry_run=True, **bases)) is None
    said = capsys.readouterr().out
    assert "8 rows" in said and "tokens" in said and "LLM" in said and "frozen" in said and "memory: about" in said
    assert not (tmp_path / "out").exists() and not (tmp_path / "home").exists()


def test_ground_says_that_rows_repeat_what_is_held_out(bases, spoken, tmp_path, capsys):
    def same(row):
        return {**row, "meta": {**row["meta"], "texts": ["Who?" for _ in row["meta"]["texts"]]}}

    data = rewritten(spoken, tmp_path / "same", same)
    with pytest.raises(LlasmError, match="more rows than the 8 that the data has to use, 6 of which copy what is held"):
        planned(data, tmp_path / "out", stage="ground", **bases)
    made = recipe([data, spoken], tmp_path / "out", stage="ground", batch_size=2, held_out=3, **bases)
    plan = preflight(made, read_samples(made.data))
    plan.show(made)
    assert plan.twins == 16 - len(plan.samples) > 0
    assert f"(0 without speech left out, {plan.twins} that copy what is held out)" in capsys.readouterr().out


def test_tokens_and_parameters_are_counted(bases, spoken, tmp_path):
    plan = planned(spoken, tmp_path / "out", stage="chat", **bases)
    assert plan.n_learned == 7 * 5 + (4 + 10)  # "Yes." and "Me.", "Still me.", each with its end
    assert plan.parameters["LLM"][1] == 0 and plan.parameters["adapter"][0] == plan.parameters["adapter"][1] > 0
    # two layers of q, k, v, o (64 → 64) and gate, up, down (64 → 64): two matrices of 16 × 64 each
    assert plan.parameters["LoRA"] == (2 * 7 * 2 * 16 * 64, 2 * 7 * 2 * 16 * 64)


def test_a_data_set_without_audio(bases, tmp_path, spoken):
    def typed(row):
        parts = [{"role": m["role"], "content": [{"type": "text", "text": "Hm?"}]} for m in row["messages"]]
        meta = {**row["meta"], "texts": [], "seconds": [], "speeds": [], "heard": [], "wer": []}
        return {**row, "messages": parts, "audios": [], "meta": meta}

    data = rewritten(spoken, tmp_path / "typed", typed)
    with pytest.raises(LlasmError, match="typed: no row has audio"):
        planned(data, tmp_path / "out", **bases)


def test_rows_that_break_the_contract(bases, tmp_path, spoken):
    typed = {"role": "user", "content": [{"type": "text", "text": "And then?"}]}
    changes = {
        "asked": lambda row: {**row, "messages": [*row["messages"], typed]},
        "begun": lambda row: {**row, "messages": [row["messages"][-1], *row["messages"]]},
        "unanswered": lambda row: {**row, "messages": [*row["messages"][:1], typed]},  # more than a recording
    }
    for name, change in changes.items():
        with pytest.raises(
            LlasmError, match=rf"{name}: row 'in-\d': must begin .* and end with the assistant's answer"
        ):
            planned(rewritten(spoken, tmp_path / name, change), tmp_path / "out", **bases)
    with pytest.raises(LlasmError, match=r"shard-00000.parquet: has no column 'audios'"):
        planned(rewritten(spoken, tmp_path / "other", lambda row: {"id": row["id"]}), tmp_path / "out", **bases)
    with pytest.raises(LlasmError, match=r"shard-00000.parquet:1: has not one text and duration for each audio"):
        wrong = rewritten(spoken, tmp_path / "texts", lambda r: {**r, "meta": {**r["meta"], "texts": []}})
        planned(wrong, tmp_path / "out", **bases)
    with pytest.raises(LlasmError, match=r"nowhere: holds no data/\*\.parquet"):
        planned(str(tmp_path / "nowhere"), tmp_path / "out", **bases)


@pytest.mark.parametrize("silent", [False, True])
def test_ground_says_that_there_is_no_row_without_speech(bases, spoken, tmp_path, capsys, silent):
    def still(row):
        words = {"texts": [""], "source": "no speech: noise"}
        return {**row, "meta": {**row["meta"], **words}} if silent and len(row["audios"]) == 1 else row

    data = rewritten(spoken, tmp_path / "data", still)
    decoder = AdapterConfig(name="decoder", width=32)
    made = recipe(data, tmp_path / "out", stage="ground", batch_size=2, adapter=decoder, **bases)
    preflight(made, read_samples(made.data)).show(made)
    assert ("no row without speech, so the detector learns" in capsys.readouterr().out) != silent


def test_recordings_without_an_answer_are_repeated(bases, tmp_path, spoken, capsys):
    def unanswered(row):
        return row if len(row["audios"]) > 1 else {**row, "messages": row["messages"][:1]}

    made = recipe(rewritten(spoken, tmp_path / "unanswered", unanswered), tmp_path / "out", batch_size=2, **bases)
    plan = preflight(dataclasses.replace(made, repeat_share=0.0), read_samples(made.data))
    repeated = [sample for sample in plan.samples if sample.repeats]
    assert plan.recordings == len(repeated) == 7 and len(plan.samples) == 8
    for sample in repeated:
        assert sample.messages[-1]["content"] == [{"type": "text", "text": sample.texts[0]}]
    plan.show(made)
    assert "data: 8 rows (0 without speech left out, 7 without an answer to repeat)" in capsys.readouterr().out
    assert preflight(dataclasses.replace(made, stage="ground"), read_samples(made.data)).recordings == 0

    def unknown(row):
        return {**unanswered(row), "meta": {**row["meta"], "texts": [" "] * len(row["audios"])}}

    with pytest.raises(LlasmError, match=r"unknown: row 'in-\d': has neither an answer nor a transcript to repeat"):
        planned(rewritten(spoken, tmp_path / "unknown", unknown), tmp_path / "out", **bases)


def with_(row, path, value):
    """The row with one of its values, named by the way to it, changed."""
    changed = copy.deepcopy(row)
    *way, last = path
    place = changed
    for step in way:
        place = place[step]
    place[last] = value
    return changed


def wav(samples, subtype="PCM_16"):
    content = io.BytesIO()
    soundfile.write(content, samples, 16000, format="WAV", subtype=subtype)
    return content.getvalue()


ANSWER_TEXT = ("messages", 1, "content", 0, "text")
CLIP = ("audios", 0, "bytes")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("id",), None, "has no id"),
        (("messages",), None, "has no or empty messages"),
        (("messages", 0, "role"), "tool", "a role that is none of system, user and assistant"),
        (ANSWER_TEXT, None, "a text part without text"),
        (ANSWER_TEXT, " ", "an empty answer"),
        (ANSWER_TEXT, "Say <|audio|>.", r"<\|audio\|>, which stands for sound, as text"),
        (("meta", "texts", 0), "<|audio|>", r"<\|audio\|>, which stands for sound, as text"),
        (("messages", 1, "content", 0, "type"), "audio", "audio in a turn not the user's"),
        (("meta", "seconds"), None, "not one text and duration for each audio"),
        (CLIP, b"", "an audio has no bytes"),
        (CLIP, b"garbage", "row 'in-"),
        (CLIP, wav(np.full(16000, np.nan, np.float32), "FLOAT"), "row 'in-"),
        (CLIP, wav(np.full(45 * 16000, 0.1)), "a clip is longer than 29.68 s"),
        (CLIP, wav(np.full(int(29.8 * 16000), 0.1)), "a clip is longer than 29.68 s"),  # no room for the tail
    ],
)
def test_each_breach_of_the_contract_is_named(path, value, message, bases, tmp_path, spoken):
    wrong = rewritten(spoken, tmp_path / "wrong", lambda row: with_(row, path, value))
    with pytest.raises(LlasmError, match=rf"wrong.*: .*{message}"):
        planned(wrong, tmp_path / "out", **bases)


def test_durations_are_measured_not_believed(bases, tmp_path, spoken):
    wrong = rewritten(spoken, tmp_path / "wrong", lambda row: with_(row, ("meta", "seconds", 0), float("nan")))
    wrong, right = (planned(data, tmp_path / "out", **bases) for data in (wrong, spoken))
    assert wrong.hours == pytest.approx(right.hours) and right.hours > 0


def test_rows_that_are_there_twice(bases, tmp_path, spoken):
    with pytest.raises(LlasmError, match="is one data set named twice"):
        planned([spoken, f"{spoken}/../{Path(spoken).name}"], tmp_path / "out", **bases)
    with pytest.raises(LlasmError, match=r"copy/data/.*:1: row 'in-\d' is there already, at .*out/data"):
        planned([spoken, rewritten(spoken, tmp_path / "copy", dict)], tmp_path / "out", **bases)
    with pytest.raises(LlasmError, match=r":2: row 'same' is there already, at .*:1"):
        same = rewritten(spoken, tmp_path / "same", lambda row: {**row, "id": "same"})
        planned(same, tmp_path / "out", **bases)


def test_a_damaged_parquet_file_is_named(bases, tmp_path):
    (tmp_path / "torn/data").mkdir(parents=True)
    (tmp_path / "torn/data/shard-00000.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(LlasmError, match=r"shard-00000.parquet: is no parquet file, or damaged"):
        planned(str(tmp_path / "torn"), tmp_path / "out", **bases)


def test_a_row_longer_than_the_context(bases, tmp_path, spoken):
    short = shutil.copytree(bases["text_base"], tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 60}))
    with pytest.raises(
        LlasmError, match=r"rows are longer than the LLM's context of 60 tokens: 'in-\d' \(\d+ tokens\)"
    ):
        planned(spoken, tmp_path / "out", **bases | {"text_base": str(short)})


def test_a_transcript_that_whispers_decoder_has_no_room_for(bases, spoken, tmp_path):
    def wordy(row):
        texts = [" ".join(["word"] * 500) if row["id"] == "in-3" else text for text in row["meta"]["texts"]]
        return {**row, "meta": {**row["meta"], "texts": texts}}

    fields = bases | {"adapter": AdapterConfig(name="decoder", width=32)}
    data = rewritten(spoken, tmp_path / "wordy", wordy)
    with pytest.raises(LlasmError, match=r"row 'in-3': a transcript of 500 tokens, and Whisper's decoder has room for"):
        planned(data, tmp_path / "out", stage="ground", **fields)
    assert planned(spoken, tmp_path / "out", stage="ground", **fields).memory_bytes["activations"] > 0


@pytest.mark.parametrize("stage", ["align", "chat"])
def test_an_untrained_decoder_is_nothing_to_go_on_with(bases, spoken, tmp_path, stage):
    decoder = AdapterConfig(name="decoder", width=32)
    with pytest.raises(LlasmError, match=f"stage {stage} leaves what the adapter 'decoder' hears .* give init a"):
        planned(spoken, tmp_path / "out", stage=stage, **bases | {"adapter": decoder})


def test_a_disk_without_room(bases, tmp_path, spoken, monkeypatch):
    monkeypatch.setattr(size.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(LlasmError, match=r"the encoder's frames take about .* choose another --cache"):
        planned(spoken, tmp_path / "out", **bases)


def test_memory_that_is_not_there(bases, tmp_path, spoken, monkeypatch, capsys):
    made = recipe(spoken, tmp_path / "out", batch_size=2, **bases)
    plan = preflight(made, read_samples(made.data))
    monkeypatch.setattr(size, "_free_memory", lambda n: plan.memory_bytes["frozen weights"] * 2)
    size.check_memory(made, plan.parameters, plan.memory_bytes)
    assert re.search(r"warning: about .* GB are free; try --accumulation 2, --activation_checkpointing, --quanti",
                     capsys.readouterr().out)  # fmt: skip
    monkeypatch.setattr(size, "_free_memory", lambda n: 1.0)
    with pytest.raises(LlasmError, match="memory: about"):
        size.check_memory(made, plan.parameters, plan.memory_bytes)
    with pytest.raises(LlasmError, match=r"try .*--zero 3"):
        size.check_memory(made, plan.parameters, plan.memory_bytes, n_processes=2)
    with pytest.raises(LlasmError) as refused:  # a recipe with it is refused beforehand
        size.check_memory(made, plan.parameters | {"decoder": (1, 0)}, plan.memory_bytes, n_processes=2)
    assert "--zero" not in str(refused.value) and "try " in str(refused.value)


def test_a_merged_model_is_nothing_to_start_from(spoken, tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged/config.json").write_text("{}")
    with pytest.raises(LlasmError, match="merged: is a merged model; train on from the checkpoint"):
        planned(spoken, tmp_path / "out", init=str(tmp_path / "merged"))


def test_an_output_folder_of_somebody_elses(bases, spoken, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("mine")
    for output, message in ((tmp_path / "mine", "holds something else"), (tmp_path / "mine/README.md/x", "is a file")):
        for dry_run in (True, False):
            with pytest.raises(LlasmError, match=message):
                train(recipe(spoken, output, batch_size=2, dry_run=dry_run, **bases))
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["README.md"]
    with FileLock(tmp_path / "out/snapshots/lock"), pytest.raises(LlasmError, match="another llasm train is at work"):
        train(recipe(spoken, tmp_path / "out", batch_size=2, **bases))


def test_a_base_that_differs_from_the_checkpoints(bases, tmp_path, spoken):
    ground = recipe(spoken, tmp_path / "ground", "ground", batch_size=2, n_steps=1, n_examples=0, bf16=False, **bases)
    train(ground)
    copied = {"text_base": str(shutil.copytree(bases["text_base"], tmp_path / "copy"))}
    assert planned(spoken, tmp_path / "out", init=str(tmp_path / "ground"), **copied)  # the weights count, not the name
    other = shutil.copytree(bases["audio_base"], tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.encoder.conv1.bias"] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(LlasmError, match=r"audio_base .*other has sha256 \w+, but init .*ground was trained on"):
        planned(spoken, tmp_path / "out", init=str(tmp_path / "ground"), audio_base=str(other))
    tensors = load_file(Path(copied["text_base"]) / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, Path(copied["text_base"]) / "model.safetensors", {"format": "pt"})
    with pytest.raises(LlasmError, match=r"text_base .*copy has sha256 \w+, but init .*ground was trained on"):
        planned(spoken, tmp_path / "out", init=str(tmp_path / "ground"), **copied)


def test_bases_that_are_of_the_other_kind(bases, spoken, tmp_path):
    whisper, llm = bases["audio_base"], bases["text_base"]
    with pytest.raises(LlasmError, match=r"audio_base .*: is a 'llama' model; it must be a Whisper model"):
        planned(spoken, tmp_path / "out", audio_base=llm, text_base=llm)
    with pytest.raises(LlasmError, match=r"text_base .*: is a 'whisper' model; it must be an LLM"):
        planned(spoken, tmp_path / "out", audio_base=whisper, text_base=whisper)


def test_cache_and_snapshots_share_a_disk(bases, tmp_path, spoken, monkeypatch):
    roomy = shutil._ntuple_diskusage(10**12, 0, 10**12)
    monkeypatch.setattr(size.shutil, "disk_usage", lambda path: roomy)
    plan = planned(spoken, tmp_path / "out", **bases)
    snapshots = 36 * sum(trained for _, trained in plan.parameters.values())
    frames = (plan.hours * 3600 + sum(len(s.keys) for s in plan.samples)) * 50 * 32 * 2  # 50 a second, 32 wide, bf16
    enough_for_one = shutil._ntuple_diskusage(10**12, 0, int(max(snapshots, frames) * 1.001))
    monkeypatch.setattr(size.shutil, "disk_usage", lambda path: enough_for_one)
    with pytest.raises(LlasmError, match=r"snapshots take about .* GB are free beside .* for the encoder's frames"):
        planned(spoken, tmp_path / "out", **bases)


def test_frames_that_the_cache_holds_need_no_room(bases, tmp_path, spoken, monkeypatch):
    ground = recipe(spoken, tmp_path / "ground", "ground", batch_size=2, n_steps=1, n_examples=0, bf16=False, **bases)
    train(ground)
    snapshots = 36 * sum(trained for _, trained in planned(spoken, tmp_path / "out", **bases).parameters.values())
    free = shutil._ntuple_diskusage(10**12, 0, int(snapshots * 1.001))
    monkeypatch.setattr(size.shutil, "disk_usage", lambda path: free)
    assert planned(spoken, tmp_path / "out", **bases)
    with pytest.raises(LlasmError, match=r"snapshots take about .* beside .* for the encoder's frames"):
        planned(spoken, tmp_path / "out", cache=str(tmp_path / "another"), **bases)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"liger": True}, "liger is true, but Liger's kernels need CUDA"),
        ({"held_out": 7}, "held_out 7 and a step of batch_size 2 take more rows than the 8"),
        ({"stage": "ground", "adapter": AdapterConfig(name="mlp")}, "stage ground trains the adapters 'aligner'"),
        ({"stage": "chat", "lora": Lora(targets=["query"])}, "lora.targets query: the LLM has no such linear layer"),
    ],
)
def test_settings_that_do_not_fit_the_data(fields, message, bases, spoken, tmp_path, monkeypatch):
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    with pytest.raises(LlasmError, match=message):
        planned(spoken, tmp_path / "out", **fields, **bases)
    with pytest.raises(LlasmError, match="batch_size 2 cannot be shared by 4 processes"):
        made = recipe(spoken, tmp_path / "out", batch_size=2, **bases)
        preflight(made, read_samples(made.data), n_processes=4)


# ---- the shipped recipes, built on the meta device

SHAPES = {  # from the models' own config.json
    "openai/whisper-large-v3": {
        "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
        "decoder_layers": 32, "decoder_attention_heads": 20, "decoder_ffn_dim": 5120, "num_mel_bins": 128,
        "vocab_size": 51866,
    },
    "openai/whisper-large-v2": {
        "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
        "decoder_layers": 32, "decoder_attention_heads": 20, "decoder_ffn_dim": 5120, "num_mel_bins": 80,
        "vocab_size": 51865,
    },
    "whisper-base": {
        "d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048,
        "decoder_layers": 6, "decoder_attention_heads": 8, "decoder_ffn_dim": 2048,
    },
    "meta-llama/Llama-3.1-8B-Instruct": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    },
    "LinkSoul/Chinese-Llama-2-7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 32000, "max_position_embeddings": 2048,
    },
    "smollm2-135m-instruct": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
}  # fmt: skip
PARAMETERS = {
    "llama3_8b": (637e6, 906e6, 8.03e9),
    "chinese_llama2_7b": (637e6, 906e6, 6.74e9),
    "tiny": (20.6e6, 52e6, 134.5e6),
}


def started_from(name):
    """The recipe at the beginning of the chain of `init`s: it names the bases and the adapter."""
    found = load_recipe(name)
    by_output = {load_recipe(other).output: other for other in recipe_names("train")}
    if found.init == checkpoint.DEFAULT_MODEL:
        return load_recipe("tiny_ground")
    return started_from(by_output[found.init]) if found.init else found


@pytest.mark.parametrize("name", recipe_names("train"))
def test_shipped_recipes_are_built_and_fit_what_their_headers_say(name):
    found, first = load_recipe(name), started_from(name)
    config = LlasmConfig(
        audio_config=WhisperConfig(**SHAPES[first.audio_base]),
        text_config=LlamaConfig(**SHAPES[first.text_base]),
        adapter=dataclasses.asdict(first.adapter),
    )
    model = checkpoint.outline(config)
    parameters = size.parameters_of(found, model, found.lora if found.stage == "chat" else None)
    encoder, decoder, llm = next(sizes for start, sizes in PARAMETERS.items() if name.startswith(start))
    assert parameters["encoder"][0] == pytest.approx(encoder, rel=0.01)
    assert parameters["decoder"][0] == pytest.approx(decoder, rel=0.01)
    assert parameters["LLM"][0] == pytest.approx(llm, rel=0.01)
    assert ("LoRA" in parameters) == (found.stage == "chat")
    header = recipe_path("train", name).read_text()
    gigabytes = float(re.search(r"#   memory:\s+(\d+) GB", header)[1])
    n_processes = int(found_n[1]) if (found_n := re.search(r"--nproc_per_node (\d+)", header)) else 1
    longest = 40 if found.stage == "ground" else 512 if llm > 1e9 else 128  # of 10 s
    needed = sum(size.memory_of(found, config, parameters, longest, n_processes).values()) / 1e9
    assert 0.6 * gigabytes < needed <= gigabytes, needed
    assert found.template_text is None or "[INST]" in found.template_text
