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


def saves_on_the_way(config: TrainingConfig) -> bool:
    """Whether a checkpoint may come before the last; memory for a copy of everything is then made at the start."""
    every, budget = config.checkpoint.every_seconds, config.budget
    return every > 0 and (budget.kind != "seconds" or budget.amount > every)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device at the peak of a step."""

    weights: int  # parameters and gradients
    optimizer: int
    activations: int
    fixed: int  # the framework itself
    copies: int = 0  # of weights and optimizer: what a checkpoint is written from

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.activations + self.fixed + self.copies


# Bytes a process needs before it holds a model: the interpreter with torch on a CPU, the driver's context on a GPU.
FRAMEWORK_BYTES = {"cpu": 400_000_000}
FRAMEWORK_BYTES_ACCELERATOR = 700_000_000
# Values autograd keeps per token and channel of one layer in the plain form, outside the MLP's hidden layer: three
# norms, q, k, v before and after rotation and norm, attention's output, projections, residual sums.
KEPT_PER_CHANNEL = 22
KEPT_PER_HIDDEN = 3
LOSS_CHUNK_TOKENS = 1024  # whose logits exist at once, at most
LOSS_CHUNK_LOGITS_CPU = 2**20  # on a CPU they stay in the cache: 4 MiB


def loss_chunk_tokens(vocab_size: int, *, cpu: bool) -> int:
    """Tokens whose logits the loss computes at once."""
    return max(64, min(LOSS_CHUNK_TOKENS, LOSS_CHUNK_LOGITS_CPU // vocab_size)) if cpu else LOSS_CHUNK_TOKENS


def predict_memory(
    config: TrainingConfig, backend: str = "cpu", *, low_precision: bool | None = None
) -> MemoryEstimate:
    """Memory one training process needs at its peak, in bytes. On a CPU within a fifth; less sure elsewhere."""
    counts = parameter_counts(config)
    if low_precision is None:
        low_precision = config.dtype == "bfloat16" or (config.dtype == "auto" and backend != "cpu")
    total, matrices = counts["total"], counts["matrices"]
    # Muon keeps one momentum per weight and works on stacked copies of one shape at a time; AdamW keeps two moments
    moment = 0.0 if config.optimizer.offload else 1 + 4 / 256 if config.optimizer.state_bits == 8 else 4
    state, stacks = 4 * matrices + round(2 * moment * (total - matrices)), 4 * STACKS * _largest_shape(config)
    by_hand = backend == "cpu" and not low_precision
    kept = _kept_by_hand(config) if by_hand else _kept_plainly(config)
    tokens, vocab = config.batch.rows * config.data.context, config.data.vocab_size
    logits = 3 * 4 * min(tokens, loss_chunk_tokens(vocab, cpu=backend == "cpu")) * vocab
    activations = kept * (2 if low_precision else 4) + logits + 4 * counts["head"]
    weights = 8 * total + (2 * total if low_precision else 0)
    fixed = FRAMEWORK_BYTES.get(backend, FRAMEWORK_BYTES_ACCELERATOR)
    if backend != "cpu":
        return MemoryEstimate(weights, state + stacks, activations, fixed)
    # The step of the optimizer reuses what the backward pass gave back. The warm-up holds a second copy of the weights.
    copies = 4 * total + (state if saves_on_the_way(config) else 0)
    if config.batch.tokens > tokens * max(1, config.parallel.processes):
        activations += round(SPLIT * activations)
    return MemoryEstimate(weights, state, max(activations, stacks), fixed, copies)


# Of a step's parts but the first, the part of the activations that do not fit where those of the part before were: its
# gradients lie between them. Measured with glibc, after a few steps.
SPLIT = 0.8
STACKS = 5  # copies of the largest stack: weights, gradients, two iterates of the orthogonalisation, a product


def _largest_shape(config: TrainingConfig) -> int:
    """Weights of the matrices that Muon steps together: those of one shape, of all layers."""
    m = config.model
    square = (4 if m.kv_share == 1 else 2) * m.width * m.width
    return m.depth * max(square, m.mlp_ratio * m.width * m.width * (2 if m.mlp_ratio == 1 else 1))


def _kept_plainly(config: TrainingConfig) -> int:
    m = config.model
    tokens = config.batch.rows * config.data.context
    return tokens * m.depth * m.width * (KEPT_PER_CHANNEL + KEPT_PER_HIDDEN * m.mlp_ratio)


def _kept_by_hand(config: TrainingConfig) -> int:
    """Values kept for the backward pass with the gradients of `training.elementwise`, and what the pass makes anew."""
    m, context = config.model, config.data.context
    shared = 1 / m.kv_share
    kept = 2.0  # the embedding added back in, what the head reads
    for layer, window in enumerate(windows(config)):
        kept += 3 + 2 * m.mlp_ratio  # residual stream, two norms; the hidden layer before and after squaring
        kept += 2 + 2 * shared + (2 if m.kv_share > 1 else 0)  # q, k, v, output; k and v repeated for their heads
        if window < context:  # keys and values of two blocks side by side, blocks of the output
            kept += 2 * 2 * (1 - window / context) + 1
        if m.value_embeddings and has_value_embedding(layer, m.depth):
            kept += shared
    kept += 3 + 2 * m.mlp_ratio  # gradients of one layer
    masks = sum(2 * window * window for window in windows(config) if window < context)  # as numbers, one a layer
    return round(config.batch.rows * context * m.width * kept) + masks


def largest_rows(config: TrainingConfig, memory_bytes: int, backend: str) -> int | None:
    """The most `batch.rows` whose estimate fits in `memory_bytes` and that divide a step; None when not even 1 does."""
    per_step = config.batch.tokens // config.data.context
    divisors = {d for low in range(1, math.isqrt(per_step) + 1) if per_step % low == 0 for d in (low, per_step // low)}
    for rows in sorted((d for d in divisors if d <= config.batch.rows), reverse=True):
        smaller = config.model_copy(update={"batch": config.batch.model_copy(update={"rows": rows})})
        if predict_memory(smaller, backend).total <= memory_bytes:
            return rows
    return None


def memory_advice(config: TrainingConfig, backend: str, memory_bytes: int | None) -> str:
    """What is told when memory ran out: the estimate, the memory there is, what to change."""
    advice = f"The estimate for this configuration is {predict_memory(config, backend).total / 1e9:.1f} GB"
    if memory_bytes:
        advice += f" of {memory_bytes / 1e9:.1f} GB"
    rows = largest_rows(config, int(0.9 * (memory_bytes or 0)), backend)
    if rows is not None and rows < config.batch.rows:
        return f"{advice}. Next: batch.rows = {rows}."
    if config.batch.rows > 1:
        return f"{advice}. Next: a smaller batch.rows than {config.batch.rows}."
    return f"{advice}. Next: a smaller model or context."
