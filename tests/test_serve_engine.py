"""Requests answered together: each gets what it would get alone, whenever it comes and whoever leaves."""

import asyncio
import time

import numpy as np
import pytest
import torch

from llasm import checkpoint
from llasm.adapter import AdapterConfig
from llasm.chat import ChatModel
from llasm.errors import LlasmError
from llasm.serve.batch import Batch, Row
from llasm.serve.engine import Busy, Draining, LocalEngine, Request, TimedOut
from llasm.serve.recall import RecallingChat


@pytest.fixture(scope="module")
def chat(bases):
    small = AdapterConfig(width=32, n_layers=1, n_heads=2)
    model, processor = checkpoint.from_bases(bases["audio_base"], bases["text_base"], small)
    torch.manual_seed(3)
    for name, weight in model.model.language_model.named_parameters():
        if weight.dim() == 2:  # larger than they are drawn, or it repeats one token
            torch.nn.init.normal_(weight, std=1.0 if "embed" in name else 0.3)
    model.get_input_embeddings().weight.data[94:] = 0.0  # so that it writes ASCII
    model.generation_config.eos_token_id = EOS
    return ChatModel(model.eval(), processor, "tiny")


@pytest.fixture
def engine(chat):
    engine = LocalEngine(chat, "tiny", max_batch=4, max_waiting=6)
    yield engine
    engine.close()


EOS = 5  # of a random model's tokens, so that now and then it ends


def spoken(seconds, text=""):
    wave = np.random.default_rng(int(1000 * seconds)).normal(0, 0.1, int(16000 * seconds)).astype(np.float32)
    content = [{"type": "audio", "audio": wave}, *([{"type": "text", "text": text}] if text else [])]
    return [{"role": "user", "content": content}]


def typed(text):
    return [{"role": "user", "content": text}]


CONVERSATIONS = [
    typed("Hello"),
    spoken(0.7),
    spoken(2.5, "What is this?"),
    [*typed("One"), {"role": "assistant", "content": "Two"}, *spoken(1.2)],
    typed("A rather long question that takes more positions than the others do, to be padded against."),
    spoken(0.3, "x"),
    typed("?"),
]


async def text_of(answer):
    return "".join([piece async for piece in answer])


def test_each_answer_is_the_one_it_gets_alone(chat, engine):
    alone = [chat.chat(messages, max_new_tokens=40) for messages in CONVERSATIONS]
    assert len({reply.text for reply in alone}) > 3

    async def ask(i):
        await asyncio.sleep(0.02 * i)  # they join one after the other
        answer = engine.submit(Request(CONVERSATIONS[i], max_new_tokens=40))
        return answer, await text_of(answer)

    async def all_of_them():
        return await asyncio.gather(*map(ask, range(len(CONVERSATIONS))))

    for (answer, text), reply in zip(asyncio.run(all_of_them()), alone, strict=True):
        assert text.strip() == answer.reply.text == reply.text.removesuffix("&")  # which is the token EOS
        assert answer.reply.n_audio_tokens == reply.n_audio_tokens
        assert answer.reply.audio_seconds == reply.audio_seconds
        assert answer.finish_reason in ("stop", "length") and 1 <= answer.n_new_tokens <= 40
        assert {"encode", "prefill", "first_token", "total"} <= set(answer.reply.timings_ms)
    assert engine.load() == (0, 0)


def test_a_late_one_joins_and_a_cancelled_one_leaves(engine):
    async def run():
        long = engine.submit(Request(typed("Go on"), max_new_tokens=100_000))
        first = await anext(aiter(long))
        late = engine.submit(Request(typed("Hello"), max_new_tokens=3))
        await text_of(late)
        assert long.finish_reason is None and engine.load()[0] == 1
        long.cancel()
        rest = await text_of(long)
        return first, rest, long

    first, rest, long = asyncio.run(run())
    assert long.finish_reason == "cancelled" and engine.load() == (0, 0)
    assert long.reply.text == (first + rest).strip()


def test_the_queue_is_bounded_and_says_when_to_come_back(engine):
    async def run():
        answers = []
        with pytest.raises(Busy) as busy:
            for _ in range(40):
                answers.append(engine.submit(Request(typed("Go on"), max_new_tokens=100_000)))
        assert 6 <= len(answers) <= 10 and busy.value.retry_after_s >= 1
        for answer in answers:
            answer.cancel()
        for answer in answers:
            await text_of(answer)
        assert engine.load() == (0, 0)

    asyncio.run(run())


def test_who_leaves_the_queue_frees_a_place_at_once(chat):
    engine = LocalEngine(chat, "tiny", max_batch=1, max_waiting=2)

    async def run():
        running = engine.submit(Request(typed("Go on"), max_new_tokens=100_000))
        await anext(aiter(running))
        waiting = [engine.submit(Request(typed("Hello"))) for _ in range(2)]
        with pytest.raises(Busy):
            engine.submit(Request(typed("Hello")))
        for answer in waiting:
            answer.cancel()
            assert await text_of(answer) == "" and answer.finish_reason == "cancelled"
        assert engine.load() == (1, 0) and running.finish_reason is None
        running.cancel()
        await text_of(running)

    asyncio.run(run())
    engine.close()


def test_the_cache_is_bounded_as_it_is_padded(chat, monkeypatch):
    monkeypatch.setattr("llasm.serve.engine.MAX_CACHED_TOKENS", 400)
    engine = LocalEngine(chat, "tiny", max_batch=8)
    sizes = []
    step = Batch.step

    def watched(batch):
        step(batch)
        sizes.append(batch._mask.numel())

    monkeypatch.setattr(Batch, "step", watched)
    conversations = [*CONVERSATIONS, typed("A long one. " * 12), *CONVERSATIONS]
    alone = [chat.chat(messages, max_new_tokens=20).text.removesuffix("&") for messages in conversations]

    async def ask(messages):
        return (await text_of(engine.submit(Request(messages, max_new_tokens=20)))).strip()

    async def all_of_them():
        return await asyncio.gather(*map(ask, conversations))

    assert asyncio.run(all_of_them()) == alone
    assert 200 < max(sizes) <= 400
    engine.close()


def test_a_prompt_takes_no_more_than_was_counted_before(chat):
    for messages in [*CONVERSATIONS, spoken(65.0)]:
        assert chat.prompt_bound(messages) == chat.prepare([messages]).input_ids.shape[1]


def test_one_that_cannot_be_answered_fails_alone(chat, engine):
    room = chat.model.config.text_config.max_position_embeddings

    async def run():
        with pytest.raises(LlasmError, match="max_new_tokens is 0"):
            engine.submit(Request(typed("Hello"), max_new_tokens=0))
        with pytest.raises(LlasmError, match="role is 'robot'"):
            engine.submit(Request([{"role": "robot", "content": "x"}]))
        good = engine.submit(Request(typed("Hello"), max_new_tokens=4))
        bad = engine.submit(Request(typed("word " * room), max_new_tokens=4))
        other = engine.submit(Request(spoken(0.5), max_new_tokens=4))
        with pytest.raises(LlasmError, match="shorten it"):
            await text_of(bad)
        await text_of(good)
        await text_of(other)
        assert good.n_new_tokens and other.n_new_tokens

    asyncio.run(run())


def test_time_is_limited(chat):
    engine = LocalEngine(chat, "tiny", max_batch=1, timeout_s=0.3)

    async def run():
        running = engine.submit(Request(typed("Go on"), max_new_tokens=100_000))
        waiting = engine.submit(Request(typed("Hello")))
        await text_of(running)
        assert running.finish_reason in ("length", "stop")
        if running.finish_reason == "length":
            with pytest.raises(TimedOut, match="waited 0 s"):
                await text_of(waiting)

    started = time.perf_counter()
    asyncio.run(run())
    assert time.perf_counter() - started < 5
    engine.close()


def test_draining_finishes_what_runs_and_takes_nothing_new(chat):
    engine = LocalEngine(chat, "tiny")

    async def run():
        answer = engine.submit(Request(typed("Hello"), max_new_tokens=30))
        draining = asyncio.create_task(engine.drain(10))
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            engine.submit(Request(typed("Late")))
        await draining
        await text_of(answer)
        assert answer.finish_reason in ("stop", "length")

    asyncio.run(run())
    engine.close()


def test_a_failure_of_the_model_ends_those_in_the_batch_and_not_the_engine(chat, monkeypatch):
    engine = LocalEngine(chat, "tiny")

    def broken(self):
        raise RuntimeError("out of memory")

    async def run():
        with monkeypatch.context() as patch:
            patch.setattr(Batch, "step", broken)
            with pytest.raises(RuntimeError, match="out of memory"):
                await text_of(engine.submit(Request(typed("Hello"), max_new_tokens=30)))
        assert (await text_of(engine.submit(Request(typed("Hello"), max_new_tokens=5)))) is not None

    asyncio.run(run())
    assert engine.load() == (0, 0)
    engine.close()


class Letters:
    """A tokenizer whose token i is the i-th letter, and 26 the first half of a character."""

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(97 + i) if i < 26 else "\ufffd" for i in ids)


def row(stop=(), n=50, **asked):
    return Row(Request(typed("x"), n, stop=tuple(stop), **asked), Letters(), 3, 1000, "cpu")


def taken(row, word):
    pieces = []
    for letter in word:
        if row.finish_reason is None:
            row.add(ord(letter) - 97, {99})
            pieces.append(row.take_piece())
    return pieces


def test_a_stop_text_is_cut_and_its_beginning_held_back():
    stopped = row(["dog", "xyz"])
    assert taken(stopped, "abdodogabc") == ["a", "b", "", "", "do", "", ""]
    assert stopped.text == "abdo" and stopped.finish_reason == "stop"
    whole = row(["zzz"], n=4)
    assert taken(whole, "abzz") == ["a", "b", "", "zz"] and whole.finish_reason == "length"


def test_half_a_character_is_not_shown():
    halves = row()
    halves.add(0, set())
    assert halves.take_piece() == "a"
    halves.add(26, set())
    assert halves.take_piece() == ""


def test_a_seed_repeats_and_top_p_keeps_to_the_likely():
    logits = torch.tensor([3.0, 2.9, 0.0, -1.0])
    drawn = [[row(temperature=1.0, seed=7).choose(logits) for _ in range(1)] for _ in range(4)]
    assert all(d == drawn[0] for d in drawn)
    sampler = row(temperature=1.0, seed=1)
    assert {sampler.choose(logits) for _ in range(200)} == {0, 1, 2, 3}
    sampler = row(temperature=1.0, top_p=0.6, seed=1)
    assert {sampler.choose(logits) for _ in range(200)} == {0, 1}
    assert row().choose(logits) == 0


# ---- recordings that come again


def test_a_recording_that_comes_again_is_not_heard_again(chat, monkeypatch):
    clips = [part for one in (spoken(0.7), spoken(2.5), spoken(0.3)) for part in one[0]["content"]]
    turns = [{"role": "user", "content": [clip]} for clip in clips]
    answer = {"role": "assistant", "content": "Yes."}
    talks = [turns[:1], [turns[0], answer, turns[1]], [turns[0], answer, turns[1], answer, turns[2]], turns[:1]]
    fresh = [ChatModel(chat.model, chat.processor).chat(talk, max_new_tokens=12).text for talk in talks]
    n_heard = []
    encode = ChatModel.encode
    monkeypatch.setattr(ChatModel, "encode", lambda self, waves: n_heard.append(len(waves)) or encode(self, waves))
    recalling = RecallingChat(chat)
    assert [recalling.chat(talk, max_new_tokens=12).text for talk in talks] == fresh
    assert n_heard == [1, 1, 1, 0]
    assert torch.equal(*recalling.encode([clips[0]["audio"]] * 2))
    one, two = (len(encode(chat, [clip["audio"]])[0]) for clip in clips[:2])
    monkeypatch.setattr("llasm.serve.recall.KEPT_TOKENS", one + two)
    recalling.encode([clips[1]["audio"]])  # so that the third has rested longest
    n_heard.clear()
    for number in (0, 1, 2):
        recalling.encode([clips[number]["audio"]])
    assert n_heard == [0, 0, 1]
    monkeypatch.setattr("llasm.serve.recall.KEPT_TOKENS", 0)
    assert len(recalling.encode([clips[1]["audio"]])[0]) and recalling.encode([]) == []
