"""What every route of the API needs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request

from . import engine
from .engine import Answer, Draining, Engine
from .errors import ApiError
from .fetch import Listener
from .metrics import Metered, Metrics
from .schema import ErrorBody
from .settings import Settings
from .speech import Speaker

T = TypeVar("T")
LOG = logging.getLogger("llasm.serve")
CLIENT_GONE = 499  # what nginx logs for it; nobody is there to read an answer
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "What is wrong with the request"},
    "5XX": {"model": ErrorBody, "description": "The server is shutting down, or could not answer"},
}


class Serving:
    """What every route needs."""

    def __init__(self, answering: Engine, speaker: Speaker, settings: Settings) -> None:
        self.metrics = Metrics()
        self.engine = Metered(answering, self.metrics)
        self.speaker, self.settings = speaker, settings
        self.listener = Listener(settings.max_audio_seconds, settings.max_body_bytes, settings.fetch_audio)
        self.started = int(time.time())
        self.draining = False
        self.newcomers: Engine = _Newcomers(self)
        """The engine, for who has no open request of the API."""
        self.page_ends: list[Callable[[], None]] = []
        """What ends the connections that open pages keep, and their conversations."""

    def check_model(self, name: str, *others: str) -> None:
        if name not in (self.engine.name, *others):
            message = f"the model {name!r:.100} does not exist here; there is {self.engine.name!r}"
            raise ApiError(message, 404, "model", "model_not_found")

    def check_open(self) -> None:
        if self.draining:
            raise Draining

    def hang_up(self) -> None:
        for end in self.page_ends:
            end()


class _Newcomers:
    """Submits nothing while the server drains. The engine itself still takes it: a request that is being answered may
    need several answers."""

    def __init__(self, serving: Serving) -> None:
        self.name = serving.engine.name
        self._serving = serving
        self.load, self.drain, self.close = serving.engine.load, serving.engine.drain, serving.engine.close

    def submit(self, request: engine.Request) -> Answer:
        self._serving.check_open()
        return self._serving.engine.submit(request)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T], leave: Callable[[], None]) -> T:
    """The work's result; if the client goes away first, `leave` is called and the work ended."""
    working = asyncio.ensure_future(work)
    going = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, going}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError("the client has gone", CLIENT_GONE)
    finally:
        going.cancel()
        if not working.done():
            leave()
            working.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
