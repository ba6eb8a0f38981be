"""Sentences made up to say the words that other texts say too seldom.

What stage `ground` heard less than twenty times the aligner can hardly name: an aligner got 6 % of the words wrong that
its texts held 1,000 times, and 59 % of those that they held 5 to 19 times. Questions are full of such words, and no one
of them is asked often enough.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

# How often a word is to be said, by the LLM's tokens that it is made of: byte-pair encoding gives frequent words one.
TIMES = {1: 20, 2: 4}
TIMES_OTHERS = 2
MAX_WORDS = 4  # of a name
_ORDINARY = (
    "How are {}, {}, {}, and {} alike?",
    "Use {}, {}, {}, and {} in a sentence.",
    "Explain {}, {}, and {} to me.",
    "Which word is longer, {}, {}, or {}?",
    "Does {} mean the same as {}?",
    "What rhymes with {}, {}, {}, or {}?",
    "{}, {}, {}, {}, and {}.",
)
_NAMES = (
    "Who or what were {}, {}, and {}?",
    "What do {}, {}, and {} have in common?",
    "Tell me about {}, {}, and {}.",
    "Did {} ever hear of {}?",
    "Which came first, {} or {}?",
    "{}, {}, {}, and {}.",
)


def words_in(text: str) -> list[str]:
    """The words of a text in lower case, without a genitive's ending."""
    return re.findall(r"[a-z]+(?:'[a-z]+)*", re.sub(r"'s\b", "", text.lower()))


def seldom_said(entries: Iterable[str], texts: Iterable[str], n_tokens: Callable[[str], int]) -> dict[str, int]:
    """Words and names that the texts say too seldom → how many times more they are to be said.

    n_tokens: of the LLM, for one word.
    """
    said = Counter(word for text in texts for word in words_in(text))
    missing = {}
    for entry in dict.fromkeys(entries):
        words = words_in(entry)
        if not 1 <= len(words) <= MAX_WORDS or re.search(r"[^A-Za-z '.-]", entry):
            continue
        times = TIMES.get(max(map(n_tokens, re.split(r"[ -]", entry))), TIMES_OTHERS)
        if (more := times - min(said[word] for word in words)) > 0:
            missing[entry] = more
    return missing


def carriers(missing: dict[str, int], n: int, seed: int = 0) -> Iterator[str]:
    """At most n sentences that say the entries in random order, each at most as often as it is missing."""
    rng = random.Random(seed)
    pools: dict[tuple[str, ...], list[str]] = {_ORDINARY: [], _NAMES: []}
    for entry, times in missing.items():
        pools[_ORDINARY if entry == entry.lower() else _NAMES] += [entry] * times
    for pool in pools.values():
        rng.shuffle(pool)
    while n and any(pools.values()):
        [(templates, pool)] = rng.choices(list(pools.items()), [len(pool) for pool in pools.values()])
        template = rng.choice(templates)
        n_slots = template.count("{}")
        if len(pool) < n_slots:
            pool.clear()
            continue
        sentence = template.format(*(pool.pop() for _ in range(n_slots)))
        yield sentence[0].upper() + sentence[1:]
        n -= 1
