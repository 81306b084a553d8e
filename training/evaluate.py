"""A glance at the validation text during a run, in the training process: for curves and for stopping early.

The score of a run is not made here but in `training.sealed`, where no recipe's code runs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.loader import IGNORED, Rows
from training.score import Evaluation

LEAK = 0.01  # nats, as in `training.sealed.scoring`, whose test is the one that counts
LOGITS_AT_ONCE = 2**24  # values of one batch of logits: 64 MiB in float32


@torch.no_grad()
def looks_ahead(model: nn.Module, rows: Rows, vocab_size: int, device: torch.device) -> tuple[int, int] | None:
    """Whether later tokens, or another row, change what is predicted: a score of such a model means nothing, it has
    seen the answers.

    The second half of the first of `rows` (N, T + 1) is replaced, and all of the second one. Returns a position whose
    probabilities moved and the first one that was replaced, None when all is well.
    """
    tokens = torch.from_numpy(np.resize(rows[:, :-1], (2, rows.shape[1] - 1))).to(device).clamp_min(0)
    half = tokens.shape[1] // 2
    changed = (tokens + 1) % vocab_size
    changed[0, :half] = tokens[0, :half]
    was_training = model.training
    model.eval()
    try:
        before, after = (F.log_softmax(model(each)[0, :half].float(), dim=-1) for each in (tokens, changed))
    finally:
        model.train(was_training)
    same = (before == after) | ((before - after).abs() <= LEAK)  # 0 both times is the same; a NaN is not
    moved = ~(same | before.isnan()).all(dim=1)  # what is no number is told by the loss
    return (int(moved.nonzero()[0, 0]), half) if bool(moved.any()) else None


@torch.no_grad()
def evaluate(
    model: nn.Module,
    rows: Rows,
    byte_lengths: Tensor,
    *,
    device: torch.device | None = None,
    context: Callable[[], AbstractContextManager[object]] = nullcontext,
    between: Callable[[], None] | None = None,
) -> Evaluation:
    """Score `rows` (N, T + 1), of which IGNORED targets and tokens without bytes do not count.

    `byte_lengths` (vocab_size,) are the raw bytes of each id; `context` gives the precision to run in; `between` is
    called between batches and may raise. Raises ValueError when the rows hold no byte to score.
    """
    where = device or next(model.parameters()).device
    lengths = byte_lengths.to(where)
    at_once = max(1, LOGITS_AT_ONCE // ((rows.shape[1] - 1) * len(byte_lengths)))
    nats = torch.zeros((), dtype=torch.float64)
    count = size = 0
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(rows), at_once):
            if between is not None:
                between()
            ids = torch.from_numpy(rows[start : start + at_once]).to(where)
            targets = ids[:, 1:].flatten()
            with context():
                logits = model(ids[:, :-1].clamp_min(0))
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets, ignore_index=IGNORED, reduction="none")
            scored_bytes = torch.where(targets == IGNORED, 0, lengths[targets.clamp_min(0)])
            scored = scored_bytes > 0
            nats += loss[scored].double().sum().cpu() if where.type != "mps" else loss[scored].cpu().double().sum()
            count += int(scored.sum())
            size += int(scored_bytes.sum())
    finally:
        model.train(was_training)
    return Evaluation.of(float(nats), count, size)
