"""save → load → merge → transformers' Auto classes: the same logits; and what a checkpoint is refused for."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from transformers import AutoModelForMultimodalLM, AutoProcessor

from llasm import checkpoint
from llasm.errors import LlasmError


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(checkpoint.locate("llasm-tiny"), tmp_path / "copy")


def inputs_for(processor):
    wave = torch.sin(torch.arange(32000) * 0.05).numpy()
    messages = [{"role": "user", "content": [{"type": "audio", "audio": wave}, {"type": "text", "text": "Hi"}]}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return processor(text=text, audio=[wave])


@torch.inference_mode()
def logits_of(model, inputs):
    tokens = model.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
    ids, mask = model._expand(inputs["input_ids"], inputs["attention_mask"], tokens.counts)
    features = {k: v for k, v in inputs.items() if k.startswith("input_features")}
    return model(input_ids=ids, attention_mask=mask, **features).logits


@pytest.mark.parametrize("lora", [False, True])
def test_save_load_merge_give_the_same_logits(tmp_path, lora):
    model, processor, trained = checkpoint.load_to_train("llasm-tiny")
    trained = trained.eval() if lora else trained.unload().eval()
    inputs = inputs_for(processor)
    expected = logits_of(model if lora else trained, inputs)
    checkpoint.save(trained, processor, tmp_path / "saved")
    loaded, _ = checkpoint.load(tmp_path / "saved")
    torch.testing.assert_close(logits_of(loaded, inputs), expected, atol=1e-3, rtol=1e-4)
    checkpoint.merge(tmp_path / "saved", tmp_path / "merged")
    merged = AutoModelForMultimodalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    merged_inputs = inputs_for(AutoProcessor.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(logits_of(merged, merged_inputs), expected, atol=1e-3, rtol=1e-4)
    # transformers' own generate hears at rate `heard` as well
    assert merged.generate(**merged_inputs, max_new_tokens=2, do_sample=False).shape[0] == 1


def test_libraries_that_are_not_asked_for_say_nothing():
    code = "import llasm.checkpoint, peft, bitsandbytes, deepspeed"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "kernels" not in ran.stdout + ran.stderr and "accelerator" not in ran.stdout + ran.stderr


def test_pickles_are_refused(copy):
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(LlasmError, match=r"pytorch_model\.bin: a pickle"):
        checkpoint.load(copy)


def test_damaged_weights_are_named(copy):
    (copy / checkpoint.WEIGHTS).write_bytes(b"nonsense")
    with pytest.raises(LlasmError, match=rf"{checkpoint.WEIGHTS}: is damaged"):
        checkpoint.load(copy)


def test_weights_of_another_adapter_are_named(copy):
    config = json.loads((copy / "config.json").read_text())
    config["adapter"]["width"] = 64
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(LlasmError, match="does not hold this adapter's weights"):
        checkpoint.load(copy)


@pytest.mark.parametrize("content", ["not json", '{"model_type": "bert"}'])
def test_another_config_is_refused(copy, content):
    (copy / "config.json").write_text(content)
    with pytest.raises(LlasmError, match=r"config\.json"):
        checkpoint.load(copy)


def test_unknown_model(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for name in ("nosuch", "whisper-base", "/no/such", str(tmp_path / "file")):
        with pytest.raises(LlasmError, match=rf"^unknown model '{name}': give llasm-tiny, a checkpoint's directory or"):
            checkpoint.load(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LlasmError, match=r"^unknown model 'runs/mine': no such directory here, and hub model 'runs"):
        checkpoint.load("runs/mine")


def without(folder, part):
    """Takes the tensors whose name holds `part` out of the folder's weights."""
    [file] = folder.glob("*.safetensors")
    kept = {name: tensor for name, tensor in load_file(file).items() if part not in name}
    file.write_bytes(serialised(kept, metadata={"format": "pt"}))


def test_to_weights_older_than_the_detector_everything_is_speech(copy):
    without(copy, ".detector.")
    projector = checkpoint.load(copy)[0].model.multi_modal_projector
    scores = projector.speech_scores(torch.randn(1, 50, projector.norm.weight.shape[0]), torch.tensor([50]))
    assert scores.tolist() == [1.0]


def test_a_merged_model_that_lacks_weights_is_refused(copy, tmp_path):
    checkpoint.merge(copy, tmp_path / "merged")
    without(tmp_path / "merged", ".detector.")
    with pytest.raises(LlasmError, match=r"merged: lacks .*detector.*; export it anew from its checkpoint"):
        checkpoint.load(tmp_path / "merged")
