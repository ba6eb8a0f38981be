"""Projection adapters: the one place that knows how encoder frames become the LLM's input embeddings.

Every adapter is a class in `ADAPTERS`: to add one, write it here and name it there.

Shapes: B clips, T encoder frames (50/s), D encoder width, N audio tokens, H LLM width, V LLM vocabulary, K width of
an aligner's states: H, or KEY where tokens are recognised by their spelling.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter is made of; each adapter reads the fields it needs."""

    name: str = "aligner"
    stack: int = 4
    """Encoder frames joined into one audio token: 4 → 12.5 tokens/s, 8 → 6.25 tokens/s."""
    width: int = 512
    """Inner width of `aligner`, `swiglu` and `mlp`."""
    n_layers: int = 4
    n_heads: int = 8
    dropout: float = 0.1
    rate: str = "fixed"
    """`fixed`: every frame is a token. `heard` (aligner only): one token for each LLM token recognised."""
    read_by: str = "table"
    """What the aligner knows a token by: its embedding in the LLM (`table`), or its `letters` (at rate `heard`)."""

    def __post_init__(self) -> None:
        if self.name not in ADAPTERS:
            raise ValueError(f"unknown adapter {self.name!r}: choose from {', '.join(ADAPTERS)}")
        if self.name == "conv" and self.stack & (self.stack - 1):
            raise ValueError(f"adapter 'conv' halves the rate: stack must be a power of two, not {self.stack}")
        if self.name == "aligner" and (self.width % self.n_heads or self.width % Aligner.GROUPS):
            raise ValueError(
                f"adapter width {self.width} must be divisible by n_heads {self.n_heads} and {Aligner.GROUPS}"
            )
        if self.rate not in ("fixed", "heard"):
            raise ValueError(f"unknown adapter rate {self.rate!r}: choose fixed or heard")
        if self.rate == "heard" and self.name != "aligner":
            raise ValueError(f"rate 'heard' needs the adapter 'aligner', not {self.name!r}")
        if self.read_by not in ("table", "letters"):
            raise ValueError(f"unknown adapter read_by {self.read_by!r}: choose table or letters")
        if self.read_by == "letters" and self.rate != "heard":
            raise ValueError(f"adapter read_by 'letters' needs the rate 'heard', not {self.rate!r}")


class AudioTokens(NamedTuple):
    """What the LLM receives of each clip."""

    embeddings: Tensor  # [B, N, H], zeros past each clip's count
    counts: Tensor  # [B] int64


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """[B] lengths → [B, size] bool, True where there is something."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


class Adapter(nn.Module):
    """Frames of a fixed rate: `stack` of them are one token."""

    def __init__(self, config: AdapterConfig, d_encoder: int, d_llm: int, n_vocab: int) -> None:
        super().__init__()
        self.config = config

    def n_tokens(self, n_frames: Any) -> Any:
        """Tokens that `n_frames` encoder frames become at a fixed rate; int or integer tensor."""
        return (n_frames + self.config.stack - 1) // self.config.stack

    def forward(self, frames: Tensor, n_frames: Tensor, table: Tensor | None = None) -> AudioTokens:
        """frames [B, T, D] with n_frames [B] of them real → AudioTokens; `table` [V, H] holds the LLM's embeddings."""
        counts = self.n_tokens(n_frames)
        frames = frames * length_mask(n_frames, frames.shape[1])[..., None]
        embeddings = self.project(frames, n_frames)
        return AudioTokens(embeddings * length_mask(counts, embeddings.shape[1])[..., None], counts)

    def project(self, frames: Tensor, n_frames: Tensor) -> Tensor:
        """[B, T, D], zero past n_frames → [B, n_tokens(T), H]."""
        raise NotImplementedError

    def stacked(self, frames: Tensor) -> Tensor:
        """[B, T, D] → [B, ceil(T / stack), stack · D], the last group filled with zeros."""
        b, t, d = frames.shape
        frames = F.pad(frames, (0, 0, 0, -t % self.config.stack))
        return frames.reshape(b, -1, self.config.stack * d)


class LinearAdapter(Adapter):
    """One linear map (LLaSM, arXiv 2308.15930, section 3)."""

    def __init__(self, config: AdapterConfig, d_encoder: int, d_llm: int, n_vocab: int) -> None:
        super().__init__(config, d_encoder, d_llm, n_vocab)
        self.out = nn.Linear(config.stack * d_encoder, d_llm)

    def project(self, frames: Tensor, n_frames: Tensor) -> Tensor:
        return self.out(self.stacked(frames))


class MLPAdapter(Adapter):
    """Two layers with GELU (LLaVA-1.5, arXiv 2310.03744, section 3.3)."""

    def __init__(self, config: AdapterConfig, d_encoder: int, d_llm: int, n_vocab: int) -> None:
        super().__init__(config, d_encoder, d_llm, n_vocab)
        self.hidden = nn.Linear(config.stack * d_encoder, config.width)
        self.out = nn.Linear(config.width, d_llm)

    def project(self, frames: Tensor, n_frames: Tensor) -> Tensor:
        return self.out(F.gelu(self.hidden(self.stacked(frames))))


class SwiGLUAdapter(Adapter):
    """RMSNorm → SwiGLU → RMSNorm → linear (Ultravox's projector; SwiGLU: arXiv 2002.05202)."""

    def __init__(self, config: AdapterConfig, d_encoder: int, d_llm: int, n_vocab: int) -> None:
        super().__init__(config, d_encoder, d_llm, n_vocab)
        d_in = config.stack * d_encoder
        self.norm_in = nn.RMSNorm(d_in, eps=1e-6)
        self.gate_up = nn.Linear(d_in, 2 * config.width, bias=False)
        self.norm_mid = nn.RMSNorm(config.width, eps=1e-6)
        self.out = nn.Linear(config.width, d_llm, bias=False)

    def project(self, frames: Tensor, n_frames: Tensor) -> Tensor:
        gate, up = self.gate_up(self.norm_in(self.stacked(frames))).chunk(2, dim=-1)
        return self.out(self.norm_mid(F.silu(gate) * up))


class ConvAdapter(Adapter):
    """Strided convolutions, each halving the rate, then a residual bottleneck (BLSP, arXiv 2309.00916, section 3.1)."""

    def __init__(self, config: AdapterConfig, d_encoder: int, d_llm: int, n_vocab: int) -> None:
        super().__init__(config, d_encoder, d_llm, n_vocab)
        n_convs = config.stack.bit_length() - 1  # stack is a power of two
        widths = [d_encoder, *[config.width] * n_convs]
        self.convs = nn.ModuleList(nn.Conv1d(a, b, kernel_size=5, stride=2, padding=2) for a, b in pairwise(widths))
        self.out = nn.Linear(widths[-1], d_llm)
        self.norm = nn.LayerNorm(d_llm)
        self.down = nn.Linear(d_llm, config.width)
        self.up = nn.Linear(config.width, d_llm)

    def project(self, frames: Tensor, n_frames: Tensor) -> Tensor:
        for conv in self.convs:
            frames = F.gelu(conv(frames.transpose(1, 2)).transpose(1, 2))
            n_frames = (n_frames + 1) // 2
            # A bias makes padding non-zero again; the next kernel must not see it.
            frames = frames * length_mask(n_frames, frames.shape[1])[..., None]
        tokens = self.out(frames)
        return tokens + self.up(F.gelu(self.down(self.norm(tokens))))


def _kernels(x: Tensor) -> AbstractContextManager[None]:
    """On CPUs the fused kernel's backward is three times as slow as plain products (torch 2.13, bfloat16, 56 steps)."""
    plain = x.device.type == "cpu" and torch.is_grad_enabled()
    return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()


class _Block(nn.Module):
    """Pre-norm Transformer layer over [B, N, width] with a [B, N] mask."""

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.norm_attn, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.attn_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, n, width = x.shape
        # [B, N, 3·width] → three of [B, heads, N, width / heads]
        q, k, v = self.qkv(self.norm_attn(x)).view(b, n, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        with _kernels(x):
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        attended = attended.transpose(1, 2).reshape(b, n, width)
        x = x + F.dropout(self.attn_out(attended), self.dropout, self.training)
        hidden = F.gelu(self.up(self.norm_mlp(x)))
        return x + F.dropout(self.down(hidden), self.dropout, self.training)


def spelled(tokens: Sequence[str | None], n_letters: int) -> Tensor:
    """The tokens of an LLM's vocabulary, as its tokenizer writes them → their UTF-8 bytes [V, n_letters] uint8.

    Of a long token its beginning and its last three; 0 past the end.
    """
    letters = torch.zeros(len(tokens), n_letters, dtype=torch.uint8)
    for row, token in zip(letters, tokens, strict=True):
        # Byte-level and SentencePiece vocabularies write a space as Ġ and ▁.
        text = (token or "").replace("Ġ", " ").replace("▁", " ").encode()
        if len(text) > n_letters:
            text = text[: n_letters - 3] + text[-3:]
        row[: len(text)] = torch.tensor(list(text), dtype=torch.uint8)
    return letters


class Speller(nn.Module):
    """Letters of an LLM's token → its key, so that a token can be recognised that training never said.

    What sounds alike is spelled alike, more or less; an embedding of the LLM tells nothing of the sound, so each would
    have to be heard often (a word network beside CTC: Collobert et al., arXiv 1906.04323, section 3).
    """

    N_LETTERS = 12
    WIDTHS = (48, 160)  # of a letter, and of three of them
    KEY = 256

    def __init__(self, n_vocab: int) -> None:
        super().__init__()
        letter, width = self.WIDTHS
        self.embed = nn.Embedding(256, letter)
        self.place = nn.Parameter(0.3 * torch.randn(self.N_LETTERS, letter))
        self.near = nn.Conv1d(letter, width, 3, padding=1)
        self.wide = nn.Conv1d(width, width, 3, padding=1)
        self.out = nn.Linear(4 * width, self.KEY)
        self.letters: Tensor
        self.register_buffer("letters", torch.zeros(n_vocab, self.N_LETTERS, dtype=torch.uint8))

    def forward(self, ids: Tensor) -> Tensor:
        """ids [n] → keys [n, KEY] of length 1."""
        letters = self.letters[ids].int()
        real = (letters > 0)[:, None]  # [n, 1, N_LETTERS]
        n_real = real.sum(2).clamp(min=1)
        x = (self.embed(letters) + self.place).transpose(1, 2) * real
        x = F.gelu(self.near(x)) * real
        x = (x + F.gelu(self.wide(x))) * real  # [n, width, N_LETTERS]
        last = x.gather(2, (n_real - 1)[..., None].expand(-1, x.shape[1], 1))[..., 0]
        parts = torch.cat([x.sum(2) / n_real, x.amax(2), x[..., 0], last], dim=1)
        return F.normalize(self.out(parts).float(), dim=-1)


class Aligner(Adapter):
    """Stack → Transformer with a convolutional position → states that are read as a CTC distribution (Graves et al.,
    ICML 2006) over the LLM's own tokens.

    The logit of a token is the scaled cosine between the state and the token's key: its embedding in the LLM, both
    taken from the table's mean, so that what is emitted lies among the LLM's word embeddings once it is trained
    (stage `ground`); or what the `Speller` makes of its letters.
    At rate `heard` it emits one embedding a recognised token: blanks dropped, repeats merged. A clip in which it hears
    none becomes one learned embedding, so that the LLM can be taught to say so.
    """

    GROUPS = 8  # of the convolutional position
    TOP_K = 8  # tokens whose embeddings are mixed into a heard token

    def __init__(self, config: AdapterConfig, d_encoder: int, d_llm: int, n_vocab: int) -> None:
        super().__init__(config, d_encoder, d_llm, n_vocab)
        width = config.width
        self.inp = nn.Linear(config.stack * d_encoder, width)
        self.position = nn.Conv1d(width, width, kernel_size=9, padding=4, groups=self.GROUPS)
        self.blocks = nn.ModuleList(_Block(width, config.n_heads, config.dropout) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(width)
        self.speller = Speller(n_vocab) if config.read_by == "letters" else None
        self.out = nn.Linear(width, Speller.KEY if self.speller else d_llm)
        self.blank = nn.Linear(width, 1)
        self.log_scale = nn.Parameter(torch.tensor([math.log(12.0)]))  # DeepSpeed sends no scalars
        if config.rate == "heard":
            self.silence = nn.Parameter(torch.zeros(d_llm))
        self._table_facts: tuple[Tensor, Tensor] | None = None
        self._keys: Tensor | None = None

    def train(self, mode: bool = True) -> Aligner:
        if mode != self.training:  # steps in between may have changed them
            self._keys = None
        return super().train(mode)

    def forward(self, frames: Tensor, n_frames: Tensor, table: Tensor | None = None) -> AudioTokens:
        if self.config.rate == "fixed":
            return super().forward(frames, n_frames, table)
        if table is None:
            raise ValueError("rate 'heard' needs the LLM's embedding table")
        return self.heard(frames, n_frames, table)

    def project(self, frames: Tensor, n_frames: Tensor) -> Tensor:
        return self.states(frames, n_frames)[0]

    def states(self, frames: Tensor, n_frames: Tensor) -> tuple[Tensor, Tensor]:
        """frames [B, T, D] → states [B, N, K] and the blank's logits [B, N]."""
        return self.read(self.layers(frames, n_frames)[-1])

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What a block gave, [B, N, width] → states [B, N, K] and the blank's logits [B, N]."""
        x = self.norm(x)
        return self.out(x), self.blank(x)[..., 0]

    def layers(self, frames: Tensor, n_frames: Tensor) -> list[Tensor]:
        """frames [B, T, D] → what each block gives, [B, N, width]."""
        x = self.inp(self.stacked(frames * length_mask(n_frames, frames.shape[1])[..., None]))
        mask = length_mask(self.n_tokens(n_frames), x.shape[1])
        x = x * mask[..., None]
        x = x + F.gelu(self.position(x.transpose(1, 2))).transpose(1, 2)
        outputs = []
        for block in self.blocks:
            x = block(x, mask)
            outputs.append(x)
        return outputs

    def token_logits(self, states: Tensor, table: Tensor, ids: Tensor | None = None) -> Tensor:
        """states [..., K] → [..., V] logits, or [..., len(ids)] of those tokens only."""
        scaled = F.normalize(states.float(), dim=-1) * self.log_scale.exp().float()
        if self.speller is not None:
            keys = self._all_keys() if ids is None else self.speller(ids)
            return (scaled @ keys.T).float()
        mean, inverse_norm = self._facts(table)
        if ids is not None:
            rows = (table[ids].float() - mean) * inverse_norm[ids, None]
            return (scaled.to(table.dtype) @ rows.to(table.dtype).T).float()
        # cos(s, e - mean) without a centred copy of the whole table.
        scaled = scaled.to(table.dtype)
        centred = scaled @ table.T - (scaled @ mean.to(table.dtype))[..., None]
        return centred.float() * inverse_norm

    def _all_keys(self) -> Tensor:
        """[V, KEY], remembered until training begins or ends: where the speller learns, none but CTC asks, for some."""
        assert self.speller is not None
        letters = self.speller.letters
        if self._keys is None or self._keys.device != letters.device:
            ids = torch.arange(len(letters), device=letters.device)
            with torch.inference_mode(False), torch.no_grad():
                self._keys = torch.cat([self.speller(part) for part in ids.split(4096)])
        return self._keys

    def _facts(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """The table's mean [H] and 1 / ‖row - mean‖ [V]; computed once, for the table is frozen."""
        if self._table_facts is None or self._table_facts[0].device != table.device:
            # Plain tensors even when first needed under inference mode: training may use them next.
            with torch.inference_mode(False), torch.no_grad():
                mean = table.float().mean(0)
                norms = torch.cat([(part.float() - mean).norm(dim=1) for part in table.split(8192)])
            self._table_facts = (mean, 1.0 / norms.clamp(min=1e-6))
        return self._table_facts

    def heard(self, frames: Tensor, n_frames: Tensor, table: Tensor) -> AudioTokens:
        """One embedding a token: the expected embedding of the top tokens, averaged over a token's frames."""
        states, blank = self.states(frames, n_frames)
        return self.collapse(states, blank, self.n_tokens(n_frames), table)

    def collapse(self, states: Tensor, blank: Tensor, counts: Tensor, table: Tensor) -> AudioTokens:
        """states [B, N, K], blank logits [B, N], counts [B] of them real → the tokens heard."""
        real = length_mask(counts, states.shape[1])
        top, ids = self.token_logits(states, table).topk(min(self.TOP_K, table.shape[0]), dim=-1)  # [B, N, K]
        emitted = (top[..., 0] > blank) & real
        # A run of frames with the same best token, no blank between them, is one token (CTC's collapse).
        best = ids[..., 0]
        starts = emitted.clone()
        starts[:, 1:] &= ~(emitted[:, :-1] & (best[:, 1:] == best[:, :-1]))
        n_heard = starts.sum(1)
        n_max = int(n_heard.max()) if n_heard.numel() else 0
        expected = (top.softmax(-1)[..., None].to(table.dtype) * table[ids]).sum(2)  # [B, N, H]
        weight = torch.sigmoid(top.logsumexp(-1) - blank) * emitted  # how surely it is no blank
        slot = (starts.cumsum(1) - 1).clamp(min=0)  # [B, N] → index of the token
        shape = (states.shape[0], max(n_max, 1))
        total = weight.new_zeros(shape).scatter_add(1, slot, weight)
        share = (weight / total.gather(1, slot).clamp(min=1e-6)).to(expected.dtype)
        embeddings = expected.new_zeros(*shape, expected.shape[-1])
        embeddings = embeddings.scatter_add(1, slot[..., None].expand_as(expected), expected * share[..., None])
        silent = n_heard == 0
        first = torch.arange(shape[1], device=silent.device) == 0
        place = (silent[:, None] & first)[..., None]  # [B, N heard, 1]
        embeddings = torch.where(place, self.silence.to(embeddings.dtype), embeddings)
        return AudioTokens(embeddings, n_heard + silent)

    def transcribe(self, frames: Tensor, n_frames: Tensor, table: Tensor) -> list[list[int]]:
        """The best token ids of each clip by greedy CTC decoding."""
        states, blank = self.states(frames, n_frames)
        top, best = self.token_logits(states, table).max(-1)
        emitted = (top > blank) & length_mask(self.n_tokens(n_frames), best.shape[1])
        path = torch.where(emitted, best, -1)
        return [[t for t in torch.unique_consecutive(row).tolist() if t >= 0] for row in path]


ADAPTERS: dict[str, type[Adapter]] = {
    "aligner": Aligner,
    "swiglu": SwiGLUAdapter,
    "mlp": MLPAdapter,
    "linear": LinearAdapter,
    "conv": ConvAdapter,
}


def build_adapter(config: AdapterConfig, d_encoder: int, d_llm: int, n_vocab: int) -> Adapter:
    """d_encoder, d_llm: widths of the encoder's frames and of the LLM's embeddings; n_vocab: rows of its table."""
    return ADAPTERS[config.name](config, d_encoder, d_llm, n_vocab)
