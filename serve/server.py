"""`llasm serve`: the page and the API in one process on one port, and how it ends.

The first SIGTERM or Ctrl-C drains: what is being answered is answered, new requests get 503, and the process ends after
`drain_s` seconds at the latest. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import sys
import time
import webbrowser
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from llasm.errors import LlasmError

from .api import application
from .engine import Engine, LocalEngine
from .serving import Serving
from .settings import Settings
from .speech import Speaker

if TYPE_CHECKING:
    from llasm.chat import ChatModel

CLOSE_S = 1  # for connections that are still open once all is answered


def serve(settings: Settings) -> None:
    """Runs until a signal ends it. LlasmError where the port is taken or the model can't be had."""
    listener = _bind(settings.host, settings.port)  # first: it fails at once, the model takes seconds
    _log()
    speaker = Speaker(settings.voice)
    engine = _engine(settings)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    app, serving = application(engine, speaker, settings, page=True)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=CLOSE_S
    )
    server = _Server(config, serving, listener)
    server.run(sockets=[listener])
    if not server.force_exit:
        engine.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, serving: Serving, listener: socket.socket) -> None:
        super().__init__(config)
        self._serving, self._listener = serving, listener
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        settings = self._serving.settings
        host = "localhost" if settings.on_loopback else settings.host
        address = f"http://{f'[{host}]' if ':' in host else host}:{self._listener.getsockname()[1]}"
        print(f"{self._serving.engine.name} is at {address}, its API at {address}/v1 ({address}/docs)", flush=True)
        if not settings.on_loopback and settings.api_key is None:
            print("llasm: other machines may ask without a key; see --api_key", file=sys.stderr)
        if settings.open:
            webbrowser.open(address)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come; Python runs this in the main thread, between two steps of the event loop."""
        if self._serving.draining or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        self._serving.draining = True
        self._loop.call_soon_threadsafe(self._begin_draining)

    def _begin_draining(self) -> None:
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        """Newcomers are refused by now. The engine stays open until all is sent: an answer may be made of several of
        the engine's, as a transcription is of its segments."""
        serving, metrics = self._serving, self._serving.metrics
        ends = time.monotonic() + serving.settings.drain_s
        while (metrics.in_flight or metrics.page_answers) and time.monotonic() < ends:
            await asyncio.sleep(0.02)
        await serving.engine.drain(max(0.0, ends - time.monotonic()))
        serving.hang_up()
        self.should_exit = True


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # elsewhere it would let two servers share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise LlasmError(f"port {port} of {host} is taken; choose another with --port") from error
        raise LlasmError(f"cannot listen on port {port} of {host}: {error.strerror}") from error
    return listener


def _engine(settings: Settings) -> Engine:
    limits = {"max_batch": settings.max_batch, "max_waiting": settings.max_waiting}
    if settings.engine is not None and settings.hear is None:
        from .remote import RemoteEngine

        return RemoteEngine(settings.engine, settings.model, settings.name, timeout_s=settings.timeout_s, **limits)
    from llasm import chat
    from llasm.checkpoint import DEFAULT_MODEL

    if settings.engine is not None and settings.hear is not None:
        from .hearing import HearingEngine

        name = settings.name or Path(settings.hear).name
        at_server = {"model": settings.model, "name": name, "timeout_s": settings.timeout_s, **limits}
        return HearingEngine(chat.load(settings.hear), settings.engine, **at_server)

    model = settings.model or DEFAULT_MODEL
    # In a thread that ends: OpenMP keeps a team for each thread that has computed, and stops its workers from spinning
    # once all teams together have more threads than there are cores. Only the engine's thread should have one.
    with ThreadPoolExecutor(1) as passing:
        loaded = passing.submit(_warm, model).result()
    name = settings.name or Path(model).name
    return LocalEngine(loaded, name, timeout_s=settings.timeout_s, **limits)


def _warm(model: str | Path) -> ChatModel:
    """Loaded, and run once: the first pass takes longer than the next, and nobody should have to wait for it."""
    import numpy as np

    from llasm import audio, chat

    loaded = chat.load(model)
    second = np.zeros(audio.SAMPLE_RATE, np.float32)
    loaded.chat([{"role": "user", "content": [{"type": "audio", "audio": second}]}], max_new_tokens=2)
    return loaded


def _log() -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("llasm.serve").setLevel(logging.INFO)
