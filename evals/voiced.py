"""Speech for questions that come as text: a named voice speaks them once, into a cache by content hash."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from tqdm import tqdm

from llasm import audio, weights
from llasm.draws import seed_of
from llasm.errors import LlasmError
from llasm.files import write_whole
from llasm.tts import TTSEngine, UnspeakableText, find_voice, identity_of, load_voice
from llasm.tts.speakable import speakable

from .items import Item, digest


@lru_cache(maxsize=2)
def _voice(spec: str) -> tuple[TTSEngine, str]:
    return load_voice(spec)


def voice_identity(spec: str) -> str:
    """What the voice's speech depends on beside the text. Raises LlasmError where there is no such voice."""
    _, voice = _voice(spec)
    return identity_of(spec.partition(":")[0], voice)


def voiced(items: list[Item], spec: str) -> list[Item]:
    """The items with a clip for each question that had none; a text that cannot be spoken becomes a fault."""
    silent = sum(_needs_voice(item) for item in items)
    if not silent:
        return items
    identity = voice_identity(spec)
    with tqdm(total=silent, desc=f"speak {items[0].task}", unit="question") as bar:
        done = []
        for item in items:
            done.append(_spoken(item, spec, identity) if _needs_voice(item) else item)
            bar.update(_needs_voice(item))
    return done


def is_voiced(item: Item) -> bool:
    """Its clips are a voice's."""
    return any(isinstance(clip, str) and Path(clip).parent == _folder() for clip in item.audio)


def _folder() -> Path:
    return weights.home() / "voiced"


def _needs_voice(item: Item) -> bool:
    return not item.audio and not item.fault and item.kind != "typed"


def _spoken(item: Item, spec: str, identity: str) -> Item:
    engine, voice = _voice(spec)
    language = find_voice(engine, voice).language
    if not language.startswith(item.language):
        return replace(item, fault=f"voice {spec} speaks {language}, the question is {item.language}; choose --voice")
    try:
        said = [*(asked for asked, _ in item.before), item.question]
        return replace(item, audio=tuple(_clip_of(text, item.language, spec, identity) for text in said))
    except UnspeakableText as error:
        return replace(item, fault=str(error))


def _clip_of(text: str, language: str, spec: str, identity: str) -> str:
    """The file with the text aloud."""
    engine, voice = _voice(spec)
    path = _folder() / f"{digest([identity, language, text, 1])}.flac"
    if not path.exists():
        # Drawn from the text, so that two data sets with the same question share its speech.
        wave = engine.synthesize(speakable(text, language), voice, 1.0, seed_of(f"voiced/{text}") % 2**32)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, audio.to_flac_bytes(audio.decode((engine.sample_rate, wave))))
        except OSError as error:
            raise LlasmError(f"{path}: cannot write speech ({error}); LLASM_HOME moves the cache") from error
    return str(path)
