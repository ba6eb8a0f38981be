"""Answers the example questions aloud.

    python -m llasm.demo [EXAMPLES_DIR] [OUT_DIR]

Prints each question, the answer as it streams and the time to its first token, and writes the spoken
reply into OUT_DIR.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llasm import terminal
from llasm.cli import quiet
from llasm.errors import LlasmError


def main(examples: str = "examples", out: str = "out") -> None:
    listing = Path(examples) / "questions.jsonl"
    if not listing.is_file():
        raise LlasmError(f"{listing}: no such file; run the demo from the repository, or name the examples' folder")
    quiet()
    from llasm import chat

    model = chat.load()
    Path(out).mkdir(exist_ok=True)
    for line in listing.read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        path = Path(examples) / question["file"]
        print(f"\n🎤 {path}  ({question['text']})\n💬 ", end="", flush=True)
        stream = model.stream([{"role": "user", "content": [{"type": "audio", "audio": path}]}], max_new_tokens=64)
        for piece in stream:
            print(piece, end="", flush=True)
        reply = stream.reply
        assert reply is not None
        spoken = Path(out) / f"{path.stem}-reply.wav"
        terminal.speak(reply.text, "hibari", spoken)
        first = reply.timings_ms["first_token"] / 1000
        print(f"\n   first token after {first:.2f} s; the reply as speech: {spoken}")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except LlasmError as error:
        sys.exit(f"llasm: {error}")
