"""Runs pieces of work in processes on this machine, or under Ray Data on a cluster.

A piece is a callable without arguments that can be sent to another process. Its result is anything that JSON holds.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context, parent_process
from typing import Any

from llasm.errors import LlasmError

Work = Callable[[], Any]


def n_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _run_local(todo: Sequence[Work], n_processes: int, uses_model: bool) -> Iterator[Any]:
    if n_processes == 1:
        for work in todo:
            yield work()
        return
    context = get_context("spawn")
    started = context.Value("i", 0)
    others = active_children()
    with ProcessPoolExecutor(min(n_processes, len(todo)), context, start_worker, (started,)) as pool:
        futures = [pool.submit(work) for work in todo]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            # What they were at is done again later; left running they would write on after the caller's lock is gone.
            for worker in set(active_children()) - set(others):
                worker.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def start_worker(started: Any) -> None:
    """Set-up of a worker: one core, one GPU where there are any, and no life without its parent."""
    os.environ["OMP_NUM_THREADS"] = "1"
    with started.get_lock():
        number = started.value
        started.value += 1
    if n := n_gpus():
        import torch

        torch.cuda.set_device(number % n)
    parent = parent_process()
    assert parent is not None  # this is a child

    def watch() -> None:
        # A parent that was killed cannot stop its workers, and they would wait for tasks for ever.
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_ray(todo: Sequence[Work], n_processes: int, uses_model: bool) -> Iterator[Any]:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise LlasmError(f"runner ray needs the package ray: pip install 'llasm[ray]' ({error})") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    gpus: Any = {"num_gpus": 1} if uses_model and ray.cluster_resources().get("GPU") else {}
    # One piece of work an item, so that each is placed by itself.
    items = ray.data.from_items([{"work": work} for work in todo], override_num_blocks=len(todo))
    for row in items.map(_run_item, num_cpus=1, **gpus).iter_rows():
        if row["error"]:  # told as it was, not in Ray's many lines
            raise LlasmError(row["error"])
        yield json.loads(row["result"])


def _run_item(item: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": json.dumps(item["work"]()), "error": ""}
    except LlasmError as error:
        return {"result": "null", "error": str(error)}


class single_threaded:
    """torch on one thread inside; sums are then added in one order everywhere."""

    def __enter__(self) -> None:
        import torch

        self._n_threads = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *error: object) -> None:
        import torch

        torch.set_num_threads(self._n_threads)


# (pieces, processes on this machine, whether a piece needs a GPU where there are any) → results as they come
RUNNERS = {"local": _run_local, "ray": _run_ray}
