"""A series of measurements in bounded memory, and robust statistics over stretches of it. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, median

BLOCKS = 16  # a series is judged by the medians of this many equal stretches
MAD_TO_SD, MEAN_TO_SD = 1.4826, 1.2533  # of normal noise, from the median and the mean of its size


class Folded:
    """Means of equally many neighbouring values each, at most `capacity` of them: when full, pairs are joined."""

    def __init__(self, capacity: int = 1024) -> None:
        self.capacity = capacity
        self.width = 1  # values in one mean
        self.count = 0
        self._means: list[float] = []
        self._open: list[float] = []  # of the mean that is not full yet

    def add(self, value: float) -> None:
        self.count += 1
        self._open.append(value)
        if len(self._open) < self.width:
            return
        self._means.append(fmean(self._open))
        self._open = []
        if len(self._means) == self.capacity:
            pairs = zip(self._means[::2], self._means[1::2], strict=True)
            self._means = [(first + second) / 2 for first, second in pairs]
            self.width *= 2

    def values(self) -> list[float]:
        return list(self._means)


def blocks(values: Sequence[float], count: int = BLOCKS) -> list[float]:
    """The medians of `count` equal stretches; what does not fit is left out at the beginning. [] for too few values.

    A median is not moved by single spikes, and neighbouring values that go together do so within a stretch.
    """
    size = len(values) // count
    if size == 0:
        return []
    start = len(values) - size * count
    return [median(values[start + i * size : start + (i + 1) * size]) for i in range(count)]


def noise(values: Sequence[float]) -> float:
    """The standard deviation of `values` about a smooth course, from the differences of neighbours."""
    steps = [abs(second - first) for first, second in pairwise(values)]
    return MAD_TO_SD * median(steps) / math.sqrt(2) if steps else 0.0


def wandering(values: Sequence[float]) -> float:
    """The standard deviation of a step from one of `values` to the next, if they were a random walk about a trend."""
    steps = [second - first for first, second in pairwise(values)]
    turns = [abs(second - first) for first, second in pairwise(steps)]  # no trend is left in them
    return MEAN_TO_SD * fmean(turns) / math.sqrt(2)


def slope(values: Sequence[float]) -> tuple[float, float]:
    """Least-squares slope a step of `values`, and its standard error from the residuals."""
    n = len(values)
    middle, mean = (n - 1) / 2, fmean(values)
    spread = sum((i - middle) ** 2 for i in range(n))
    rise = sum((i - middle) * (value - mean) for i, value in enumerate(values)) / spread
    residuals = sum((value - mean - rise * (i - middle)) ** 2 for i, value in enumerate(values))
    return rise, math.sqrt(residuals / max(1, n - 2) / spread)
