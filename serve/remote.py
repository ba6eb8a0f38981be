"""An engine that is another server: vLLM with the merged export, or any that speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import base64
import os
import time
from typing import Any

from llasm import audio
from llasm.chat import Message, Reply, check_generation, check_messages
from llasm.errors import LlasmError

from .engine import MAX_BATCH, MAX_WAITING, TIMEOUT_S, Answer, Busy, Draining, Request
from .errors import EngineFailed

RETRY_AFTER_S = 2.0  # what a client is told while all places are taken; how fast the other server is, is unknown


class RemoteEngine:
    """The same contract over `url`, such as http://localhost:8000/v1; its key is OPENAI_API_KEY.

    Raises LlasmError where the server can't be reached, or serves several models and `model` names none of them.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        name: str | None = None,
        max_batch: int = MAX_BATCH,
        max_waiting: int = MAX_WAITING,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.url, self.timeout_s = url.rstrip("/"), timeout_s
        self.model = _model_at(self.url, model)
        self.name = name or self.model.rstrip("/").rpartition("/")[2]
        self._max_batch, self._max_jobs = max_batch, max_batch + max_waiting
        self._jobs: dict[asyncio.Task[None], Answer] = {}
        self._draining = False
        self._client: Any = None

    def submit(self, request: Request) -> Answer:
        check_messages(request.messages)
        check_generation(request.max_new_tokens, request.temperature, request.top_p)
        if self._draining:
            raise Draining
        if len(self._jobs) >= self._max_jobs:
            raise Busy(RETRY_AFTER_S)
        answer = Answer()
        task = asyncio.get_running_loop().create_task(self._answer(request, answer))
        self._jobs[task] = answer
        task.add_done_callback(lambda task: self._jobs.pop(task, None))
        return answer

    def load(self) -> tuple[int, int]:
        """All that was passed on counts as running: what waits there is not told."""
        return len(self._jobs), 0

    async def drain(self, timeout_s: float) -> None:
        self._draining = True
        if self._jobs:
            await asyncio.wait(list(self._jobs), timeout=timeout_s)

    def close(self) -> None:
        self._draining = True
        for answer in self._jobs.values():
            answer.cancel()

    # ---- one answer

    async def _answer(self, request: Request, answer: Answer) -> None:
        """Passes the pieces on; an answer that is cancelled closes its connection, by which the server notices."""
        reading = asyncio.create_task(self._read(request, answer))
        stopping = asyncio.create_task(_cancelled(answer))
        try:
            await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                reading.cancel()
                answer.finish_reason = "cancelled"
                await asyncio.wait({reading})
            elif error := reading.exception():
                answer.put(error)
                return
            answer.put(None)
        finally:
            stopping.cancel()

    async def _read(self, request: Request, answer: Answer) -> None:
        import openai

        heard = Heard()
        try:
            await asyncio.wait_for(self._pass_on(request, answer, heard), self.timeout_s)
        except asyncio.TimeoutError:
            answer.finish_reason = "length"
        except openai.RateLimitError:
            raise Busy(RETRY_AFTER_S) from None
        except openai.BadRequestError as error:
            raise LlasmError(f"the engine refuses: {_message(error)}") from None
        except openai.OpenAIError as error:
            raise EngineFailed(f"the engine at the back failed ({type(error).__name__}); try again later") from error
        finally:
            answer.reply = heard.reply(_seconds(request))

    async def _pass_on(self, request: Request, answer: Answer, heard: Heard) -> None:
        async with await self._stream(request, heard) as stream:
            async for chunk in stream:
                if chunk.usage is not None:
                    answer.n_prompt_tokens = chunk.usage.prompt_tokens
                    answer.n_new_tokens = chunk.usage.completion_tokens
                    details = chunk.usage.prompt_tokens_details
                    if details is not None and details.audio_tokens:
                        heard.n_audio_tokens = details.audio_tokens
                for choice in chunk.choices:
                    if piece := self._text(choice):
                        heard.add(piece)
                        answer.put(piece)
                    if choice.finish_reason is not None:
                        answer.finish_reason = "length" if choice.finish_reason == "length" else "stop"

    async def _stream(self, request: Request, heard: Heard) -> Any:
        """As `_open`; once more where the connection had been closed at the other end since the last request."""
        import openai

        try:
            return await self._open(request, heard)
        except openai.APITimeoutError:
            raise
        except openai.APIConnectionError:
            return await self._open(request, heard)

    async def _open(self, request: Request, heard: Heard) -> Any:
        """The stream of an answer's chunks."""
        messages = await asyncio.to_thread(lambda: [_as_openai(message) for message in request.messages])
        return await self._server().chat.completions.create(messages=messages, **self._generation(request))

    def _text(self, choice: Any) -> str | None:
        """What a chunk adds to the answer."""
        return choice.delta.content

    def _server(self) -> Any:
        import openai

        if self._client is None:
            key = os.environ.get("OPENAI_API_KEY", "none")  # servers of one's own ask for none
            self._client = openai.AsyncOpenAI(api_key=key, base_url=self.url, max_retries=0, timeout=self.timeout_s)
        return self._client

    def _generation(self, request: Request) -> dict[str, Any]:
        import openai

        return {
            "model": self.model,
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed if request.seed is not None else openai.omit,
            "stop": list(request.stop) or openai.omit,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


class Heard:
    """What has come of one answer, and when."""

    def __init__(self) -> None:
        self.started, self.first = time.perf_counter(), 0.0
        self.text, self.n_audio_tokens = "", 0
        self.timings_ms: dict[str, float] = {}  # of what was done before the server was asked

    def add(self, piece: str) -> None:
        self.first = self.first or time.perf_counter()
        self.text += piece

    def reply(self, audio_seconds: float) -> Reply:
        now = time.perf_counter()
        timings = {"first_token": 1000 * ((self.first or now) - self.started), "total": 1000 * (now - self.started)}
        return Reply(self.text.strip(), self.n_audio_tokens, audio_seconds, {**self.timings_ms, **timings})


async def _cancelled(answer: Answer) -> None:
    while not answer.cancelled.is_set():
        await asyncio.sleep(0.02)


def _model_at(url: str, wanted: str | None) -> str:
    import openai

    key = os.environ.get("OPENAI_API_KEY", "none")
    try:
        with openai.OpenAI(api_key=key, base_url=url, max_retries=0, timeout=10) as client:
            served = [model.id for model in client.models.list()]
    except openai.OpenAIError as error:
        raise LlasmError(f"engine {url}: {_message(error)}; is the server running, and its address right?") from error
    if wanted is not None and wanted not in served:
        raise LlasmError(f"engine {url}: has no model {wanted!r}; it has {', '.join(served) or 'none'}")
    if wanted is None and len(served) != 1:
        raise LlasmError(f"engine {url}: has {len(served)} models ({', '.join(served)}); name one with --model")
    return wanted or served[0]


def _message(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _as_openai(message: Message) -> Message:
    """A message of llasm's in OpenAI's shape: each clip a FLAC file."""
    if isinstance(message["content"], str):
        return message
    return {"role": message["role"], "content": [_part(part) for part in message["content"]]}


def _part(part: Message) -> Message:
    if part["type"] == "text":
        return part
    data = base64.b64encode(audio.to_flac_bytes(part["audio"])).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "flac"}}


def _seconds(request: Request) -> float:
    contents = [m["content"] for m in request.messages if isinstance(m["content"], list)]
    clips = [part["audio"] for content in contents for part in content if part["type"] == "audio"]
    return sum(map(len, clips)) / audio.SAMPLE_RATE
