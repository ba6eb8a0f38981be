"""Projection adapters: the one place that knows how encoder frames become the LLM's input embeddings.

Every adapter is a class in `ADAPTERS`: to add one, write it here and name it there.

Shapes: B clips, T encoder frames (50/s), D encoder width, N audio tokens, H LLM width, V LLM vocabulary.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from llasm.ear import Ear, Written


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter is made of; each adapter reads the fields it needs."""

    name: str = "aligner"
    """decoder, aligner, swiglu, mlp, linear or conv."""
    stack: int = 4
    """Encoder frames joined into one audio token: 4 → 12.5 tokens/s, 8 → 6.25 tokens/s. `decoder` joins none; it hears
    at most as many tokens."""
    width: int = 512
    """Inner width of `aligner`, `swiglu`, `mlp` and of `decoder`'s projection."""
    n_layers: int = 4
    """Transformer layers of `aligner`."""
    n_heads: int = 8
    """Attention heads of `aligner`'s layers."""
    dropout: float = 0.1
    """Dropout in `aligner`'s layers."""
    rate: str = "auto"
    """`fixed`: every frame, or `stack` of them, is a token. `heard`: one token for each LLM token recognised. `aligner`
    has both. `auto`: heard for `decoder`, which has no other, else fixed."""
    language: str = "en"
    """What `decoder` takes the speech for: a code of Whisper's, such as en or zh, or auto: heard in each clip."""

    def __post_init__(self) -> None:
        if self.name not in ADAPTERS:
            raise ValueError(f"unknown adapter {self.name!r}: choose from {', '.join(ADAPTERS)}")
        for field, least in (("stack", 1), ("width", 1), ("n_layers", 0), ("n_heads", 1)):
            if getattr(self, field) < least:
                raise ValueError(f"adapter {field} is {getattr(self, field)}; it must be at least {least}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"adapter dropout is {self.dropout}; it must be at least 0 and below 1")
        if self.name == "conv" and self.stack & (self.stack - 1):
            raise ValueError(f"adapter 'conv' halves the rate: stack must be a power of two, not {self.stack}")
        if self.name == "aligner" and (self.width % self.n_heads or self.width % Aligner.GROUPS):
            raise ValueError(
                f"adapter width {self.width} must be divisible by n_heads {self.n_heads} and {Aligner.GROUPS}"
            )
        if self.rate not in ("auto", "fixed", "heard"):
            raise ValueError(f"unknown adapter rate {self.rate!r}: choose auto, fixed or heard")
        if self.rate == "heard" and self.name not in ("aligner", "decoder"):
            raise ValueError(f"rate 'heard' needs the adapter 'aligner' or 'decoder', not {self.name!r}")
        if self.name == "decoder" and self.rate == "fixed":
            raise ValueError("adapter 'decoder' has the rate 'heard' alone, not 'fixed'")
        if self.language not in ("en", "auto"):
            from whisper.tokenizer import LANGUAGES

            if self.language not in LANGUAGES:
                raise ValueError(f"adapter language {self.language!r} is none of Whisper's: choose auto, en, zh, …")

    @property
    def heard(self) -> bool:
        """Whether a token stands for what is heard, and not for a stretch of time."""
        return self.rate == "heard" or (self.rate == "auto" and self.name == "decoder")


class AudioTokens(NamedTuple):
    """What the LLM receives of each clip."""

    embeddings: Tensor  # [B, N, H], zeros past each clip's count
    counts: Tensor  # [B] int64


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """[B] lengths → [B, size] bool, True where there is something."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


class Adapter(nn.Module):
    """Frames of a fixed rate: `stack` of them are one token."""

    def __init__(self, config: AdapterConfig, d_encoder: int, d_llm: int) -> None:
        super().__init__()
        self.config = config

    def unfreeze(self, stage: str) -> None:
        """Lets a training stage (`ground`, `align`, `chat`) have what it trains of the adapter: all of it."""
        self.requires_grad_(True)

    def n_tokens(self, n_frames: Any) -> Any:
        """Tokens that `n_frames` encoder frames become at a fixed rate, at most at the rate `heard`; int or tensor."""
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

    def __init__(self, config: AdapterConfig, d_encoder: int, d_llm: int) -> None:
        super().__init__(config, d_encoder, d_llm)
        self.out = nn.Linear(config.stack * d_encoder, d_llm)

    def project(self, frames: Tensor, n_frames: Tensor) -> Tensor:
        return self.out(self.stacked(frames))


class MLPAdapter(Adapter):
    """Two layers with GELU (LLaVA-1.5, arXiv 2310.03744, section 3.3)."""

    def __init__(self, config: AdapterConfig, d_encoder: int, d_llm: int) -> None:
        super().__init__(config, d_encoder, d_llm)
        self.hidden = nn.Linear(config.stack * d_encoder, config.width)
        self.out = nn.Linear(config.width, d_llm)

    def project(self, frames: Tensor, n_frames: Tensor) -> Tensor:
        return self.out(F.gelu(self.hidden(self.stacked(frames))))


class SwiGLUAdapter(Adapter):
    """RMSNorm → SwiGLU → RMSNorm → linear (Ultravox's projector; SwiGLU: arXiv 2002.05202)."""

    def __init__(self, config: AdapterConfig, d_encoder: int, d_llm: int) -> None:
        super().__init__(config, d_encoder, d_llm)
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

    def __init__(self, config: AdapterConfig, d_encoder: int, d_llm: int) -> None:
        super().__init__(config, d_encoder, d_llm)
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


FUSED_STEPS = 200


def _kernels(x: Tensor) -> AbstractContextManager[None]:
    """On CPUs plain products, forth and back, are faster than the fused kernel where the rows are short: 15 and 26 ms
    at 56 steps, 98 and 113 at 175, 314 and 207 at 300 (torch 2.13, bfloat16, 32 rows, 2 cores)."""
    plain = x.device.type == "cpu" and torch.is_grad_enabled() and x.shape[1] < FUSED_STEPS
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


class Aligner(Adapter):
    """Stack → Transformer with a convolutional position → states that are read as a CTC distribution (Graves et al.,
    ICML 2006) over the LLM's own tokens.

    The logit of a token is the scaled cosine between the state and the token's embedding in the LLM, both taken from
    the table's mean, so that what is emitted lies among the LLM's word embeddings once it is trained (stage `ground`).
    At rate `heard` it emits one embedding a recognised token: blanks dropped, repeats merged. A clip in which it hears
    none becomes one learned embedding, so that the LLM can be taught to say so.
    """

    GROUPS = 8  # of the convolutional position
    TOP_K = 8  # tokens whose embeddings are mixed into a heard token

    def __init__(self, config: AdapterConfig, d_encoder: int, d_llm: int) -> None:
        super().__init__(config, d_encoder, d_llm)
        width = config.width
        self.inp = nn.Linear(config.stack * d_encoder, width)
        self.position = nn.Conv1d(width, width, kernel_size=9, padding=4, groups=self.GROUPS)
        self.blocks = nn.ModuleList(_Block(width, config.n_heads, config.dropout) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, d_llm)
        self.blank = nn.Linear(width, 1)
        self.log_scale = nn.Parameter(torch.tensor([math.log(12.0)]))  # DeepSpeed sends no scalars
        if config.heard:
            self.silence = nn.Parameter(torch.zeros(d_llm))
        self._table_facts: tuple[Tensor, Tensor] | None = None

    def forward(self, frames: Tensor, n_frames: Tensor, table: Tensor | None = None) -> AudioTokens:
        """frames [B, T, D] with n_frames [B] of them real → AudioTokens; table [V, H], which the rate `heard` needs."""
        return self.tokens(*self.states(frames, n_frames), self.n_tokens(n_frames), table)

    def states(self, frames: Tensor, n_frames: Tensor) -> tuple[Tensor, Tensor]:
        """frames [B, T, D] → states [B, N, H] and the blank's logits [B, N]."""
        x = self.inp(self.stacked(frames * length_mask(n_frames, frames.shape[1])[..., None]))
        mask = length_mask(self.n_tokens(n_frames), x.shape[1])
        x = x * mask[..., None]
        x = x + F.gelu(self.position(x.transpose(1, 2))).transpose(1, 2)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        return self.out(x), self.blank(x)[..., 0]

    def tokens(self, states: Tensor, blank: Tensor, counts: Tensor, table: Tensor | None) -> AudioTokens:
        """states [B, N, H] and blank [B, N], counts [B] of them real → what the LLM receives at the adapter's rate."""
        if not self.config.heard:
            return AudioTokens(states * length_mask(counts, states.shape[1])[..., None], counts)
        if table is None:
            raise ValueError("rate 'heard' needs the LLM's embedding table")
        return self.collapse(states, blank, counts, table)

    def token_logits(self, states: Tensor, table: Tensor, ids: Tensor | None = None) -> Tensor:
        """states [..., H] → [..., V] logits, or [..., len(ids)] of those tokens only."""
        scaled = F.normalize(states.float(), dim=-1) * self.log_scale.exp().float()
        mean, inverse_norm = self._facts(table)
        if ids is not None:
            rows = (table[ids].float() - mean) * inverse_norm[ids, None]
            return (scaled.to(table.dtype) @ rows.to(table.dtype).T).float()
        # cos(s, e - mean) without a centred copy of the whole table.
        scaled = scaled.to(table.dtype)
        centred = scaled @ table.T - (scaled @ mean.to(table.dtype))[..., None]
        return centred.float() * inverse_norm

    def _facts(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """The table's mean [H] and 1 / ‖row - mean‖ [V]; computed once, for the table is frozen."""
        if self._table_facts is None or self._table_facts[0].device != table.device:
            # Plain tensors even when first needed under inference mode: training may use them next.
            with torch.inference_mode(False), torch.no_grad():
                mean = table.float().mean(0)
                norms = torch.cat([(part.float() - mean).norm(dim=1) for part in table.split(8192)])
            self._table_facts = (mean, 1.0 / norms.clamp(min=1e-6))
        return self._table_facts

    def collapse(self, states: Tensor, blank: Tensor, counts: Tensor, table: Tensor) -> AudioTokens:
        """states [B, N, H], blank logits [B, N], counts [B] of them real → the tokens heard, of each the expected
        embedding of the likeliest, averaged over its frames."""
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
        """The LLM's tokens of what is heard in each clip, by greedy CTC decoding."""
        states, blank = self.states(frames, n_frames)
        top, best = self.token_logits(states, table).max(-1)
        emitted = (top > blank) & length_mask(self.n_tokens(n_frames), best.shape[1])
        path = torch.where(emitted, best, -1)
        return [[t for t in torch.unique_consecutive(row).tolist() if t >= 0] for row in path]


class DecoderAdapter(Adapter):
    """Whisper's own decoder, frozen, that writes down what it hears, and a trained projection: for each token of that
    text the LLM receives its embedding plus what the projection makes of the decoder's last hidden states there.

    Behind the frames stands a learned tail: Whisper ends a text by the silence that fills its window of 30 s, which
    would have to be encoded, and loops where there is none (prefix tuning: Li and Liang, arXiv 2101.00190). The
    projection starts at zero, so that with a trained tail alone it is the cascade of the two models. And since Whisper
    writes words for a dog's bark too, a detector says first whether anybody speaks; until it is trained, somebody does.
    Stage `ground` teaches tail and detector, the others the projection. A decoder's transcript in front of an LLM:
    DeSTA2 (arXiv 2409.20007, section 2).
    """

    N_TAIL = 32  # frames
    DETECTOR_WIDTH, DETECTOR_FRAMES = 64, 20

    def __init__(self, config: AdapterConfig, d_encoder: int, d_llm: int) -> None:
        super().__init__(config, d_encoder, d_llm)
        self.tail = nn.Parameter(0.5 * torch.randn(self.N_TAIL, d_encoder))
        hidden, decision = nn.Linear(d_encoder, self.DETECTOR_WIDTH), nn.Linear(self.DETECTOR_WIDTH, 1)
        nn.init.zeros_(decision.weight)
        nn.init.ones_(decision.bias)
        self.detector = nn.Sequential(nn.LayerNorm(d_encoder), hidden, nn.GELU(), decision)
        self.norm = nn.LayerNorm(d_encoder)
        self.hidden, self.out = nn.Linear(d_encoder, config.width), nn.Linear(config.width, d_llm)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.silence = nn.Parameter(torch.zeros(d_llm))
        self.ear: Ear | None = None  # `LlasmModel.listen`

    def unfreeze(self, stage: str) -> None:
        """`ground` trains tail and detector, the later stages everything else: norm, projection and what silence is."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(("tail", "detector.")) == (stage == "ground"))

    def forward(self, frames: Tensor, n_frames: Tensor, table: Tensor | None = None) -> AudioTokens:
        """frames [B, T, D] with n_frames [B] of them real, table [V, H] → AudioTokens, one or more for each clip."""
        if table is None:
            raise ValueError("rate 'heard' needs the LLM's embedding table")
        written = self._listen(frames, n_frames)
        states: list[Tensor] = []
        heard: list[list[int]] = []
        for tokens, row, limit in zip(written.tokens, written.states, self.n_tokens(n_frames).tolist(), strict=True):
            ids, ranges = self._ear.in_llm(tokens)
            heard.append(ids[:limit])
            states += [row[first:last].mean(0) for first, last in ranges[:limit]]
        known = torch.stack(states) if states else written.states.new_zeros(0, frames.shape[-1])
        said = torch.tensor([token for ids in heard for token in ids], dtype=torch.long, device=table.device)
        embeddings = table[said] + self.out(F.gelu(self.hidden(self.norm(known.to(self.norm.weight.dtype)))))
        # Clip after clip; one in which nothing was heard is one learned embedding.
        parts = embeddings.split([len(ids) for ids in heard])
        rows = [part if len(part) else self.silence[None].to(embeddings.dtype) for part in parts]
        counts = torch.tensor([len(row) for row in rows], device=frames.device)
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return AudioTokens(padded + 0.0 * self.silence, counts)  # under DDP every parameter needs a gradient

    def sound(self, frames: Tensor, n_frames: Tensor) -> tuple[Tensor, Tensor]:
        """frames [B, T, D], n_frames [B] → [B, T + N_TAIL, D], each clip's tail behind its frames, and what is real."""
        longer = F.pad(frames, (0, 0, 0, self.N_TAIL))
        places = n_frames[:, None] + torch.arange(self.N_TAIL, device=frames.device)
        clips = torch.arange(len(frames), device=frames.device)[:, None]
        tail = self.tail.to(frames.dtype).expand(len(frames), -1, -1)
        return longer.index_put((clips, places), tail), length_mask(n_frames + self.N_TAIL, longer.shape[1])

    def speech_scores(self, frames: Tensor, n_frames: Tensor) -> Tensor:
        """frames [B, T, D], n_frames [B] → [B] log-odds that somebody speaks, of the 0.4 s where it is likeliest.

        So one word in half a minute is found; what is learned from is labels of whole clips (multiple-instance learning
        with max pooling: Wang et al., arXiv 1810.09050, section 2).
        """
        frames = F.pad(frames, (0, 0, 0, max(0, self.DETECTOR_FRAMES - frames.shape[1])))
        scores = self.detector(frames)[..., 0].float()
        scores = scores.masked_fill(~length_mask(n_frames, frames.shape[1]), 0)
        widths = n_frames.clamp(1, self.DETECTOR_FRAMES)
        means = F.avg_pool1d(scores[:, None], self.DETECTOR_FRAMES, 1)[:, 0] * self.DETECTOR_FRAMES / widths[:, None]
        whole = length_mask(n_frames - widths + 1, means.shape[1])
        return means.masked_fill(~whole, -torch.inf).amax(1)

    def speech_loss(self, frames: Tensor, n_frames: Tensor, spoken: Tensor) -> Tensor:
        """Cross-entropy, summed, of whether somebody speaks in each clip; spoken: [B] bool."""
        scores = self.speech_scores(frames, n_frames)
        return F.binary_cross_entropy_with_logits(scores, spoken.to(scores.dtype), reduction="sum")

    def words_loss(self, frames: Tensor, n_frames: Tensor, targets: list[Tensor]) -> Tensor:
        """Cross-entropy, summed, of Whisper's tokens of what is said and of the end behind them; targets: B × [U_i], of
        which the empty ones are passed over: where nobody speaks is the detector's to say."""
        spoken = [i for i, target in enumerate(targets) if len(target)]
        if not spoken:
            return 0.0 * self.tail.sum()
        n_frames, targets = n_frames[spoken], [targets[i] for i in spoken]
        frames = frames[spoken, : n_frames.max()]
        ear, sound = self._ear, self.sound(frames, n_frames)
        prompts = ear.prompts(*sound)
        end = prompts.new_tensor([ear.end])
        rows = [torch.cat([prompt, target, end]) for prompt, target in zip(prompts, targets, strict=True)]
        tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=ear.end)
        lengths = torch.tensor([len(row) for row in rows], device=tokens.device)
        wanted = length_mask(lengths, tokens.shape[1])[:, 1:].clone()
        wanted[:, : prompts.shape[1] - 1] = False
        states = ear.states(tokens[:, :-1], *sound)
        return F.cross_entropy(ear.logits(states[wanted]), tokens[:, 1:][wanted], reduction="sum")

    def transcribe(self, frames: Tensor, n_frames: Tensor, table: Tensor) -> list[list[int]]:
        """The LLM's tokens of what is heard in each clip."""
        return [self._ear.in_llm(tokens)[0] for tokens in self._listen(frames, n_frames).tokens]

    def _listen(self, frames: Tensor, n_frames: Tensor) -> Written:
        limits = self.n_tokens(n_frames) * (self.speech_scores(frames, n_frames) > 0)
        return self._ear.listen(*self.sound(frames, n_frames), limits)

    @property
    def _ear(self) -> Ear:
        if self.ear is None:
            raise ValueError("adapter 'decoder' has no decoder yet: call LlasmModel.listen with the LLM's tokenizer")
        return self.ear


ADAPTERS: dict[str, type[Adapter]] = {
    "aligner": Aligner,
    "decoder": DecoderAdapter,
    "swiglu": SwiGLUAdapter,
    "mlp": MLPAdapter,
    "linear": LinearAdapter,
    "conv": ConvAdapter,
}


def build_adapter(config: AdapterConfig, d_encoder: int, d_llm: int) -> Adapter:
    """d_encoder, d_llm: widths of the encoder's frames and of the LLM's embeddings."""
    return ADAPTERS[config.name](config, d_encoder, d_llm)
