"""The rule of an experiment: how much evidence its verdict needs, and which runs are made for it in which order.

    stage 0   the candidate's first run against the controls the session has (made, where they are too few or stale)
    stage 1   one more control beside it
    stage 2+  pairs of fresh runs, candidate and control next to each other, A B B A; one look after each pair

Stages 0 and 1 can only end an experiment, and spend no error for it. Only the pairs can keep: but for the control of
stage 1, which is the first pair's, no decision has seen them before, so what the first run promised by luck is not
counted again (winner's curse), and a machine that has drifted since the shared controls were made cannot fake a gain.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from experiments.error_budget import ErrorBudget

Role = Literal["control", "candidate"]

FIRST_SEED, SEED_STEP, SEED_BLOCK = 1009, 97, 64
TEST_SEED = FIRST_SEED  # of every test run
POINTS = 301  # of a numerical integral


@dataclass(frozen=True)
class Rule:
    """Fixed, with the record, before an experiment starts."""

    alpha: float = ErrorBudget().allot(())  # chance of a keep without effect, over all looks: from the error budget
    first_confidence: float = 0.95  # one-sided, at the looks before the pairs: a gain worth finding is ruled out
    discard_confidence: float = 0.99  # the same at each look at the pairs
    resolution: float = 2.9  # gains below this many standard deviations of a run are not searched for
    min_controls: int = 4  # of the parent, in this session, before a candidate is compared with them
    stale_after: int = 4  # runs; then the newest control of the session is too old to compare a candidate with
    min_pairs: int = 3  # before a keep is possible
    max_pairs: int = 12

    def __post_init__(self) -> None:
        assert 0 < self.alpha < 0.5 and 0.5 < self.first_confidence < 1 and 0.5 < self.discard_confidence < 1
        assert self.resolution >= 0
        assert 2 <= self.min_pairs <= self.max_pairs and 2 <= self.min_controls < SEED_BLOCK - self.max_pairs

    @property
    def look_alpha(self) -> float:
        """One-sided error at each look at which a keep is possible."""
        return _look_alpha(self.alpha, (self.min_pairs, self.max_pairs, self.resolution, self.discard_confidence))


def seed_of(experiment: int, index: int) -> int:
    """The seed of replicate `index`, of control and candidate alike. `experiment`: its number.

    Each experiment has a block of its own on one fixed list: a run that repeats to the bit would otherwise give the
    parent the very scores again for which it was chosen, or that a candidate has been compared with before.
    """
    assert 0 <= index < SEED_BLOCK
    return (FIRST_SEED + SEED_STEP * (experiment * SEED_BLOCK + 1 + index)) % 2**32


def stage(rule: Rule, missing: int, controls: Collection[int], candidates: Collection[int]) -> int:
    """How many stages have all their runs. `controls`, `candidates`: the replicates (0, 1, ...) with a score.

    `missing`: controls the session lacks before the first look (`SessionNoise.missing`).
    """
    done = 0
    while done < rule.max_pairs + 2 and not _open(rule, missing, done, controls, candidates):
        done += 1
    return done


def ready_for_look(rule: Rule, missing: int, controls: Collection[int], candidates: Collection[int]) -> bool:
    """Is a stage complete? (Whoever asks knows which stages have been looked at.)"""
    return stage(rule, missing, controls, candidates) > 0


def wanted(rule: Rule, missing: int, controls: Collection[int], candidates: Collection[int]) -> list[tuple[Role, int]]:
    """The runs to make before the next look, in the order in which to start them; none after the last pair."""
    done = stage(rule, missing, controls, candidates)
    return _open(rule, missing, done, controls, candidates) if done < rule.max_pairs + 2 else []


def _open(
    rule: Rule, missing: int, number: int, controls: Collection[int], candidates: Collection[int]
) -> list[tuple[Role, int]]:
    return [
        (role, index)
        for role, index in stage_runs(rule, missing, number)
        if index not in (controls if role == "control" else candidates)
    ]


@functools.lru_cache(maxsize=1024)
def stage_runs(rule: Rule, missing: int, number: int) -> tuple[tuple[Role, int], ...]:
    """The runs of stage `number`. Pair k is replicate `min_controls + k - 1` of both arms; a control that only the
    first look needs has a smaller index."""
    if number == 0:
        return (*(("control", index) for index in range(missing)), ("candidate", 0))
    if number == 1:
        return (("control", rule.min_controls),)
    index = rule.min_controls + number - 2
    pair: tuple[tuple[Role, int], ...] = (("control", index), ("candidate", index))
    return pair if number % 2 == 0 else pair[::-1]


@functools.lru_cache(maxsize=256)
def _look_alpha(alpha: float, rule: tuple[int, int, float, float]) -> float:
    """The error to spend at each look at which a keep is possible so that all of them together spend `alpha`.

    Equal nominal levels at looks that share their data (Pocock 1977, Biometrika 64:191), found for normal sums by
    the recursion of Armitage, McPherson & Rowe (1969, J. R. Stat. Soc. A 132:235) and used for t statistics at the
    same levels (the significance level approach, Jennison & Turnbull 2000, section 3.8). What is given up earlier
    cannot be kept later, so a rule that gives up sooner may spend more at each look.
    """
    from scipy.optimize import brentq

    first, last, _, _ = rule
    looks = last - first + 1
    if looks == 1 or alpha < 1e-8:  # beyond what the recursion resolves: the union bound
        return alpha / looks

    def excess(log_nominal: float) -> float:
        return math.log(_crossing(math.exp(log_nominal), *rule) / alpha)

    low, high = math.log(alpha / looks), math.log(alpha)
    return alpha if excess(high) <= 0 else math.exp(brentq(excess, low, high, xtol=1e-3))


def _crossing(nominal: float, first: int, last: int, resolution: float, confidence: float) -> float:
    """Chance that a normal random walk exceeds the one-sided level `nominal` at one of the looks `first` to `last`.

    It ends where a gain of `resolution` standard deviations of a run is ruled out with `confidence`; 0: nowhere.
    """
    import numpy as np
    from scipy.special import ndtr, ndtri

    z, q, far = -float(ndtri(nominal)), float(ndtri(confidence)), 8 * math.sqrt(last)
    crossed, density, grid = 0.0, np.ones(1), np.zeros(1)  # of the sum of differences with standard deviation 1
    for look in range(1, last + 1):
        upper = z * math.sqrt(look) if look >= first else far
        lower = max(-far, look * resolution / math.sqrt(2) - q * math.sqrt(look)) if resolution else -far
        if look >= first:
            crossed += float(_integral(density * ndtr(grid - upper), grid))
        if lower >= upper:
            break  # whoever is not kept by now is given up
        after = np.linspace(lower, upper, POINTS)
        kernel = np.exp(-((after[:, None] - grid[None, :]) ** 2) / 2) / math.sqrt(2 * math.pi)
        density, grid = _integral(kernel * density[None, :], grid), after
    return crossed


def _integral(values: Any, grid: Any) -> Any:
    """Along the last axis; a single point is a mass of 1."""
    import numpy as np

    return values[..., 0] if len(grid) == 1 else np.trapezoid(values, grid, axis=-1)
