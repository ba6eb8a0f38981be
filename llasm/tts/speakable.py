"""Text as it is read aloud: numbers, dates, money, abbreviations and symbols in words.

`speakable("On 3/4/2021 it cost $9.99.")` is "On March fourth, twenty twenty-one it cost nine dollars and
ninety-nine cents." English by num2words and the rules below, Mandarin by cn2an. The engines get this text:
their own rules differ, and some misread names ("George Lucas" as "George the zeroth Lucas").
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_MONTH = rf"(?:{'|'.join(_MONTHS)}|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec)\.?"
_ABBREVIATIONS = {
    "Mr.": "Mister", "Mrs.": "Missus", "Ms.": "Miss", "Dr.": "Doctor", "Prof.": "Professor", "Jr.": "Junior",
    "Sr.": "Senior", "vs.": "versus", "e.g.": "for example", "i.e.": "that is", "etc.": "et cetera",
    "approx.": "approximately", "Mt.": "Mount", "Ft.": "Fort", "Gen.": "General", "Capt.": "Captain",
    "Lt.": "Lieutenant", "Col.": "Colonel", "Inc.": "Incorporated", "Ltd.": "Limited", "Corp.": "Corporation",
    "a.m.": "a m", "p.m.": "p m", "w/o": "without", "w/": "with",
}  # fmt: skip
_UNITS = {
    "km/h": "kilometer per hour", "mph": "mile per hour", "km": "kilometer", "cm": "centimeter", "mm": "millimeter",
    "kg": "kilogram", "mg": "milligram", "ml": "milliliter", "lb": "pound", "lbs": "pound", "oz": "ounce",
    "GB": "gigabyte", "MB": "megabyte", "TB": "terabyte", "kHz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz",
    "Hz": "hertz", "kW": "kilowatt", "m": "meter", "g": "gram", "ft": "foot", "°C": "degree Celsius",
    "°F": "degree Fahrenheit", "°": "degree", "l": "liter", "L": "liter",
}  # fmt: skip
_PLURALS = {
    "foot": "feet",
    "hertz": "hertz",
    "kilohertz": "kilohertz",
    "megahertz": "megahertz",
    "gigahertz": "gigahertz",
}
_MONEY = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent"), "¥": ("yen", "sen")}
_FRACTIONS = {"½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅛": "1/8"}
_SYMBOLS = {
    "&": " and ", "+": " plus ", "=": " equals ", "@": " at ", "×": " times ", "÷": " divided by ", "<": " less than ",
    ">": " greater than ", "≤": " at most ", "≥": " at least ", "%": " percent ", "~": " about ", "§": " section ",
    "©": " copyright ", "®": " ", "™": " ", "→": " to ", "±": " plus or minus ", "#": " number ", "°": " degrees ",
    "/": " or ", "|": " ", "*": " ", "_": " ", "^": " ", "\\": " ", "`": " ", "{": " ", "}": " ", "[": " ", "]": " ",
}  # fmt: skip
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_SCALE = r"(?:\s+(hundred|thousand|million|billion|trillion)\b)?"
# "World War II" counts, "Henry VIII" ranks; single letters are names more often than numbers.
_COUNTED = r"(War|Chapter|Part|Episode|Volume|Act|Scene|Type|Phase|Class|Section|Article|Book|Level|Grade|Bowl|Stage)"
_ROMAN = r"(?:X{0,3}(?:IX|IV|V?I{1,3}|VI{0,3})|X{1,3})"


def speakable(text: str, language: str = "en") -> str:
    """`text` in words of that language; other letters stay. Empty where nothing can be said."""
    text = unicodedata.normalize("NFC", text).translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})
    text = "".join(c for c in text if unicodedata.category(c) not in ("So", "Cs", "Co", "Cf", "Cc") or c in "\n°©®™")
    text = re.sub(r"^\s*(?:[-*•]|#+)\s+", "", text, flags=re.MULTILINE)  # Markdown's lists and headings
    text = re.sub(r"\*\*|__|```\w*", "", text)
    text = _mandarin(text) if language == "zh" else _english(text)
    text = re.sub(r"\s*\n+\s*", " ", text)
    text = re.sub(r"\s+([,.;:!?，。；：！？])", r"\1", re.sub(r"[ \t]+", " ", text)).strip()
    return text if any(c.isalnum() for c in text) else ""


def _mandarin(text: str) -> str:
    import cn2an

    text = text.replace("&", "和").replace("+", "加").replace("=", "等于").replace("@", "艾特")
    text = re.sub(r"(\d),(?=\d{3})", r"\1", text)  # thousands
    text = re.sub(r"[$＄]\s*(\d+(?:\.\d+)?)", r"\1美元", text)
    text = re.sub(r"[¥￥]\s*(\d+(?:\.\d+)?)", r"\1元", text)
    text = re.sub(r"(\d{1,2}):(\d{2})(?!\d)", lambda m: f"{m[1]}点" + (f"{int(m[2])}分" if int(m[2]) else "整"), text)
    text = re.sub(r"\d{8,}", lambda m: "".join("零一二三四五六七八九"[int(digit)] for digit in m[0]), text)
    try:
        text = cn2an.transform(text, "an2cn")
    except ValueError:  # a number it cannot read: digit by digit
        pass
    text = re.sub(r"\d", lambda m: "零一二三四五六七八九"[int(m[0])], text)
    return re.sub(r"[%#*_^~|\\/<>{}\[\]`]", " ", text)


def _english(text: str) -> str:
    rules: list[tuple[str, Callable[[re.Match[str]], str]]] = [
        (r"https?://(?:www\.)?([^\s/]+)\S*|www\.([^\s/]+)\S*", lambda m: (m[1] or m[2]).replace(".", " dot ")),
        (r"([\w.+-]+)@([\w-]+(?:\.[\w-]+)+)", lambda m: f"{m[1]} at {m[2]}".replace(".", " dot ")),
        (r"\b([1-9]\d{3})-(0?[1-9]|1[0-2])-([0-2]?\d|3[01])\b", lambda m: _date(m[3], int(m[2]), m[1])),
        (r"\b(0?[1-9]|1[0-2])/([0-2]?[1-9]|[123]0|31)/(\d{4})\b", lambda m: _date(m[2], int(m[1]), m[3])),
        (rf"\b({_MONTH})\s+(\d{{1,2}})(?:st|nd|rd|th)?(?:,?\s+(\d{{4}}))?(?!\d)", _month_day),
        (rf"\b(\d{{1,2}})(?:st|nd|rd|th)?\s+({_MONTH})(?:,?\s+(\d{{4}}))?(?!\d)", _day_month),
        (r"\b(\d{1,2}):(\d{2})(?::\d{2})?(?:\s*([ap])\.?\s?m\b\.?)?", _time),
        (r"\b(\d{1,2})\s*([ap])\.?m\b\.?", lambda m: f"{_cardinal(m[1])} {m[2]} m"),
        (rf"([$£€¥])\s?({_NUMBER}){_SCALE}", _money),
        (rf"({_NUMBER})\s?%", lambda m: f"{_cardinal(m[1])} percent"),
        (r"(?:(\d+)\s+)?\b([1-9])/([2-9]|10)\b(?!/)", _fraction),
        (r"[½⅓⅔¼¾⅛]", lambda m: " " + _english(_FRACTIONS[m[0]])),
        (r"\b(1[1-9]|20)(\d0)'?s\b", lambda m: _plural(_year(int(m[1] + m[2])))),
        (r"'(\d0)s\b", lambda m: _plural(_cardinal(m[1]))),
        (r"\b(\d+)(?:st|nd|rd|th)\b", lambda m: _ordinal(int(m[1]))),
        (rf"\b({_NUMBER})[\s-]?({'|'.join(map(re.escape, _UNITS))})(?![\w°])", _unit),
        (r"(?<=\d)\s?[-–—]\s?(?=\d)", lambda m: " to "),
        (r"\bNo\.\s?(?=\d)", lambda m: "number "),
        (r"#(?=\d)", lambda m: "number "),
        (r"(?<=\d)\s?[*x]\s?(?=\d)", lambda m: " times "),
        (r"\b(\d)'\s?(\d{1,2})\"", lambda m: f"{_cardinal(m[1])} foot {_cardinal(m[2])}"),
        (r"\b(10[1-9]\d|1[1-9]\d{2}|20\d{2})\b(?![,.]\d)", lambda m: _year(int(m[1]))),
        (r"(?<![\w.])(?:0\d+|\d{8,})\b", lambda m: " ".join(_cardinal(digit) for digit in m[0])),
        (rf"(?<![\w.])-({_NUMBER})", lambda m: f"minus {_cardinal(m[1])}"),
        (_NUMBER, lambda m: f" {_cardinal(m[0])} "),
        (rf"\b{_COUNTED}\s+(I|{_ROMAN})\b", lambda m: f"{m[1]} {_cardinal(str(_roman(m[2])))}"),
        (rf"\b([A-Z][a-z]+)\s+((?=[XVI]{{2}}){_ROMAN})\b", lambda m: f"{m[1]} the {_ordinal(_roman(m[2]))}"),
        # U.S.A. is spelled out; a capital after it may begin a sentence or a name, so only the end keeps its stop.
        (r"\b((?:[A-Z]\.){2,})(\s*$)?", lambda m: " ".join(m[1].replace(".", " ").split()) + "." * (m[2] is not None)),
        (r"\bSt\.\s?(?=[A-Z])", lambda m: "Saint "),
    ]  # fmt: skip
    for short, long in _ABBREVIATIONS.items():
        text = re.sub(rf"(?<!\w){re.escape(short)}", long, text)
    for pattern, say in rules:
        text = re.sub(pattern, say, text)
    for symbol, words in _SYMBOLS.items():
        text = text.replace(symbol, words)
    return text


def _number(value: str | int, to: str) -> str:
    from num2words import num2words

    try:
        return num2words(value, to=to).replace(" and ", " ").replace(",", "")
    except (OverflowError, ValueError):  # beyond its table: digit by digit
        return " ".join(num2words(int(digit)) for digit in str(value) if digit.isdigit())


def _cardinal(digits: str) -> str:
    plain = digits.replace(",", "")
    if len(plain.split(".")[0]) > 15:
        return " ".join(_number(int(digit), "cardinal") for digit in plain if digit.isdigit())
    whole, point, decimals = plain.partition(".")
    words = _number(int(whole), "cardinal")
    return f"{words} point {' '.join(_number(int(d), 'cardinal') for d in decimals)}" if point else words


def _ordinal(number: int) -> str:
    return _number(number, "ordinal")


def _year(year: int) -> str:
    if year % 1000 == 0 or 2000 < year < 2010:
        return _cardinal(str(year))
    return _number(year, "year")


def _plural(words: str) -> str:
    return words[:-1] + "ies" if words.endswith("y") else words + ("es" if words.endswith("x") else "s")


def _date(day: str, month: int, year: str | None) -> str:
    said = f"{_MONTHS[month - 1]} {_ordinal(int(day))}"
    return f"{said}, {_year(int(year))}" if year else said


def _month_number(name: str) -> int:
    return next(i for i, month in enumerate(_MONTHS, 1) if month.startswith(name.rstrip(".")[:3]))


def _month_day(m: re.Match[str]) -> str:
    return _date(m[2], _month_number(m[1]), m[3]) if 1 <= int(m[2]) <= 31 else m[0]


def _day_month(m: re.Match[str]) -> str:
    if not 1 <= int(m[1]) <= 31:
        return m[0]
    said = f"the {_ordinal(int(m[1]))} of {_MONTHS[_month_number(m[2]) - 1]}"
    return f"{said}, {_year(int(m[3]))}" if m[3] else said


def _time(m: re.Match[str]) -> str:
    hour, minute = int(m[1]), int(m[2])
    if hour > 24 or minute > 59:  # a score or a ratio
        return f"{_cardinal(m[1])} to {_cardinal(m[2])}"
    said = _cardinal(m[1])
    if minute:
        said += f" {'oh ' if minute < 10 else ''}{_cardinal(str(minute))}"
    elif not m[3]:
        said += " o'clock"
    return f"{said} {m[3]} m" if m[3] else said


def _money(m: re.Match[str]) -> str:
    unit, small = _MONEY[m[1]]
    if m[3]:
        return f"{_cardinal(m[2])} {m[3]} {_plural(unit) if unit != 'yen' else unit}"
    whole, _, cents = m[2].replace(",", "").partition(".")
    plural = unit if whole == "1" or unit == "yen" else _plural(unit)
    said = f"{_cardinal(whole)} {plural}"
    n_cents = int(cents.ljust(2, "0")[:2]) if cents else 0
    if not n_cents:
        return said
    smalls = small if n_cents == 1 else "pence" if small == "penny" else _plural(small)
    said_cents = f"{_cardinal(str(n_cents))} {smalls}"
    return f"{said} and {said_cents}" if int(whole) else said_cents


def _fraction(m: re.Match[str]) -> str:
    over, under = int(m[2]), int(m[3])
    name = {2: "half", 4: "quarter"}.get(under) or _ordinal(under)
    plural = name if over == 1 else "halves" if name == "half" else _plural(name)
    if m[1]:
        article = "a" if over == 1 else _cardinal(m[2])
        return f"{_cardinal(m[1])} and {article} {plural}"
    return f"{_cardinal(m[2])} {plural}"


def _unit(m: re.Match[str]) -> str:
    unit = _UNITS[m[2]]
    first, _, rest = unit.partition(" ")
    if m[1] != "1":
        first = _PLURALS.get(first, first + "s")
    return f"{_cardinal(m[1])} {first} {rest}".rstrip()


def _roman(letters: str) -> int:
    values = [{"I": 1, "V": 5, "X": 10}[letter] for letter in letters]
    return sum(-v if v < max(values[i:], default=0) else v for i, v in enumerate(values))
