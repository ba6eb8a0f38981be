"""Evaluation one by one against evaluation in batches, over the same questions, in one process.

    python benchmarks/eval_batch.py --data webquestions.jsonl [--limit 200] [--batch-size 32]

Prints items/s of each condition and of all together, the ratio, and how many answers differ.
"""

from __future__ import annotations

import argparse
import tempfile
import time

from llasm.evals import run
from llasm.evals.results import plan
from llasm.evals.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--task", default="webquestions")
    parser.add_argument("--data")
    parser.add_argument("--model", default="llasm-tiny")
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    fields = {"task": args.task, "data": args.data, "model": args.model, "limit": args.limit}
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(**fields, out=folder, batch_size=args.batch_size)
        single = Settings(**fields, out=folder, batch_size=1)
        items = [item for task in settings.tasks for item in run.items_of(settings, task)]
        planned = [p for p in plan(run.run_facts(settings), items) if not p.item.fault]
    seconds: dict[tuple[str, str], float] = {}
    answers: dict[str, dict[str, str]] = {"one by one": {}, "batched": {}}
    conditions = list(dict.fromkeys(str(p.condition) for p in planned))
    for condition in conditions:
        mine = [p for p in planned if str(p.condition) == condition]
        run.batches(single, mine[:1])[0]()  # loads the models
        for name, how in (("batched", settings), ("one by one", single)):
            started = time.perf_counter()
            events = [event for batch in run.batches(how, mine) for event in batch()]
            seconds[condition, name] = time.perf_counter() - started
            answers[name] |= {event["key"]: event.get("text", event.get("error")) for event in events}
        _show(condition, len(mine), seconds[condition, "one by one"], seconds[condition, "batched"])
    totals = [sum(s for (_, how), s in seconds.items() if how == name) for name in ("one by one", "batched")]
    _show("all", len(planned), *totals)
    differing = [key for key, text in answers["one by one"].items() if answers["batched"][key] != text]
    print(f"{len(differing)} of {len(planned)} answers differ")


def _show(name: str, n: int, alone: float, batched: float) -> None:
    print(
        f"{name:8} one by one {n / alone:6.2f} items/s   batched {n / batched:6.2f} items/s   "
        f"ratio {alone / batched:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
