"""Stage verify: Whisper reads the speech back; what it cannot understand is not kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from llasm import asr, audio
from llasm.generator import identity_of
from llasm.tts.speakable import speakable

from .rows import Row, drop, user_texts


@lru_cache(maxsize=1)
def recogniser(name: str) -> asr.Recogniser:
    """One for each process."""
    return asr.Recogniser(name)


@dataclass(frozen=True)
class Verify:
    """Adds what was heard and the errors of each clip; drops rows with a clip above the limit (`_allowed`)."""

    asr: str
    max_wer: float
    max_cer: float
    allow_errors: int
    recordings: bool

    name = "verify"
    uses_model = True

    def settings(self) -> dict[str, Any]:
        identity = identity_of(self.asr, None)
        limits = {"max_wer": self.max_wer, "max_cer": self.max_cer, "allow_errors": self.allow_errors}
        return {"version": 2, "asr": identity, "recordings": self.recordings, **limits}

    def __call__(self, rows: list[Row]) -> list[Row]:
        clips = [
            (r, i)
            for r, row in enumerate(rows)
            for i, (clip, text) in enumerate(zip(row["audios"], user_texts(row), strict=True))
            if text and (clip["synthetic"] or self.recordings)
        ]
        heard: dict[tuple[int, int], str] = {}
        for language in sorted({rows[r]["meta"]["language"] for r, _ in clips}):
            chosen = [(r, i) for r, i in clips if rows[r]["meta"]["language"] == language]
            waves = [audio.decode(rows[r]["audios"][i]["bytes"]) for r, i in chosen]
            heard |= zip(chosen, recogniser(self.asr).transcribe(waves, language), strict=True)
        return [self._judged(row, [heard.get((r, i)) for i in range(len(row["audios"]))]) for r, row in enumerate(rows)]

    def _judged(self, row: Row, heard: list[str | None]) -> Row:
        """heard: a text for each clip that was checked, else None."""
        language = row["meta"]["language"]
        counts = [
            (0, 0) if found is None else fewest_errors(said, found, language)
            for said, found in zip(user_texts(row), heard, strict=True)
        ]
        meta = {**row["meta"], "heard": [h or "" for h in heard], "errors": [n for n, _ in counts]}
        meta["words"] = [n for _, n in counts]
        row = {**row, "meta": meta}
        limit = self.max_cer if language == "zh" else self.max_wer
        for said, found, (n_errors, n_words) in zip(user_texts(row), heard, counts, strict=True):
            if n_errors > self._allowed(n_words, limit):
                detail = f"said: {said} | heard: {found}"
                return drop(row, self.name, "CER" if language == "zh" else "WER", detail)
        return row

    def _allowed(self, n_words: int, limit: float) -> float:
        """A short clip may have an error whatever its rate: "And ten apples?" comes back as "In 10 apples."."""
        return max(limit * n_words, self.allow_errors if n_words > 2 else 0)


def fewest_errors(said: str, heard: str, language: str) -> tuple[int, int]:
    """(errors, words) against the text as written or as read aloud: "$5" may come back either way."""
    return min(asr.count_errors(text, heard, language) for text in (said, speakable(said, language)))
