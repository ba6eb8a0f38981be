"""Who answers: one interface over the model in this process (`LocalEngine`) and over another server (`remote`).

A request becomes an `Answer`, which is iterated over as its text is written. Requests are answered together: a late one
joins the running ones at the next token, and one that ends leaves them (Orca, OSDI 2022, section 3.1).
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from llasm.chat import MAX_NEW_TOKENS, ChatModel, Messages, Reply, check_generation, check_messages
from llasm.errors import LlasmError

from .batch import Batch, Row
from .recall import RecallingChat

MAX_BATCH = 16  # rows answered at once; more only make each slower on a CPU
MAX_WAITING = 64
TIMEOUT_S = 120.0
MAX_CACHED_TOKENS = 32_768  # of all rows together, padding included: bounds the key-value cache


class Busy(LlasmError):
    """The queue is full; another try in `retry_after_s` may find a place."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"too many requests are waiting; try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class Draining(LlasmError):
    """The server is shutting down and takes no new request."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class TimedOut(LlasmError):
    """Nothing was written within the time limit."""


@dataclass(frozen=True)
class Request:
    """One conversation to answer."""

    messages: Messages
    """As `llasm.chat` takes them; audio as float32 [n_samples] at 16 kHz, for a client's text names no file here."""
    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""


FinishReason = Literal["stop", "length", "cancelled"]


class Answer:
    """An answer as it is written: `async for piece in answer`. Raises LlasmError there if it cannot be had."""

    def __init__(self) -> None:
        self.reply: Reply | None = None
        """The whole, after the last piece (of a cancelled answer what there was)."""
        self.finish_reason: FinishReason | None = None
        """`length`: max_new_tokens, the model's context or the time limit was reached."""
        self.n_prompt_tokens = 0
        """Audio tokens included."""
        self.n_new_tokens = 0
        self.when_done: Callable[[Answer], None] | None = None
        """Called in the event loop once nothing more comes; may be set until control returns to the loop."""
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[str | BaseException | None] = asyncio.Queue()
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        """Ends it; its place is free at the next token."""
        self.cancelled.set()

    async def __aiter__(self) -> AsyncIterator[str]:
        while (piece := await self._pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def put(self, piece: str | BaseException | None) -> None:
        """The next piece, an error, or None at the end; from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._deliver, piece)
        except RuntimeError:  # its event loop has ended, so nobody reads it
            self.cancel()

    def _deliver(self, piece: str | BaseException | None) -> None:
        self._pieces.put_nowait(piece)
        if not isinstance(piece, str) and self.when_done is not None:
            self.when_done(self)


class Engine(Protocol):
    """What the page and the API need."""

    name: str
    """The model's, as clients see it."""

    def submit(self, request: Request) -> Answer:
        """Called in a running event loop. Raises Busy, Draining, or LlasmError for what nobody could answer."""

    def load(self) -> tuple[int, int]:
        """(answers being written, requests waiting)."""

    async def drain(self, timeout_s: float) -> None:
        """Takes nothing new, and returns when all is answered or `timeout_s` is over."""

    def close(self) -> None:
        """Ends what is still running."""


@dataclass(eq=False)
class _Waiting:
    request: Request
    answer: Answer
    submitted: float  # time.perf_counter()
    n_positions: int = 0  # that it may come to take, once they are counted


class LocalEngine:
    """The model in this process. One thread runs it; all requests share its steps."""

    def __init__(
        self,
        chat: ChatModel,
        name: str,
        max_batch: int = MAX_BATCH,
        max_waiting: int = MAX_WAITING,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.name, self.max_waiting, self.timeout_s = name, max_waiting, timeout_s
        self._chat, self._max_batch = RecallingChat(chat), max_batch
        self._batch = Batch(self._chat)
        self._running: dict[Row, _Waiting] = {}
        self._waiting: deque[_Waiting] = deque()
        self._n_joining = 0  # neither waiting nor running
        self._wake = threading.Condition()
        self._draining = self._closed = False
        self._seconds = 2.0  # of an answer, a running mean
        self._thread = threading.Thread(target=self._run, name="llasm-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Answer:
        check_messages(request.messages)
        check_generation(request.max_new_tokens, request.temperature, request.top_p)
        with self._wake:
            if self._draining:
                raise Draining
            if len(self._waiting) >= self.max_waiting:
                rounds = math.ceil(len(self._waiting) / self._max_batch)
                raise Busy(max(1.0, math.ceil(rounds * self._seconds)))
            answer = Answer()
            self._waiting.append(_Waiting(request, answer, time.perf_counter()))
            self._wake.notify()
        return answer

    def load(self) -> tuple[int, int]:
        return len(self._running) + self._n_joining, len(self._waiting)

    async def drain(self, timeout_s: float) -> None:
        with self._wake:
            self._draining = True
        ends = time.perf_counter() + timeout_s
        while self.load() != (0, 0) and time.perf_counter() < ends:
            await asyncio.sleep(0.02)

    def close(self) -> None:
        with self._wake:
            self._draining = self._closed = True
            self._wake.notify()
        self._thread.join(timeout=30)

    # ---- the thread

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._running or self._waiting or self._closed):
                    self._wake.wait()
                if self._closed:
                    break
            try:
                self._join(self._newcomers())
                self._step()
            except Exception as error:  # out of memory, say: those in the batch fail, the engine goes on
                self._fail(error)
        for job in [*self._running.values(), *self._waiting]:
            job.answer.finish_reason = "cancelled"
            job.answer.put(None)
        self._running.clear()
        self._waiting.clear()

    def _newcomers(self) -> list[_Waiting]:
        """Those for whom there is room, in their order."""
        chosen: list[_Waiting] = []
        with self._wake:
            self._dismiss()
            longest = self._batch.longest
            while self._waiting and (n_rows := len(self._running) + len(chosen) + 1) <= self._max_batch:
                longest = max(longest, self._positions(self._waiting[0]))
                if n_rows > 1 and n_rows * longest > MAX_CACHED_TOKENS:
                    break
                chosen.append(self._waiting.popleft())
                self._n_joining += 1
        return chosen

    def _dismiss(self) -> None:
        """Tells those of the waiting who have left or waited too long; their places are free."""
        now = time.perf_counter()
        for job in list(self._waiting):
            if job.answer.cancelled.is_set():
                self._waiting.remove(job)
                self._end(job, None, "cancelled")
            elif now - job.submitted > self.timeout_s:
                self._waiting.remove(job)
                job.answer.put(TimedOut(f"waited {self.timeout_s:.0f} s for a place; try again later"))

    def _positions(self, job: _Waiting) -> int:
        if not job.n_positions:
            try:
                job.n_positions = self._chat.prompt_bound(job.request.messages) + job.request.max_new_tokens
            except Exception:  # when it joins the client is told why
                job.n_positions = 1
        return min(job.n_positions, self._chat.model.config.text_config.max_position_embeddings)

    def _join(self, jobs: list[_Waiting]) -> None:
        """Encodes and prefills; all at once, or one by one where one of them cannot be answered."""
        if not jobs:
            return
        try:
            rows = self._batch.join([job.request for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                self._n_joining -= 1
                jobs[0].answer.put(error)
                return
            for job in jobs:
                self._join([job])
            return
        for row, job in zip(rows, jobs, strict=True):
            self._running[row] = job
            self._n_joining -= 1
            job.answer.n_prompt_tokens = row.n_prompt_tokens
        self._deliver()  # the first pieces, before a further step

    def _step(self) -> None:
        """A token for every row; those who have left or are late end before it."""
        if not self._running:
            return
        now = time.perf_counter()
        for row, job in self._running.items():
            if job.answer.cancelled.is_set():
                row.finish_reason = "cancelled"
            elif now - job.submitted > self.timeout_s:
                row.finish_reason = "length"
        self._batch.drop_ended()
        self._batch.step()
        self._deliver()

    def _deliver(self) -> None:
        """Gives out the text that is new, and drops the rows that have ended."""
        for row, job in list(self._running.items()):
            if piece := row.take_piece():
                job.answer.put(piece)
            if row.finish_reason is not None:
                del self._running[row]
                self._end(job, row, row.finish_reason)
        self._batch.drop_ended()

    def _end(self, job: _Waiting, row: Row | None, reason: FinishReason) -> None:
        answer, seconds = job.answer, time.perf_counter() - job.submitted
        answer.finish_reason = reason
        if row is not None:
            first = 1000 * ((row.first_token_at or time.perf_counter()) - job.submitted)
            timings = {**row.timings_ms, "first_token": first, "total": 1000 * seconds}
            answer.n_new_tokens = len(row.ids)
            answer.reply = Reply(row.text.strip(), row.n_audio_tokens, row.audio_seconds, timings)
            self._seconds = 0.9 * self._seconds + 0.1 * seconds
        answer.put(None)

    def _fail(self, error: Exception) -> None:
        for job in self._running.values():
            job.answer.put(error)
        self._running.clear()
        self._n_joining = 0
        self._batch = Batch(self._chat)
