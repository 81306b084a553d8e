"""What a session knows before a candidate runs: where the parent stands, and how much runs scatter. Pure, no I/O.

A session is a stretch of runs measured alike, on one machine, in time order. Scores drift over hours by more than
runs scatter (throttling, other load), in jumps and slowly. So the level of the parent is followed by a local-level
filter over this session's controls (Kalman 1960; Durbin & Koopman 2012, chapter 2): how fast the level moves, against
the noise of one run, is chosen from `DRIFTS` by likelihood. Single scores far off count less (Huber's weights).

The noise comes from neighbours in time, so that drift does not pass for noise: differences of successive controls
for the noise of a run, and, for the noise of a pair, differences of candidate and control run side by side in earlier
experiments, around the mean of each. Where the question is only whether to go on, the noise is a robust scale of
the same deviations (Huber's proposal 2, 1964, Ann. Math. Stat. 35:73): a few runs gone astray, or a jump between
neighbours, would make every gain look too small to find. Where a change may be kept, it is their plain variance.

Noise belongs to recipe, budget and machine and does not drift: it is learnt from the last `MEMORY` runs whatever their
age. A session alone may have a dozen runs, and an estimate from so few, used at the first look and again at the
deciding ones, keeps too much. Runs with a pause between them are no neighbours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from experiments.rule import Role, Rule

DRIFTS = (0.02, 0.1, 0.33)  # variance of the level's step from run to run, in units of a run's own variance
CLIP, CLIPPED_SQUARE = 1.5, 0.7785  # a deviation counts up to so many SDs; E min(Z^2, CLIP^2) of a normal Z
HUBER = 2.5  # standard deviations from which a control counts less
LONGEST_GAP = 4  # runs between two controls whose difference still tells of noise rather than of drift
MEMORY = 100  # runs, of this session and of those before it, from which the noise is learnt
PRIOR_WEIGHT = 5.0  # degrees of freedom the controls' scatter counts for as to the noise of a pair


class Measured(NamedTuple):
    """One full run of the session."""

    recipe: str
    experiment: str
    role: Role
    replicate: int
    seed: int
    value: float
    pause: int = 0  # runs that would have fitted between it and the one before, where the machine did something else


class SessionNoise(BaseModel):
    """Frozen into the record when an experiment begins to measure, so that no later run changes its verdict."""

    model_config = ConfigDict(frozen=True)

    position: int = 0  # runs so far, those that would have fitted into pauses included
    controls: tuple[tuple[int, float], ...] = ()  # of the parent: position (1, 2, ...) and score, oldest first
    run_squares: float = 0.0  # sum of squares with `run_freedom` degrees of freedom: the variance of one run
    run_freedom: float = 0.0
    pair_squares: float = 0.0  # the same for the difference of a pair
    pair_freedom: float = 0.0
    deviations: tuple[float, ...] = ()  # what the squares are made of, each as large as those of one run

    def missing(self, rule: Rule) -> int:
        """Controls to make before a candidate can be compared: to know the level, what it is now, and the noise."""
        stale = not self.controls or self.position - self.controls[-1][0] >= rule.stale_after
        unknown = math.ceil(rule.min_controls - 1 - self.run_freedom)
        return max(rule.min_controls - len(self.controls), int(stale), unknown)

    def with_controls(self, values: Sequence[float]) -> SessionNoise:
        """The same after further controls, made one after another."""
        if not values:
            return self
        at = self.position
        seen = [*self.controls, *((at + i, value) for i, value in enumerate(values, 1))]
        steps = itertools.pairwise(seen[max(0, len(self.controls) - 1) :])
        near = [(b[0] - a[0], b[1] - a[1]) for a, b in steps if 0 < b[0] - a[0] <= LONGEST_GAP]
        close = [difference for _, difference in near]
        return self.model_copy(
            update={
                "position": at + len(values),
                "controls": tuple(seen),
                "run_squares": self.run_squares + math.fsum(d * d for d in close) / 2,
                "run_freedom": self.run_freedom + len(close),
                "deviations": (*self.deviations, *(d / math.sqrt(2) for gap, d in near if gap == 1)),
            }
        )

    @property
    def run_variance(self) -> float:
        """0 where nothing is known."""
        return self.run_squares / self.run_freedom if self.run_freedom else 0.0

    @property
    def pair_knowledge(self) -> float:
        """Degrees of freedom of `pair_variance`."""
        return min(PRIOR_WEIGHT, self.run_freedom) + self.pair_freedom

    @property
    def pair_variance(self) -> float:
        """Of the difference of a pair: what pairs showed, and twice the variance of a run for a start."""
        start = min(PRIOR_WEIGHT, self.run_freedom) * 2 * self.run_variance
        return (start + self.pair_squares) / self.pair_knowledge if self.pair_knowledge else 0.0

    def usual_sd(self, pairs: Sequence[float] = ()) -> float:
        """Of one run, whatever a few runs gone astray did. `pairs`: differences of this experiment's own."""
        deviations = [*self.deviations, *_run_deviations(pairs)]
        return robust_scale(deviations) or math.sqrt(self.run_variance)

    def level(self, at: int) -> tuple[float, float, float]:
        """Of the parent at position `at`: value, its variance and the drift per run, both in variances of a run."""
        variance = self.usual_sd() ** 2
        best = (-math.inf, 0.0, 0.0, 0.0)
        for drift in DRIFTS:
            best = max(best, _filter(self.controls, at, variance, drift))
        return best[1:]


def _filter(
    seen: Sequence[tuple[int, float]], at: int, variance: float, drift: float
) -> tuple[float, float, float, float]:
    """Log-likelihood (Huber's), level at `at`, its variance, drift."""
    position, level = seen[0]
    spread, likelihood = 1.0, 0.0
    scale = 1 / variance if variance else 0.0
    for now, value in seen[1:]:
        spread += drift * (now - position)
        position = now
        total = spread + 1
        off = value - level
        square = off * off * scale / total
        weight = 1.0
        if square > HUBER * HUBER:
            z = math.sqrt(square)
            weight, square = HUBER / z, HUBER * (2 * z - HUBER)
        likelihood -= 0.5 * (square + math.log(total))
        gain = spread / total * weight
        level += gain * off
        spread *= 1 - gain
    return likelihood, level, spread + drift * abs(at - position), drift


def session_noise(
    runs: Iterable[Measured], recipe: str, rule: Rule, *, session: int = MEMORY, pause: int = 0
) -> SessionNoise:
    """What the `runs` so far, in time order, say to an experiment whose parent is `recipe`.

    The newest `session` of them are of this session: older ones tell of the noise, not of the level. `pause`: as in
    `Measured`, between the newest run and now.
    """
    recent = list(runs)[-MEMORY:]
    controls: list[tuple[int, float]] = []
    last: dict[str, tuple[int, int, float]] = {}
    half: dict[tuple[str, int], tuple[float, float]] = {}
    gains: dict[str, list[float]] = {}
    steps: list[float] = []
    deviations: list[float] = []
    position = 0
    for number, run in enumerate(recent):
        position += 1 + run.pause
        if run.role == "control":
            if run.recipe == recipe and number >= len(recent) - session:
                controls.append((position, run.value))
            before = last.get(run.recipe)
            if before is not None and position - before[0] <= LONGEST_GAP and before[1] != run.seed:
                steps.append((run.value - before[2]) / math.sqrt(2))
                if position - before[0] == 1:
                    deviations.append(steps[-1])
            last[run.recipe] = (position, run.seed, run.value)
        if run.replicate >= rule.min_controls:
            key = (run.experiment, run.replicate)
            at, other = half.pop(key, (-math.inf, 0.0))
            if position - at <= LONGEST_GAP:
                gains.setdefault(run.experiment, []).append(
                    run.value - other if run.role == "control" else other - run.value
                )
            else:
                half[key] = (position, run.value)
    return SessionNoise(
        position=position + pause,
        controls=tuple(controls),
        run_squares=math.fsum(step * step for step in steps),
        run_freedom=len(steps),
        pair_squares=math.fsum(squared_deviations(group) for group in gains.values()),
        pair_freedom=sum(len(group) - 1 for group in gains.values()),
        deviations=(*deviations, *(deviation for group in gains.values() for deviation in _run_deviations(group))),
    )


def _run_deviations(gains: Sequence[float]) -> list[float]:
    """Of differences of pairs from their mean, each scaled to the SD of one run."""
    count = len(gains)
    if count < 2:
        return []
    middle, scale = mean(gains), math.sqrt(count / (count - 1) / 2)
    return [scale * (gain - middle) for gain in gains]


def robust_scale(deviations: Sequence[float]) -> float:
    """The SD with mean(min(d^2 / SD^2, CLIP^2)) = CLIPPED_SQUARE; 0 where most deviations are 0."""
    squares = sorted(deviation * deviation for deviation in deviations)
    within = math.fsum(squares)
    for clipped, largest in enumerate(reversed(squares)):
        left = CLIPPED_SQUARE * len(squares) - CLIP * CLIP * clipped
        if left <= 0:
            break
        if largest <= CLIP * CLIP * within / left:
            return math.sqrt(max(0.0, within / left))
        within -= largest
    return 0.0


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def squared_deviations(values: Sequence[float]) -> float:
    """Sum of them; exactly 0 for equal values (a mean may differ from them in its last bit)."""
    first = values[0]
    if all(value == first for value in values):
        return 0.0
    middle = mean(values)
    return math.fsum((value - middle) ** 2 for value in values)
