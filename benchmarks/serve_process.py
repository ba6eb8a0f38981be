"""A `llasm serve` of its own for a benchmark: on a free port, ended when the benchmark ends."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import psutil


@dataclass
class Server:
    url: str
    process: psutil.Process

    @property
    def memory_mb(self) -> float:
        """Resident, of the server and what it started."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(one.memory_info().rss for one in family) / 1e6


@contextlib.contextmanager
def running(*options: str, patience_s: float = 120) -> Iterator[Server]:
    """A server with these options, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "llasm.cli", "serve", "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        server = Server(f"http://127.0.0.1:{port}", psutil.Process(process.pid))
        try:
            _await(server.url, process, time.monotonic() + patience_s)
            yield server
        finally:
            process.terminate()


def _await(url: str, process: subprocess.Popen, until: float) -> None:
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        time.sleep(0.2)
    sys.exit(f"llasm serve did not come up; its exit code: {process.poll()}")
