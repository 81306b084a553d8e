"""How the rates change over a run: a function of progress, the part of the budget that is spent. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.config import TrainingConfig


@dataclass(frozen=True)
class Rates:
    """What one step uses."""

    lr: float  # factor on every group's peak rate
    momentum: float  # Muon's momentum
    weight_decay: float  # Muon's decay, not yet times the rate


def rates(config: TrainingConfig, progress: float) -> Rates:
    """The rates at `progress` in [0, 1]; above 1 (a step that began just before the end) counts as 1."""
    progress = min(max(progress, 0.0), 1.0)
    o = config.optimizer
    rise = 1.0 if o.momentum_warmup == 0 else min(progress / o.momentum_warmup, 1.0)
    momentum = o.momentum_start + (o.momentum - o.momentum_start) * rise
    return Rates(_lr_factor(config, progress), momentum, o.weight_decay * (1.0 - progress))


def _lr_factor(config: TrainingConfig, progress: float) -> float:
    s = config.schedule
    if progress < s.warmup:
        return progress / s.warmup
    if s.warmdown == 0 or progress <= 1.0 - s.warmdown:
        return 1.0
    left = (1.0 - progress) / s.warmdown  # 1 at the start of the warm-down, 0 at the end
    if s.shape == "cosine":
        left = 0.5 - 0.5 * math.cos(math.pi * left)
    elif s.shape == "sqrt":
        left = 1.0 - math.sqrt(1.0 - left)
    return s.final + (1.0 - s.final) * left
