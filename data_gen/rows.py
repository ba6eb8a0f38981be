"""The row that the stages pass on, and the checks that every row from outside goes through.

A row is a dict that JSON can hold, with its audio beside it:

    id        str, unique in the build
    messages  [{"role", "content": [{"type": "text", "text"} | {"type": "audio", "text": what it says, or None}]}]
    audios    one for each audio part, in order: None (to be spoken) or {"path" | "bytes", "sha256"}
    meta      source, licence, attribution, language, origin ("file:line"), and what the stages add
    write     {"kind", …}, where the write stage must add something (see `sources`)
    dropped   {"stage", "reason", "detail"}, set by the stage that drops the row
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from llasm.records import BadRow

Row = dict[str, Any]
ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
MAX_CHARS = 100_000  # of a text: more is a file in the wrong place, not a message
MAX_WORDS = 2000  # of a conversation: more fills a small model's context
PLACEHOLDER = "<audio>"


def messages_of(record: Any, where: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """(messages as in a row, audio sources in placeholder order) of one record in messages, LLaVA or ShareGPT form.

    Raises BadRow for what is not a conversation; `llasm data check` and `build` refuse the same.
    """
    if not isinstance(record, dict):
        raise BadRow(where, f"expected an object, found {type(record).__name__}")
    if record.get("id") is not None:
        check_text(str(record["id"]), "id", where)
    if "messages" in record:
        messages, audios = _from_messages(record, where)
    elif "conversations" in record:
        messages, audios = _from_conversations(record, where)
    else:
        keys = ", ".join(map(str, record)) or "nothing"
        raise BadRow(where, f'expected "messages" or "conversations", found {_short(keys)}; map others with columns')
    if not any(message["role"] == "user" for message in messages):
        raise BadRow(where, "no user message, so there is nothing to speak")
    _check_order([message["role"] for message in messages], where)
    return messages, audios


def _from_messages(record: dict[str, Any], where: str) -> tuple[list[dict[str, Any]], list[Any]]:
    given = record["messages"]
    if not isinstance(given, list) or not given:
        raise BadRow(where, "messages must be a list of at least one message")
    beside = _as_list(record.get("audios", record.get("audio")))
    meta = record.get("meta")  # whatever others keep there; our own data sets what is said
    texts = _said(meta if isinstance(meta, dict) else {}, where)
    messages, audios = [], []
    for message in given:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise BadRow(where, f"unknown role {_short(role)}; it must be one of {', '.join(ROLES)}")
        content = message.get("content")
        if isinstance(content, str):
            check_text(content, role, where)
            # A user's bare text is what is to be spoken; a typed text is given as a part.
            parts: list[dict[str, Any]] = [{"type": "audio" if role == "user" else "text", "text": content}]
            audios += [None] if role == "user" else []
            messages.append({"role": role, "content": parts})
            continue
        if not isinstance(content, list) or not content:
            raise BadRow(where, f"the {role}'s content is {_short(content)}; it must be text or a list of parts")
        parts = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                check_text(part.get("text"), role, where)
                parts.append({"type": "text", "text": part["text"]})
            elif kind == "audio" and role == "user":
                source = part.get("audio")
                if source is None and beside:
                    source = beside.pop(0)
                said = part.get("text") or next(texts, None)
                if source is None and not said:
                    raise BadRow(where, "an audio part without audio: give its path, or what it should say as text")
                if said:
                    check_text(said, role, where)
                audios.append(source)
                parts.append({"type": "audio", "text": said})
            else:
                raise BadRow(
                    where, f"a {role}'s part must be of type text{' or audio' * (role == 'user')}, not {_short(kind)}"
                )
        messages.append({"role": role, "content": parts})
    if beside:
        raise BadRow(where, f"{len(beside)} audios more than there are audio parts")
    return messages, audios


def _from_conversations(record: dict[str, Any], where: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """ShareGPT's `from`/`value`; LLaVA's placeholder `<audio>` with the files under `audio` (one, or a list)."""
    given = record["conversations"]
    if not isinstance(given, list) or not given:
        raise BadRow(where, "conversations must be a list of at least one message")
    files = _as_list(record.get("audio", record.get("audios")))
    ours = "texts" in record  # written by `export`: a turn without a clip was typed
    said = _said(record, where)
    messages, audios = [], []
    for message in given:
        name = message.get("from") if isinstance(message, dict) else None
        role = SHAREGPT_ROLES.get(str(name))
        if role is None:
            raise BadRow(where, f"unknown role {_short(name)}; it must be one of {', '.join(SHAREGPT_ROLES)}")
        value = message.get("value")
        if isinstance(value, str) and PLACEHOLDER in value:
            if role != "user":
                raise BadRow(where, f"{PLACEHOLDER} in the {name}'s turn; only a user's turn holds audio")
            parts: list[dict[str, Any]] = []
            for i, text in enumerate(value.split(PLACEHOLDER)):
                if i:
                    if not files:
                        raise BadRow(where, f"more {PLACEHOLDER} placeholders than audio files")
                    audios.append(files.pop(0))
                    parts.append({"type": "audio", "text": next(said, None)})
                if text.strip():
                    check_text(text, role, where)
                    parts.append({"type": "text", "text": text.strip()})
        else:
            check_text(value, role, where)
            spoken = role == "user" and not ours
            parts = [{"type": "audio" if spoken else "text", "text": value}]
            audios += [None] if spoken else []
        messages.append({"role": role, "content": parts})
    if files:
        raise BadRow(where, f"{len(files)} audio files more than there are {PLACEHOLDER} placeholders")
    return messages, audios


def _check_order(roles: list[str], where: str) -> None:
    """A system message only first; user and assistant by turns. Raises BadRow."""
    turns = roles[1:] if roles[0] == "system" else roles
    for i, role in enumerate(turns):
        wanted = ("user", "assistant")[i % 2]
        if role != wanted:
            raise BadRow(where, f"turn {i + 1} is the {role}'s; it should be the {wanted}'s")


def _said(record: dict[str, Any], where: str) -> Iterator[str]:
    """What each clip says, where the record tells it under `texts`."""
    texts = record.get("texts") or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadRow(where, f"texts is {_short(texts)}; it must be a list of strings")
    return iter(texts)


def _as_list(value: Any) -> list[Any]:
    """One value, several or none."""
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def check_text(text: Any, role: str, where: str) -> None:
    """Raises BadRow for a text that nobody can have meant: empty, huge, with control characters, without a word."""
    if not isinstance(text, str):
        raise BadRow(where, f"the {role}'s text is {_short(text)}; it must be a string")
    if not text.strip():
        raise BadRow(where, f"the {role}'s text is empty")
    if len(text) > MAX_CHARS:
        raise BadRow(where, f"the {role}'s text has {len(text)} characters; at most {MAX_CHARS} make sense")
    if found := re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]", text):
        raise BadRow(where, f"the {role}'s text holds the control character {found[0]!a}")
    if role == "user" and not any(unicodedata.category(c)[0] in "LN" for c in text):
        raise BadRow(where, f"the {role}'s text {_short(text)} holds no letter and no number")


def _short(value: Any) -> str:
    text = ascii(value) if not isinstance(value, str) else "".join(c if c.isprintable() else ascii(c) for c in value)
    return repr(text if len(text) <= 60 else text[:57] + "...")


def user_texts(row: Row) -> list[str]:
    """What is said in each audio part, in order; "" where nobody knows."""
    return [p["text"] or "" for m in row["messages"] for p in m["content"] if p["type"] == "audio"]


def all_texts(row: Row) -> list[str]:
    """Every part's text; "" where nobody knows it."""
    return [part["text"] or "" for message in row["messages"] for part in message["content"]]


def n_words(texts: list[str]) -> int:
    """Words between spaces; a Han character is one, and a longer run than any word is several."""
    return sum(len(re.findall(r"[一-鿿㐀-䶿]|[^\s一-鿿㐀-䶿]{1,20}", text)) for text in texts)


def answers(row: Row) -> list[str]:
    return ["\n".join(p["text"] or "" for p in m["content"]) for m in row["messages"] if m["role"] == "assistant"]


def as_typed(row: Row) -> list[dict[str, str]]:
    """The conversation with every audio part written out, as the LLM reads it."""
    return [
        {"role": message["role"], "content": "\n".join(part["text"] or "" for part in message["content"])}
        for message in row["messages"]
    ]


def drop(row: Row, stage: str, reason: str, detail: str = "") -> Row:
    return {**row, "dropped": {"stage": stage, "reason": reason, "detail": detail}}


def kept(rows: list[Row]) -> Iterator[Row]:
    return (row for row in rows if "dropped" not in row)


def language_of(texts: list[str]) -> str:
    """ "zh" where at least a fifth of the letters are Han characters, else "en"."""
    letters = [c for text in texts for c in text if c.isalpha()]
    han = sum("一" <= c <= "鿿" or "㐀" <= c <= "䶿" for c in letters)
    return "zh" if letters and han * 5 >= len(letters) else "en"
