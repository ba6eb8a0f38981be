"""An item: one question with its answers, where it came from, and its name in caches."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from llasm.errors import LlasmError

# How an item is scored (`scoring.verdict`): an answer that must be contained; one of the choices; free text, for a
# judge; the words that were said; no answer at all, for there was no question; the same answer as before training.
Kind = Literal["qa", "choice", "open", "transcription", "no_speech", "typed"]


HAN = "㐀-䶿一-鿿"  # ranges of Chinese characters, for regular expressions


@dataclass(frozen=True)
class Item:
    id: str
    task: str
    kind: Kind = "qa"
    question: str = ""
    """What is said; typed in the condition `text`. "" where nobody wrote it down."""
    answers: tuple[str, ...] = ()
    """Each of them is right; of a choice the label."""
    before: tuple[tuple[str, str], ...] = ()
    """Earlier turns, (what the user said, what the assistant answered) each; the question follows them."""
    audio: tuple[Any, ...] = ()
    """Clips as `audio.decode` takes them, in order, behind earlier turns one a turn; none: a voice speaks."""
    clip_hashes: tuple[str, ...] = ()
    """Of the clips, in order, once they are read (`hashed`)."""
    choices: dict[str, str] = field(default_factory=dict)
    """Label → text of each option."""
    typed: str = ""
    """What is typed after the question, in every condition."""
    group: str = ""
    """Part of the set (file, dialect, category) that is also counted by itself."""
    language: str = "en"
    fault: str = ""
    """Why it cannot be evaluated; it is then reported, and not scored."""

    def content(self) -> list[Any]:
        """All that it says, wherever its files lie."""
        row = self.row()
        return [row | {"audio": self.clip_hashes, "fault": bool(self.fault)}]

    def row(self) -> dict[str, Any]:
        """As JSON holds it, each clip by its hash (and its path, if it is a file)."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "clip_hashes"}
        clips = [
            {"sha256": sha, **({"path": str(clip)} if _is_path(clip) else {})}
            for clip, sha in zip(self.audio, self.clip_hashes, strict=True)
        ]
        return {**fields, "answers": list(self.answers), "audio": clips}


def from_row(row: dict[str, Any]) -> Item:
    """Of an items file; a clip that was no file is None: its sound is only in the data set."""
    clips = row["audio"]
    audio, hashes = tuple(clip.get("path") for clip in clips), tuple(clip["sha256"] for clip in clips)
    before = tuple((asked, answer) for asked, answer in row.get("before", ()))
    return Item(**{**row, "answers": tuple(row["answers"]), "before": before, "audio": audio, "clip_hashes": hashes})


def hashed(item: Item) -> Item:
    return replace(item, clip_hashes=tuple(map(_clip_hash, item.audio)))


def _is_path(clip: Any) -> bool:
    return isinstance(clip, (str, Path)) and not str(clip).startswith("data:")


def _clip_hash(clip: Any) -> str:
    """sha256 of a clip's bytes; "" where there are none to read, so that a file mended later has another hash."""
    if _is_path(clip):
        try:
            return sha256(Path(clip).read_bytes()).hexdigest()
        except OSError:
            return ""
    if isinstance(clip, dict):
        clip = clip.get("bytes") or str(clip)
    return sha256(clip if isinstance(clip, bytes) else str(clip).encode()).hexdigest()


def digest(value: Any) -> str:
    """A name for anything that JSON holds."""
    return sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def checked(items: list[Item]) -> list[Item]:
    """Raises LlasmError where an id is there twice; marks items that have no answer to compare with."""
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise LlasmError(f"task {item.task}: id {item.id!r} is there twice; ids must be unique")
        seen.add(item.id)
    return [_with_fault(item) for item in items]


def _with_fault(item: Item) -> Item:
    if item.fault:
        return item
    fault = ""
    if item.kind in ("qa", "choice", "transcription") and not any(answer.strip() for answer in item.answers):
        fault = "no answer to compare with"
    elif item.kind in ("qa", "transcription") and not any(_readable(answer, item) for answer in item.answers):
        fault = f"the answer {item.answers[0]!r} has no word to compare with"
    elif item.kind == "choice" and not all(answer in item.choices for answer in item.answers):
        fault = f"the answer {item.answers[0]!r} is none of the choices {', '.join(item.choices)}"
    elif not item.audio and not item.question.strip():
        fault = "neither audio nor a question"
    elif item.before and item.audio and len(item.audio) != len(item.before) + 1:
        fault = f"{len(item.audio)} clips for {len(item.before) + 1} turns"
    return replace(item, fault=fault)


def _readable(answer: str, item: Item) -> bool:
    from llasm import asr

    from .scoring import readable  # which needs this module

    return bool(asr.units(answer, item.language).strip()) if item.kind == "transcription" else readable(answer)
