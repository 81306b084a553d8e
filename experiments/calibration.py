"""How far the predictions of each proposer can be believed: predicted against measured effects, from the ledger."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field


class Calibration(BaseModel):
    """Effects are in the metrics' units, positive = better."""

    model_config = ConfigDict(frozen=True)

    proposer: str
    predictions: int
    mean_predicted: float
    mean_measured: float
    right_direction: float = Field(description="share of the predictions whose sign was measured")
    within_interval: float = Field(description="share of the predictions the measured interval holds")
    typical_error: float = Field(description="median distance of predicted and measured")


def calibrate(rows: Iterable[tuple[str, float, float, float, float]]) -> list[Calibration]:
    """`rows`: (proposer, predicted, measured, low, high). The proposer with most predictions comes first."""
    grouped: dict[str, list[tuple[float, float, float, float]]] = {}
    for proposer, *numbers in rows:
        predicted, measured, low, high = numbers
        grouped.setdefault(proposer, []).append((predicted, measured, low, high))
    found = [
        Calibration(
            proposer=proposer,
            predictions=len(of_one),
            mean_predicted=_short(statistics.fmean(p for p, *_ in of_one)),
            mean_measured=_short(statistics.fmean(m for _, m, *_ in of_one)),
            right_direction=round(statistics.fmean((p > 0) == (m > 0) for p, m, *_ in of_one), 2),
            within_interval=round(statistics.fmean(low <= p <= high for p, _, low, high in of_one), 2),
            typical_error=_short(statistics.median(abs(p - m) for p, m, *_ in of_one)),
        )
        for proposer, of_one in grouped.items()
    ]
    return sorted(found, key=lambda one: -one.predictions)


def _short(value: float) -> float:
    return float(f"{value:.4g}")
