"""Does a new result agree with old ones? Prediction intervals, and what was not as it was. Pure, no I/O."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from experiments.record import ExperimentRecord, Frozen
from experiments.verdict import Numbers

LEVEL = 0.95  # of the prediction interval


class Check(Frozen):
    """One number beside where it was expected."""

    what: str
    found: float
    expected: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        return self.low <= self.found <= self.high or math.isclose(self.found, self.expected, rel_tol=1e-12)


def score_check(record: ExperimentRecord, n: Numbers, found: float) -> Check:
    sd, df = _noise(record, n)
    half = _quantile(df) * sd * math.sqrt(1 + 1 / n.n_candidate)
    mean = n.candidate_mean
    return Check(what=record.hypothesis.metric, found=found, expected=mean, low=mean - half, high=mean + half)


def _noise(record: ExperimentRecord, n: Numbers) -> tuple[float, float]:
    """(standard deviation of one run, degrees of freedom): the verdict's, or else what its controls scatter."""
    controls = [score.value for score in record.scored("control").values()]
    if n.noise_sd == 0 and len(set(controls)) > 1:
        return statistics.stdev(controls), len(controls) - 1.0
    return n.noise_sd, n.df


def gain_check(record: ExperimentRecord, n: Numbers, found: float) -> Check:
    """One more pair: its own scatter, and what is not known of the old gain."""
    sd, df = _noise(record, n)
    pair = n.error**2 * n.n_candidate if n.method == "pairs" else 2 * sd**2
    half = _quantile(df) * math.sqrt(pair + n.error**2)
    return Check(what="gain", found=found, expected=n.effect, low=n.effect - half, high=n.effect + half)


def _quantile(df: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + LEVEL) / 2))


def compare(then: Mapping[str, Any], now: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    """`versions.torch: 2.13.0, then 2.11.0` for every value that is in both and differs."""
    before, after = _flat(then, names), _flat(now, names)
    changed = [key for key in before if key in after and before[key] != after[key]]
    gone = [f"{key}: not reported now, then {_short(before[key])}" for key in before if key not in after]
    return [f"{key}: {_short(after[key])}, then {_short(before[key])}" for key in changed] + gone


def _flat(summary: Mapping[str, Any], names: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in summary.items():
        if prefix or name in names:
            found |= _flat(value, names, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}…"
