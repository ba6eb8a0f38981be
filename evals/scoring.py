"""Is an answer right? Texts are written in one way first; nothing that cannot be read is guessed at.

`verdict` scores one answer; the other functions are its parts, each usable alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Any

from llasm import asr

from .items import HAN, Item

MONTHS = "january february march april may june july august september october november december".split()  # noqa: SIM905
_MONTH = "|".join(f"{name}|{name[:3]}" for name in MONTHS) + "|sept"
_DAY = r"(?:the )?(\d{1,2})(?:st|nd|rd|th)?"
_HAN = re.compile(f"[{HAN}]")
_NUMBER_WORDS = {"none": "0", "once": "1 time", "twice": "2 times"}

# What a refusal begins with, after `_plain`.
_REFUSALS = re.compile(
    r"^(?:(?:well|so|oh|hmm|unfortunately|i am sorry|sorry|apologies|i apologi[sz]e)\W+(?:but |for \w+ \w+ )?)*"
    r"(?:as an? (?:ai|artificial|language|large)|i (?:do not|really do not|don t) (?:know|have|understand)"
    r"|i (?:cannot|can not|could not|am not able|am unable|am not sure|am not certain|am not familiar)"
    r"|i have no (?:idea|information|answer|knowledge)|no idea|it is (?:unclear|unknown)"
    r"|there is not enough|not enough information|i would need more)"
)
_REFUSALS_ZH = re.compile(
    r"^(?:对不起|抱歉|很抱歉|不好意思)?\W*(?:但)?"
    r"(?:作为.{0,8}(?:模型|助手|AI)|我?(?:不知道|不清楚|无法|不能|不确定|没有办法|没法))"
)
_NOTHING_HEARD = re.compile(
    r"(?:did|do|can|could|was|have|am) ?(?:not|unable to|not able to) (?:\w+ ){0,3}?"
    r"(?:hear|heard|catch|make out|detect)"
    r"|unable to hear|heard (?:no|nothing)|hear (?:no |nothing)|nothing (?:was|is|has been) (?:said|heard|spoken)"
    r"|no (?:\w+ )?(?:speech|words|voice|audio|sound)\b.{0,40}(?:in|was|is|were|recording|heard|detected|$)"
    r"|(?:audio|recording|clip|file|message) (?:\w+ ){0,4}(?:silent|empty|blank)|(?:there is|was|is) (?:only )?silence"
    r"|(?:say|ask|repeat) (?:\w+ ){0,3}again|repeat (?:your|the) (?:question|message|request)"
)  # fmt: skip
_NOTHING_HEARD_ZH = re.compile(r"没有?听到|没听清|听不到|听不清|没有(?:人)?说话|没有声音|没有语音|再说一遍")


def tokens(text: str) -> list[str]:
    """The words of a text (of Chinese: its characters), written in one way.

    Whisper's normaliser (case, punctuation, accents, spelling, number words, contractions), without articles; dates
    as month, day, year; Chinese in simplified characters with its numbers as digits.
    """
    text = unicodedata.normalize("NFKC", text)
    if _HAN.search(text):
        return _chinese(text)
    # Whisper drops what stands in brackets, as a comment on speech.
    text = re.sub(r"[()\[\]{}<>*_#`\"“”]", " ", text)
    text = re.sub(r"\b(?:[^\W\d_]\. ?){2,}", lambda found: re.sub(r"\W", "", found[0]) + " ", text)  # D.C., J. R. R.
    text = re.sub(r"\b(\d{4})-(\d{1,2})-(\d{1,2})\b", _iso_date, text)
    words = asr.units(text, "en").split()
    plain = " ".join(_NUMBER_WORDS.get(word, word) for word in words)
    plain = re.sub(rf"\b{_DAY} (?:of )?({_MONTH})\b(?: of)?", lambda m: f"{m[2]} {m[1]}", plain)
    plain = re.sub(rf"\b({_MONTH}) {_DAY}\b", lambda m: f"{_month(m[1])} {int(m[2])}", plain)
    kept = [word for word in plain.split() if word not in ("a", "an", "the")]
    return kept or plain.split()  # the answer may be nothing but "A"


def _month(name: str) -> str:
    return next(month for month in MONTHS if month.startswith(name[:3]))


def _iso_date(found: re.Match[str]) -> str:
    month = int(found[2])
    return f"{MONTHS[month - 1]} {int(found[3])} {found[1]}" if 1 <= month <= 12 else found[0]


def _chinese(text: str) -> list[str]:
    import cn2an

    text = asr.simplified(text).casefold()
    # Numbers of several characters and those before a unit; 一 is also a part of words.
    text = re.sub(r"[零〇一二两三四五六七八九十百千万亿]+", lambda found: _digits(found[0], cn2an), text)
    return re.findall(rf"[{HAN}]|[^\W{HAN}]+", text)


def _digits(numeral: str, cn2an: Any) -> str:
    try:
        return str(cn2an.cn2an(numeral, "smart"))
    except ValueError:
        return numeral


@lru_cache(maxsize=65536)
def _alias_tokens(alias: str) -> tuple[tuple[str, ...], ...]:
    """An alias as it is, and without what it adds in brackets: "Mercury (planet)"."""
    shorter = re.sub(r"\s*[(（][^()（）]*[)）]\s*", " ", alias).strip()
    forms = [tuple(tokens(form)) for form in dict.fromkeys((alias, shorter)) if form]
    return tuple(form for form in forms if form)


def exact(answer: str, aliases: tuple[str, ...]) -> bool:
    """The answer is an alias and nothing else."""
    words = tuple(tokens(answer))
    return any(words == form for alias in aliases for form in _alias_tokens(alias))


def contains(answer: str, aliases: tuple[str, ...]) -> bool:
    """The answer holds an alias, word for word, that it does not deny ("not Paris")."""
    words = tokens(answer)
    for alias in aliases:
        for form in _alias_tokens(alias):
            for start in range(len(words) - len(form) + 1):
                if tuple(words[start : start + len(form)]) == form and words[max(0, start - 1)] not in ("not", "nor"):
                    return True
    return False


def f1(answer: str, aliases: tuple[str, ...]) -> float:
    """Overlap of tokens with the nearest alias (Rajpurkar et al., arXiv 1606.05250, section 6.1)."""
    words = Counter(tokens(answer))
    best = 0.0
    for alias in aliases:
        for form in _alias_tokens(alias):
            common = sum((words & Counter(form)).values())
            if common:
                precision, recall = common / sum(words.values()), common / len(form)
                best = max(best, 2 * precision * recall / (precision + recall))
    return best


def choice(answer: str, choices: dict[str, str]) -> str | None:
    """The label that the answer names, or None where it names none or several."""
    letters = "".join(label for label in choices if len(label) == 1)
    if letters:
        found = set(re.findall(rf"^\W*([{letters}])\W*$", answer.strip().upper()))
        if not found:  # a bare "A" in a sentence is an article: only with a mark or a word that points at it
            found = set(re.findall(rf"^\W*([{letters}])[.):,]|[(\[*]([{letters}])[)\].*]", answer))
            found |= set(
                re.findall(rf"\b(?:answer|option|choice)(?: is| would be|:)*:?\s*[(\"'*]*([{letters}])\b", answer, re.I)
            )
            found = {label.upper() for pair in found for label in ([pair] if isinstance(pair, str) else pair) if label}
        if found:
            return found.pop() if len(found) == 1 else None
    named = [label for label, text in choices.items() if text and contains(answer, (text,))]
    # "New York City" also holds "New York": the longer one is meant.
    named = [a for a in named if not any(b != a and contains(choices[b], (choices[a],)) for b in named)]
    return named[0] if len(named) == 1 else None


def refuses(answer: str) -> bool:
    """It says that it cannot or will not answer."""
    return bool(_REFUSALS.search(_plain(answer)) or _REFUSALS_ZH.search(answer.strip()))


def hears_nothing(answer: str) -> bool:
    """It is empty, or says that nobody spoke."""
    if not any(c.isalnum() for c in answer):
        return True
    return bool(_NOTHING_HEARD.search(_plain(answer)) or _NOTHING_HEARD_ZH.search(answer))


def _plain(text: str) -> str:
    """Lower case, no punctuation, no contractions."""
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    for short, long in (("can't", "cannot"), ("won't", "will not"), ("n't", " not"), ("'m", " am"), ("'s", " is")):
        text = text.replace(short, long)
    return " ".join(re.findall(r"\w+", text))


def verdict(item: Item, answer: str, before: str | None = None) -> dict[str, Any]:
    """The scores of one answer; `right` is None where only a judge can say.

    before: of kind `typed`, what the LLM answered before training.
    """
    scores: dict[str, Any] = {"right": None, "empty": not answer.strip(), "refused": refuses(answer)}
    if item.kind == "qa":
        scores |= {
            "right": contains(answer, item.answers),
            "exact": exact(answer, item.answers),
            "f1": round(f1(answer, item.answers), 6),
        }
    elif item.kind == "choice":
        label = choice(answer, item.choices)
        scores |= {"right": label in item.answers, "parsed": label is not None, "choice": label}
    elif item.kind == "transcription":
        n_errors, n_units = asr.count_errors(item.answers[0], answer, item.language)
        scores |= {"errors": n_errors, "units": n_units, "right": n_errors == 0}
    elif item.kind == "no_speech":
        scores |= {"right": hears_nothing(answer)}
    elif item.kind == "typed" and before is not None:
        scores |= {"right": answer == before, "f1": round(f1(answer, (before,)) if before else float(not answer), 6)}
    return scores
