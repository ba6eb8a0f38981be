"""Time to the first token: llasm against a cascade of Whisper and the same LLM, warm, in one process.

    python benchmarks/first_token.py [FILE …] [--repeats 10]

The cascade is `whisper.load_model("base").transcribe` (the same weights, through openai-whisper) followed by
the same LLM reading the transcript. Prints the median of each in milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import time

import whisper

import llasm
from llasm import audio, weights


def load_whisper() -> whisper.Whisper:
    dims, state = weights.openai_whisper_state_dict(weights.resolve("whisper-base"))
    model = whisper.Whisper(whisper.ModelDimensions(**dims))
    model.load_state_dict(state)
    return model.float().eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", default=["examples/france.wav"])
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    model, recogniser = llasm.load(), load_whisper()

    def direct(file: str) -> float:
        content = [{"type": "audio", "audio": file}]
        return model.chat([{"role": "user", "content": content}], max_new_tokens=1).timings_ms["first_token"]

    def cascade(file: str) -> float:
        started = time.perf_counter()
        text = recogniser.transcribe(audio.decode(file), language="en", fp16=False)["text"]
        heard = 1000 * (time.perf_counter() - started)
        message = {"role": "user", "content": text.strip()}
        return heard + model.chat([message], max_new_tokens=1).timings_ms["first_token"]

    for file in args.files:
        times: dict[str, list[float]] = {"llasm": [], "cascade": []}
        for run in range(args.repeats + 2):  # the first two warm up
            for name, measure in (("llasm", direct), ("cascade", cascade)):
                milliseconds = measure(file)
                if run >= 2:
                    times[name].append(milliseconds)
        ours, theirs = (statistics.median(times[name]) for name in ("llasm", "cascade"))
        print(f"{file}: llasm {ours:.0f} ms, cascade {theirs:.0f} ms, ratio {ours / theirs:.3f}")


if __name__ == "__main__":
    main()
