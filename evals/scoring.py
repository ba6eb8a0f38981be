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
    r"^(?:(?:well|so|oh|hmm|unfortunately|i am sorry|i am afraid|sorry|apologies|i apologi[sz]e)\W+"
    r"(?:but |for \w+ \w+ )?)*(?:as an? (?:ai|artificial intelligence|(?:large )?language model)"
    r"|i (?:do not|really do not|don t) (?:know|have|understand)"
    r"|i (?:cannot(?! (?:believe|wait|help but))|can not|could not"
    r"|am not able|am unable|am not sure|am not certain|am not familiar)"
    r"|i have no (?:idea|information|answer|knowledge)|no idea|it is (?:unclear|unknown)"
    r"|there is not enough|not enough information|i would need more)\b"
)
_REFUSALS_ZH = re.compile(
    r"^(?:对不起|抱歉|很抱歉|不好意思)?\W*(?:但)?"
    r"(?:作为.{0,8}(?:模型|助手|AI)|我?(?:不知道|不清楚|无法|不能|不确定|没有办法|没法))"
)
# A first person who hears nothing, a recording that holds nothing, or a plea to say it again: that Beethoven could not
# hear his music is an answer.
_RECORDING = r"(?:recording|audio|clip|file|message|input)"
_NO_VOICE = r"(?:\w+ ){0,3}?(?:music|noises?|silence|static|sounds?|hum(?:ming)?|hiss(?:ing)?)\b"
_ONLY = r"(?:only|just|nothing but)"
_NOTHING_HEARD = re.compile(
    r"\bi(?: (?:am|was|have|really|still|sorry))* "
    r"(?:(?:did|do|could|can|would|was|am|have) not|cannot|unable to|not able to) (?:\w+ ){0,3}?"
    r"(?:hear|heard|catch|make out|detect)\b"
    r"|\bi (?:\w+ ){0,2}?(?:hear|heard) (?:no |nothing)"
    rf"|\bi (?:\w+ ){{0,2}}?(?:(?:hear|heard) {_ONLY}|(?:only|just) (?:hear|heard)) {_NO_VOICE}"
    r"|\bi (?:(?:did|have|do) not (?:\w+ )?(?:receive|received|get|got) (?:any|an|a|your)|(?:received|got) no) "
    rf"(?:\w+ )?(?:speech|words|voice|sound|question|{_RECORDING})\b"
    r"|\byou (?:(?:did|have) not (?:\w+ )?(?:say|said|ask|asked) (?:any|a (?:word|thing|question))|said nothing)"
    r"|\byou (?:did|have) not (?:\w+ )?(?:speak|spoken)$"
    r"|^(?:\w+ )?(?:nothing|no one|nobody) (?:was|is|has been|has|said|spoke) ?(?:said|heard|spoken|anything)?$"
    rf"|\bno (?:\w+ )?(?:speech|words|voice|audio|sound|question)\b.{{0,40}}(?:{_RECORDING}|heard|detected)\b"
    r"|^(?:\w+ ){0,2}?there (?:is|was) "
    r"(?:only (?:silence|music|noise)|no (?:\w+ )?(?:speech|words|voice|audio|question))$"
    rf"|\b(?:the|your|this|that) {_RECORDING} (?:\w+ ){{0,4}}(?:silent|empty|blank|silence)\b"
    rf"|\b(?:the|your|this|that) {_RECORDING} (?:contain|contains|contained|has|had|is|was) {_ONLY} {_NO_VOICE}"
    r"|\b(?:please|you) (?:\w+ )?(?:(?:say|ask|repeat) (?:\w+ ){0,3}again|repeat (?:your|the|that|it|yourself)\b)"
)
_NOTHING_HEARD_ZH = re.compile(
    r"(?:^|[我，。！？、\s])(?:好像|似乎|并|刚才|还是|也)*(?:没有?听到|没有?听清|听不到|听不清)"
    r"|(?:录音|音频|语音|这段).{0,6}(?:没有?听到|没有声音|没有语音|没有(?:人)?说话|没有内容|是空的)"
    r"|^(?:好像|似乎)?没有(?:人说话|说话|声音|语音)|请.{0,6}再说一[遍次]|您?能再说一[遍次]"
)

# Between a "not" and what it denies: "is not located in Paris", "I do not think it was Paris".
_FILLERS = frozenset(
    re.findall(
        r"\w+",
        "is was were be been being it he she that this they in at on by of from to for as with think believe located "
        "situated born written called named known made found set actually really necessarily have has had come came",
    )
)
_DENIALS = ("not", "nor", "never", "neither")
_DENIED_ZH = re.compile(r"(?:不是|并非|绝非|不在|不叫|不属于|不位于|从未|而非|没有)(?:在|于|去过|到过)?$")
# Short aliases that are also words: "US", "He" for helium.
_WORDS = "a am an as at be by do go he i if in is it me my of on or so to up us we".split()  # noqa: SIM905


def tokens(text: str) -> list[str]:
    """The words of a text (of Chinese: its characters), written in one way.

    Whisper's normaliser (case, punctuation, accents, spelling, number words, contractions), without articles; dates
    as month, day, year; Chinese in simplified characters with its numbers as digits.
    """
    text = _signs_named(unicodedata.normalize("NFKC", text))
    if _HAN.search(text):
        return _chinese(text)
    # Whisper drops what stands in brackets, as a comment on speech.
    text = re.sub(r"[()\[\]{}<>*_#`\"“”]", " ", text)
    text = re.sub(r"\b(?:[^\W\d_]\. ?){2,}", lambda found: re.sub(r"\W", "", found[0]) + " ", text)  # D.C., J. R. R.
    text = re.sub(r"\b(\d{4})-(\d{1,2})-(\d{1,2})\b", _iso_date, text)
    text = re.sub(r"(?<![\w.-])(?:[-−–]|negative )(?=\d)", "minus ", text)  # Whisper would drop the sign
    words = asr.units(text, "en").split()
    plain = " ".join(_NUMBER_WORDS.get(word, word) for word in words)
    plain = re.sub(rf"\b{_DAY} (?:of )?({_MONTH})\b(?: of)?", lambda m: f"{m[2]} {m[1]}", plain)
    plain = re.sub(rf"\b({_MONTH}) {_DAY}\b", lambda m: f"{_month(m[1])} {int(m[2])}", plain)
    kept = [word for word in plain.split() if word not in ("a", "an", "the")]
    return kept or plain.split()  # the answer may be nothing but "A"


def _signs_named(text: str) -> str:
    """C++ and C# (also said aloud) as a word each, for Whisper's normaliser would leave a C of both."""
    text = re.sub(r"(?<![A-Za-z])([A-Za-z])(?:\+\+| plus plus\b)", r"\1plusplus", text)
    return re.sub(r"(?<![A-Za-z])(?:([A-Z])#|([B-G])[ -]sharp\b)", r"\1\2sharp", text)


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
    """The answer holds an alias, word for word, that it does not deny ("not Paris").

    Words are all that it sees: "It may be June." holds the alias "May", and is right by it.
    """
    if exact(answer, aliases):
        return True
    readings = [tokens(reading) for reading in _readings(answer)]
    return any(
        _short_held(answer, alias) if _is_short(alias) else any(_held(words, alias) for words in readings)
        for alias in aliases
    )


def _readings(answer: str) -> list[str]:
    """The answer as it is, and as it may be meant: "It is not. It is in Rome."; "Rome's Colosseum"."""
    end = r"\s*(?:[.!?;:](?=\s|$)|,(?=\s*(?:but|it|he|she|they)\b))"
    undenied = re.sub(
        rf"(?:\bnot|n['’]t|\bnever)(?: (?:think|believe))?(?: (?:it|that|so|him|her|there))?(?={end})", "", answer
    )
    return list(dict.fromkeys([answer, undenied, re.sub(r"['’]s\b", "", answer)]))


def _held(words: list[str], alias: str) -> bool:
    return any(
        all(map(_same_word, words[start : start + len(form)], form)) and not _denied(words[:start])
        for form in _alias_tokens(alias)
        for start in range(len(words) - len(form) + 1)
    )


def _same_word(word: str, wanted: str) -> bool:
    """The unit may be left out of what is asked for: "$5" for 5."""
    return word == wanted or (wanted[:1].isdigit() and wanted[-1].isdigit() and word.strip("$£€¢%") == wanted)


def _denied(before: list[str]) -> bool:
    """Of the words before an alias."""
    if _DENIED_ZH.search("".join(before[-6:])):
        return True
    for word in reversed(before[-6:]):
        if word in _DENIALS:
            return True
        if word not in _FILLERS:
            return False
    return False


def _is_short(alias: str) -> bool:
    """At most two letters, written large: in lower case they would be other words."""
    plain = alias.replace(".", "").strip()
    return bool(re.fullmatch(r"[A-Z][A-Za-z]?", plain)) and plain not in ("No", "Ok")


def _short_held(answer: str, alias: str) -> bool:
    plain = alias.replace(".", "").strip()
    answer = re.sub(r"\b(?:[^\W\d_]\.){2,}", lambda found: found[0].replace(".", ""), _signs_named(answer))
    for found in re.finditer(rf"(?<![\w'’]){plain}(?!\w|['’](?!s\b))", answer):
        opens = not answer[: found.start()].strip() or bool(re.search(r"[.!?:]\W*$", answer[: found.start()]))
        follows = re.match(r"\s+[a-z]", answer[found.end() :])
        ambiguous = plain.lower() in _WORDS and (plain == "I" or (opens and (len(plain) == 1 or not plain.isupper())))
        if not (ambiguous and follows) and not _denied(tokens(answer[: found.start()])):
            return True
    return False


def readable(alias: str) -> bool:
    """Something of it is left to compare with."""
    return bool(_alias_tokens(alias))


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
    """The label that the answer names, or None where it names none or several, or a label and another's text."""
    answer, choices = _signs_named(answer), {label: _signs_named(text) for label, text in choices.items()}
    named = [label for label, text in choices.items() if text and contains(answer, (text,))]
    # "New York City" also holds "New York": the longer one is meant.
    named = [a for a in named if not any(b != a and contains(choices[b], (choices[a],)) for b in named)]
    pointed = _letters(answer, choices)
    if pointed:
        label = pointed.pop()
        return label if not pointed and (not named or label in named) else None
    return named[0] if len(named) == 1 else None


def _letters(answer: str, choices: dict[str, str]) -> set[str]:
    """The letters that the answer gives as its choice; where it gives one, those too that it only mentions."""
    labels = "".join(label for label in choices if len(label) == 1 and label.isupper())
    if not labels:
        return set()
    large, small = f"[{labels}]", f"[{labels.lower()}]"
    if alone := re.fullmatch(rf"\W*({large}|{small})\W*", answer):
        return {alone[1].upper()}
    # What may follow a letter that is a choice: nothing, a mark, or a word that goes on after it. So "A dog", "D.C.",
    # "C. elegans" and "B negative" hold no choice.
    end = (
        r"(?=\s*$|\s*\n|[*\"”'’)\]）】]*(?:[,;:!?)，。；：！）]|\.(?!\w|\s+[a-z]))|[*\"”'’]+(?:\s|$)"
        r"|\s+(?:is|are|because|since|and|or|not|but|which|[-–—(])(?:\s|\b)|[是项因选正对和或])"
    )
    mark = r"(?:[\"“'‘(（\[*]*)"
    verbs = r"(?:think|say|choose|pick|guess|believe|select|go with|go for)"
    points = [
        rf"(?i:\b(?:answer|option|choice|letter|choose|pick|maybe|probably|definitely)\b)"
        rf"(?i:\s+(?:is|was|would be|should be|must be))?[\s*]*[:：]?[\s*]*"
        rf"(?i:(?:option|choice|letter)\s+)?{mark}({large}){end}",
        rf"(?i:\b(?:it|that|this)(?:['’]s|['’]d be| is| would be| must be| should be)\s+(?:definitely |probably )?"
        rf"(?:option |choice |letter )?){mark}({large}){end}",
        rf"(?i:\bi(?:['’]d| would|['’]ll| will)?\s+{verbs}\s+(?:that )?(?:it['’]s |it is )?(?:option |choice )?)"
        rf"{mark}({large}){end}",
        rf"(?<![\w.])({large})(?i:[\"”'’)*]*\s+(?:is|would be|seems|must be)\s+(?:the\s+)?"
        rf"(?:correct|right|true|best|answer|most|my))\b",
        rf"^\W*({large})[\"”'’)*]*\s+(?:because|since)\b",
        rf"^\W*({large})\W*\n|\n\W*({large})\W*$",
        rf"[(（\[【{{]\s*({large})\s*[)）\]】}}]|\*({large})[.:]?\*",
        rf"^\W*[(（\[]({small})[)）\]]|[(（\[]({small})[)）\]]\W*$",
        rf"^\W*({small})\)\s",
        rf"(?i:\b(?:answer|option|choice)(?: is)?\s*:?\s*)[\"'(]?({small})\W*$",
        rf"(?i:\b(?:it['’]s|it is)\s+(?:option )?)[\"'(]?({small})\W*$",
        rf"(?:答案|选项|选择|应该选|应选|(?<!不)选)(?:应该|应)?[是为选]?\s*[:：]?\s*{mark}({large}){end}",
        rf"(?<!不)是\s*(?:选项)?{mark}({large}){end}",
        rf"(?<![A-Za-z])({large})\s*(?:选?项)?(?:是|才是)?(?:正确|对的|答案|正确答案)",
    ]
    found = {(m.start(i), m[i].upper()) for p in points for m in re.finditer(p, answer) for i in _groups(m)}
    # An option as it was listed: "B. Rome". Where it only begins a name ("C. elegans") no option's text is there.
    for line in re.finditer(rf"(?m)^[^\w\n]*({large})([):：、]|[.,](?!\w))(.*)$", answer):
        rest = line[3].strip()
        goes_on = not rest or re.match(r"(?i:because|since|not)\b|(?:It|This|That)\b", rest)
        if goes_on or any(text and contains(rest, (text,)) for text in choices.values()) or line[2] in ")：:、":
            found.add((line.start(1), line[1]))
    found = {(place, label) for place, label in found if not _letter_denied(answer, place)}
    if not found:
        return set()
    bare = answer  # without the options' own words: "D. Both A and B"
    for text in (text for text in choices.values() if len(text) > 1):
        bare = re.sub(re.escape(text), lambda m: " " * len(m[0]), bare, flags=re.IGNORECASE)
    article = r"(?!\s+(?!(?:is|are|and|or|nor|because|not|but)\b)\w)"
    for m in re.finditer(rf"(?:(?<![\w.'’-])|(?<=[和与或及]))({large})(?![A-Za-z0-9'’]|\.\w|-\w)", bare):
        is_word = m[1] in "AI" and not re.match(article, bare[m.end() :])
        if not is_word and not _letter_denied(answer, m.start()):
            found.add((m.start(), m[1]))
    return {label for _, label in found}


def _groups(found: re.Match[str]) -> list[int]:
    return [i for i, group in enumerate(found.groups(), 1) if group]


def _letter_denied(answer: str, place: int) -> bool:
    """The letter at that place is one that the answer calls wrong."""
    before, after = answer[:place], answer[place + 1 :]
    denies = r"(?:\bnot|n['’]t|\bnever|\bneither|\bnor|\brather than|\binstead of|不是|不选|并非|而非)"
    filler = r"(?: (?:be|is|it|the|answer|option|choice|letter))*[\s\"'“(*]*"
    if re.search(rf"{denies}{filler}$", before, re.IGNORECASE):
        return True
    wrong = r"(?:wrong|incorrect|false|not)\b"
    follows = rf"[\"'”)*]*(?:\s+(?:is|was|are|would be)(?:n['’]t\b| (?:\w+ )?{wrong})|\s*(?:选?项)?是?(?:错|不))"
    return bool(re.match(follows, after))


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
