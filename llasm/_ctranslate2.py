"""Read Whisper weights stored in CTranslate2's `model.bin` format, without CTranslate2."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llasm.errors import LlasmError

if TYPE_CHECKING:
    import numpy as np
    import torch

BINARY_VERSION = 6
# CTranslate2's numbers for the types of a variable.
DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}


class _Cursor:
    """Reads little-endian fields one after the other."""

    def __init__(self, data: bytes, path: Path):
        self.data, self.path, self.at = data, path, 0

    def take(self, n_bytes: int) -> memoryview:
        if self.at + n_bytes > len(self.data):
            raise LlasmError(f"{self.path} ends early: it is not a whole CTranslate2 model.bin")
        self.at += n_bytes
        return memoryview(self.data)[self.at - n_bytes : self.at]

    def number(self, code: str) -> int:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        # The length counts the closing NUL.
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode("utf-8", errors="replace")


def read_variables(path: Path) -> dict[str, np.ndarray]:
    """All variables of a CTranslate2 Whisper model, by name.

    Layout: u32 version, string spec, u32 revision, u32 count, then for each variable: string name,
    u8 rank, u32 dims, u8 dtype, u32 bytes, data. A string is u16 length and that many bytes.

    Raises:
        LlasmError: the file is cut short, of another version, or of another model family.
    """
    import numpy as np

    cursor = _Cursor(path.read_bytes(), path)
    version, spec = cursor.number("I"), cursor.string()
    if version != BINARY_VERSION or spec != "WhisperSpec":
        raise LlasmError(
            f"{path} is CTranslate2 version {version}, model {spec!r}: expected version {BINARY_VERSION}, 'WhisperSpec'"
        )
    cursor.number("I")  # the spec's revision adds no variable that is read here
    variables = {}
    for _ in range(cursor.number("I")):
        name = cursor.string()
        shape = [cursor.number("I") for _ in range(cursor.number("B"))]
        dtype = DTYPES.get(cursor.number("B"))
        data = cursor.take(cursor.number("I"))
        if dtype is None:
            raise LlasmError(f"{path}: variable {name!r} has a type other than float32, float16 and int")
        variables[name] = np.frombuffer(data, dtype=dtype).reshape(shape)
    return variables


def read_whisper(path: Path) -> tuple[dict[str, int], dict[str, torch.Tensor]]:
    """A CTranslate2 Whisper model in openai-whisper's layout: (dims, state_dict)."""
    variables = read_variables(path)
    try:
        return _dims(variables), _state_dict(variables)
    except KeyError as error:
        raise LlasmError(f"{path} lacks the variable {error}: it is not a whole Whisper model") from error


def _n_layers(variables: dict[str, Any], side: str) -> int:
    return len({name.split("/")[1] for name in variables if name.startswith(f"{side}/layer_") and "attention" in name})


def _dims(variables: dict[str, np.ndarray]) -> dict[str, int]:
    n_audio_ctx, n_audio_state = variables["encoder/position_encodings/encodings"].shape
    n_text_ctx, n_text_state = variables["decoder/position_encodings/encodings"].shape
    return {
        "n_mels": variables["encoder/conv1/weight"].shape[1],
        "n_audio_ctx": n_audio_ctx,
        "n_audio_state": n_audio_state,
        "n_audio_head": int(variables["encoder/num_heads"]),
        "n_audio_layer": _n_layers(variables, "encoder"),
        "n_vocab": variables["decoder/embeddings/weight"].shape[0],
        "n_text_ctx": n_text_ctx,
        "n_text_state": n_text_state,
        "n_text_head": int(variables["decoder/num_heads"]),
        "n_text_layer": _n_layers(variables, "decoder"),
    }


def _state_dict(variables: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    import torch

    state: dict[str, torch.Tensor] = {}

    def put(name: str, array: np.ndarray) -> None:
        state[name] = torch.from_numpy(array.copy())  # a copy of its own: safetensors refuses shared memory

    def norm(name: str, source: str) -> None:
        put(f"{name}.weight", variables[f"{source}/gamma"])
        put(f"{name}.bias", variables[f"{source}/beta"])

    def linear(names: list[str], source: str) -> None:
        """One stored matrix, cut into the equal parts that were concatenated to make it."""
        for part in ("weight", "bias"):
            array = variables[f"{source}/{part}"]
            size = len(array) // len(names)
            for i, name in enumerate(names):
                piece = array[i * size : (i + 1) * size]
                if part == "bias" and name.endswith(".key"):
                    # Whisper's keys have no bias; CTranslate2 fills zeros to keep q, k and v in one matrix.
                    if piece.any():
                        raise LlasmError(f"{source}/bias: the keys' share is not zero, so this is not Whisper")
                    continue
                put(f"{name}.{part}", piece)

    for conv in ("encoder.conv1", "encoder.conv2"):
        linear([conv], conv.replace(".", "/"))
    put("encoder.positional_embedding", variables["encoder/position_encodings/encodings"])
    put("decoder.positional_embedding", variables["decoder/position_encodings/encodings"])
    put("decoder.token_embedding.weight", variables["decoder/embeddings/weight"])
    norm("encoder.ln_post", "encoder/layer_norm")
    norm("decoder.ln", "decoder/layer_norm")
    for side in ("encoder", "decoder"):
        for i in range(_n_layers(variables, side)):
            block, layer = f"{side}.blocks.{i}", f"{side}/layer_{i}"
            norm(f"{block}.attn_ln", f"{layer}/self_attention/layer_norm")
            linear([f"{block}.attn.{x}" for x in ("query", "key", "value")], f"{layer}/self_attention/linear_0")
            linear([f"{block}.attn.out"], f"{layer}/self_attention/linear_1")
            if side == "decoder":
                norm(f"{block}.cross_attn_ln", f"{layer}/attention/layer_norm")
                linear([f"{block}.cross_attn.query"], f"{layer}/attention/linear_0")
                linear([f"{block}.cross_attn.key", f"{block}.cross_attn.value"], f"{layer}/attention/linear_1")
                linear([f"{block}.cross_attn.out"], f"{layer}/attention/linear_2")
            norm(f"{block}.mlp_ln", f"{layer}/ffn/layer_norm")
            linear([f"{block}.mlp.0"], f"{layer}/ffn/linear_0")
            linear([f"{block}.mlp.2"], f"{layer}/ffn/linear_1")
    return state
