"""Text generators: an LLM that answers typed conversations and writes instructions of its own.

Data generation lets one answer what is then spoken; training takes from one the text that typed chat is guarded on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Protocol

from llasm.errors import LlasmError

Messages = list[dict[str, str]]
REQUESTS_AT_ONCE = 16  # to a server, which batches them


class Refusal(str):
    """The empty answer to a conversation that a server will not have: too long for it, or against its rules."""

    reason: str

    def __new__(cls, reason: str) -> Refusal:
        refusal = super().__new__(cls, "")
        refusal.reason = reason
        return refusal


class TextGenerator(Protocol):
    """Writes the assistant's next message for each conversation, and instructions of its own."""

    identity: str  # part of the cache key: another model writes other answers

    def generate(self, batch: list[Messages], max_new_tokens: int) -> list[tuple[str, bool]]:
        """Greedy answers in order, each with whether `max_new_tokens` cut it off; a Refusal where there is none."""
        ...

    def invent(self, prompt: str | None, n: int, max_new_tokens: int, seed: int) -> list[tuple[str, bool]]:
        """n sampled texts, as `generate`: answers to `prompt`, or with None what the model takes for a user's turn."""
        ...


@lru_cache(maxsize=2)
def generator_for(llm: str, url: str | None) -> TextGenerator:
    """One for each model and process."""
    return ServerGenerator(llm, url) if url else LocalGenerator.load(llm)


def identity_of(llm: str, url: str | None) -> str:
    """What names the model in cache keys, without loading it."""
    if url:
        return f"{url} {llm}"
    from llasm import weights

    return weights.content_hash(weights.resolve(llm))


class LocalGenerator:
    """A transformers model with its tokenizer, which must have a chat template."""

    def __init__(self, model: Any, tokenizer: Any, identity: str) -> None:
        self.identity = identity
        self._model, self._tokenizer = model, tokenizer

    @classmethod
    def load(cls, name: str) -> LocalGenerator:
        """From a named base, a hub id or a directory."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from llasm import weights

        directory = weights.resolve(name)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # bfloat16 halves the time of a batch on CPUs with AMX and on GPUs.
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
        tokenizer: Any = AutoTokenizer.from_pretrained(directory, padding_side="left")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.chat_template is None:
            raise LlasmError(f"{name}: has no chat template; take an instruct or chat model")
        return cls(model.to(device).eval(), tokenizer, weights.content_hash(directory))

    def generate(self, batch: list[Messages], max_new_tokens: int, seed: int | None = None) -> list[tuple[str, bool]]:
        """As the protocol says; with a seed, sampled at temperature 1."""
        inputs = self._tokenizer.apply_chat_template(
            batch, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        if seed is None:
            return self._continue(inputs, max_new_tokens, do_sample=False)
        return self._sampled(inputs, max_new_tokens, seed, top_p=1.0)

    def invent(self, prompt: str | None, n: int, max_new_tokens: int, seed: int) -> list[tuple[str, bool]]:
        if prompt is None:
            prefix = self._user_prefix()
        else:
            messages = [{"role": "user", "content": prompt}]
            prefix = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = self._tokenizer([prefix] * n, return_tensors="pt", add_special_tokens=False)
        return self._sampled(inputs, max_new_tokens, seed, top_p=0.95)

    def _sampled(self, inputs: Any, max_new_tokens: int, seed: int, top_p: float) -> list[tuple[str, bool]]:
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self._continue(inputs, max_new_tokens, do_sample=True, temperature=1.0, top_p=top_p, top_k=0)

    def _user_prefix(self) -> str:
        """What the chat template writes before a user's words."""
        mark = "llasm-marks-the-place"
        text = self._tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False)
        return text.partition(mark)[0]

    def _continue(self, inputs: Any, max_new_tokens: int, **generation: Any) -> list[tuple[str, bool]]:
        import torch

        inputs = inputs.to(self._model.device)
        with torch.inference_mode():
            pad = self._tokenizer.pad_token_id
            output = self._model.generate(**inputs, max_new_tokens=max_new_tokens, pad_token_id=pad, **generation)
        answers = output[:, inputs["input_ids"].shape[1] :]
        stops = self._model.generation_config.eos_token_id
        stops = stops if isinstance(stops, list) else [stops]
        ended = torch.isin(answers, torch.tensor(stops, device=answers.device)).any(1).tolist()
        texts = self._tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [(text.strip(), not end) for text, end in zip(texts, ended, strict=True)]


class ServerGenerator:
    """Any OpenAI-compatible server; OPENAI_API_KEY holds its key where it asks for one."""

    def __init__(self, model: str, url: str) -> None:
        import openai

        self.identity = identity_of(model, url)
        self._errors = openai.OpenAIError
        self._refusals = (openai.BadRequestError, openai.UnprocessableEntityError)
        self._client = openai.OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"), max_retries=5)
        self._model, self._url = model, url

    def generate(self, batch: list[Messages], max_new_tokens: int) -> list[tuple[str, bool]]:
        def one(messages: Messages) -> tuple[str, bool]:
            return self._ask(messages, max_new_tokens, temperature=0.0)

        return self._all(one, batch)

    def invent(self, prompt: str | None, n: int, max_new_tokens: int, seed: int) -> list[tuple[str, bool]]:
        # A chat API gives no way to continue the user's own turn.
        wish = prompt or "Write one instruction or question that a user might ask an assistant. Write only that."
        messages = [{"role": "user", "content": wish}]

        def one(i: int) -> tuple[str, bool]:
            return self._ask(messages, max_new_tokens, temperature=1.0, seed=seed + i)

        return self._all(one, range(n))

    def _all(self, one: Callable[[Any], tuple[str, bool]], batch: Sequence[Any]) -> list[tuple[str, bool]]:
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            answers = list(pool.map(one, batch))
        first = answers[0][0] if answers else ""
        # A server that refuses every one refuses the request, such as a setting: no row is to blame.
        if len(answers) > 1 and isinstance(first, Refusal) and all(isinstance(text, Refusal) for text, _ in answers):
            raise LlasmError(f"{self._url}: refuses every request: {first.reason}")
        return answers

    def _ask(self, messages: Messages, max_new_tokens: int, **sampling: Any) -> tuple[str, bool]:
        request: Any = {"model": self._model, "messages": messages, "max_tokens": max_new_tokens, **sampling}
        try:
            choice = self._client.chat.completions.create(**request).choices[0]
        except self._refusals as error:
            return Refusal(_short(error)), False
        except self._errors as error:
            raise LlasmError(f"{self._url}: {_short(error)}; the batches that are finished are kept") from error
        return (choice.message.content or "").strip(), choice.finish_reason == "length"


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
