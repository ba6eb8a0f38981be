"""What is drawn follows from a key alone: in any order, on any worker, the same."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import TypeVar

from numpy.random import Generator, default_rng

T = TypeVar("T")


def seed_of(key: str) -> int:
    """64 bits of the key's hash."""
    return int.from_bytes(sha256(key.encode()).digest()[:8], "big")


def draw(key: str) -> float:
    """A number in [0, 1)."""
    return seed_of(key) / 2**64


def pick(key: str, choices: Sequence[T]) -> T:
    return choices[int(draw(key) * len(choices))]


def generator(key: str) -> Generator:
    return default_rng(seed_of(key))
