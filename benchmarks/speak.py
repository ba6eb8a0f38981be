"""The speak stage against its voice engine alone, on the same texts and cores, in one run.

    python benchmarks/speak.py questions.jsonl [--voice hibari] [--rows 2000] [--workers 2]

"Engine alone" is one process a core that calls `synthesize` on the same speakable texts at the same speeds and does
nothing with the samples. The stage also resamples them, packs them as FLAC and writes them to disk. Both run three
times by turns; the median counts. Starting the processes and loading the voice is left out of both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from llasm.data_gen.build import BLOCK_ROWS
from llasm.data_gen.recipe import Recipe
from llasm.data_gen.runner import StageWork, block_path, read_block, write_block
from llasm.data_gen.sources import read
from llasm.data_gen.speak import Speak, engine_of, resolve_voices
from llasm.draws import draw, seed_of
from llasm.spread import start_worker
from llasm.tts.speakable import speakable


def engine_alone(job: tuple[str, str, list[tuple[str, float, int]]]) -> None:
    engine, voice, utterances = job
    for text, speed, seed in utterances:
        engine_of(engine).synthesize(text, voice, speed, seed)


def stage_work(work: StageWork) -> None:
    work()


def warm(job: tuple[str, str]) -> None:
    time.sleep(1)  # so that each process takes one
    engine_of(job[0]).synthesize("Warm up.", job[1])
    import torch  # noqa: F401  (the stage's runner sets its threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("input")
    parser.add_argument("--voice", default="hibari")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    rows = read(Recipe(output="", input=args.input), print)[: args.rows]
    voices = resolve_voices([args.voice])
    (engine, voice), low, high = voices[0], 0.85, 1.2
    stage = Speak(voices, (low, high), 30.0, 0)
    texts = [(row["id"], row["messages"][0]["content"][0]["text"]) for row in rows]
    utterances = [
        (speakable(text), low + (high - low) * draw(f"speed/0/{name}/0"), seed_of(f"noise/0/{name}/0") % 2**32)
        for name, text in texts
    ]
    jobs = [(engine, voice.id, utterances[i : i + BLOCK_ROWS]) for i in range(0, len(rows), BLOCK_ROWS)]
    context = get_context("spawn")
    times: dict[str, list[float]] = {"engine": [], "stage": []}
    seconds = 0.0
    with ProcessPoolExecutor(args.workers, context, start_worker, (context.Value("i", 0),)) as pool:
        list(pool.map(warm, [(engine, voice.id)] * args.workers))
        for _ in range(3):
            started = time.perf_counter()
            list(pool.map(engine_alone, jobs))
            times["engine"].append(time.perf_counter() - started)
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder)
                blocks = [f"rows/{i}" for i in range(len(jobs))]
                for i, block in enumerate(blocks):
                    write_block(root, block, rows[i * BLOCK_ROWS : (i + 1) * BLOCK_ROWS])
                works = [StageWork(stage, root, block, f"speak/{i}") for i, block in enumerate(blocks)]
                started = time.perf_counter()
                list(pool.map(stage_work, works))
                times["stage"].append(time.perf_counter() - started)
                assert all(block_path(root, work.name).exists() for work in works)
                spoken = [r for work in works for r in read_block(root, work.name, clips=False) if "dropped" not in r]
                seconds = sum(s for row in spoken for s in row["meta"]["seconds"])
    alone, staged = (statistics.median(times[name]) for name in ("engine", "stage"))
    print(f"{len(rows)} texts, {seconds / 3600:.2f} h of speech, {args.workers} processes, voice {engine}:{voice.id}")
    print(f"engine alone {seconds / alone:.0f} s of speech a second ({len(rows) / alone:.1f} texts/s)")
    print(f"speak stage  {seconds / staged:.0f} s of speech a second ({len(rows) / staged:.1f} texts/s)")
    print(f"ratio        {alone / staged:.3f}")


if __name__ == "__main__":
    main()
