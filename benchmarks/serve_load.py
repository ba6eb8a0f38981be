"""`llasm serve` under load: tokens a second of one client and of eight, and the time to the first token over HTTP.

    python benchmarks/serve_load.py [--clients 8] [--questions 3] [--tokens 64] [--repeats 10]

Each client asks its own questions, one after the other; greedy, so that every text must equal the one that it gets
alone, from a server of its own. The time to the first token is of examples/france.wav, streamed, each time a sample
longer, since the server does not hear a recording twice; beside it stands that of `ChatModel.stream` in this process,
measured once the servers have ended.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import openai
from serve_process import running

from llasm import audio
from llasm.serve.voice_files import encode

CLIP = Path("examples/france.wav")
TOPICS = (
    "dogs",
    "rain",
    "Paris",
    "music",
    "bread",
    "the sea",
    "a train",
    "winter",
    "a king",
    "tea",
    "books",
    "the moon",
)


def sound(n_more: int) -> dict[str, Any]:
    """The clip with that many samples of silence behind it."""
    wave = np.pad(audio.decode(CLIP), (0, n_more))
    data = base64.b64encode(encode(wave, audio.SAMPLE_RATE, "wav")).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def messages_of(client: int, number: int) -> list[dict[str, Any]]:
    """Long answers of several kinds; every third question is spoken."""
    topic = TOPICS[(client * 5 + number) % len(TOPICS)]
    text = {"type": "text", "text": f"Write a long story about {topic}, number {client}."}
    content = (
        [sound(client), {"type": "text", "text": f"And then: a long story about {topic}."}]
        if number % 3 == 2
        else [text]
    )
    return [{"role": "user", "content": content}]


async def client_run(api: openai.AsyncOpenAI, model: str, client: int, n: int, tokens: int) -> tuple[list[str], int]:
    """(texts, tokens written)."""
    texts, n_tokens = [], 0
    for number in range(n):
        answer = await api.chat.completions.create(
            model=model, messages=messages_of(client, number), max_tokens=tokens, temperature=0
        )
        texts.append(answer.choices[0].message.content or "")
        n_tokens += answer.usage.completion_tokens if answer.usage else 0
    return texts, n_tokens


async def load(url: str, n_clients: int, n: int, tokens: int, together: bool) -> tuple[list[list[str]], float]:
    """(texts of each client, tokens a second of all)."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=600) as api:
        model = (await api.models.list()).data[0].id
        await client_run(api, model, 0, 1, 8)  # warm
        started = time.perf_counter()
        runs = [client_run(api, model, client, n, tokens) for client in range(n_clients)]
        found = await asyncio.gather(*runs) if together else [await run for run in runs]
        seconds = time.perf_counter() - started
    return [texts for texts, _ in found], sum(new for _, new in found) / seconds


def first_over_http(url: str, repeats: int) -> float:
    """Median milliseconds from the call to the first text."""
    times = []
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as api:
        model = api.models.list().data[0].id
        for run in range(repeats + 2):  # the first two warm up
            content: Any = [sound(run)]
            started = time.perf_counter()
            with api.chat.completions.create(
                model=model, messages=[{"role": "user", "content": content}], stream=True, max_tokens=4
            ) as chunks:
                next(chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content)
                if run >= 2:
                    times.append(1000 * (time.perf_counter() - started))
                for _ in chunks:
                    pass
    return statistics.median(times)


def first_in_process(repeats: int) -> float:
    import llasm

    model, times = llasm.load(), []
    messages = [{"role": "user", "content": [{"type": "audio", "audio": str(CLIP)}]}]
    for run in range(repeats + 2):
        started = time.perf_counter()
        stream = model.stream(messages, max_new_tokens=4)
        next(stream)
        if run >= 2:
            times.append(1000 * (time.perf_counter() - started))
        for _ in stream:
            pass
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--questions", type=int, default=3, help="of each client")
    parser.add_argument("--tokens", type=int, default=64, help="length of an answer")
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    asked = (args.clients, args.questions, args.tokens)
    with running() as server:
        http = first_over_http(server.url, args.repeats)
        alone, one = asyncio.run(load(server.url, *asked, together=False))
    with running() as server:
        texts, many = asyncio.run(load(server.url, *asked, together=True))
    same = sum(a == b for two in zip(texts, alone, strict=True) for a, b in zip(*two, strict=True))
    print(f"1 client: {one:.1f} tokens/s; {args.clients} clients: {many:.1f} tokens/s; {many / one:.2f} times")
    print(f"texts equal to those alone: {same} of {args.clients * args.questions}")
    own = first_in_process(args.repeats)
    print(f"first token: {http:.0f} ms over HTTP, {own:.0f} ms in process, ratio {http / own:.2f}")


if __name__ == "__main__":
    main()
