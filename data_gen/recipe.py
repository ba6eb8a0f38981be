"""A data recipe: every setting of `llasm data build`, as YAML and as `--key value`.

Each field is documented here once; `llasm data build --help` prints the same text.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Literal

from llasm.audio import MAX_PIECE_SECONDS
from llasm.errors import LlasmError
from llasm.options import check_numbers, option_parser, parse_options, recipe_path

Kind = Literal["text", "speech", "long_audio", "self"]
Ask = Literal["reply", "conversation", "detail", "reasoning"]
LANGUAGES = ("en", "zh")
# What the numbers of a recipe must be, as `check_numbers` says it.
BOUNDS = {
    "at least 1": ("rows", "shard_rows", "workers", "respond.max_new_tokens"),
    "at least 0": ("vary.variants",),
    "between 0 and 1": ("vary.noise_share", "vary.room_share", "vary.telephone_share", "vary.pitch_share",
                        "vary.no_speech_share", "respond.follow_up_share"),
}  # fmt: skip


@dataclass
class Source:
    path: str | None = None
    """`text`: JSON, JSONL, CSV, TSV, parquet, a webdataset tar, an audiofolder, a directory saved by `datasets`, or
    a hub id (`owner/name` or `owner/name:configuration`). `speech`: the same, with audio and what it says.
    `long_audio`: an audio file or a folder of them."""
    kind: Kind = "text"
    """`text`: conversations, whose user turns are spoken. `speech`: recordings with transcripts. `long_audio`:
    talks, cut at pauses and transcribed. `self`: the LLM writes the instructions."""
    weight: float = 1.0
    """Share of this source in `rows`, relative to the others."""
    limit: int | None = None
    """At most this many rows of it; for `long_audio`, files; for `self`, how many instructions to ask for."""
    columns: dict[str, str] = field(default_factory=dict)
    """Names in the source → the row's: prompt, answer, system, messages, conversations, audio, text, id, licence.
    For instance {prompt: question, answer: response}."""
    split: str = "train"
    """Split of a hub data set or a saved DatasetDict."""
    licence: str = "unknown"
    """Licence of the source, as SPDX names it, for the data card."""
    attribution: str = ""
    """Whom to credit, for the data card."""
    language: Literal["auto", "en", "zh"] = "auto"
    """Language of what is said; `auto` looks at the script, and lets Whisper listen where no words are given."""
    ask: list[Ask] = field(default_factory=lambda: ["reply"])
    """`speech` and `long_audio`: what the user wants of a recording, drawn by row: `reply` to it, or what the LLM
    writes about its transcript: `conversation` (two turns), `detail`, `reasoning`."""
    seed_tasks: str | None = None
    """`self`: JSONL with an `instruction` each, shown as examples in every second prompt."""

    def __post_init__(self) -> None:
        name = self.path or self.kind
        if self.path is None and self.kind != "self":
            raise LlasmError(f"recipe: a source of kind {self.kind} needs a path")
        check_numbers(self, "at least 1", "limit", where=f"recipe: source {name}: ")
        check_numbers(self, "above 0", "weight", where=f"recipe: source {name}: ")
        if self.kind == "self" and self.limit is None:
            raise LlasmError("recipe: a source of kind self needs a limit: how many instructions the LLM should write")
        if not self.ask:
            raise LlasmError(f"recipe: ask of {name} is empty; name at least one of reply, conversation, detail")
        unknown = set(self.columns) - {
            "prompt", "answer", "system", "messages", "conversations", "audio", "text", "id", "licence",
        }  # fmt: skip
        if unknown:
            raise LlasmError(
                f"recipe: columns of {name} name {', '.join(sorted(unknown))}; see llasm data build --help"
            )


@dataclass
class Filter:
    max_chars: int = 400
    """Longest user turn to speak, in characters: about 30 s."""
    min_words: int = 1
    """Fewest words (Chinese: characters) of a user turn."""
    max_answer_chars: int = 4000
    """Longest answer, in characters."""
    languages: list[Literal["en", "zh"]] = field(default_factory=lambda: ["en", "zh"])
    """Languages to keep; a text that is clearly in another one is dropped."""
    near_duplicates: float = 0.9
    """Drop a row whose user turns share this much (Jaccard of 5-character shingles) with an earlier one; 1: only
    equal ones."""


@dataclass
class Respond:
    answers: Literal["missing", "always", "never"] = "missing"
    """Whether the LLM writes the last answer where none is given, always, or never (for `ground`; `align` and `chat`
    ask to repeat what has no answer)."""
    llm: str = "smollm2-135m-instruct"
    """Who writes: a named base, a hub id or a directory; with `url` the server's name of the model."""
    url: str | None = None
    """An OpenAI-compatible server, such as http://localhost:8000/v1; its key comes from OPENAI_API_KEY."""
    max_new_tokens: int = 64
    """Length limit of an answer, in tokens; answers that reach it are marked as truncated."""
    follow_up_share: float = 0.0
    """Share of the conversations answered here that go on with another spoken turn, up to the fourth: "Why is that?",
    or what another row asks. Of those with a second turn that share has a third, and so on."""


@dataclass
class Speak:
    voices: list[str] = field(default_factory=lambda: ["hibari"])
    """Who speaks the user's turns: "engine" (its first voice), "engine:voice" or "engine:*". A conversation keeps
    one voice, drawn by its id from those that speak its language."""
    speed: tuple[float, float] = (0.85, 1.2)
    """Each turn draws its speed from this range; 1 is the voice's own pace."""
    max_seconds: float = MAX_PIECE_SECONDS
    """Longer clips are dropped; 29.68 is what Whisper's window of 30 s has room for."""
    audio_format: Literal["flac", "opus"] = "flac"
    """How clips are stored: FLAC keeps every sample, Opus (32 kbit/s) takes a quarter of the space."""


@dataclass
class Verify:
    asr: str = "whisper-base"
    """The Whisper that reads synthetic speech back: an embedded name, a hub id, a directory, a .pt file; `none`: no
    check."""
    max_wer: float = 0.2
    """Drop a row with a clip whose word error rate is above this."""
    max_cer: float = 0.3
    """The same for Chinese, in characters."""
    allow_errors: int = 1
    """Errors that a clip of three words or more may have whatever its rate; 0: the rate alone decides."""
    recordings: bool = False
    """Check the transcripts of real recordings, too: they are dropped like synthetic speech."""


@dataclass
class Vary:
    variants: int = 0
    """Noisy copies of each row, beside the clean one."""
    noise: list[str] = field(default_factory=list)
    """Folders of noise recordings; without any, noise is generated."""
    music: list[str] = field(default_factory=list)
    """Folders of music, for no-speech samples; without any, chords are generated."""
    licence: str = "unknown"
    """Licence of the noise and music in the folders, as SPDX names it, for the data card."""
    attribution: str = ""
    """Whom to credit for them, for the data card."""
    snr_db: tuple[float, float] = (0.0, 20.0)
    """Signal-to-noise ratio in dB, drawn from this range."""
    gain_db: tuple[float, float] = (-20.0, 0.0)
    """Level of the clip in dB, drawn from this range."""
    noise_share: float = 0.6
    """Share of variants with noise."""
    room_share: float = 0.3
    """Share of variants in a simulated room."""
    telephone_share: float = 0.15
    """Share of variants through a telephone: 300 to 3400 Hz, 8 bits."""
    pitch_share: float = 0.3
    """Share of variants with shifted pitch (±3 semitones) and stretched time (0.9 to 1.1)."""
    no_speech_share: float = 0.0
    """No-speech samples (silence, noise, music) a row, whose answer says that nothing was heard."""


@dataclass
class Recipe:
    output: str
    """Folder for the data set; made when missing, continued when it was interrupted."""
    sources: list[Source] = field(default_factory=list)
    """Where the rows come from."""
    input: str | None = None
    """Short for one `text` source with this path."""
    rows: int | None = None
    """Rows to take from all sources together, by their weights; without it, everything they have. All the recordings
    of a `long_audio` source are cut first, up to its limit."""
    filter: Filter = field(default_factory=Filter)
    respond: Respond = field(default_factory=Respond)
    speak: Speak = field(default_factory=Speak)
    verify: Verify = field(default_factory=Verify)
    vary: Vary = field(default_factory=Vary)
    seed: int = 0
    """Seed of everything drawn: mixture, voices, speeds, noise."""
    shard_rows: int = 1000
    """Rows in a parquet file, before drops."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do with rows that cannot be read: name them all and stop before any work, or name them and go on."""
    runner: Literal["local", "ray"] = "local"
    """Processes on this machine, or Ray Data on a cluster whose machines share the output folder."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes of the local runner, one core each (on GPUs the LLM and Whisper get one process a GPU)."""

    def __post_init__(self) -> None:
        if self.input is not None:
            self.sources = [*self.sources, Source(path=self.input)]
            self.input = None
        if not self.sources:
            raise LlasmError("data build: no source; give --input FILE, or a recipe with sources")
        for bound, names in BOUNDS.items():
            check_numbers(self, bound, *names, where="recipe: ")
        if self.rows is None and len({source.weight for source in self.sources}) > 1:
            raise LlasmError("recipe: weights share out `rows`; give rows, or leave the weights equal")
        for name in ("snr_db", "gain_db"):
            if not getattr(self.vary, name)[0] <= getattr(self.vary, name)[1]:
                raise LlasmError(f"recipe: vary.{name} is {getattr(self.vary, name)}; the lower comes first")
        if not 0 < self.filter.near_duplicates <= 1:
            raise LlasmError(f"recipe: filter.near_duplicates is {self.filter.near_duplicates}; it must lie in (0, 1]")
        if not 0 < self.speak.max_seconds <= MAX_PIECE_SECONDS:
            raise LlasmError(
                f"recipe: speak.max_seconds is {self.speak.max_seconds}; at most {MAX_PIECE_SECONDS} fit Whisper"
            )
        low, high = self.speak.speed
        if not 0.5 <= low <= high <= 2:
            raise LlasmError(f"recipe: speak.speed is {low} to {high}; it must lie within 0.5 to 2, the lower first")


def load_recipe(argv: list[str]) -> Recipe:
    """`[RECIPE] [--key value …]` → the recipe; a wrong key or value is a LlasmError, --help prints every field."""
    overrides, where = argv, "data build"
    if argv and not argv[0].startswith("-"):
        where = str(recipe_path("data_gen", argv[0]))
        overrides = [f"--config={where}", *argv[1:]]
    values = parse_options(_parser(), overrides, where)
    return Recipe(**{name: _as_dataclass(name, value) for name, value in values.items()})


def _as_dataclass(name: str, value: Any) -> Any:
    parts = {"filter": Filter, "respond": Respond, "speak": Speak, "verify": Verify, "vary": Vary}
    if name == "sources":
        return [Source(**vars(source)) for source in value]
    return parts[name](**vars(value)) if name in parts else value


def _parser() -> Any:
    return option_parser(Recipe, "llasm data build [RECIPE]", "Text or recordings to a spoken instruction data set.")
