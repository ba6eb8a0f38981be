"""A long day of `llasm serve` in short: mixed requests, a tenth aborted, a tenth malformed.

    python benchmarks/serve_soak.py [--requests 2000] [--clients 16] [--warm 300]

Prints statuses, memory after the warm-up and at the end, and what is still running then. Ends with 1 where an error was
not a 4xx, memory grew by more than 5 %, or a place was not freed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from serve_process import running

CLIPS = [base64.b64encode(path.read_bytes()).decode() for path in sorted(Path("examples").glob("*.wav"))]
CHAT, SPEECH, WRITE = "/v1/chat/completions", "/v1/audio/speech", "/v1/audio/transcriptions"


def clip(draw: random.Random) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": draw.choice(CLIPS), "format": "wav"}}


def chat(draw: random.Random, model: str) -> dict[str, Any]:
    text = {"type": "text", "text": f"Tell me about number {draw.randrange(1000)}."}
    content = draw.choice([[text], [clip(draw)], [clip(draw), text], [clip(draw), clip(draw)]])
    earlier = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello! What is it?"}]
    return {
        "model": model,
        "messages": [*draw.choice([[], earlier]), {"role": "user", "content": content}],
        "max_tokens": draw.choice([1, 4, 8, 16]),
        "temperature": draw.choice([0, 0.8]),
        "seed": draw.randrange(1000),
        "stream": draw.random() < 0.5,
    }


def malformed(draw: random.Random, model: str) -> dict[str, Any]:
    not_audio = {"type": "input_audio", "input_audio": {"data": "AAAA"}}
    part = draw.choice([not_audio, {"type": "audio_url", "audio_url": {"url": "/etc/passwd"}}])
    faults: list[dict[str, Any]] = [
        {"model": "nobody"},
        {"messages": []},
        {"temperature": "hot"},
        {"messages": [{"role": "user", "content": [part]}]},
        {"messages": [{"role": "user", "content": "hi"}] * 2_000},
        {"max_tokens": 10**9},
    ]
    return {**chat(draw, model), **draw.choice(faults)}


async def one(api: httpx.AsyncClient, draw: random.Random, model: str) -> str:
    """What became of one request."""
    kind = draw.random()
    if kind < 0.1:
        answer = await api.post(CHAT, json=malformed(draw, model))
        return f"malformed {answer.status_code}"
    if kind < 0.2:
        body = {**chat(draw, model), "max_tokens": 512}
        try:
            await asyncio.wait_for(api.post(CHAT, json=body), draw.uniform(0.01, 1.0))
        except asyncio.TimeoutError:
            return "aborted"
        return "ended before it was aborted"
    if kind < 0.25:
        answer = await api.post(SPEECH, json={"model": "tts-1", "voice": "alloy", "input": "It is a fine day."})
    elif kind < 0.3:
        files = {"file": base64.b64decode(draw.choice(CLIPS))}
        answer = await api.post(WRITE, data={"model": model}, files=files)
    else:
        answer = await api.post(CHAT, json=chat(draw, model))
        if answer.status_code == 200 and '"error"' in answer.text[:20]:
            return "an error within a stream"
    return str(answer.status_code)


async def soak(url: str, n_requests: int, n_clients: int, seed: int) -> Counter[str]:
    found: Counter[str] = Counter()
    numbers = iter(range(n_requests))
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=n_clients)) as api:
        model = (await api.get("/v1/models")).json()["data"][0]["id"]

        async def client() -> None:
            for number in numbers:
                try:
                    found[await one(api, random.Random(f"{seed}/{number}"), model)] += 1
                except httpx.HTTPError as error:
                    found[type(error).__name__] += 1

        await asyncio.gather(*(client() for _ in range(n_clients)))
        ends = time.monotonic() + 5
        while (load := (await api.get("/health")).json())["running"] + load["waiting"] and time.monotonic() < ends:
            await asyncio.sleep(0.1)
        found["still running"] = load["running"] + load["waiting"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--warm", type=int, default=300, help="requests before memory is looked at")
    args = parser.parse_args()
    with running() as server:
        asyncio.run(soak(server.url, args.warm, args.clients, 1))
        before, started = server.memory_mb, time.perf_counter()
        found = asyncio.run(soak(server.url, args.requests, args.clients, 2))
        seconds, after = time.perf_counter() - started, server.memory_mb
    stuck = found.pop("still running")
    print(f"{sum(found.values())} requests in {seconds:.0f} s: {dict(sorted(found.items()))}; still running: {stuck}")
    print(f"memory: {before:.0f} MB before, {after:.0f} MB after ({100 * (after / before - 1):+.1f} %)")
    fine = {"200", "429", "aborted", "ended before it was aborted"}
    bad = [name for name in found if name not in fine and not name.startswith("malformed 4")]
    return int(bool(bad) or stuck > 0 or after > 1.05 * before)


if __name__ == "__main__":
    raise SystemExit(main())
