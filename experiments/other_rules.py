"""The rules of other projects, as far as their sources and documents describe them, on the same simulated machines.

None has a test run, an error budget or controls made anew; a baseline run counts once.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from experiments.simulation import Outcome, SimulatedMachine

SEED_NOISE = 0.0005  # bits per byte: a change of seed moved a score of autoresearch by 0.0007, sqrt(2) times this
MAIN_DELTA, CONFIRM_DELTA = 0.0003 / SEED_NOISE, 0.0002 / SEED_NOISE  # of autoresearch-lab, in noise SDs
MAD_CONFIDENCE, MAD_FROM = 2.0, 3
RESAMPLES = 2000


def keep_if_lower(machine: SimulatedMachine, effects: Sequence[float]) -> Outcome:
    """karpathy/autoresearch: one run each; lower than the best score so far is kept."""
    return _one_run_each(machine, effects, lambda score, scores, best: score < best)


def mad_confidence(machine: SimulatedMachine, effects: Sequence[float]) -> Outcome:
    """davebcn87/pi-autoresearch: lower than the best, and |improvement on the baseline| >= 2 MAD of all scores."""

    def decide(score: float, scores: list[float], best: float) -> bool:
        if score >= best or len(scores) < MAD_FROM:
            return False
        middle = statistics.median(scores)
        mad = statistics.median(abs(value - middle) for value in scores)
        return mad > 0 and (scores[0] - score) / mad >= MAD_CONFIDENCE

    return _one_run_each(machine, effects, decide)


def _one_run_each(
    machine: SimulatedMachine, effects: Sequence[float], decide: Callable[[float, list[float], float], bool]
) -> Outcome:
    outcome, truth = Outcome(), 0.0
    scores = [machine.run(truth)]
    best, before = scores[0], 0.0
    for effect in effects:
        score = machine.run(truth - effect)
        scores.append(score)
        kept = decide(score, scores, best)
        if kept:
            best, truth = score, truth - effect
        outcome.note(effect, kept, machine.cost - before)
        before = machine.cost
    return outcome.end_campaign()


def two_seeds(machine: SimulatedMachine, effects: Sequence[float]) -> Outcome:
    """aliuyar1234/autoresearch-lab: fixed thresholds; a main run 0.0003 better than the best, then both of its two
    seeds 0.0002 better on average. (Its confirmation is four times as long; here it costs and scatters as a run.)"""
    outcome, truth, before = Outcome(), 0.0, 0.0
    best = [machine.run(truth), machine.run(truth)]
    for effect in effects:
        pair = [machine.run(truth - effect)]
        kept = best[0] - pair[0] >= MAIN_DELTA
        if kept:
            pair.append(machine.run(truth - effect))
            kept = statistics.fmean(best) - statistics.fmean(pair) >= CONFIRM_DELTA
        if kept:
            best, truth = pair, truth - effect
        outcome.note(effect, kept, machine.cost - before)
        before = machine.cost
    return outcome.end_campaign()


def bootstrap_medians(machine: SimulatedMachine, effects: Sequence[float]) -> Outcome:
    """the_lab: three runs against three; kept when the 95 % bootstrap interval of the difference of medians is above
    0."""
    import numpy as np

    draw = np.random.default_rng(7)
    picks = draw.integers(0, 3, (2, RESAMPLES, 3))

    def better(control: list[float], candidate: list[float]) -> bool:
        gains = np.median(np.array(control)[picks[0]], axis=1) - np.median(np.array(candidate)[picks[1]], axis=1)
        return float(np.quantile(gains, 0.025)) > 0

    return _samples(machine, effects, 3, better)


def bca(machine: SimulatedMachine, effects: Sequence[float]) -> Outcome:
    """hugoferreira/autoresearch: five runs against five; kept when the 95 % BCa interval of the means' difference is
    above 0 (Efron 1987, J. Am. Stat. Assoc. 82:171; 2,000 resamples)."""
    import numpy as np
    from scipy.special import ndtr, ndtri

    draw = np.random.default_rng(7)
    picks = draw.integers(0, 5, (2, RESAMPLES, 5))

    def better(control: list[float], candidate: list[float]) -> bool:
        a, b = np.array(control), np.array(candidate)
        gains = a[picks[0]].mean(axis=1) - b[picks[1]].mean(axis=1)
        bias = float(ndtri(np.clip((gains < a.mean() - b.mean()).mean(), 1 / RESAMPLES, 1 - 1 / RESAMPLES)))
        influence = np.concatenate([(a - a.mean()) / (len(a) - 1), (b.mean() - b) / (len(b) - 1)])
        squares = float((influence**2).sum())
        skew = float((influence**3).sum()) / (6 * squares**1.5) if squares else 0.0
        z = bias + float(ndtri(0.025))
        return float(np.quantile(gains, ndtr(bias + z / (1 - skew * z)))) > 0

    return _samples(machine, effects, 5, better)


def _samples(
    machine: SimulatedMachine,
    effects: Sequence[float],
    size: int,
    better: Callable[[list[float], list[float]], bool],
) -> Outcome:
    """`size` runs of each candidate against as many of the best, which are made once and then those it was kept for."""
    outcome, truth, before = Outcome(), 0.0, 0.0
    best = [machine.run(truth) for _ in range(size)]
    for effect in effects:
        candidate = [machine.run(truth - effect) for _ in range(size)]
        kept = better(best, candidate)
        if kept:
            best, truth = candidate, truth - effect
        outcome.note(effect, kept, machine.cost - before)
        before = machine.cost
    return outcome.end_campaign()
