"""Intervals by the paired bootstrap: queries are drawn again and again, both methods judged on the same draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

DRAWS = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % percentile interval."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], *, draws: int = DRAWS, seed: int = 0) -> Interval:
    """Of the mean of one value a query; for a comparison, of the differences between two methods."""
    import numpy as np

    given = np.asarray(values, dtype=np.float64)
    chance = np.random.default_rng(seed)
    means = np.empty(draws)
    for begin in range(0, draws, 500):  # a draw of all at once would not fit for many queries
        chosen = chance.integers(0, len(given), (min(500, draws - begin), len(given)))
        means[begin : begin + len(chosen)] = given[chosen].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(given.mean()), float(low), float(high))


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
    """Of `ours` over `theirs`, paired by query."""
    return interval([one - other for one, other in zip(ours, theirs, strict=True)])
