"""The model: a decoder of the autoresearch family (karpathy/autoresearch, karpathy/nanochat).

Rotary positions, parameter-free norms, q and k normed after rotation, ReLU^2, no biases, output projections that start
at zero, value embeddings with gates on every second layer, learned weights on the residual stream and on the
embedding added back into it, logits held within a soft cap, an output head of its own.

In shapes: B rows, T tokens, C channels (width), H query heads, G key/value heads, D channels of a head, V vocabulary.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training import size
from training.config import TrainingConfig
from training.elementwise import mix, norm, relu2, rotated_norm
from training.loss import cross_entropy


def window_mask(window: int, device: torch.device) -> Tensor:
    """(window, 2 x window) booleans: which of its own and the previous block's keys a query of a block may see."""
    query = torch.arange(window, device=device).unsqueeze(1) + window
    key = torch.arange(2 * window, device=device).unsqueeze(0)
    return (key <= query) & (key > query - window)


def attend(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention in which a token sees itself and the `window` - 1 tokens before it; (B, H, T, D) all.

    A short window goes block by block, a block as long as the window: its queries need only its own keys and the
    previous block's. So neither a T x T mask nor a T x T product exists.
    """
    T = q.size(2)
    if window >= T:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    queries, keys, values = (torch.split(x, window, dim=2) for x in (q, k, v))
    mask = window_mask(window, q.device)
    outputs = [F.scaled_dot_product_attention(queries[0], keys[0], values[0], is_causal=True)]
    for i in range(1, len(queries)):
        near_k = torch.cat([keys[i - 1], keys[i]], dim=2)
        near_v = torch.cat([values[i - 1], values[i]], dim=2)
        length = queries[i].size(2)  # the last block may be shorter
        block_mask = mask[:length, : near_k.size(2)]
        outputs.append(F.scaled_dot_product_attention(queries[i], near_k, near_v, attn_mask=block_mask))
    return torch.cat(outputs, dim=2)


class Attention(nn.Module):
    def __init__(self, config: TrainingConfig, layer: int) -> None:
        super().__init__()
        m = config.model
        self.head_dim, self.share = m.head_dim, m.kv_share
        kv_width = m.width // m.kv_share
        self.window = size.windows(config)[layer]
        self.query = nn.Linear(m.width, m.width, bias=False)
        self.key = nn.Linear(m.width, kv_width, bias=False)
        self.value = nn.Linear(m.width, kv_width, bias=False)
        self.output = nn.Linear(m.width, m.width, bias=False)
        self.gate: nn.Linear | None = None
        if m.value_embeddings and size.has_value_embedding(layer, m.depth):
            self.gate = nn.Linear(size.gate_channels(config), kv_width // m.head_dim, bias=False)

    def forward(self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, C = x.shape
        q = self.query(x).view(B, T, -1, self.head_dim)  # (B, T, H, D)
        k = self.key(x).view(B, T, -1, self.head_dim)  # (B, T, G, D)
        v = self.value(x).view(B, T, -1, self.head_dim)  # (B, T, G, D)
        if self.gate is not None and value_embedding is not None:
            gate = 2 * torch.sigmoid(self.gate(x[..., : self.gate.in_features]))  # (B, T, G), 1 at the start
            v = v + gate.unsqueeze(-1) * value_embedding.view_as(v)
        q, k = rotated_norm(q, cos, sin), rotated_norm(k, cos, sin)
        if self.share > 1:
            k, v = k.repeat_interleave(self.share, dim=2), v.repeat_interleave(self.share, dim=2)
        y = attend(q.transpose(1, 2), k.transpose(1, 2), v.to(q.dtype).transpose(1, 2), self.window)  # (B, H, T, D)
        return cast(Tensor, self.output(y.transpose(1, 2).reshape(B, T, C)))


class MLP(nn.Module):
    def __init__(self, config: TrainingConfig) -> None:
        super().__init__()
        m = config.model
        self.expand = nn.Linear(m.width, m.mlp_ratio * m.width, bias=False)
        self.output = nn.Linear(m.mlp_ratio * m.width, m.width, bias=False)
        self.activation = m.activation

    def forward(self, x: Tensor) -> Tensor:
        h = self.expand(x)
        if self.activation == "relu2":
            h = relu2(h)
        else:
            h = F.gelu(h) if self.activation == "gelu" else F.silu(h)
        return cast(Tensor, self.output(h))


class Block(nn.Module):
    def __init__(self, config: TrainingConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, value_embedding: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(norm(x), value_embedding, cos, sin)
        return x + cast(Tensor, self.mlp(norm(x)))


class GPT(nn.Module):
    """`forward`: tokens (B, T) -> logits (B, T, V) in float32. `loss`: tokens, targets (B, T) -> mean nats a token."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__()
        m, vocab = config.model, config.data.vocab_size
        self.embedding = nn.Embedding(vocab, m.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(m.depth))
        self.value_embeddings = nn.ModuleDict(
            {
                str(layer): nn.Embedding(vocab, m.width // m.kv_share)
                for layer in range(m.depth)
                if m.value_embeddings and size.has_value_embedding(layer, m.depth)
            }
        )
        self.residual_weights = nn.Parameter(torch.full((m.depth,), m.residual_init))
        self.skip_weights = nn.Parameter(torch.full((m.depth,), m.skip_init))
        self.head = nn.Linear(m.width, vocab, bias=False)
        self.softcap = m.softcap
        self.flops_per_token = size.flops_per_token(config)
        cos, sin = rotary_tables(config.data.context, m.head_dim, m.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Embeddings N(0, 1), head N(0, 0.001), q/k/v/expand uniform with variance 1/C, what writes to the stream 0."""
        nn.init.normal_(self.embedding.weight, std=1.0)
        nn.init.normal_(self.head.weight, std=0.001)
        for module in self.value_embeddings.values():
            table = cast(nn.Embedding, module)
            bound = math.sqrt(3 / table.embedding_dim)
            nn.init.uniform_(table.weight, -bound, bound)
        for module in self.blocks:
            block = cast(Block, module)
            attention = block.attention
            for linear in (attention.query, attention.key, attention.value, block.mlp.expand):
                bound = math.sqrt(3 / linear.in_features)
                nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.zeros_(attention.output.weight)
            nn.init.zeros_(block.mlp.output.weight)
            if attention.gate is not None:
                nn.init.zeros_(attention.gate.weight)

    def features(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, C), what the head reads."""
        T = tokens.size(1)
        assert self.cos.size(1) >= T, f"{T} tokens are more than the context of {self.cos.size(1)}"
        x = norm(self.embedding(tokens))
        if torch.is_autocast_enabled(x.device.type):  # the residual stream in the format of the matrix products
            x = x.to(torch.get_autocast_dtype(x.device.type))
        cos, sin = self.cos[:, :T].to(x.dtype), self.sin[:, :T].to(x.dtype)
        x0 = x
        for i, block in enumerate(self.blocks):
            x = mix(x, x0, self.residual_weights[i], self.skip_weights[i])
            value_embedding = self.value_embeddings[str(i)](tokens) if str(i) in self.value_embeddings else None
            x = block(x, value_embedding, cos, sin)
        return norm(x)

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.head(self.features(tokens)).float()
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else cast(Tensor, logits)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        features = self.features(tokens).flatten(0, 1)  # (B*T, C)
        return cross_entropy(features, self.head.weight, targets.flatten(), self.softcap)


def rotary_tables(context: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin, each (1, context, 1, head_dim/2), in float32."""
    frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(context, dtype=torch.float32), frequency)[None, :, None, :]
    return angle.cos(), angle.sin()


def build_model(config: TrainingConfig) -> nn.Module:
    """The model of a configuration with freshly drawn weights (torch's global generator), on the CPU in float32."""
    return GPT(config)
