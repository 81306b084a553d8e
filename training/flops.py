"""Floating-point operations of a token; with them the first look at what a recipe's model answers."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from training import generators, size
from training.config import TrainingConfig
from training.failure import RecipeProblem, is_out_of_memory
from training.model import GPT
from workspace.errors import LabError

# attention as it is called on devices that torch's counter does not know
_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_attention_math_for_mps",
    "_scaled_dot_product_fused_attention_overrideable",
)


def flops_per_token(model: nn.Module, config: TrainingConfig, device: torch.device) -> float:
    """Forward and backward: by arithmetic for our model (`training.size`), counted for a recipe's.

    Counted are matrix products, attention and convolutions of a forward pass over one row, three times: the backward
    pass has twice as many. What a model says of itself is not asked, a budget in flops hangs on it. One derived from
    ours is measured by ours, so that the same work is the same number. Raises `RecipeProblem` when the model fails
    on the row or does not answer with logits.
    """
    if type(model) is GPT:
        return size.flops_per_token(config)
    row = torch.arange(config.data.context, device=device).remainder(config.data.vocab_size).unsqueeze(0)
    row[0, -1] = config.data.vocab_size - 1  # the largest id there is
    drawn = generators.take(device)
    count = _checked_forward(model, row, config)
    if isinstance(model, GPT):
        count = size.flops_per_token(config) * count / counted_of_ours(config)
    else:
        count = 3 * count / row.numel()
    generators.put(drawn, device)
    if config.budget.kind == "flops" and not count > 0:
        raise RecipeProblem(
            "recipe/model.py: the model makes no matrix products, so that a budget in flops would never be spent",
            fix='budget.kind = "steps" or "seconds"',
        )
    return count


def counted_of_ours(config: TrainingConfig) -> float:
    """What the counter finds in a forward pass of our model over one row: attention to short windows goes by blocks,
    so that more is multiplied than seen (`training.model.attend`).
    """
    counts, context = size.parameter_counts(config), config.data.context
    pairs = 0  # of query and key
    for window in size.windows(config):
        blocks = [min(window, context - start) for start in range(0, context, window)]
        pairs += blocks[0] ** 2 + sum(block * (window + block) for block in blocks[1:])
    return 2.0 * context * (counts["matrices"] + counts["head"]) + 4.0 * config.model.width * pairs


def _checked_forward(model: nn.Module, row: Tensor, config: TrainingConfig) -> float:
    expected = (*row.shape, config.data.vocab_size)
    was_training = model.training
    model.eval()
    try:
        count, logits = _forward(model, row)
        found: Any = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if found != expected or not logits.is_floating_point():
            told = found if found != expected else f"{logits.dtype}"
            raise RecipeProblem(
                f"recipe/model.py: the model returned {told} for tokens {tuple(row.shape)}",
                valid=f"floating-point logits of shape {expected}",
            )
        logits.sum().item()  # a device tells late what went wrong in it
    except LabError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise RecipeProblem(
            f"recipe/model.py: the model failed on a row of {row.numel()} tokens with ids up to {int(row[0, -1])}: "
            f"{type(error).__name__}: {error}",
            fix="build it for data.vocab_size and data.context of its config",
        ) from error
    finally:
        model.train(was_training)
    return count


def _forward(model: nn.Module, row: Tensor) -> tuple[float, Any]:
    """Operations of a forward pass, and what it returned."""
    attention = {getattr(torch.ops.aten, name): _attention for name in _ATTENTION if hasattr(torch.ops.aten, name)}
    # what a recipe compiles by itself would not be seen; importing the compiler for others costs a second
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with torch.no_grad(), eager, FlopCounterMode(display=False, custom_mapping=attention) as counter:
        answer = model(row)
    return float(counter.get_total_flops()), answer


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of shapes (B, H, T, D), as the counter hands them on: query by key, and that by value."""
    (rows, heads, queries, width), keys = query, key[-2]
    return int(2 * rows * heads * queries * keys * (width + value[-1]))
