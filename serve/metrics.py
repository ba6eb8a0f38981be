"""What `/metrics` shows (Prometheus), and one line of log a request; neither holds anything of what was said."""

from __future__ import annotations

import logging
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .engine import Answer, Busy, Engine, Request
from .errors import api_error
from .guard import App, Message, Receive, Scope, Send

LOG = logging.getLogger("llasm.serve")
ROUTES = (
    "/v1/chat/completions",
    "/v1/models",
    "/v1/audio/transcriptions",
    "/v1/audio/speech",
    "/health",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/login",
)
PAGE_ANSWERS = "/gradio_api/queue/data"
BUSY_S = 2.0  # what a client is told to wait while no request is let in
FIRST_TOKEN_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)
TOKENS_PER_S = (1, 2, 5, 10, 15, 20, 30, 50, 75, 100, 200, 500)


class Metrics:
    """The counters of one server; of its own registry, so that two servers in a process do not mix."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.in_flight = 0
        """Requests below /v1 whose answer is not wholly sent."""
        self.page_answers = 0
        """Pages that an answer is being sent to."""
        self.requests = Counter(
            "llasm_requests", "Requests by route and status", ["route", "status"], registry=registry
        )
        self.refused = Counter("llasm_engine_refused", "Requests that the engine did not take", registry=registry)
        self.answers = Counter("llasm_answers", "Answers by how they ended", ["reason"], registry=registry)
        self.first_token = Histogram(
            "llasm_first_token_seconds", "From a request to its first token", buckets=FIRST_TOKEN_S, registry=registry
        )
        self.pace = Histogram(
            "llasm_tokens_per_second", "Of one answer, after its first token", buckets=TOKENS_PER_S, registry=registry
        )
        self.prompt_tokens = Counter("llasm_prompt_tokens", "Tokens read, audio included", registry=registry)
        self.audio_tokens = Counter("llasm_audio_tokens", "Tokens of audio read", registry=registry)
        self.new_tokens = Counter("llasm_new_tokens", "Tokens written", registry=registry)

    def watch(self, engine: Engine) -> None:
        """Shows how many answers are being written and how many requests wait."""
        running = Gauge("llasm_running", "Answers being written", registry=self.registry)
        running.set_function(lambda: engine.load()[0])
        waiting = Gauge("llasm_waiting", "Requests waiting for a place", registry=self.registry)
        waiting.set_function(lambda: engine.load()[1])

    def done(self, answer: Answer) -> None:
        """Counts an answer that has ended."""
        self.answers.labels(answer.finish_reason or "failed").inc()
        self.prompt_tokens.inc(answer.n_prompt_tokens)
        self.new_tokens.inc(answer.n_new_tokens)
        if answer.reply is None:
            return
        self.audio_tokens.inc(answer.reply.n_audio_tokens)
        timings = answer.reply.timings_ms
        if answer.n_new_tokens and "first_token" in timings:
            self.first_token.observe(timings["first_token"] / 1000)
            seconds = (timings["total"] - timings["first_token"]) / 1000
            if answer.n_new_tokens > 1 and seconds > 0:
                self.pace.observe((answer.n_new_tokens - 1) / seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Metered:
    """An engine whose answers are counted, whoever asks: the page or the API."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.name = engine.name
        self._engine, self._metrics = engine, metrics
        metrics.watch(engine)

    def submit(self, request: Request) -> Answer:
        try:
            answer = self._engine.submit(request)
        except Exception:
            self._metrics.refused.inc()
            raise
        answer.when_done = self._metrics.done
        return answer

    def load(self) -> tuple[int, int]:
        return self._engine.load()

    async def drain(self, timeout_s: float) -> None:
        await self._engine.drain(timeout_s)

    def close(self) -> None:
        self._engine.close()


class Observed:
    """Counts and logs every request, also those that the guard turns away.

    Of the API's at most `max_in_flight` are let in at a time: their bodies are held before the engine is asked.
    """

    def __init__(self, app: App, metrics: Metrics, max_in_flight: int) -> None:
        self.app, self.metrics, self.max_in_flight = app, metrics, max_in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, path = time.perf_counter(), 500, scope["path"]

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        full = path.startswith("/v1/") and self.metrics.in_flight >= self.max_in_flight
        app = api_error(Busy(BUSY_S)).response() if full else self.app
        of_api, of_page = path.startswith("/v1/"), path == PAGE_ANSWERS
        self.metrics.in_flight += of_api
        self.metrics.page_answers += of_page
        try:
            await app(scope, receive, send_on)
        finally:
            self.metrics.in_flight -= of_api
            self.metrics.page_answers -= of_page
            route = next((known for known in ROUTES if path == known or path.startswith(known + "/")), "page")
            self.metrics.requests.labels(route, str(status)).inc()
            if route not in ("page", "/health", "/metrics"):
                seconds = time.perf_counter() - started
                LOG.info("%s %s %d %.3f s", scope["method"], route, status, seconds)
