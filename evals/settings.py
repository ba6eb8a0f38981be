"""The options of `llasm eval`: what is asked of which model, under which conditions, and where the answers go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from llasm.errors import LlasmError
from llasm.options import check_numbers, option_parser, parse_options

from .conditions import KINDS, Condition, Variation
from .tasks import TASKS

T = TypeVar("T")


@dataclass
class Settings:
    """What is asked, of whom, and where it goes."""

    task: str
    """What is asked: one task or several, `webquestions,no_speech`; see README for their names and data."""
    out: str
    """Folder for items, predictions, scores and report; made when missing."""
    model: str = "llasm-tiny"
    """llasm-tiny, a checkpoint's directory or a hub id."""
    data: str | None = None
    """Where the task's data lies: a file or folder in its authors' layout, or a hub id (`owner/name`,
    `owner/name:config:split`); for several tasks `task=PATH,task=PATH`, or a folder with one folder a task. Without
    it, the data is fetched from the hub, or generated where the task needs none."""
    conditions: str = "speech,text,cascade"
    """What the LLM is given: the speech; the text of the question; what a recogniser wrote down of the speech."""
    asr: str = "whisper-base"
    """The cascade's recogniser: an embedded Whisper, a hub id, a directory, a .pt file."""
    voice: str = "hibari"
    """Who speaks questions that come without audio: "engine" or "engine:voice"."""
    snr: str | None = None
    """Also with noise at these signal-to-noise ratios in dB, such as `10,5,0`."""
    noise: str | None = None
    """Folder of noise recordings for `snr`; without it, noise is generated."""
    speed: str | None = None
    """Also at these multiples of the pace, such as `0.8,1.25`, pitch kept."""
    telephone: bool = False
    """Also through a telephone: 300 to 3400 Hz, 8-bit mu-law (ITU-T G.711)."""
    batch_size: int = 32
    """Questions answered at once. Greedy answers do not depend on it (in float32, as on CPUs)."""
    max_new_tokens: int = 64
    """Length limit of an answer, in tokens."""
    limit: int | None = None
    """The first N items of each task."""
    latency_items: int = 20
    """Items of each task and condition that are also answered one by one, to measure latencies."""
    resume: bool = False
    """Go on with an interrupted run in `out`: what is answered there is not asked again."""
    shard: str = "1/1"
    """`i/n`: answer only the i-th of n parts. Parts may share `out`; the last one to finish scores them all."""
    runner: Literal["local", "ray"] = "local"
    """Processes on this machine (one, or one a GPU), or Ray Data on a cluster."""
    judge_url: str | None = None
    """An OpenAI-compatible server that judges answers, such as http://localhost:8000/v1; key: OPENAI_API_KEY."""
    judge_model: str = "judge"
    """The judge's name at that server."""

    def __post_init__(self) -> None:
        for name in self.tasks:
            if name not in TASKS:
                raise LlasmError(f"unknown task {name!r}: there are {', '.join(TASKS)}")
        if len(set(self.tasks)) != len(self.tasks):
            raise LlasmError(f"task is {self.task!r}: each may be named once")
        check_numbers(self, "at least 1", "batch_size", "max_new_tokens", "limit")
        check_numbers(self, "at least 0", "latency_items")
        if self.noise is not None and not Path(self.noise).is_dir():
            raise LlasmError(f"noise is {self.noise!r}: no such folder")
        if self.noise is not None and self.snr is None:
            raise LlasmError(f"noise is {self.noise!r}, but at no ratio; give snr too, such as 10,5,0")
        self.all_conditions()
        self.part()

    @property
    def tasks(self) -> list[str]:
        return [name.strip() for name in self.task.split(",")]

    def part(self) -> tuple[int, int]:
        """(index from 0, number of parts)."""
        index, _, n = self.shard.partition("/")
        if not (index.isdigit() and n.isdigit() and 1 <= int(index) <= int(n)):
            raise LlasmError(f"shard is {self.shard!r}; it must look like 1/4, the first of four")
        return int(index) - 1, int(n)

    def all_conditions(self) -> list[Condition]:
        """Each kind, and each kind that hears audio under each variation."""
        kinds = [kind.strip() for kind in self.conditions.split(",")]
        for kind in kinds:
            if kind not in KINDS:
                raise LlasmError(f"unknown condition {kind!r}: there are {', '.join(KINDS)}")
        variations = [Variation("snr", ratio) for ratio in _numbers(self.snr, "snr", lambda x: -40 <= x <= 100)]
        variations += [Variation("speed", pace) for pace in _numbers(self.speed, "speed", lambda x: 0.25 <= x <= 4)]
        variations += [Variation("telephone")] * self.telephone
        plain = [Condition(kind) for kind in dict.fromkeys(kinds)]
        return plain + [Condition(c.kind, v) for c in plain if c.hears for v in variations]


def _numbers(text: str | None, name: str, fits: Callable[[float], bool]) -> list[float]:
    values: list[float] = []
    for word in (text or "").split(",") if text is not None else []:
        try:
            value = float(word)
        except ValueError:
            value = float("nan")
        if not fits(value):
            raise LlasmError(f"{name} is {text!r}: {word!r} is not a number that makes sense there")
        values.append(value)
    return list(dict.fromkeys(values))


def load_settings(argv: list[str]) -> Settings:
    """`--key value …` → the settings; a wrong key or value is a LlasmError, --help prints every field."""
    parser = option_parser(Settings, "llasm eval", "Batch evaluation of spoken question answering.")
    return Settings(**parse_options(parser, argv, "eval"))
