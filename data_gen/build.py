"""`llasm data build`: a JSONL of text conversations → a spoken instruction data set (parquet).

    llasm data build --input questions.jsonl --output my_speech

Each input line is `{"messages": [{"role": "user", "content": "…"}, …], "id": …, "meta": {…}}`; `id` and
`meta` may be missing. User turns are spoken; a conversation that ends with a user turn gets its answer
from the LLM. The output folder holds `data/*.parquet` (the contract's schema), `dropped.jsonl` (what
could not be spoken, and why), `answers.jsonl` (the LLM's answers so far) and `build.json` (the settings).
The same command again continues where it was interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llasm.errors import LlasmError
from llasm.options import option_parser, parse_options

from .respond import LocalGenerator, respond
from .speak import Utterance, draw_utterance, speak

Row = dict[str, Any]
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class BuildConfig:
    input: Path
    """JSONL of text conversations."""
    output: Path
    """Folder for the data set; made when missing, continued when it holds the same build."""
    voice: str = "hibari"
    """Who speaks the user's turns: "engine" or "engine:voice"."""
    llm: str = "smollm2-135m-instruct"
    """Who writes missing answers: a named base, a hub id or a directory."""
    respond: bool = True
    """Write missing answers; without them the data set serves `ground` only."""
    max_new_tokens: int = 48
    """Length limit of a written answer, in tokens; longer ones are marked as truncated."""
    batch_size: int = 64
    """Conversations answered at once."""
    workers: int = os.cpu_count() or 1
    """Processes that speak."""
    shard_rows: int = 500
    """Rows in a parquet file; a finished file is never made again."""
    seed: int = 0
    """Seed of the speed and noise that each utterance draws by its id."""
    limit: int | None = None
    """Only the first rows of the input."""


def load_config(argv: list[str]) -> BuildConfig:
    """The command line's options; a wrong one is a LlasmError, --help prints every field."""
    parser = option_parser(BuildConfig, "llasm data build", "Text conversations to a spoken data set.")
    return BuildConfig(**parse_options(parser, argv, "data build"))


def read_conversations(path: Path, limit: int | None = None) -> list[Row]:
    """Checked rows `{"id", "messages", "meta"}`; LlasmError names the file and the line of the first mistake."""
    if not path.is_file():
        raise LlasmError(f"{path}: no such file; give a JSONL of conversations")
    rows: list[Row] = []
    seen: set[str] = set()
    with open(path, "rb") as lines:  # as bytes: broken UTF-8 is then an error of its line
        for number, line in enumerate(lines, 1):
            if limit is not None and len(rows) >= limit:
                break
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise LlasmError(f"{path}:{number}: not JSON ({error})") from error
            rows.append(_checked(row, f"{path}:{number}", number))
            if rows[-1]["id"] in seen:
                raise LlasmError(f"{path}:{number}: the id {rows[-1]['id']!r} was there before; ids are unique")
            seen.add(rows[-1]["id"])
    if not rows:
        raise LlasmError(f"{path}: holds no conversation")
    return rows


def _checked(row: Any, where: str, number: int) -> Row:
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        raise LlasmError(f'{where}: expected {{"messages": [{{"role": …, "content": …}}, …]}}')
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise LlasmError(f"{where}: every message needs a role out of {', '.join(_ROLES)}")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise LlasmError(f"{where}: the {message['role']}'s content must be text that is not empty")
    if not any(message["role"] == "user" for message in messages):
        raise LlasmError(f"{where}: no user message, so there is nothing to speak")
    return {"id": str(row.get("id", number)), "messages": messages, "meta": dict(row.get("meta") or {})}


def build(config: BuildConfig) -> Path:
    """Runs the stages respond → speak → pack; returns the folder of parquet files."""
    rows = read_conversations(config.input, config.limit)
    _claim(config, rows)
    if config.respond:
        _write_answers(rows, config)
    data = config.output / "data"
    data.mkdir(exist_ok=True)
    shards = [rows[i : i + config.shard_rows] for i in range(0, len(rows), config.shard_rows)]
    names = [data / f"shard-{i:05d}.parquet" for i in range(len(shards))]
    todo = [(shard, name) for shard, name in zip(shards, names, strict=True) if not name.exists()]
    utterances = [u for shard, _ in todo for row in shard for u in _utterances(row, config)]
    with tqdm(total=len(utterances), desc="speak", unit="utterance") as bar:
        spoken = speak(utterances, config.workers)
        for shard, name in todo:
            packed = list(_spoken_rows(shard, config, spoken, bar))
            _write_shard(packed, name)
    return data


def _claim(config: BuildConfig, rows: list[Row]) -> None:
    """Refuses to mix two builds in one folder."""
    config.output.mkdir(parents=True, exist_ok=True)
    identity = {k: v for k, v in asdict(config).items() if k in ("voice", "llm", "respond", "max_new_tokens")}
    identity |= {"shard_rows": config.shard_rows, "seed": config.seed, "rows": len(rows)}
    identity["input_sha256"] = sha256(json.dumps(rows).encode()).hexdigest()
    settings = config.output / "build.json"
    if settings.exists() and json.loads(settings.read_text()) != identity:
        raise LlasmError(
            f"{config.output}: holds a build of other input or settings (build.json); choose another --output"
        )
    settings.write_text(json.dumps(identity, indent=1) + "\n")


def _write_answers(rows: list[Row], config: BuildConfig) -> None:
    missing = [row for row in rows if row["messages"][-1]["role"] == "user"]
    if not missing:
        return
    generator = LocalGenerator(config.llm)
    conversations = [row["messages"] for row in missing]
    cache = config.output / "answers.jsonl"
    answers = respond(conversations, generator, cache, config.max_new_tokens, config.batch_size)
    for i, text, truncated in tqdm(answers, total=len(missing), desc="respond", unit="answer"):
        missing[i]["messages"] = [*conversations[i], {"role": "assistant", "content": text}]
        missing[i]["meta"] |= {"answered_by": config.llm, "truncated": truncated}


def _utterances(row: Row, config: BuildConfig) -> Iterator[Utterance]:
    for turn, message in enumerate(row["messages"]):
        if message["role"] == "user":
            yield draw_utterance(f"{row['id']}/{turn}", message["content"], config.voice, config.seed)


def _spoken_rows(shard: list[Row], config: BuildConfig, spoken: Iterator, bar: tqdm) -> Iterator[Row]:
    """Replaces the user's text by its speech; a row with a turn that cannot be spoken is dropped and kept aside."""
    for row in shard:
        clips, messages, reason = [], [], None
        utterances = list(_utterances(row, config))
        for message in row["messages"]:
            part = {"type": "text", "text": message["content"]}
            if message["role"] == "user":
                clip = next(spoken)
                bar.update()
                if isinstance(clip, str):
                    reason = clip
                clips.append(clip)
                part = {"type": "audio", "text": None}
            messages.append({"role": message["role"], "content": [part]})
        if reason is None and not row["messages"][-1]["content"]:
            reason = "the LLM's answer is empty"
        if reason is not None:
            with open(config.output / "dropped.jsonl", "a", encoding="utf-8") as out:
                out.write(json.dumps({**row, "reason": reason}, ensure_ascii=False) + "\n")
            continue
        meta = {
            "source": str(row["meta"].get("source", config.input.name)),
            "licence": str(row["meta"].get("licence", "unknown")),
            "texts": [m["content"] for m in row["messages"] if m["role"] == "user"],
            "voice": config.voice,
            "speeds": [u.speed for u in utterances],
            "seconds": [seconds for _, seconds in clips],
            "truncated": bool(row["meta"].get("truncated", False)),
            "answered_by": str(row["meta"].get("answered_by", "")),
        }
        audios = [{"bytes": flac, "path": f"{row['id']}-{i}.flac"} for i, (flac, _) in enumerate(clips)]
        yield {"id": row["id"], "messages": messages, "audios": audios, "meta": meta}


def _write_shard(rows: list[Row], path: Path) -> None:
    from datasets import Audio, Dataset, Features, List, Value

    text = Value("string")
    features = Features(
        {
            "id": text,
            "messages": List({"role": text, "content": List({"type": text, "text": text})}),
            "audios": List({"bytes": Value("binary"), "path": text}),
            "meta": {
                "source": text,
                "licence": text,
                "texts": List(text),
                "voice": text,
                "speeds": List(Value("float32")),
                "seconds": List(Value("float32")),
                "truncated": Value("bool"),
                "answered_by": text,
            },
        }
    )
    shard = Dataset.from_list(rows, features=features)
    # Built as plain structs and then renamed to Audio: encoding through Audio would need torchcodec.
    shard = shard.cast_column("audios", List(Audio(sampling_rate=16_000)))
    partial = path.with_suffix(".part")
    shard.to_parquet(partial)
    partial.rename(path)
