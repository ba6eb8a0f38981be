"""Sources → rows: conversations, recordings with transcripts, long recordings, and what the LLM is to write.

Reading is cheap and done anew in every run; what needs a model is left to the write stage, marked by
`row["write"]`: {"kind": "transcribe" | "ask" | "long_audio" | "self", …}. `mixed` then brings the rows in order.
"""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import count, islice
from pathlib import Path
from typing import Any, BinaryIO

from llasm import audio
from llasm.draws import pick
from llasm.errors import LlasmError
from llasm.records import AUDIO_SUFFIXES, BadRow, Record, audio_files, locate, records

from .recipe import Recipe, Source
from .rows import Row, all_texts, check_text, language_of, messages_of, user_texts

Report = Callable[[BadRow], None]
PROMPTS_A_SELF_ROW = 8  # instructions that one row of kind `self` asks for


def read(recipe: Recipe, report: Report) -> list[Row]:
    """All sources' rows, one source after the other; bad rows go to `report`."""
    rows: list[Row] = []
    for number, (source, quota) in enumerate(zip(recipe.sources, _quotas(recipe), strict=True)):
        # How many rows a recording of a talk gives is seen when it has been cut.
        quota = None if source.kind == "long_audio" else quota
        limit = min((n for n in (source.limit, quota) if n is not None), default=None)
        rows += [{**row, "source_number": number} for row in islice(_rows_of(source, limit, report), limit)]
    return told_apart(rows)


def mixed(rows: list[Row], recipe: Recipe) -> tuple[list[Row], list[str]]:
    """(the sources' shares of `rows` in an order that follows from the seed, notes on sources that fall short)."""
    shares: list[list[Row]] = [[] for _ in recipe.sources]
    for row in rows:
        shares[row["source_number"]].append(row)
    notes = []
    for number, (source, quota) in enumerate(zip(recipe.sources, _quotas(recipe), strict=True)):
        found = len(shares[number])
        if quota is not None and found < quota:
            notes.append(f"{source.path or source.kind} gave {found} rows, fewer than its share of {quota}")
        shares[number] = shares[number][:quota]
    taken = [row for share in shares for row in share]
    if len(recipe.sources) > 1:
        random.Random(recipe.seed).shuffle(taken)
    return taken, notes


def told_apart(rows: list[Row]) -> list[Row]:
    """Every id but once: what repeats one gets a number behind it, as in LLaVA's data, where an id is a picture's."""
    taken: set[str] = set()
    for row in rows:
        name = row["id"]
        for number in count(2):
            if name not in taken:
                break
            name = f"{row['id']}-{number}"
        taken.add(name)
        row["id"] = name
    return rows


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


def _rows_of(source: Source, limit: int | None, report: Report) -> Iterator[Row]:
    if source.kind == "self":
        yield from _self_rows(source, limit or 0)
        return
    if source.kind == "long_audio":
        yield from _long_audio_rows(source, report)
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
            yield _with_meta(row, record, source, where)
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
        right = renamed["answer"] if "answer" in columns else None
        if isinstance(right, list):  # several right answers: the first is the one to learn
            right = right[0] if right else None
        blank = right is None or (isinstance(right, str) and not right.strip())  # an empty cell: to be answered
        answer = [] if blank else [("assistant", right)]
        system = [("system", renamed["system"])] if "system" in columns and renamed["system"] else []
        turns = [*system, ("user", renamed["prompt"]), *answer]
        renamed["messages"] = [{"role": role, "content": content} for role, content in turns]
    return renamed


def _text_row(record: Record, where: str) -> Row:
    messages, audios = messages_of(record, where)
    row: Row = {"messages": messages, "audios": [_audio(given, where) for given in audios]}
    if not all(user_texts(row)):  # what a recording says is needed for its answer, and to train on
        row["write"] = {"kind": "transcribe"}
    return row


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
    ask = pick(Path(where).name, source.ask)
    if ask != "reply":
        row["write"] = {"kind": "ask", "ask": ask}
    elif said is None:
        row["write"] = {"kind": "transcribe"}
    return row


def _self_rows(source: Source, limit: int) -> Iterator[Row]:
    """One row for each few instructions; the write stage makes as many rows of it."""
    seeds = _seed_tasks(source.seed_tasks) if source.seed_tasks else []
    for first in range(0, limit, PROMPTS_A_SELF_ROW):
        shown = random.Random(first).sample(seeds, min(3, len(seeds))) if first // PROMPTS_A_SELF_ROW % 2 else []
        write = {"kind": "self", "n": min(PROMPTS_A_SELF_ROW, limit - first), "examples": shown}
        row: Row = {"messages": [], "audios": [], "write": write}
        yield _with_meta(row, {"id": f"self-{first // PROMPTS_A_SELF_ROW}"}, source, f"self:{first}")


def _seed_tasks(path: str) -> list[str]:
    tasks = []
    for where, record in records(path):
        if isinstance(record, BadRow) or not isinstance(record, dict) or "instruction" not in record:
            raise LlasmError(f"{where}: a seed task needs an instruction")
        tasks.append(str(record["instruction"]))
    return tasks


def _long_audio_rows(source: Source, report: Report) -> Iterator[Row]:
    """One row for each recording; the cut stage cuts it."""
    place = Path(source.path or "")
    files = audio_files(place)
    if not files:
        raise LlasmError(f"{place}: no audio file, and no folder with one ({', '.join(AUDIO_SUFFIXES)})")
    for file in files:
        try:
            audios = [_audio(str(file.absolute()), str(file))]
        except BadRow as error:
            report(error)
            continue
        row: Row = {"messages": [], "audios": audios, "write": {"kind": "long_audio", "asks": source.ask}}
        yield _with_meta(row, {"id": file.stem}, source, str(file))


def _with_meta(row: Row, record: Record, source: Source, where: str) -> Row:
    given: dict[str, Any] = record["meta"] if isinstance(record.get("meta"), dict) else {}
    name = Path(source.path).stem if source.path else source.kind
    said = user_texts(row) or all_texts(row)  # what is typed beside a recording may be in another language
    file, _, number = where.rpartition(":")  # several files of one source may hold a row of that number
    row["id"] = str(record["id"]) if record.get("id") is not None else f"{Path(file).stem or name}-{number}"
    unknown = source.language == "auto" and not any(said)  # until somebody has heard it
    row["meta"] = {
        "source": str(given.get("source") or name),
        "licence": str(record.get("licence") or given.get("licence") or source.licence),
        "attribution": source.attribution or str(given.get("attribution") or ""),
        "language": "auto" if unknown else language_of(said) if source.language == "auto" else source.language,
        "truncated": bool(given.get("truncated", False)),
        "answered_by": str(given.get("answered_by") or ""),
        "origin": where,
    }
    return row


def _audio(given: Any, where: str) -> dict[str, Any] | None:
    """A row's audio with the hash of its content, or None where it is to be spoken; raises BadRow."""
    if given is None:
        return None
    given = locate(given, where)
    if isinstance(given, dict):
        given = given["bytes"]
    if isinstance(given, str) and not given.startswith("data:"):
        given = os.path.abspath(given)  # workers may run in another folder
        try:
            with open(given, "rb") as file:
                _check_header(file, f"audio {given!r}", where)
                return {"path": given, "sha256": _file_hash(file)}
        except BadRow:
            raise
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
    _check_header(io.BytesIO(given), "audio", where)
    return {"bytes": given, "sha256": sha256(given).hexdigest()}


def _check_header(file: BinaryIO, name: str, where: str) -> None:
    """Raises BadRow for what is no audio, before an LLM is asked about it; the samples are not read."""
    import soundfile

    try:
        soundfile.info(file)
        return
    except soundfile.SoundFileError:
        file.seek(0)
    import av

    try:
        with av.open(file, options={"format_whitelist": audio.AV_FORMATS}) as container:
            found = bool(container.streams.audio)
    except (av.error.FFmpegError, ValueError, OverflowError):
        found = False
    if not found:
        raise BadRow(where, f"{name} is no audio, or damaged; give {audio.KNOWN_FORMATS}")


def _file_hash(file: BinaryIO) -> str:
    file.seek(0)
    digest = sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
