"""Stage speak: the user's turns aloud. Recordings are brought to the same 16 kHz mono and stay what they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from llasm import audio
from llasm.draws import draw, pick, seed_of
from llasm.errors import LlasmError
from llasm.tts import TTSEngine, UnspeakableText, Voice, identity_of, load_engine, load_voices
from llasm.tts.speakable import speakable

from .rows import Row, drop, user_texts


@dataclass(frozen=True)
class Speak:
    """Rows with texts → rows with a clip for each audio part, in FLAC under `audios[i]["bytes"]`."""

    voices: tuple[tuple[str, Voice], ...]  # (name of the engine's entry point, voice)
    speed: tuple[float, float]
    max_seconds: float
    seed: int

    name = "speak"
    uses_model = False

    def settings(self) -> dict[str, Any]:
        voices = [identity_of(engine, voice.id) for engine, voice in self.voices]
        return {"version": 3, "voices": voices, "speed": self.speed, "max_seconds": self.max_seconds, "seed": self.seed}

    def __call__(self, rows: list[Row]) -> list[Row]:
        return [self._speak(row) for row in rows]

    def _speak(self, row: Row) -> Row:
        meta: dict[str, Any] = {**row["meta"], "seconds": [], "speeds": [], "voice": "", "engine": ""}
        row = {**row, "meta": meta, "audios": list(row["audios"])}
        if any(given is None for given in row["audios"]):
            fitting = [v for v in self.voices if v[1].language.startswith(meta["language"])]
            if not fitting:
                return drop(row, self.name, "no voice", f"of language {meta['language']}")
            engine_name, voice = pick(f"voice/{self.seed}/{row['id']}", fitting)
            meta["engine"], meta["voice"] = engine_name, voice.id
        for i, (given, text) in enumerate(zip(row["audios"], user_texts(row), strict=True)):
            if given is None:
                try:
                    wave, speed = self._say(text, engine_name, voice.id, f"{row['id']}/{i}", meta["language"])
                except UnspeakableText as error:  # other troubles of an engine end the run, and no row is lost
                    return drop(row, self.name, "unspeakable", str(error))
            else:
                try:
                    wave, speed = audio.decode(given.get("bytes") or given["path"]), 1.0
                except LlasmError as error:
                    return drop(row, self.name, "unreadable audio", str(error))
            seconds = len(wave) / audio.SAMPLE_RATE
            if seconds > self.max_seconds:
                return drop(row, self.name, "audio too long", f"{seconds:.1f} s")
            content = audio.to_flac_bytes(wave)
            row["audios"][i] = {"bytes": content, "synthetic": given is None}
            meta["seconds"].append(round(seconds, 3))
            meta["speeds"].append(speed)
        return row

    def _say(self, text: str, engine_name: str, voice: str, key: str, language: str) -> tuple[audio.Wave, float]:
        engine = engine_of(engine_name)
        low, high = self.speed
        speed = round(low + (high - low) * draw(f"speed/{self.seed}/{key}"), 3)
        seed = seed_of(f"noise/{self.seed}/{key}") % 2**32
        wave = engine.synthesize(speakable(text, language), voice, speed, seed)
        return audio.decode((engine.sample_rate, wave)), speed


@cache
def engine_of(name: str) -> TTSEngine:
    return load_engine(name)


def resolve_voices(specs: list[str]) -> tuple[tuple[str, Voice], ...]:
    """Every voice that the recipe names, checked before any work; LlasmError names what is missing."""
    found: list[tuple[str, Voice]] = []
    for spec in specs:
        name = spec.partition(":")[0]  # of the entry point, by which a worker finds it
        _, voices = load_voices(spec)
        found += [(name, voice) for voice in voices if (name, voice) not in found]
    if not found:
        raise LlasmError('recipe: speak.voices is empty; name at least one, such as "hibari"')
    return tuple(found)
