"""Sources → rows: conversations, recordings with transcripts, long recordings, and what the LLM is to write.

Reading is cheap and done anew in every run; what needs a model is left to the write stage, marked by
`row["write"]`: {"kind": "transcribe" | "ask" | "self", …}.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from llasm import audio
from llasm.errors import LlasmError

from .formats import AUDIO_SUFFIXES, Record, locate, records
from .recipe import Recipe, Source
from .rows import BadRow, Row, check_text, language_of, messages_of, user_texts

Report = Callable[[BadRow], None]
PROMPTS_A_SELF_ROW = 8  # instructions that one row of kind `self` asks for


def read(recipe: Recipe, report: Report) -> list[Row]:
    """All sources' rows, mixed by weight, in an order that follows from the seed; bad rows go to `report`."""
    quotas = _quotas(recipe)
    rows: list[Row] = []
    for number, (source, quota) in enumerate(zip(recipe.sources, quotas, strict=True)):
        limit = min((n for n in (source.limit, quota) if n is not None), default=None)
        found = list(islice(_rows_of(source, number, limit, report), limit))
        if quota is not None and len(found) < quota and source.limit is None:
            name = source.path or source.kind
            report(BadRow(name, f"has {len(found)} good rows, fewer than its share of {quota}"))
        rows += found
    if len(recipe.sources) > 1:
        random.Random(recipe.seed).shuffle(rows)
    return _with_unique_ids(rows, report)


def _quotas(recipe: Recipe) -> list[int | None]:
    """Rows to take from each source; the shares of `rows` add up to it."""
    if recipe.rows is None:
        return [None] * len(recipe.sources)
    total = sum(source.weight for source in recipe.sources)
    exact = [recipe.rows * source.weight / total for source in recipe.sources]
    quotas = [int(x) for x in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: quotas[i] - exact[i])
    for i in by_rest[: recipe.rows - sum(quotas)]:
        quotas[i] += 1
    return list(quotas)


def _with_unique_ids(rows: list[Row], report: Report) -> list[Row]:
    """Equal ids of two sources are told apart; within one source the second is a mistake."""
    owners: dict[str, set[int]] = {}
    for row in rows:
        owners.setdefault(row["id"], set()).add(row["meta"]["source_number"])
    seen: set[str] = set()
    unique = []
    for row in rows:
        number = row["meta"].pop("source_number")
        if len(owners[row["id"]]) > 1:
            row["id"] = f"{number}-{row['id']}"
        if row["id"] in seen:
            report(BadRow(row["meta"]["origin"], f"the id {row['id']!r} was there before; ids are unique"))
            continue
        seen.add(row["id"])
        unique.append(row)
    return unique


def _rows_of(source: Source, number: int, limit: int | None, report: Report) -> Iterator[Row]:
    if source.kind == "self":
        yield from _self_rows(source, number, limit or 0)
        return
    if source.kind == "long_audio":
        yield from _long_audio_rows(source, number, report)
        return
    assert source.path is not None  # checked by Source
    for where, record in records(source.path, source.split):
        try:
            if isinstance(record, BadRow):
                raise record
            if not isinstance(record, dict):
                raise BadRow(where, f"expected an object, found {type(record).__name__}")
            record = _mapped(record, source.columns, where)
            row = _speech_row(source, record, where) if source.kind == "speech" else _text_row(record, where)
            yield _with_meta(row, record, source, number, where)
        except BadRow as error:
            report(error)


def _mapped(record: Record, columns: dict[str, str], where: str) -> Record:
    """The record under the names that `columns` maps; prompt and answer become messages."""
    renamed = dict(record)
    for name, column in columns.items():
        if column not in record:
            raise BadRow(where, f"has no column {column!r}; it has {', '.join(map(str, record))}")
        renamed[name] = record[column]
    if "prompt" in columns:
        answer = [("assistant", renamed["answer"])] if "answer" in columns else []
        if answer and isinstance(answer[0][1], list):  # several right answers: the first is the one to learn
            answer = [("assistant", answer[0][1][0])] if answer[0][1] else []
        system = [("system", renamed["system"])] if "system" in columns and renamed["system"] else []
        turns = [*system, ("user", renamed["prompt"]), *answer]
        renamed["messages"] = [{"role": role, "content": content} for role, content in turns]
    return renamed


def _text_row(record: Record, where: str) -> Row:
    messages, audios = messages_of(record, where)
    return {"messages": messages, "audios": [_audio(given, where) for given in audios]}


def _speech_row(source: Source, record: Record, where: str) -> Row:
    """A recording as a user's turn; what the user wants of it is drawn by the recording's place."""
    if "messages" in record or "conversations" in record:
        return _text_row(record, where)
    given = record.get("audio")
    given = given[0] if isinstance(given, list) and len(given) == 1 else given
    if given is None:
        raise BadRow(where, "no audio; map its column with columns: {audio: NAME, text: NAME}")
    said = record.get("text")
    if said is not None:
        check_text(said, "user", where)
    messages = [{"role": "user", "content": [{"type": "audio", "text": said}]}]
    row: Row = {"messages": messages, "audios": [_audio(given, where)]}
    ask = _draw(where, source.ask)
    if ask != "reply" or said is None:
        row["write"] = {"kind": "ask", "ask": ask}
    return row


def _self_rows(source: Source, number: int, limit: int) -> Iterator[Row]:
    """One row for each few instructions; the write stage makes as many rows of it."""
    seeds = _seed_tasks(source.seed_tasks) if source.seed_tasks else []
    for first in range(0, limit, PROMPTS_A_SELF_ROW):
        shown = random.Random(first).sample(seeds, min(3, len(seeds))) if first // PROMPTS_A_SELF_ROW % 2 else []
        write = {"kind": "self", "first": first, "n": min(PROMPTS_A_SELF_ROW, limit - first), "examples": shown}
        row: Row = {"messages": [], "audios": [], "write": write}
        yield _with_meta(row, {"id": f"self-{number}-{first}"}, source, number, f"self:{first}")


def _seed_tasks(path: str) -> list[str]:
    tasks = []
    for where, record in records(path):
        if isinstance(record, BadRow) or not isinstance(record, dict) or "instruction" not in record:
            raise LlasmError(f"{where}: a seed task needs an instruction")
        tasks.append(str(record["instruction"]))
    return tasks


def _long_audio_rows(source: Source, number: int, report: Report) -> Iterator[Row]:
    """Segments of at most 30 s, cut at pauses; what they say is left to the write stage."""
    from llasm import vad

    place = Path(source.path or "")
    files = [place]
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
    if not files:
        raise LlasmError(f"{place}: holds no audio file ({', '.join(AUDIO_SUFFIXES)})")
    for file in files:
        try:
            wave = audio.decode(file)
        except LlasmError as error:
            report(BadRow(str(file), str(error).removeprefix(f"{file}: ")))
            continue
        for start, end in vad.segments(wave):
            seconds = f"{start / audio.SAMPLE_RATE:.2f}"
            content = audio.to_flac_bytes(wave[start:end])
            row: Row = {
                "messages": [{"role": "user", "content": [{"type": "audio", "text": None}]}],
                "audios": [{"bytes": content, "sha256": sha256(content).hexdigest()}],
                "write": {"kind": "ask", "ask": _draw(f"{file.name}@{seconds}", source.ask)},
            }
            where = f"{file}@{seconds}"
            yield _with_meta(row, {"id": f"{file.stem}-{seconds}"}, source, number, where)


def _with_meta(row: Row, record: Record, source: Source, number: int, where: str) -> Row:
    given: dict[str, Any] = record["meta"] if isinstance(record.get("meta"), dict) else {}
    name = Path(source.path).stem if source.path else source.kind
    said = user_texts(row) or answers_of(row)
    row["id"] = str(record["id"]) if record.get("id") is not None else f"{name}-{where.rpartition(':')[2]}"
    row["meta"] = {
        "source": str(given.get("source") or name),
        "licence": str(record.get("licence") or given.get("licence") or source.licence),
        "attribution": source.attribution or str(given.get("attribution") or ""),
        "language": source.language if source.language != "auto" else language_of(said),
        "truncated": bool(given.get("truncated", False)),
        "answered_by": str(given.get("answered_by") or ""),
        "origin": where,
        "source_number": number,
    }
    return row


def answers_of(row: Row) -> list[str]:
    """Texts of a row without spoken ones, for its language."""
    return [part["text"] or "" for message in row["messages"] for part in message["content"]]


def _draw(key: str, choices: list[Any]) -> Any:
    digest = sha256(Path(key).name.encode()).digest()
    return choices[int.from_bytes(digest[:8], "big") % len(choices)]


def _audio(given: Any, where: str) -> dict[str, Any] | None:
    """A row's audio with the hash of its content, or None where it is to be spoken; raises BadRow."""
    if given is None:
        return None
    given = locate(given, where)
    if isinstance(given, dict):
        given = given["bytes"]
    if isinstance(given, str) and not given.startswith("data:"):
        try:
            with open(given, "rb") as file:
                return {"path": given, "sha256": _file_hash(file)}
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise BadRow(where, f"audio {given!r} cannot be read ({reason})") from error
    if isinstance(given, str):
        try:
            given = audio.to_flac_bytes(audio.decode(given))
        except LlasmError as error:
            raise BadRow(where, str(error)) from error
    if not isinstance(given, bytes):
        raise BadRow(where, f"audio is a {type(given).__name__}; give a path, bytes or a data URI")
    return {"bytes": given, "sha256": sha256(given).hexdigest()}


def _file_hash(file: Any) -> str:
    digest = sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def counts(rows: list[Row]) -> Counter[str]:
    return Counter(row["meta"]["source"] for row in rows)
