"""The interactive chat of `llasm chat`, and its spoken replies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llasm import audio
from llasm.errors import LlasmError
from llasm.tts import load_voice
from llasm.tts.speakable import speakable

HELP = "Type text, or /audio FILE [text] to ask aloud; /reset forgets the conversation, /quit ends."


def interact(model: Any, max_new_tokens: int) -> None:
    """Reads turns until the input ends; a mistake is told and nothing of the conversation is lost."""
    try:
        import readline  # noqa: F401  (line editing and history for input())
    except ImportError:  # not built into every Python
        pass
    print(HELP)
    messages: list[dict[str, Any]] = []
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        if line in ("/quit", "/exit"):
            return
        if line == "/reset":
            messages = []
        elif line == "/help":
            print(HELP)
        elif line:
            messages = _turn(model, messages, line, max_new_tokens)


def _turn(model: Any, messages: list[dict[str, Any]], line: str, max_new_tokens: int) -> list[dict[str, Any]]:
    """One question and its answer; returns the conversation so far."""
    try:
        asked = [*messages, {"role": "user", "content": parse_turn(line)}]
        stream = model.stream(asked, max_new_tokens=max_new_tokens)
        for piece in stream:
            print(piece, end="", flush=True)
    except LlasmError as error:
        print(f"llasm: {error}")
        return messages
    except KeyboardInterrupt:  # stops the answer, not the chat
        stream.close()
        print("\n(stopped)")
        return messages
    ms = stream.reply.timings_ms["first_token"]
    print(f"\n({ms / 1000:.2f} s to the first token, {stream.reply.n_audio_tokens} audio tokens)")
    return [*asked, {"role": "assistant", "content": stream.reply.text}]


def parse_turn(line: str) -> list[dict[str, Any]]:
    """`/audio FILE [text]` or text → the parts of a user's message; quotes hold a file name with spaces together."""
    if not line.startswith("/"):
        return [{"type": "text", "text": line}]
    import shlex

    try:
        command, *words = shlex.split(line)
    except ValueError as error:
        raise LlasmError(f"{line}: {error}") from error
    if command != "/audio" or not words:
        raise LlasmError(f"unknown command {line!r}. {HELP}")
    wave = audio.decode(words[0])  # read once: the file may be gone by the next turn
    parts: list[dict[str, Any]] = [{"type": "audio", "audio": wave}]
    if words[1:]:
        parts.append({"type": "text", "text": " ".join(words[1:])})
    return parts


def speak(text: str, voice: str, path: Path) -> None:
    """Writes the text as speech to a WAV file."""
    engine, voice_id = load_voice(voice)
    audio.write_wav(path, engine.synthesize(speakable(text), voice_id), engine.sample_rate)
