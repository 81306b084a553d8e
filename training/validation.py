"""The curve of quick evaluations: does the model still get better? No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from training.config import EvaluationConfig

Point = tuple[int, float]  # step, validation bits a byte


@dataclass
class ValidationCurve:
    points: list[Point] = field(default_factory=list)

    def add(self, step: int, val_bpb: float) -> None:
        self.points.append((step, val_bpb))

    def stops(self, config: EvaluationConfig) -> str | None:
        """Why training should end now: `patience` evaluations in a row were not better by `min_delta`; else None."""
        if not config.patience:
            return None
        best, since = float("inf"), 0
        for _, bpb in self.points:
            if bpb < best - config.min_delta:
                best, since = bpb, 0
            else:
                since += 1
        if since < config.patience:
            return None
        return f"val_bpb has not fallen by {config.min_delta:g} below {best:.4f} in {since} evaluations"
