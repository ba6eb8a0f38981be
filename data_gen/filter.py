"""What should not be spoken, or not be learnt: LLaSM's rules (arXiv 2308.15930, section 3.2) and near-duplicates.

`prompt_fault` and `answer_fault` name what is wrong with one text; `filter_rows` applies them to rows and drops
near-duplicates by MinHash (Broder 1997; package datasketch), whose candidates are checked exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

from tqdm import tqdm

from llasm.tts.speakable import speakable

from .recipe import Filter
from .rows import MAX_WORDS, Row, all_texts, answers, drop, language_of, n_words, user_texts

_CODE = re.compile(
    r"```|<[a-z/!][^>]{0,80}>|\bdef \w+\(|\b(?:class|function) \w*\s?[({:]|^\s*(?:import|from) [\w.]+(?: import .*)?$"
    r"|\b(?:const|var|let|public|static) \w+ ?=|\b(?:int|float|void) \w+ ?[=(]|\breturn [^.?!]*;"
    r"|\w\([^)\s]*\)\s?[;{]|=>|[;{}]\s*$"
    r"|\{\s*\"|\bSELECT\b.+\bFROM\b|\bINSERT INTO\b|\bUPDATE \w+ SET\b|^\s*(?:>>>|\$ )",
    re.MULTILINE,
)
_URL = re.compile(r"https?://|www\.|\b[\w-]+\.(?:com|org|net|io|html)\b|\w@\w+\.\w", re.IGNORECASE)
_TABLE = re.compile(r"\|.*\|.*\||\t.*\t|^\s*[-+|=]{4,}\s*$|^\s*\+-", re.MULTILINE)
_SYMBOL = re.compile(r"[^\w\s.,;:!?'\"()\-–—%$£€°&/’‘“”，。！？、：；（）《》…]")
_LATEX = re.compile(r"\$[^$]*\\|\\[a-z]+\{|\\frac|\^\{")
_NO_INFORMATION = re.compile(
    r"^(?:i(?:'m| am) (?:sorry|afraid|unable to|not able to)|sorry,? (?:but )?i"
    r"|i (?:don't|do not) (?:know|have|understand)"
    r"|i (?:cannot|can't) (?:answer|help (?:you )?with|provide|assist)"
    r"|as an? (?:ai|artificial intelligence|language model)\b|n/?a\.?$|none\.?$|unknown\.?$"
    r"|no answer|我不知道|抱歉|对不起|作为一个)",
    re.IGNORECASE,
)
MAX_SYMBOL_SHARE = 0.05  # of the characters
# Short texts have too few letters to tell one language from another.
MIN_CHARS_FOR_LANGUAGE, MIN_PROBABILITY = 40, 0.95
N_PERMUTATIONS, SHINGLE_CHARS = 64, 5
_PADDING = "\0" * (SHINGLE_CHARS - 1)


def unreadable(text: str) -> str | None:
    """Why nobody could read `text` aloud, or None."""
    if _URL.search(text):
        return "url"
    if _TABLE.search(text):
        return "table"
    if _LATEX.search(text):
        return "formula"
    if _CODE.search(text):
        return "code"
    symbols = sum(not _said(symbol) for symbol in _SYMBOL.findall(text))
    if symbols > 1 and symbols > MAX_SYMBOL_SHARE * len(text):
        return "symbols"
    return None


@cache
def _said(symbol: str) -> str:
    """Its words where it has any: "12 + 5 = ?" is read aloud."""
    return speakable(symbol)


def prompt_fault(text: str, language: str, rules: Filter) -> str | None:
    """Why this user turn should not be spoken, or None."""
    n_words = len(text) if language == "zh" else len(text.split())
    if len(text) > rules.max_chars:
        return "too long"
    if n_words < rules.min_words:
        return "too short"
    if fault := unreadable(text):
        return fault
    if not speakable(text, language):
        return "unspeakable"
    return language_fault(text, rules)


def language_fault(text: str, rules: Filter) -> str | None:
    """ "language" where the text is clearly in none of the wanted languages."""
    if language_of([text]) not in rules.languages:
        return "language"
    if len(text) < MIN_CHARS_FOR_LANGUAGE:
        return None
    language, probability = _identifier().classify(text)
    return "language" if probability >= MIN_PROBABILITY and language not in rules.languages else None


@lru_cache(maxsize=1)
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def answer_fault(text: str, rules: Filter) -> str | None:
    """Why this answer should not be learnt, or None."""
    if not text.strip():
        return "empty answer"
    if len(text) > rules.max_answer_chars:
        return "answer too long"
    if _NO_INFORMATION.match(text.strip()):
        return "answer without information"
    if _CODE.search(text) or _TABLE.search(text) or _LATEX.search(text):
        return "answer unreadable"
    return None


def row_fault(row: Row, rules: Filter) -> tuple[str, str] | None:
    """(reason, detail) of the first rule that a row breaks; recordings are what they are."""
    audios = iter(row["audios"])
    for message in row["messages"]:
        for part in message["content"]:
            spoken = part["type"] == "audio" and next(audios) is None
            if spoken and (fault := prompt_fault(part["text"], row["meta"]["language"], rules)):
                return fault, part["text"]
    for answer in answers(row):
        if fault := answer_fault(answer, rules):
            return fault, answer
    if (n := n_words(all_texts(row))) > MAX_WORDS:
        return "conversation too long", f"{n} words; more than {MAX_WORDS} do not fit a small model"
    return None


def filter_rows(rows: Iterable[Row], rules: Filter) -> list[Row]:
    """The rows, those that break a rule or repeat an earlier row marked as dropped."""
    seen = _Seen(rules.near_duplicates)
    checked = []
    for row in tqdm(rows, desc="filter", unit="row"):
        if fault := row_fault(row, rules):
            row = drop(row, "filter", *fault)
        elif earlier := seen.add(row["id"], *_fingerprint(row)):
            row = drop(row, "filter", "duplicate", f"of {earlier}")
        checked.append(row)
    return checked


def _fingerprint(row: Row) -> tuple[str, str]:
    """(which recordings, the user's words beside them): what must not repeat."""
    recorded = [audio["sha256"] for audio in row["audios"] if audio is not None]
    spoken = [text for text, audio in zip(user_texts(row), row["audios"], strict=True) if audio is None]
    typed = [p["text"] for m in row["messages"] if m["role"] == "user" for p in m["content"] if p["type"] == "text"]
    words = " ".join(spoken + typed).lower()
    return " ".join(recorded), re.sub(r"[^\w]+", " ", words).strip()


class _Seen:
    """Finds, for each text, an earlier one about the same recordings that shares `threshold` of its shingles."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHashLSH

        self._threshold = threshold
        self._exact: dict[tuple[str, str], str] = {}
        self._shingles: dict[str, frozenset[str]] = {}
        self._index = MinHashLSH(threshold=threshold, num_perm=N_PERMUTATIONS) if threshold < 1 else None

    def add(self, name: str, recordings: str, text: str) -> str | None:
        """The earlier text's name where this one repeats it; else None, and this one is remembered."""
        if (recordings, text) in self._exact:
            return self._exact[recordings, text]
        if self._index is not None:
            from datasketch import MinHash

            # Padded, so that the first and last letters are in as many shingles as the others: they may be a number.
            padded = f"{_PADDING}{text}{_PADDING}"
            starts = range(len(padded) - SHINGLE_CHARS + 1)
            # The recordings' hashes in each: those of other recordings have nothing in common.
            shingles = frozenset(recordings + padded[i : i + SHINGLE_CHARS] for i in starts)
            sketch = MinHash(num_perm=N_PERMUTATIONS)
            sketch.update_batch([shingle.encode() for shingle in sorted(shingles)])
            for other in sorted(self._index.query(sketch)):
                common = len(shingles & self._shingles[other])
                if common >= self._threshold * (len(shingles) + len(self._shingles[other]) - common):
                    return other
            self._index.insert(name, sketch)
            self._shingles[name] = shingles
        self._exact[recordings, text] = name
        return None
