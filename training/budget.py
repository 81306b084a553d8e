"""What a run may spend and has spent: seconds, steps, tokens or floating-point operations. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from training.config import TrainingConfig


@dataclass
class Clock:
    """What has been spent on training: loading and steps, without start-up, compiling, evaluations and checkpoints."""

    config: TrainingConfig
    flops_per_token: float
    seconds: float = 0.0
    steps: int = 0

    @property
    def tokens(self) -> int:
        return self.steps * self.config.batch.tokens

    @property
    def flops(self) -> float:
        return self.tokens * self.flops_per_token

    @property
    def progress(self) -> float:
        """The part of the budget that is spent; the last step may go beyond 1."""
        budget = self.config.budget
        spent = {"seconds": self.seconds, "steps": self.steps, "tokens": self.tokens, "flops": self.flops}
        return float(spent[budget.kind] / budget.amount)

    def eta_s(self) -> float | None:
        """Seconds of training that are left; None when nothing tells yet."""
        if self.config.budget.kind == "seconds":
            return max(0.0, self.config.budget.amount - self.seconds)
        done = self.progress
        return self.seconds * max(0.0, 1 - done) / done if done else None


def planned_tokens(config: TrainingConfig, flops_per_token: float) -> float | None:
    """Tokens the budget is for; None for a budget in seconds."""
    budget = config.budget
    if budget.kind == "seconds":
        return None
    return budget.amount / {"steps": 1 / config.batch.tokens, "tokens": 1.0, "flops": flops_per_token}[budget.kind]
