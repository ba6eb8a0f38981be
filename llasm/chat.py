"""Messages in, text out: the one interface that the terminal, the server and the evaluations use.

    model = load()
    model.chat([{"role": "user", "content": [{"type": "audio", "audio": "question.wav"}]}]).text

A conversation is a list of messages, each with `role` and `content`, which is text or a list of
`{"type": "text", "text": …}` and `{"type": "audio", "audio": path | bytes | float32 array at 16 kHz | data-URI}`.

Shapes: A clips of at most 30 s over the whole batch, L prompt positions, H LLM width.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from llasm import audio, checkpoint, features
from llasm.errors import LlasmError

Message = dict[str, Any]
Messages = list[Message]

ROLES = ("system", "user", "assistant")
MAX_NEW_TOKENS = 256
ENCODE_BATCH = 16  # clips encoded at once: 8 minutes of audio at most


@dataclass(frozen=True)
class Reply:
    """An answer and what it took."""

    text: str
    n_audio_tokens: int
    audio_seconds: float
    timings_ms: dict[str, float] = field(default_factory=dict)
    """decode_audio, encode (mel, encoder, adapter), prefill (prompt → first token), first_token (from the call to
    the first token), total. In a batch they are the whole batch's."""


@dataclass
class Prepared:
    """A batch of conversations, ready to generate from."""

    input_ids: Tensor  # [B, L], padded on the left
    attention_mask: Tensor  # [B, L]
    audio_embeds: Tensor | None  # [ΣN, H]
    n_audio_tokens: list[int]  # [B]
    audio_seconds: list[float]  # [B]
    started: float  # time.perf_counter() at the call
    timings_ms: dict[str, float]


def load(model: str | Path = checkpoint.DEFAULT_MODEL, device: str | None = None) -> ChatModel:
    """A ChatModel from `llasm-tiny`, a checkpoint or merged directory, or a hub id.

    device: as torch names it; by default CUDA (bfloat16) where there is one, else the CPU (float32).
    """
    started = time.perf_counter()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    # float32 on CPUs: in bfloat16 an answer could change with the batch it is in.
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    loaded, processor = checkpoint.load(model, dtype)
    loaded.to(torch.device(device))  # type: ignore[arg-type]
    chat = ChatModel(loaded, processor, name=str(model))
    chat.load_ms = _ms(started)
    return chat


class ChatModel:
    """A loaded model with its processor. Greedy answers do not depend on the batch they are in."""

    def __init__(self, model: Any, processor: Any, name: str = "") -> None:
        self.model, self.processor, self.name = model, processor, name
        self.load_ms = 0.0

    def chat(self, messages: Messages, **generation: Any) -> Reply:
        """One answer. generation: max_new_tokens (256), temperature (0: greedy), top_p (1), seed."""
        return self.batch([messages], **generation)[0]

    def stream(self, messages: Messages, **generation: Any) -> ReplyStream:
        """Iterates over the answer's pieces as they come; `.reply` holds the whole after the last one."""
        prepared = self.prepare([messages])
        return ReplyStream(self, prepared, self._arguments(prepared, **generation))

    def batch(self, conversations: list[Messages], **generation: Any) -> list[Reply]:
        """Answers to several conversations at once, in their order."""
        if not conversations:
            return []
        prepared = self.prepare(conversations)
        clock = _Clock()
        output = self._generate(streamer=clock, **self._arguments(prepared, **generation))
        self._finish_timings(prepared, clock)
        answers = output[:, prepared.input_ids.shape[1] :]
        texts = self.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
        facts = zip(texts, prepared.n_audio_tokens, prepared.audio_seconds, strict=True)
        return [Reply(text.strip(), n, seconds, dict(prepared.timings_ms)) for text, n, seconds in facts]

    def encode(self, waves: list[audio.Wave]) -> list[Tensor]:
        """Waves (16 kHz, any length) → the embeddings that stand for each in the prompt, [n_tokens, H]."""
        chunks = [audio.chunk(wave) for wave in waves]
        mels = [features.mel(self.processor.feature_extractor, c) for pieces in chunks for c in pieces]
        embeddings: list[Tensor] = []
        with torch.inference_mode():
            for start in range(0, len(mels), ENCODE_BATCH):
                mel, mask = features.pad_mels(mels[start : start + ENCODE_BATCH])
                device = self.model.device
                tokens = self.model.get_audio_features(mel.to(device), mask.to(device))
                counts = tokens.counts.tolist()
                embeddings += [row[:n] for row, n in zip(tokens.embeddings, counts, strict=True)]
        rest = iter(embeddings)
        return [torch.cat([next(rest) for _ in pieces]) for pieces in chunks]

    def prepare(self, conversations: list[Messages]) -> Prepared:
        """Decodes and encodes the audio and lays out the prompts."""
        started = time.perf_counter()
        for messages in conversations:
            check_messages(messages)
        waves = [[audio.decode(part["audio"]) for part in _audio_parts(messages)] for messages in conversations]
        timings = {"decode_audio": _ms(started)}
        encoding = time.perf_counter()
        embeddings = self.encode([wave for clips in waves for wave in clips])
        timings["encode"] = _ms(encoding)
        rest = iter([len(e) for e in embeddings])
        counts = [[next(rest) for _ in clips] for clips in waves]
        prompts = [self._prompt(m, n) for m, n in zip(conversations, counts, strict=True)]
        inputs = self.processor.tokenizer(prompts, padding=True, return_tensors="pt", add_special_tokens=False)
        return Prepared(
            input_ids=inputs["input_ids"].to(self.model.device),
            attention_mask=inputs["attention_mask"].to(self.model.device),
            audio_embeds=torch.cat(embeddings) if embeddings else None,
            n_audio_tokens=[sum(n) for n in counts],
            audio_seconds=[sum(map(len, clips)) / audio.SAMPLE_RATE for clips in waves],
            started=started,
            timings_ms=timings,
        )

    def prompt_bound(self, messages: Messages) -> int:
        """Tokens that a conversation's prompt takes at most, nothing encoded for it; fewer only at rate `heard`."""
        waves = [audio.decode(part["audio"]) for part in _audio_parts(messages)]
        counts = [sum(self.processor.n_audio_tokens(len(piece)) for piece in audio.chunk(wave)) for wave in waves]
        return len(self.processor.tokenizer(self._prompt(messages, counts), add_special_tokens=False)["input_ids"])

    def _prompt(self, messages: Messages, counts: list[int]) -> str:
        """The chat template's text with as many placeholders for each audio as it has tokens."""
        token = self.processor.audio_token
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        first, *others = text.split(token)
        return first + "".join(token * n + other for n, other in zip(counts, others, strict=True))

    def _arguments(
        self,
        prepared: Prepared,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """What `generate` is called with."""
        check_generation(max_new_tokens, temperature, top_p)
        length, room = prepared.input_ids.shape[1], self.model.config.text_config.max_position_embeddings
        if length + max_new_tokens > room:
            raise LlasmError(
                f"the conversation takes {length} tokens and the answer up to {max_new_tokens}, but the model "
                f"holds {room}; shorten the conversation or lower max_new_tokens"
            )
        if seed is not None:
            torch.manual_seed(seed)
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {"do_sample": False}
        )
        return {
            "input_ids": prepared.input_ids,
            "attention_mask": prepared.attention_mask,
            "audio_embeds": prepared.audio_embeds,
            "max_new_tokens": max_new_tokens,
            **sampling,
        }

    def _generate(self, **arguments: Any) -> Tensor:
        with torch.inference_mode():
            return self.model.generate(**arguments)

    def _finish_timings(self, prepared: Prepared, clock: _Clock) -> None:
        prepared.timings_ms |= {
            "prefill": 1000 * (clock.first - clock.started),
            "first_token": 1000 * (clock.first - prepared.started),
            "total": _ms(prepared.started),
        }


class ReplyStream:
    """The pieces of one answer. Generation runs in a thread and ends when nobody reads on."""

    def __init__(self, chat: ChatModel, prepared: Prepared, arguments: dict[str, Any]) -> None:
        self.reply: Reply | None = None
        self._chat, self._prepared, self._arguments = chat, prepared, arguments
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stops the generation at the next token."""
        self._pieces.close()

    def _run(self) -> Generator[str, None, None]:
        queue: Queue[int | BaseException | None] = Queue()
        clock, stop = _Clock(queue), _Stop()

        def generate() -> None:
            try:
                self._chat._generate(streamer=clock, stopping_criteria=StoppingCriteriaList([stop]), **self._arguments)
                queue.put(None)
            except BaseException as error:  # handed to the reader, who would wait forever
                queue.put(error)

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        written = TextStream(self._chat.processor.tokenizer)
        try:
            while (item := queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                if piece := written.add(item):
                    yield piece
            if piece := written.end():
                yield piece
        finally:
            stop.now = True
            thread.join()
        self._chat._finish_timings(self._prepared, clock)
        n, seconds = self._prepared.n_audio_tokens[0], self._prepared.audio_seconds[0]
        self.reply = Reply(written.text.strip(), n, seconds, self._prepared.timings_ms)


class _Clock(BaseStreamer):
    """Notes when the first token comes; passes every token of a single conversation on to a queue."""

    def __init__(self, queue: Queue | None = None) -> None:
        self.queue = queue
        self.started = time.perf_counter()
        self.first = 0.0
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        if not self._prompt_seen:  # generate() sends the prompt first
            self._prompt_seen = True
            return
        self.first = self.first or time.perf_counter()
        if self.queue is not None:
            self.queue.put(int(value[0]))

    def end(self) -> None:
        pass


class _Stop(StoppingCriteria):
    now = False

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((input_ids.shape[0],), self.now, device=input_ids.device)


class TextStream:
    """Token ids → text that grows; a character that takes several tokens waits for its last."""

    def __init__(self, tokenizer: Any) -> None:
        self.ids: list[int] = []
        self.text = ""
        self._tokenizer = tokenizer

    def add(self, token: int) -> str:
        """What this token adds to the text."""
        self.ids.append(token)
        return self._new(last=False)

    def end(self) -> str:
        """What was held back."""
        return self._new(last=True)

    def _new(self, last: bool) -> str:
        text = self._tokenizer.decode(self.ids, skip_special_tokens=True)
        # Until all of a character's tokens are there it decodes to U+FFFD.
        if not last and (len(text) <= len(self.text) or text.endswith("\ufffd")):
            return ""
        new, self.text = text[len(self.text) :], text
        return new


def check_generation(max_new_tokens: int, temperature: float, top_p: float) -> None:
    """Raises LlasmError, naming the value, where one is out of its range."""
    if max_new_tokens < 1:
        raise LlasmError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    if not temperature >= 0 or not 0 < top_p <= 1:
        raise LlasmError(f"temperature is {temperature}, top_p {top_p}; they must be ≥ 0 and in (0, 1]")


def check_messages(messages: Messages) -> None:
    """Raises LlasmError, naming the message, where a conversation breaks the contract."""
    if not isinstance(messages, list) or not messages:
        raise LlasmError(f"messages must be a list of at least one message, not {messages!r:.80}")
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise LlasmError(f"message {i}: role is {role!r}; it must be one of {', '.join(ROLES)}")
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not parts:
            raise LlasmError(f"message {i}: content must be text or a non-empty list of parts, not {content!r:.80}")
        for part in parts:
            _check_part(part, f"message {i}")
    if messages[-1]["role"] != "user":
        raise LlasmError(f"the last message is the {messages[-1]['role']}'s; it must be the user's")


def _check_part(part: Any, where: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "audio") or kind not in part:
        raise LlasmError(
            f"{where}: a part must be {{'type': 'text', 'text': …}} or {{'type': 'audio', 'audio': …}}, "
            f"not {part!r:.80}"
        )
    if kind == "text" and not isinstance(part["text"], str):
        raise LlasmError(f"{where}: text is {part['text']!r:.80}; it must be a string")
    if kind == "text" and "<|audio|>" in part["text"]:
        raise LlasmError(f"{where}: the text holds <|audio|>, which stands for audio inside the model; leave it out")


def _audio_parts(messages: Messages) -> list[dict[str, Any]]:
    contents = [m["content"] for m in messages if isinstance(m["content"], list)]
    return [part for content in contents for part in content if part["type"] == "audio"]


def _ms(since: float) -> float:
    return 1000 * (time.perf_counter() - since)
