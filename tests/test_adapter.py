"""Every adapter: counts, padding, the aligner's CTC reading, and what Whisper's decoder writes."""

from itertools import pairwise

import pytest
import torch
from transformers import AutoTokenizer, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from llasm.adapter import ADAPTERS, AdapterConfig, build_adapter
from llasm.checkpoint import DEFAULT_MODEL, locate
from llasm.ear import Ear, loop_of
from llasm.errors import LlasmError

D, H, V = 24, 16, 50


def make(name, **fields):
    torch.manual_seed(0)
    return build_adapter(AdapterConfig(name=name, width=32, n_layers=1, n_heads=2, **fields), D, H).eval()


@pytest.fixture(scope="module")
def ear():
    """A random decoder of Whisper's, in front of the default's vocabulary."""
    torch.manual_seed(0)
    sizes = {"d_model": D, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    tokenizer = AutoTokenizer.from_pretrained(locate(DEFAULT_MODEL))
    return Ear(WhisperDecoder(WhisperConfig(**sizes)).eval(), tokenizer, "en")


@pytest.fixture
def decoder(ear):
    adapter = make("decoder")
    adapter.ear = ear
    return adapter


def retrained(adapter):
    """With other weights than those that change nothing."""
    torch.manual_seed(1)
    for parameter in adapter.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return adapter


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name != "decoder"])
@torch.inference_mode()
def test_padding_in_a_batch_changes_nothing(name):
    adapter = make(name)
    lengths = torch.tensor([17, 40, 4])
    frames = torch.randn(3, 40, D)
    batch = adapter(frames, lengths)
    assert batch.counts.tolist() == [adapter.n_tokens(n) for n in lengths.tolist()]
    for i, n in enumerate(lengths.tolist()):
        alone = adapter(frames[i : i + 1, :n], lengths[i : i + 1])
        count = int(alone.counts[0])
        torch.testing.assert_close(batch.embeddings[i, :count], alone.embeddings[0], atol=1e-5, rtol=1e-5)
        assert not batch.embeddings[i, count:].any()


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "nosuch"},
        {"rate": "nosuch"},
        {"name": "mlp", "rate": "heard"},
        {"name": "conv", "stack": 3},
        {"name": "decoder", "rate": "fixed"},
        {"name": "decoder", "language": "nosuch"},
        {"n_layers": -1},
        {"n_heads": 0},
        {"dropout": 1.0},
    ],
)
def test_what_does_not_exist_is_refused(fields):
    with pytest.raises(ValueError, match=r"nosuch|heard|power of two|must be at least"):
        build_adapter(AdapterConfig(**fields), D, H)


def test_the_rate_follows_from_the_adapter():
    assert [name for name in ADAPTERS if AdapterConfig(name=name).heard] == ["decoder"]
    assert AdapterConfig(name="aligner", rate="heard").heard


@torch.inference_mode()
def test_collapse_drops_blanks_and_merges_repeats():
    adapter = make("aligner", rate="heard")
    table = torch.eye(H) * 3
    said = [2, 2, None, 2, 5, 5, None, None, 7]  # None: blank
    states = torch.stack([table[t] if t is not None else torch.zeros(H) for t in said])[None]
    blank = torch.tensor([[99.0 if t is None else -99.0 for t in said]])
    heard = adapter.collapse(states, blank, torch.tensor([8]), table)  # the ninth step is padding
    assert heard.counts.tolist() == [3]
    assert heard.embeddings[0].argmax(-1).tolist() == [2, 2, 5]


def test_a_clip_in_which_nothing_is_heard_is_one_learned_embedding():
    adapter = make("aligner", rate="heard")
    adapter.silence.data.fill_(7.0)
    table = torch.eye(H) * 3
    states = torch.stack([torch.zeros(3, H), table[[2, 2, 5]]])  # the first clip is blank throughout
    blank = torch.tensor([[99.0] * 3, [-99.0] * 3])
    tokens = adapter.collapse(states, blank, torch.tensor([3, 3]), table)
    assert tokens.counts.tolist() == [1, 2]
    assert torch.equal(tokens.embeddings[0, 0], adapter.silence) and not tokens.embeddings[0, 1].any()
    alone = adapter.collapse(states[:1], blank[:1], torch.tensor([3]), table)
    assert alone.counts.tolist() == [1] and torch.equal(alone.embeddings[0, 0], adapter.silence)
    tokens.embeddings.sum().backward()
    assert torch.equal(adapter.silence.grad, torch.ones(H))


@torch.inference_mode()
def test_logits_of_some_tokens_are_those_of_all():
    adapter, table = make("aligner", rate="heard"), torch.randn(V, H)
    states, ids = torch.randn(2, 3, H), torch.tensor([4, 40, 7])
    torch.testing.assert_close(adapter.token_logits(states, table, ids), adapter.token_logits(states, table)[..., ids])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.inference_mode()
def test_the_decoder_is_whispers_own(ear, attention, monkeypatch):
    monkeypatch.setattr(ear.decoder.config, "_attn_implementation", attention)
    short = torch.arange(11) < torch.tensor([[11], [6]])  # of the second clip the rest is padding
    given, clips = torch.randint(0, 50000, (2, 5)), torch.randn(2, 11, D)
    alone = ear.states(given[1:], clips[1:, :6], torch.ones(1, 6, dtype=torch.bool))
    torch.testing.assert_close(ear.states(given, clips, short)[1:], alone)
    tokens, frames = torch.randint(0, 50000, (2, 7)), torch.randn(2, 11, D)
    wanted = ear.decoder(input_ids=tokens, encoder_hidden_states=frames).last_hidden_state
    torch.testing.assert_close(ear.states(tokens, frames, torch.ones(2, 11, dtype=torch.bool)), wanted)
    # Step by step it writes what follows best on all that it has written.
    monkeypatch.setattr("llasm.ear.LOOP_TIMES", 99)  # untrained, it says one token again and again
    written = ear.listen(frames, torch.ones(2, 11, dtype=torch.bool), torch.tensor([6, 4]))
    assert [len(row) for row in written.tokens] == [6, 4] and written.states.shape == (2, 6, D)
    prompt = [*ear.whisper.sot_sequence, ear.whisper.no_timestamps]
    given = torch.tensor([prompt + written.tokens[0]])
    states = ear.states(given, frames[:1], torch.ones(1, 11, dtype=torch.bool))[:, len(prompt) - 1 : -1]
    torch.testing.assert_close(states, written.states[:1])
    scores = ear.logits(states)[0]
    scores[:, ear.whisper.non_speech_tokens] = -torch.inf
    scores[:, ear.end + 1 :] = -torch.inf
    assert scores.argmax(-1).tolist() == written.tokens[0]


@torch.inference_mode()
def test_a_decoder_that_loops_is_stopped(ear, monkeypatch):
    rows = ([7] * 5, [7] * 4, [1, *[2, 3, 4] * 5], [*[2, 3] * 5, 9], [])
    assert list(map(loop_of, rows)) == [1, 0, 3, 0, 0]
    frames, real = torch.randn(1, 11, D), torch.ones(1, 11, dtype=torch.bool)
    [written] = ear.listen(frames, real, torch.tensor([40])).tokens
    monkeypatch.setattr("llasm.ear.LOOP_TIMES", 99)
    [whole] = ear.listen(frames, real, torch.tensor([40])).tokens
    assert len(whole) == 40 and 0 < len(written) < 20 and written == whole[: len(written)]


@torch.inference_mode()
def test_what_is_written_does_not_depend_on_the_batch(decoder):
    retrained(decoder)
    lengths, table = torch.tensor([17, 40, 4]), torch.randn(50000, H)
    frames = torch.randn(3, 40, D)
    batch = decoder(frames, lengths, table)
    for i, n in enumerate(lengths.tolist()):
        alone = decoder(frames[i : i + 1, :n], lengths[i : i + 1], table)
        count = int(alone.counts[0])
        assert count == int(batch.counts[i]) and 1 <= count <= decoder.n_tokens(n)
        torch.testing.assert_close(batch.embeddings[i, :count], alone.embeddings[0], atol=1e-4, rtol=1e-4)
        assert not batch.embeddings[i, count:].any()


@pytest.mark.parametrize("text", ["Who met Duluth's naïve mayor?", "北京的天气怎么样？", "In 1998, 3 of us.", "Ja"])
def test_the_llm_reads_what_is_written_as_if_it_were_typed(ear, text):
    [written] = ear.encode([f" {text} "])
    ids, ranges = ear.in_llm(written)
    assert ids == ear.tokenizer(text)["input_ids"]
    assert ranges[0][0] <= 1 and ranges[-1][1] == len(written)  # a space alone may come first
    assert all(first < last <= len(written) for first, last in ranges)
    assert all(earlier[0] <= later[0] for earlier, later in pairwise(ranges))


@torch.inference_mode()
def test_untrained_it_is_what_whisper_writes_in_the_llms_embeddings(decoder, monkeypatch):
    table = torch.randn(50000, H)
    [written] = decoder.ear.encode(["Who met Duluth?"])
    states = torch.randn(2, 9, D)
    found = type("Written", (), {"tokens": [written, []], "states": states})
    monkeypatch.setattr(decoder.ear, "listen", lambda *_: found)
    frames, lengths = torch.randn(2, 40, D), torch.tensor([40, 30])
    decoder.silence.fill_(3.0)
    heard = decoder(frames, lengths, table)
    ids = decoder.ear.tokenizer("Who met Duluth?")["input_ids"]
    assert heard.counts.tolist() == [len(ids), 1]
    torch.testing.assert_close(heard.embeddings[0], table[ids])
    assert torch.equal(heard.embeddings[1, 0], decoder.silence) and not heard.embeddings[1, 1:].any()
    assert decoder(frames, torch.tensor([8, 30]), table).counts.tolist() == [2, 1]  # never more than 12.5 a second
    retrained(decoder)
    beside = decoder(frames, lengths, table).embeddings[0] - table[ids]
    assert beside.abs().min(-1).values.max() > 0


def test_words_are_taught_up_to_their_end_and_to_what_hears_alone(decoder):
    retrained(decoder)
    frames, lengths = torch.randn(3, 30, D), torch.tensor([30, 20, 25])
    texts = decoder.ear.encode(["Who met Duluth?", "Ja", ""])
    targets = [torch.tensor(ids, dtype=torch.long) for ids in texts]
    loss = decoder.words_loss(frames, lengths, targets)
    each = [decoder.words_loss(frames[i : i + 1], lengths[i : i + 1], targets[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(loss, torch.stack(each).sum())
    sound = decoder.sound(frames[1:2, :20], lengths[1:2])
    prompts = decoder.ear.prompts(*sound)
    states = decoder.ear.states(torch.cat([prompts, targets[1][None]], 1), *sound)
    scores = decoder.ear.logits(states[0, prompts.shape[1] - 1 :]).log_softmax(-1)
    said = scores[range(len(scores)), [*texts[1], decoder.ear.end]].sum()
    torch.testing.assert_close(each[1], -said, atol=1e-4, rtol=1e-4)
    assert not each[2]  # no word to learn
    loss.backward()
    for name, parameter in decoder.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == (name == "tail"), name


def test_speech_is_looked_for_where_it_is_likeliest(decoder):
    n = decoder.DETECTOR_FRAMES
    frames, lengths = torch.randn(4, 3 * n, D), torch.tensor([3 * n, n, n + 1, 5])
    with torch.no_grad():
        assert decoder.speech_scores(frames, lengths).tolist() == [1.0] * 4  # untrained, everything is speech
    retrained(decoder)
    scores, each = decoder.speech_scores(frames, lengths), decoder.detector(frames)[..., 0]
    for i, length in enumerate(lengths.tolist()):
        windows = each[i, :length].unfold(0, min(n, length), 1).mean(-1)
        torch.testing.assert_close(scores[i], windows.max())
        torch.testing.assert_close(
            decoder.speech_scores(frames[i : i + 1, :length], lengths[i : i + 1]), scores[i : i + 1]
        )
    spoken = torch.tensor([True, False, True, False])
    loss = decoder.speech_loss(frames, lengths, spoken)
    torch.testing.assert_close(loss, -torch.where(spoken, scores, -scores).sigmoid().log().sum())
    loss.backward()
    trained = {name for name, parameter in decoder.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in decoder.named_parameters() if name.startswith("detector.")}


@torch.inference_mode()
def test_where_nobody_speaks_nothing_is_written(decoder, monkeypatch):
    retrained(decoder)
    monkeypatch.setattr(decoder, "speech_scores", lambda *_: torch.tensor([0.1, -0.1]))
    frames, lengths, table = torch.randn(2, 40, D), torch.tensor([40, 40]), torch.randn(50000, H)
    heard = decoder(frames, lengths, table)
    assert heard.counts[0] > 1 and heard.counts[1] == 1
    assert torch.equal(heard.embeddings[1, 0], decoder.silence)
    assert [bool(ids) for ids in decoder.transcribe(frames, lengths, table)] == [True, False]


@pytest.mark.parametrize("stage", ["ground", "align", "chat"])
def test_a_stage_trains_how_it_hears_or_what_it_tells_the_llm(decoder, stage):
    decoder.unfreeze(stage)
    names = {name for name, _ in decoder.named_parameters()}
    trained = {name for name, parameter in decoder.named_parameters() if parameter.requires_grad}
    hearing = {name for name in names if name == "tail" or name.startswith("detector.")}
    assert trained == (hearing if stage == "ground" else names - hearing) and len(hearing) > 1


@torch.inference_mode()
def test_the_language_is_heard_where_it_is_auto(ear):
    auto = Ear(ear.decoder, ear.tokenizer, "auto")
    frames, real = 100 * torch.randn(3, 11, D), torch.ones(3, 11, dtype=torch.bool)
    prompts = auto.prompts(frames, real)
    assert prompts[:, [0, 2, 3]].tolist() == ear.prompts(frames, real)[:, [0, 2, 3]].tolist()
    scores = auto.logits(auto.states(prompts[:, :1], frames, real)[:, 0])
    best = [max(ear.whisper.all_language_tokens, key=row.__getitem__) for row in scores]
    assert prompts[:, 1].tolist() == best and len(set(best)) > 1


def test_what_does_not_go_with_this_whisper_is_named(ear):
    english = type("Decoder", (), {"config": WhisperConfig(vocab_size=51864)})
    with pytest.raises(LlasmError, match="'zh', but the Whisper is an English-only one"):
        Ear(english, ear.tokenizer, "zh")
