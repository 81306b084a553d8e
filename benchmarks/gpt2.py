"""What the trainer is measured against: GPT-2 of Hugging Face's transformers, of our depth, width and vocabulary.

Equal depth and width make the matrix products equal: 12 x width^2 weights a layer and vocabulary x width in the head.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from training.config import TrainingConfig

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
Loss = Callable[[Tensor, Tensor], Tensor]


def build(config: TrainingConfig, *, attention: str = "sdpa", dropout: float = 0.0) -> nn.Module:
    """`attention` is "sdpa" or "eager"; the weights are drawn from torch's generator."""
    from transformers import GPT2Config, GPT2LMHeadModel

    m = config.model
    last = config.data.vocab_size - 1
    gpt2 = GPT2Config(
        vocab_size=config.data.vocab_size, n_positions=config.data.context, n_embd=m.width, n_layer=m.depth,
        n_head=m.width // m.head_dim, attn_implementation=attention, use_cache=False, bos_token_id=last,
        eos_token_id=last, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    model: nn.Module = GPT2LMHeadModel(gpt2)
    return model


def loss_of(model: nn.Module) -> Loss:
    """Mean nats a token over all targets; the model's own loss would copy the logits once more."""

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs).logits.float().flatten(0, 1), targets.flatten())

    return loss


def flops_per_token(config: TrainingConfig) -> float:
    """As `training.size` counts ours: 6 per weight of a product, 12 x width x context a layer for attention."""
    m, d = config.model, config.data
    products = 12 * m.depth * m.width * m.width + d.vocab_size * m.width
    return 6.0 * products + 12 * m.depth * m.width * d.context


class Logits(nn.Module):
    """(B, T) -> (B, T, V), as the lab's evaluation wants it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Any = self.model(tokens).logits
        return logits.float()  # type: ignore[no-any-return]
