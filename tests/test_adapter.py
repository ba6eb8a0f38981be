"""Every adapter: counts, padding, and the aligner's CTC reading."""

import pytest
import torch

from llasm.adapter import ADAPTERS, AdapterConfig, Speller, build_adapter, spelled

D, H, V = 24, 16, 50


def make(name, **fields):
    torch.manual_seed(0)
    return build_adapter(AdapterConfig(name=name, width=32, n_layers=1, n_heads=2, **fields), D, H, V).eval()


@pytest.mark.parametrize("name", ADAPTERS)
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
        {"read_by": "nosuch"},
        {"read_by": "letters"},
    ],
)
def test_what_does_not_exist_is_refused(fields):
    with pytest.raises(ValueError, match=r"nosuch|heard|power of two"):
        build_adapter(AdapterConfig(**fields), D, H, V)


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


def test_tokens_are_spelled_in_any_vocabulary():
    tokens = ["Ġthe", "▁the", "the", None, "Ġcounterrevolutionaries"]
    byte_level, sentence_piece, bare, nothing, long = (bytes(row.tolist()) for row in spelled(tokens, 12))
    assert byte_level == sentence_piece == b" the".ljust(12, b"\0") != bare
    assert nothing == bytes(12) and long == b" counterries"


def test_what_is_spelled_alike_has_one_key_wherever_it_stands():
    torch.manual_seed(0)
    speller = Speller(4)
    speller.letters.copy_(spelled(["Ġsea", "Ġsee", "Ġsea", None], Speller.N_LETTERS))
    keys = speller(torch.arange(4))
    torch.testing.assert_close(keys.norm(dim=-1), torch.ones(4))
    assert torch.equal(keys[0], keys[2]) and not torch.allclose(keys[0], keys[1], atol=1e-2)
    keys[0, 0].backward()
    assert speller.embed.weight.grad[ord("s")].any() and not speller.embed.weight.grad[ord("z")].any()


@torch.inference_mode()
def test_letters_tell_which_token_and_the_table_what_the_llm_receives():
    adapter = make("aligner", rate="heard", read_by="letters")
    adapter.speller.letters.copy_(spelled([f"Ġ{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(V)], 12))
    adapter.log_scale.fill_(5.0)
    states = adapter.speller(torch.tensor([3, 3, 8]))[None]
    heard = adapter.collapse(states, torch.full((1, 3), -99.0), torch.tensor([3]), torch.eye(V)[:, :H])
    assert heard.counts.tolist() == [2] and heard.embeddings[0].argmax(-1).tolist() == [3, 8]


@pytest.mark.parametrize("read_by", ["table", "letters"])
@torch.inference_mode()
def test_logits_of_some_tokens_are_those_of_all(read_by):
    adapter, table = make("aligner", rate="heard", read_by=read_by), torch.randn(V, H)
    states, ids = torch.randn(2, 3, adapter.out.out_features), torch.tensor([4, 40, 7])
    torch.testing.assert_close(adapter.token_logits(states, table, ids), adapter.token_logits(states, table)[..., ids])
