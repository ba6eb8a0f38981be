"""This process hears, another server runs the LLM alone: the same answers as from one process."""

import asyncio
import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llasm import checkpoint
from llasm.adapter import AdapterConfig
from llasm.chat import ChatModel
from llasm.errors import LlasmError
from llasm.serve.engine import Request
from llasm.serve.hearing import HearingEngine
from llasm.serve.settings import Settings


@pytest.fixture(scope="module")
def merged(bases, tmp_path_factory):
    """A random model of rate `heard`, and its LLM alone."""
    folder = tmp_path_factory.mktemp("hearing")
    small = AdapterConfig(width=32, n_layers=1, n_heads=2, rate="heard")
    model, processor = checkpoint.from_bases(bases["audio_base"], bases["text_base"], small)
    torch.manual_seed(3)
    for name, weight in model.model.language_model.named_parameters():
        if weight.dim() == 2:  # larger than they are drawn, or it repeats one token
            torch.nn.init.normal_(weight, std=1.0 if "embed" in name else 0.3)
    model.config.architectures = [type(model).__name__]
    model.save_pretrained(folder / "merged")
    processor.save_pretrained(folder / "merged")
    checkpoint.export_llm(folder / "merged", folder / "llm")
    return folder


def load(merged):
    model, processor = checkpoint.load(merged / "merged", torch.float32)
    return ChatModel(model.eval(), processor, "tiny")


@pytest.fixture(scope="module")
def server(merged):
    """Completions from prompt embeddings, in vLLM's shape, by the exported LLM."""
    llm = AutoModelForCausalLM.from_pretrained(merged / "llm").eval()
    tokenizer = AutoTokenizer.from_pretrained(merged / "llm")

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            self._send("application/json", json.dumps({"object": "list", "data": [{"id": "llm", "object": "model"}]}))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/completions" and body["prompt"] is None and body["stream"]
            embeds = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True)
            with torch.inference_mode():
                ids = llm.generate(
                    inputs_embeds=embeds[None],
                    attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
                    max_new_tokens=body["max_tokens"],
                    do_sample=False,
                )[0]
            text = tokenizer.decode(ids, skip_special_tokens=True)
            chunks = [{"index": 0, "text": text[:3]}, {"index": 0, "text": text[3:], "finish_reason": "length"}]
            usage = {"prompt_tokens": len(embeds), "completion_tokens": len(ids), "total_tokens": 0}
            events = [{"choices": [chunk]} for chunk in chunks] + [{"choices": [], "usage": usage}]
            lines = [f"data: {json.dumps({'id': 'x', 'object': 'text_completion', **event})}\n\n" for event in events]
            self._send("text/event-stream", "".join([*lines, "data: [DONE]\n\n"]))

        def _send(self, kind, text):
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}/v1"
    listening.shutdown()
    listening.server_close()


def test_answers_are_those_of_one_process(merged, server):
    wave = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    spoken = [{"role": "user", "content": [{"type": "audio", "audio": wave}, {"type": "text", "text": "What?"}]}]
    conversations = [spoken, [{"role": "user", "content": "Hello"}]]
    alone = [load(merged).chat(messages, max_new_tokens=12) for messages in conversations]
    engine = HearingEngine(load(merged), server)

    async def ask(messages):
        answer = engine.submit(Request(messages, max_new_tokens=12))
        return "".join([piece async for piece in answer]), answer

    async def both():
        return await asyncio.gather(*map(ask, conversations))

    for (text, answer), reply in zip(asyncio.run(both()), alone, strict=True):
        assert text.strip() == answer.reply.text == reply.text and reply.text
        assert answer.reply.n_audio_tokens == reply.n_audio_tokens
        assert answer.reply.audio_seconds == reply.audio_seconds
        assert answer.n_prompt_tokens > reply.n_audio_tokens and answer.n_new_tokens == 12
        assert {"encode", "first_token", "total"} <= set(answer.reply.timings_ms)
    assert alone[0].n_audio_tokens > 0


def test_ears_without_an_engine_are_a_mistake():
    with pytest.raises(LlasmError, match="there is no engine"):
        Settings(hear="llasm-tiny")
