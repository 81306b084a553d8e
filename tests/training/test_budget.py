"""Budgets in every unit, and stopping early."""

from __future__ import annotations

import pytest
from training_support import small

from training.budget import Clock, planned_tokens
from training.config import EvaluationConfig
from training.validation import ValidationCurve
from workspace.errors import LabError


@pytest.mark.parametrize(
    ("kind", "amount", "progress"),
    [("seconds", 20, 0.25), ("steps", 8, 0.5), ("tokens", 4096, 0.25), ("flops", 4e6, 0.256)],
)
def test_progress_is_counted_in_the_unit_asked_for(kind: str, amount: float, progress: float) -> None:
    clock = Clock(small(budget__kind=kind, budget__amount=amount), flops_per_token=1000.0, seconds=5.0, steps=4)
    assert clock.progress == pytest.approx(progress)
    assert clock.eta_s() == pytest.approx(15.0 if kind == "seconds" else 5 * (1 - progress) / progress)


def test_planned_tokens() -> None:
    assert planned_tokens(small(budget__kind="seconds"), 10.0) is None
    assert planned_tokens(small(budget__kind="steps", budget__amount=3), 10.0) == 3 * 256
    assert planned_tokens(small(budget__kind="flops", budget__amount=5000), 10.0) == 500


@pytest.mark.parametrize(("kind", "amount"), [("steps", 1.5), ("tokens", 100.5), ("seconds", 1e12), ("epochs", 1)])
def test_impossible_budgets_are_refused(kind: str, amount: float) -> None:
    with pytest.raises(LabError, match="budget"):
        small(budget__kind=kind, budget__amount=amount)


def curve(*bpb: float) -> ValidationCurve:
    return ValidationCurve(list(enumerate(bpb)))


def test_early_stopping_waits_for_patience() -> None:
    config = EvaluationConfig(patience=2, min_delta=0.01)
    assert curve(3.0, 2.0, 1.995).stops(config) is None
    assert "2.0000 in 2 evaluations" in str(curve(3.0, 2.0, 1.995, 1.991).stops(config))
    assert curve(3.0, 2.0, 1.995, 1.98).stops(config) is None
    assert curve(3.0, 3.0, 3.0, 3.0).stops(EvaluationConfig()) is None
