"""The verdict: is the candidate better than its control by more than chance would give? Pure functions, no I/O.

The gain is candidate against control, oriented so that positive is better. Its noise is the spread of replicates
(same configuration, next seed of `SEEDS`), pooled over the control, the candidate and earlier groups of controls
measured alike; the interval is Student's t with the pooled degrees of freedom. Where the candidate itself scatters
more than the controls, Welch's larger standard error is taken (Welch 1947, Biometrika 34:28). A seed moves control
and candidate alike (measured on a small model over eight pairs: correlation 0.96), so from PAIRED_FROM pairs on the
differences of equal seeds are looked at too; the two intervals share the error between them, so the narrower of them
may be read (Bonferroni again).

The pairs are looked at one after another, so the error is divided among the looks (Bonferroni's union bound, the
simplest alpha spending; Lan & DeMets 1983, Biometrika 70:659, spend less conservatively): with confidence 95 %, five
looks at which a keep is possible read 99 % intervals each, and the chance that a change without effect is kept
stays under (1 - confidence) / 2 over all of them, if noise is normal and of one size.

    keep          lower bound > 0  and  estimate >= smallest effect
    discard       the upper bound at `discard_confidence` (one-sided) < smallest effect
    inconclusive  neither, after the last pair

Giving up on a change costs less than believing a false one, so a discard asks for less evidence than a keep; it
is possible after the first candidate run, a keep only after `min_candidates`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from experiments.hypothesis import Hypothesis

Decision = Literal["keep", "discard", "inconclusive"]
Role = Literal["control", "candidate"]
Method = Literal["pooled", "welch", "paired", "exact"]

SEEDS = tuple(1009 + 7919 * i for i in range(24))
PAIRED_FROM = 3  # pairs; with two, a t interval has one degree of freedom


@dataclass(frozen=True)
class Rule:
    """How much evidence a verdict needs; fixed before an experiment starts."""

    confidence: float = 0.95  # two-sided, over all looks together
    discard_confidence: float = 0.90  # one-sided, at each look
    min_controls: int = 3
    min_candidates: int = 2
    max_pairs: int = 6
    paired: bool = True  # look at the differences of equal seeds as well

    def __post_init__(self) -> None:
        assert 2 <= self.min_controls <= self.max_pairs <= len(SEEDS)
        assert 1 <= self.min_candidates <= self.max_pairs

    @property
    def look_level(self) -> float:
        """Two-sided confidence of the interval at one look."""
        looks = self.max_pairs - self.min_candidates + 1
        return 1 - (1 - self.confidence) / looks


def seed_of(rule: Rule, generation: int, index: int) -> int:
    """The seed of replicate `index`, of control and of candidate alike.

    Every generation of kept recipes has seeds of its own, as far as the list goes: with its own old ones a run that
    repeats to the bit would give the parent the very scores again for which it was chosen.
    """
    blocks = max(1, (len(SEEDS) - 1) // rule.max_pairs)  # the last seed is the test runs'
    return SEEDS[generation % blocks * rule.max_pairs + index]


class Numbers(BaseModel):
    """What was measured. Effects are in the metric's units, positive = better."""

    model_config = ConfigDict(frozen=True)

    effect: float
    low: float  # two-sided interval at `level`
    high: float
    level: float
    error: float  # standard error of the effect
    reach: float  # one-sided upper bound at the rule's discard confidence
    noise_sd: float  # standard deviation of one run
    df: float
    p: float  # one-sided, for "no better than the control", not corrected for looks
    n_control: int
    n_candidate: int
    control_mean: float
    candidate_mean: float
    method: Method


class Verdict(BaseModel):
    model_config = ConfigDict(frozen=True)

    decision: Decision
    final: bool  # False: inconclusive so far, another pair may decide
    sentence: str
    numbers: Numbers | None = None
    saving: Numbers | None = None  # non-inferiority: the cost, as a fraction of the control's


def judge(
    hypothesis: Hypothesis,
    control: Sequence[float],
    candidate: Sequence[float],
    rule: Rule,
    *,
    history: Sequence[Sequence[float]] = (),
    control_cost: Sequence[float] = (),
    candidate_cost: Sequence[float] = (),
) -> Verdict:
    """The verdict on the scores so far; replicate i of either arm has seed i.

    `history`: groups of earlier controls measured alike, for the size of the noise only.
    `*_cost`: per replicate, for non-inferiority. Raises ValueError for fewer than 2 controls or no candidate.
    """
    numbers = compare(control, candidate, hypothesis.direction == "higher", rule, history)
    last = len(candidate) >= rule.max_pairs and len(control) >= rule.max_pairs
    if hypothesis.kind == "non_inferiority":
        return _non_inferior(hypothesis, numbers, control_cost, candidate_cost, rule, last)
    if numbers.method == "exact" and hypothesis.kind != "cost":
        return Verdict(
            decision="inconclusive",
            final=len(candidate) >= rule.min_candidates,
            numbers=numbers,
            sentence=f"Undecided: {hypothesis.metric} does not vary between seeds, so its noise cannot be measured.",
        )
    decision: Decision = "inconclusive"
    if numbers.low > 0 and numbers.effect >= hypothesis.smallest_effect and len(candidate) >= rule.min_candidates:
        decision = "keep"
    elif numbers.reach < hypothesis.smallest_effect:
        decision = "discard"
    return Verdict(
        decision=decision,
        final=decision != "inconclusive" or last,
        numbers=numbers,
        sentence=_sentence(hypothesis, numbers, decision, rule, last),
    )


def wanted(rule: Rule, controls: Sequence[int], candidates: Sequence[int]) -> list[tuple[Role, int]]:
    """The runs to make before the next look, in the order in which to start them: A B A A, then B, ..., B A.

    `controls` and `candidates` are the replicate numbers (0, 1, ...) that have a score.
    """
    pairs = 1 if not candidates else len(candidates) + (0 if _round_open(rule, controls, candidates) else 1)
    pairs = min(pairs, rule.max_pairs)
    runs: list[tuple[Role, int]] = []
    for index in range(max(pairs, rule.min_controls)):
        if index not in controls:
            runs.append(("control", index))
        if index < pairs and index not in candidates:
            runs.append(("candidate", index))
    return runs


def ready_for_look(rule: Rule, controls: Sequence[int], candidates: Sequence[int]) -> bool:
    """Is there a candidate, and every control that belongs to the candidates there are?"""
    return bool(candidates) and not _round_open(rule, controls, candidates)


def _round_open(rule: Rule, controls: Sequence[int], candidates: Sequence[int]) -> bool:
    needed = range(max(len(candidates), rule.min_controls))
    return any(index not in controls for index in needed)


def compare(
    control: Sequence[float],
    candidate: Sequence[float],
    higher_is_better: bool,
    rule: Rule,
    history: Sequence[Sequence[float]] = (),
) -> Numbers:
    """The gain of candidate over control with its interval."""
    if len(control) < 2 or not candidate:
        raise ValueError("a comparison needs at least two controls and one candidate")
    if not all(math.isfinite(score) for score in (*control, *candidate)):
        raise ValueError("scores must be finite")
    sign = 1.0 if higher_is_better else -1.0
    both = rule.paired and min(len(control), len(candidate)) >= PAIRED_FROM
    level = 1 - (1 - rule.look_level) / (2 if both else 1)
    reach_level = 1 - (1 - rule.discard_confidence) / (2 if both else 1)
    groups = [group for group in (control, candidate, *history) if group]
    df = float(sum(len(group) - 1 for group in groups))
    sd = math.sqrt(sum(_squares(group) for group in groups) / df)

    def numbers(effect: float, error: float, df: float, method: Method) -> Numbers:
        half = _quantile(df, (1 + level) / 2) * error
        return Numbers(
            effect=effect,
            low=effect - half,
            high=effect + half,
            level=level,
            error=error,
            reach=effect + _quantile(df, reach_level) * error,
            noise_sd=sd,
            df=df,
            p=_tail(df, effect / error) if error else float(effect <= 0),
            n_control=len(control),
            n_candidate=len(candidate),
            control_mean=_mean(control),
            candidate_mean=_mean(candidate),
            method=method,
        )

    error, method = _standard_error(control, candidate, sd)
    pooled = numbers(sign * (_mean(candidate) - _mean(control)), error, df, method)
    if not both or method == "exact":
        return pooled
    gains = [sign * (b - a) for a, b in zip(control, candidate, strict=False)]
    error = math.sqrt(_squares(gains) / (len(gains) - 1) / len(gains))
    if error == 0 and gains[0] != 0:
        return pooled  # equal to the last digit: an artefact of the metric, not a certainty
    paired = numbers(_mean(gains), error, len(gains) - 1.0, "paired")
    return min(pooled, paired, key=lambda found: found.high - found.low)


def _standard_error(control: Sequence[float], candidate: Sequence[float], sd: float) -> tuple[float, Method]:
    """Of the difference of means; 0 where nothing varies: parameters, memory, or a metric no seed reaches."""
    a, b = len(control), len(candidate)
    if sd == 0:
        return 0.0, "exact"
    pooled = sd * math.sqrt(1 / a + 1 / b)
    if b >= 2:
        welch = math.sqrt(sd**2 / a + _squares(candidate) / (b - 1) / b)
        if welch > pooled:
            return welch, "welch"
    return pooled, "pooled"


def _non_inferior(
    hypothesis: Hypothesis,
    numbers: Numbers,
    control_cost: Sequence[float],
    candidate_cost: Sequence[float],
    rule: Rule,
    last: bool,
) -> Verdict:
    """Keep: not worse than the margin, and the cost falls by at least `smallest_saving` of the control's."""
    margin, metric, cost = hypothesis.smallest_effect, hypothesis.metric, hypothesis.cost_metric
    if len(control_cost) < 2 or not candidate_cost or _mean(control_cost) <= 0:
        raise ValueError(f"no {cost} was measured")
    scale = _mean(control_cost)
    saving = compare([c / scale for c in control_cost], [c / scale for c in candidate_cost], False, rule)
    enough = numbers.n_candidate >= rule.min_candidates
    decision: Decision = "inconclusive"
    if enough and numbers.low > -margin and saving.low > 0 and saving.effect >= hypothesis.smallest_saving:
        decision = "keep"
        text = (
            f"Kept: {metric} is at most {_n(max(0.0, -numbers.low))} worse (margin {_n(margin)}) "
            f"and {cost} falls by {saving.effect:.1%}."
        )
    elif numbers.reach < -margin:
        decision = "discard"
        text = f"Discarded: {metric} is worse by {_n(-numbers.effect)}, beyond the margin of {_n(margin)}."
    elif saving.reach < hypothesis.smallest_saving:
        decision = "discard"
        text = (
            f"Discarded: {cost} changes by {-saving.effect:+.1%}; "
            f"a saving of {hypothesis.smallest_saving:.1%} was asked for."
        )
    else:
        text = (
            f"Undecided: the gain in {metric} is {_n(numbers.effect)} (between {_n(numbers.low)} and "
            f"{_n(numbers.high)}, margin {_n(margin)}), {cost} changes by {-saving.effect:+.1%}."
        )
    return Verdict(
        decision=decision, final=decision != "inconclusive" or last, sentence=text, numbers=numbers, saving=saving
    )


def _sentence(hypothesis: Hypothesis, n: Numbers, decision: Decision, rule: Rule, last: bool) -> str:
    better = hypothesis.direction
    worse = "higher" if better == "lower" else "lower"
    moved = f"{hypothesis.metric} is {better if n.effect >= 0 else worse} by {_n(abs(n.effect))}"
    interval = f"gain between {_n(n.low)} and {_n(n.high)} at {n.level:.1%}"
    runs = f"{n.n_candidate} against {n.n_control} control run{'s' if n.n_control != 1 else ''}"
    wish = _n(hypothesis.smallest_effect)
    if decision == "keep":
        return f"Kept: {moved} ({interval}; {runs}); noise of one run {_n(n.noise_sd)}, {wish} was asked for."
    if decision == "discard":
        if n.high < 0:
            return f"Discarded: {moved} ({interval}; {runs}), clearly the wrong way."
        return (
            f"Discarded: {moved}; a gain of {wish} is ruled out "
            f"(at most {_n(n.reach)} with {rule.discard_confidence:.0%} confidence; {runs})."
        )
    ending = f"noise of one run is {_n(n.noise_sd)}, {wish} was asked for"
    if last:
        ending += f"; about {pairs_needed(n, hypothesis.smallest_effect, rule)} pairs would be needed"
    return f"Undecided: {moved} ({interval}; {runs}); {ending}."


def pairs_needed(numbers: Numbers, effect: float, rule: Rule) -> int:
    """Pairs at which the interval's half width would be about `effect`."""
    z = _quantile(1e6, (1 + rule.look_level) / 2)
    return max(numbers.n_candidate + 1, math.ceil(numbers.n_candidate * (z * numbers.error / effect) ** 2))


def _n(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _squares(values: Sequence[float]) -> float:
    """Sum of squared deviations; exactly 0 for equal values (a mean may differ from them in its last bit)."""
    if all(value == values[0] for value in values):
        return 0.0
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values)


@functools.lru_cache(maxsize=4096)
def _quantile(df: float, probability: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))


def _tail(df: float, t: float) -> float:
    """P(T > t)."""
    from scipy.special import stdtr

    return float(stdtr(df, -t))
