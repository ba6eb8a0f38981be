"""Stage vary: noisy copies of each row, and samples in which nobody speaks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator

from llasm import audio, effects
from llasm.draws import draw, generator
from llasm.errors import LlasmError
from llasm.records import audio_files

from . import recipe
from .rows import Row

NOTHING_HEARD = {
    "en": (
        "I didn't hear anyone speak. Could you say that again?",
        "I couldn't hear any words. Could you try again, please?",
        "There was no speech in that recording. Please ask me again.",
        "I heard no words. Could you repeat your question?",
    ),
    "zh": ("我没有听到有人说话，请再说一遍好吗？", "录音里没有听到说话声，请您重试。"),
}
KINDS = ("silence", "noise", "music")


@dataclass(frozen=True)
class Vary:
    """Rows → the same rows, each followed by its variants, and no-speech rows at the end of the block."""

    vary: recipe.Vary
    max_seconds: float
    seed: int

    name = "vary"
    uses_model = False

    def settings(self) -> dict[str, Any]:
        folders = {
            kind: [sha256(file.read_bytes()).hexdigest() for file in _files(tuple(getattr(self.vary, kind)))]
            for kind in ("noise", "music")
        }
        return {"version": 3, "max_seconds": self.max_seconds, "seed": self.seed, **vars(self.vary), **folders}

    def __call__(self, rows: list[Row]) -> list[Row]:
        out = []
        for row in rows:
            out.append(row)
            out += [self._variant(row, number) for number in range(1, self.vary.variants + 1)]
        return out + [self._no_speech(row) for row in rows if self._draws_no_speech(row)]

    def _variant(self, row: Row, number: int) -> Row:
        name = f"{row['id']}~{number}"
        rng = generator(f"vary/{self.seed}/{name}")
        effects_of_row = self._draw_effects(rng, max(row["meta"]["seconds"], default=0.0))
        audios, seconds = [], []
        for clip in row["audios"]:
            wave = audio.decode(clip["bytes"])
            for apply in effects_of_row.values():
                wave = apply(wave)
            audios.append({"bytes": audio.to_flac_bytes(wave), "synthetic": clip["synthetic"]})
            seconds.append(round(len(wave) / audio.SAMPLE_RATE, 3))
        meta = {**row["meta"], "variation": ", ".join(effects_of_row) or "none", "seconds": seconds}
        return {**row, "id": name, "audios": audios, "meta": meta}

    def _draw_effects(self, rng: Generator, seconds: float) -> dict[str, Any]:
        """What is done to every clip of a row, in order: the speaker, the room, the noise, the line, the level.

        seconds: of the longest clip, which may not grow beyond the limit.
        """
        v = self.vary
        chosen: dict[str, Any] = {}
        if rng.random() < v.pitch_share:
            semitones, pace = rng.uniform(-3, 3), rng.uniform(0.9, 1.1)
            pace = max(pace, 1.001 * seconds / self.max_seconds)
            chosen[f"pitch {semitones:+.1f}, pace {pace:.2f}"] = lambda w: effects.shifted(w, semitones, pace)
        if rng.random() < v.room_share:
            chosen["room"] = lambda w: effects.room(w, rng)
        if rng.random() < v.noise_share:
            snr = rng.uniform(*v.snr_db)
            noise = _drawn(tuple(v.noise), rng)
            source = noise.name if noise else "generated"
            chosen[f"noise {source} {snr:.1f} dB"] = lambda w: effects.add_noise(
                w, _wave(noise) if noise else effects.generated_noise(len(w), rng), snr, rng
            )
        if rng.random() < v.telephone_share:
            chosen["telephone"] = effects.telephone
        db = rng.uniform(*v.gain_db)
        chosen[f"gain {db:+.1f} dB"] = lambda w: effects.gain(w, db)
        return chosen

    def _draws_no_speech(self, row: Row) -> bool:
        return draw(f"no-speech/{self.seed}/{row['id']}") < self.vary.no_speech_share

    def _no_speech(self, row: Row) -> Row:
        """A row without speech, in the language of the row that it stands beside."""
        name = f"no-speech-{row['id']}"
        rng = generator(f"no-speech/{self.seed}/{name}")
        kind = KINDS[int(rng.integers(len(KINDS)))]
        shortest = min(0.5, self.max_seconds)  # seconds; up to the longest clip there may be, most of them short
        n_samples = int(shortest * (self.max_seconds / shortest) ** rng.random() * audio.SAMPLE_RATE)
        if kind == "silence":  # of a microphone, and one in four of a file
            level = 10 ** rng.uniform(-4.5, -2.5) if rng.random() < 0.75 else 0.0
            wave = effects.generated_noise(n_samples, rng) * np.float32(level)
        else:
            file = _drawn(tuple(getattr(self.vary, kind)), rng)
            generate = effects.generated_noise if kind == "noise" else effects.generated_music
            wave = effects.stretch_of(_wave(file), n_samples, rng) if file else generate(n_samples, rng)
            wave = effects.gain(wave, rng.uniform(-20, 0))
        recorded = kind != "silence" and bool(getattr(self.vary, kind))
        answers = NOTHING_HEARD[row["meta"]["language"]]
        answer = answers[int(rng.integers(len(answers)))]
        meta = {
            "source": f"no speech: {kind}",
            "licence": self.vary.licence if recorded else "generated",
            "attribution": self.vary.attribution if recorded else "",
            "language": row["meta"]["language"],
            "truncated": False,
            "answered_by": "template",
            "origin": "",
            "seconds": [round(n_samples / audio.SAMPLE_RATE, 3)],
            "speeds": [1.0],
        }
        messages = [
            {"role": "user", "content": [{"type": "audio", "text": ""}]},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]
        clip = {"bytes": audio.to_flac_bytes(wave), "synthetic": False}
        return {"id": name, "messages": messages, "audios": [clip], "meta": meta}


@cache
def _files(folders: tuple[str, ...]) -> tuple[Path, ...]:
    """Audio files below the folders, in a fixed order; LlasmError where a folder holds none."""
    found: list[Path] = []
    for folder in folders:
        files = audio_files(Path(folder))
        if not files:
            raise LlasmError(f"recipe: vary: {folder}: no such folder, or no audio file in it")
        found += files
    return tuple(found)


def _drawn(folders: tuple[str, ...], rng: Generator) -> Path | None:
    files = _files(folders)
    return files[int(rng.integers(len(files)))] if files else None


@lru_cache(maxsize=64)
def _wave(file: Path) -> audio.Wave:
    return audio.decode(file)


def needed(settings: recipe.Vary) -> bool:
    return settings.variants > 0 or settings.no_speech_share > 0
