"""How large a configuration is: parameters, arithmetic, memory. Plain arithmetic, no torch, so a preflight is cheap.

Holds for our own model; a recipe's `model.py` is measured, not predicted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.config import TrainingConfig

GATE_CHANNELS = 32  # channels of the residual stream that a value gate reads


def has_value_embedding(layer: int, depth: int) -> bool:
    """Every second layer, the last always."""
    return layer % 2 == (depth - 1) % 2


def windows(config: TrainingConfig) -> list[int]:
    """Tokens each layer attends to, its own included; the last layer sees the whole context."""
    context, pattern, depth = config.data.context, config.model.windows, config.model.depth
    short = max(1, round(config.model.short_window * context))
    sizes = [short if pattern[i % len(pattern)] == "S" else context for i in range(depth)]
    return [*sizes[:-1], context]


def gate_channels(config: TrainingConfig) -> int:
    return min(GATE_CHANNELS, config.model.width)


def parameter_counts(config: TrainingConfig) -> dict[str, int]:
    """Parameters by kind: matrices (Muon), embeddings, value_embeddings, head, scalars; and their total."""
    m, vocab = config.model, config.data.vocab_size
    heads = m.width // m.head_dim
    kv_width = m.width // m.kv_share
    valued = sum(has_value_embedding(i, m.depth) for i in range(m.depth)) if m.value_embeddings else 0
    layer = 2 * m.width * m.width + 2 * m.width * kv_width + 2 * m.mlp_ratio * m.width * m.width
    counts = {
        "matrices": m.depth * layer + valued * gate_channels(config) * (heads // m.kv_share),
        "embeddings": vocab * m.width,
        "value_embeddings": valued * vocab * kv_width,
        "head": vocab * m.width,
        "scalars": 2 * m.depth,
    }
    return counts | {"total": sum(counts.values())}


def flops_per_token(config: TrainingConfig) -> float:
    """Floating-point operations of forward and backward for one token.

    6 per parameter of a matrix product, 12 x width x window per layer for attention; table look-ups are free and a
    causal mask is not halved (the PaLM convention, appendix B of arXiv 2204.02311).
    """
    counts = parameter_counts(config)
    attention = sum(12 * config.model.width * window for window in windows(config))
    return float(6 * (counts["matrices"] + counts["head"]) + attention)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device at the peak of a step."""

    weights: int  # parameters and gradients
    optimizer: int
    activations: int
    fixed: int  # the framework itself

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.activations + self.fixed


# Bytes a process needs before it holds a model: the interpreter with torch on a CPU, the driver's context on a GPU.
FRAMEWORK_BYTES = {"cpu": 350_000_000}
FRAMEWORK_BYTES_ACCELERATOR = 700_000_000
# Values kept for the backward pass per token and channel of one layer, outside the MLP's hidden layer: three norms,
# q, k, v before and after rotation and norm, attention's output, projections, residual sums.
KEPT_PER_CHANNEL = 22
KEPT_PER_HIDDEN = 3
LOSS_CHUNK_TOKENS = 1024


def predict_memory(
    config: TrainingConfig, backend: str = "cpu", *, low_precision: bool | None = None
) -> MemoryEstimate:
    """Memory one training process needs at its peak, in bytes; an estimate, within about a third."""
    m = config.model
    counts = parameter_counts(config)
    if low_precision is None:
        low_precision = config.dtype == "bfloat16" or (config.dtype == "auto" and backend != "cpu")
    size = 2 if low_precision else 4
    total = counts["total"]
    matrices = counts["matrices"]
    # Muon keeps one momentum per weight and works on stacked copies of one shape at a time; AdamW keeps two moments
    optimizer = 4 * (matrices + 2 * (total - matrices)) + 4 * 6 * matrices // max(1, min(3, m.depth))
    tokens = config.batch.rows * config.data.context
    kept = tokens * m.depth * m.width * (KEPT_PER_CHANNEL + KEPT_PER_HIDDEN * m.mlp_ratio)
    logits = 3 * 4 * min(tokens, LOSS_CHUNK_TOKENS) * config.data.vocab_size
    weights = 8 * total + (2 * total if low_precision else 0)
    fixed = FRAMEWORK_BYTES.get(backend, FRAMEWORK_BYTES_ACCELERATOR)
    return MemoryEstimate(weights, optimizer, kept * size + logits, fixed)


def largest_rows(config: TrainingConfig, memory_bytes: int, backend: str) -> int | None:
    """The most `batch.rows` whose estimate fits in `memory_bytes` and that divide a step; None when not even 1 does."""
    per_step = config.batch.tokens // config.data.context
    divisors = {d for low in range(1, math.isqrt(per_step) + 1) if per_step % low == 0 for d in (low, per_step // low)}
    for rows in sorted((d for d in divisors if d <= config.batch.rows), reverse=True):
        smaller = config.model_copy(update={"batch": config.batch.model_copy(update={"rows": rows})})
        if predict_memory(smaller, backend).total <= memory_bytes:
            return rows
    return None
