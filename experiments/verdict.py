"""The verdict: is the candidate better than its control by more than chance would give? Pure functions, no I/O.

A gain is candidate against control, oriented so that positive is better.

The first look compares the candidate's first run with the level of the session's controls. It only asks whether the
candidate may be worth its runs, that is, whether a gain worth finding cannot yet be ruled out; worth finding is what
the hypothesis calls its smallest effect, and at least `resolution` standard deviations of a run. It spends no error.

Then pairs of fresh runs are made side by side, and the mean of their differences (winsorised; Tukey & McLaughlin
1963, Sankhya A 25:331) is judged by Student's t, whose variance comes from the differences as they are. The
variance of a difference is estimated from this experiment's pairs and those of the session before it, which count for
at most `PRIOR_FREEDOM` degrees of freedom (a moderated t; Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3:3). Where this
candidate's own pairs scatter `OWN_SCATTER` times as much as that, they are judged by their own variance with their
own degrees of freedom. Whether a gain can be ruled out is asked with the usual noise (`SessionNoise.usual_sd`), so
that a run gone astray neither hides a gain nor makes a hopeless change cost more runs. The seed of both runs of a
pair is the same, so what it does to both cancels.

    keep          lower bound > 0  and  estimate >= smallest effect, after `min_pairs` or more
    discard       the upper bound (one-sided, at the confidence of that look) < smallest effect
    inconclusive  a gain worth finding is ruled out, one of the smallest effect is not; or neither after the last pair

All looks at which a keep is possible together keep a change without effect with probability at most the rule's
`alpha`, a share of the campaign's error budget. Giving up costs less than believing a false gain, so it asks for less.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from experiments.hypothesis import Hypothesis
from experiments.rule import Rule, stage
from experiments.session_noise import SessionNoise, mean, squared_deviations

Decision = Literal["keep", "discard", "inconclusive"]
Method = Literal["screen", "pairs", "exact"]

PRIOR_FREEDOM = 24.0
OWN_SCATTER = 2.0
FAR = 2.0  # standard deviations from the median, beyond which a single difference counts no further


class Numbers(BaseModel):
    """What was measured. Effects are in the metric's units, positive = better."""

    model_config = ConfigDict(frozen=True)

    effect: float
    low: float  # two-sided interval at `level`
    high: float
    level: float  # over all looks at which a keep is possible; of a screen: at this look
    error: float  # standard error of the effect
    reach: float  # one-sided upper bound at `reach_level`
    reach_level: float
    noise_sd: float  # standard deviation of one run
    df: float
    p: float  # one-sided, for "no better than the control", not corrected for looks
    n_control: int
    n_candidate: int
    control_mean: float
    candidate_mean: float
    method: Method  # screen: one run against the level of the controls; pairs: fresh pairs; exact: nothing varies


class Verdict(BaseModel):
    model_config = ConfigDict(frozen=True)

    decision: Decision
    final: bool  # False: inconclusive so far, the next stage may decide
    sentence: str
    numbers: Numbers | None = None
    saving: Numbers | None = None  # non-inferiority: the cost, as a fraction of the control's


class Runs(NamedTuple):
    """What an experiment has measured: score by replicate, of each arm. Costs only for non-inferiority."""

    control: Mapping[int, float]
    candidate: Mapping[int, float]
    control_cost: Mapping[int, float] = {}
    candidate_cost: Mapping[int, float] = {}


def judge(hypothesis: Hypothesis, rule: Rule, noise: SessionNoise, runs: Runs) -> Verdict:
    """The verdict on the runs so far. `noise`: what the session knew before the experiment's own runs.

    Raises ValueError when there is nothing to compare, or a score is not finite.
    """
    if not all(math.isfinite(score) for arm in runs for score in arm.values()):
        raise ValueError("scores must be finite")
    done = stage(rule, noise.missing(rule), runs.control, runs.candidate)
    if not done:
        raise ValueError("the runs of the first look are not all there")
    if hypothesis.kind == "non_inferiority":
        rule = replace(rule, resolution=0.0)  # nothing is given up at it, so no look may count on that
    sign = 1.0 if hypothesis.direction == "higher" else -1.0
    first = noise.with_controls([runs.control[index] for index in range(noise.missing(rule))])
    pairs = _pairs(rule, runs.control, runs.candidate, done - 2)
    numbers = _compare_pairs(rule, first, sign, pairs) if pairs else _compare_first(rule, first, sign, runs)
    last = len(pairs) >= rule.max_pairs
    if hypothesis.kind == "non_inferiority":
        return _non_inferior(hypothesis, rule, numbers, _pairs(rule, *runs[2:], done - 2), last)
    if numbers.method == "exact":
        return _exact(hypothesis, rule, numbers, len(pairs))
    worth = max(hypothesis.smallest_effect, rule.resolution * numbers.noise_sd)
    enough = len(pairs) >= rule.min_pairs
    if enough and numbers.low > 0 and numbers.effect >= hypothesis.smallest_effect:
        return _final("keep", hypothesis, rule, numbers)
    if numbers.reach < hypothesis.smallest_effect:
        return _final("discard", hypothesis, rule, numbers)
    if last or numbers.reach < worth:
        return _final("inconclusive", hypothesis, rule, numbers, None if last else worth)
    return _open(hypothesis, numbers)


def _pairs(
    rule: Rule, control: Mapping[int, float], candidate: Mapping[int, float], count: int
) -> list[tuple[float, float]]:
    """(control, candidate) of the first `count` pairs of fresh runs."""
    indices = range(rule.min_controls, rule.min_controls + max(0, count))
    return [(control[index], candidate[index]) for index in indices if index in control and index in candidate]


def _compare_first(rule: Rule, noise: SessionNoise, sign: float, runs: Runs) -> Numbers:
    """One run against the level of the controls, the one beside it included where it has been made."""
    here = noise.position + 1
    beside = runs.control.get(rule.min_controls)
    if beside is not None:
        noise = noise.model_copy(update={"controls": (*noise.controls, (here + 1, beside))})
    level, spread, _ = noise.level(here)
    usual = noise.usual_sd()
    return _numbers(
        rule,
        sign * (runs.candidate[0] - level),
        usual * usual * (1 + spread),
        noise.run_freedom or 1.0,
        usual,
        (len(noise.controls), 1, level, runs.candidate[0]),
        "screen" if usual else "exact",
    )


def _compare_pairs(rule: Rule, noise: SessionNoise, sign: float, pairs: Sequence[tuple[float, float]]) -> Numbers:
    gains = [sign * (b - a) for a, b in pairs]
    count, own = len(gains), squared_deviations(gains)
    prior = noise.pair_variance
    weight = min(PRIOR_FREEDOM, noise.pair_knowledge) if prior else 0.0
    freedom = weight + count - 1
    variance = (weight * prior + own) / freedom if freedom else 0.0
    usual = noise.usual_sd(gains) or math.sqrt(variance / 2)
    wild = count > 1 and own / (count - 1) > OWN_SCATTER * prior
    if wild:
        variance, freedom = own / (count - 1), count - 1.0
    return _numbers(
        rule,
        _winsorised_mean(gains, FAR * math.sqrt(prior)),
        variance / count,
        freedom or 1.0,
        usual,
        (count, count, mean([a for a, _ in pairs]), mean([b for _, b in pairs])),
        "pairs" if variance else "exact",
        usual_scatter=not wild,
    )


def _winsorised_mean(gains: Sequence[float], reach: float) -> float:
    """Differences further than `reach` from their median are drawn in to it: a jump of the machine between the two
    runs of a pair, or a run gone astray, is one run's news and not the candidate's. The plain mean of up to two."""
    if len(gains) < 3 or not reach:
        return mean(gains)
    middle = statistics.median(gains)
    return mean([min(max(gain, middle - reach), middle + reach) for gain in gains])


def _numbers(
    rule: Rule,
    effect: float,
    variance: float,
    df: float,
    noise_sd: float,
    counts_and_means: tuple[int, int, float, float],
    method: Method,
    *,
    usual_scatter: bool = False,
) -> Numbers:
    """`variance`: of the effect. `usual_scatter`: of pairs that scatter as those of the session do."""
    n_control, n_candidate, control_mean, candidate_mean = counts_and_means
    error = math.sqrt(variance)
    usual = min(error, noise_sd * math.sqrt(2 / n_candidate)) if usual_scatter else error
    half = _quantile(df, 1 - rule.look_alpha) * error
    reach_level = rule.first_confidence if method == "screen" else rule.discard_confidence
    return Numbers(
        effect=effect,
        low=effect - half,
        high=effect + half,
        level=1 - 2 * (rule.look_alpha if method == "screen" else rule.alpha),
        error=error,
        reach=effect + _quantile(df, reach_level) * usual,
        reach_level=reach_level,
        noise_sd=noise_sd,
        df=df,
        p=_tail(df, effect / error) if error else float(effect <= 0),
        n_control=n_control,
        n_candidate=n_candidate,
        control_mean=control_mean,
        candidate_mean=candidate_mean,
        method=method,
    )


def _exact(hypothesis: Hypothesis, rule: Rule, numbers: Numbers, pairs: int) -> Verdict:
    """No score varies between seeds: parameters, memory, or a metric that no seed reaches."""
    if numbers.effect < hypothesis.smallest_effect:
        return _final("discard", hypothesis, rule, numbers)
    if pairs < 2:  # one more seed may vary after all
        return _open(hypothesis, numbers)
    if hypothesis.kind == "cost":
        return _final("keep", hypothesis, rule, numbers)
    return Verdict(
        decision="inconclusive",
        final=True,
        numbers=numbers,
        sentence=f"Undecided: {hypothesis.metric} does not vary between seeds, so its noise cannot be measured.",
    )


def _non_inferior(
    hypothesis: Hypothesis, rule: Rule, numbers: Numbers, costs: Sequence[tuple[float, float]], last: bool
) -> Verdict:
    """Keep: not worse than the margin, and the cost falls by at least `smallest_saving` of the control's."""
    margin, metric, cost = hypothesis.smallest_effect, hypothesis.metric, hypothesis.cost_metric
    if numbers.reach < -margin:
        text = f"Discarded: {metric} is worse by {_n(-numbers.effect)}, beyond the margin of {_n(margin)}."
        return Verdict(decision="discard", final=True, sentence=text, numbers=numbers)
    scale = mean([a for a, _ in costs]) if costs else 1.0
    if scale <= 0:
        text = f"Discarded: {cost} is {_n(scale)} without the change, so nothing of it can be saved."
        return Verdict(decision="discard", final=True, sentence=text, numbers=numbers)
    if len(costs) < 2:  # a single difference of costs says nothing of its noise
        return _open(hypothesis, numbers)
    saving = _compare_pairs(rule, SessionNoise(), -1.0, [(a / scale, b / scale) for a, b in costs])
    enough = numbers.n_candidate >= rule.min_pairs
    decision: Decision = "inconclusive"
    if enough and numbers.low > -margin and saving.low > 0 and saving.effect >= hypothesis.smallest_saving:
        decision = "keep"
        text = (
            f"Kept: {metric} is at most {_n(max(0.0, -numbers.low))} worse (margin {_n(margin)}) "
            f"and {cost} falls by {saving.effect:.1%}."
        )
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


def _open(hypothesis: Hypothesis, numbers: Numbers) -> Verdict:
    sentence = f"Undecided so far: {_found(hypothesis, numbers)}."
    return Verdict(decision="inconclusive", final=False, numbers=numbers, sentence=sentence)


def _final(
    decision: Decision, hypothesis: Hypothesis, rule: Rule, n: Numbers, given_up: float | None = None
) -> Verdict:
    """`given_up`: the gain that was ruled out, where it is more than the smallest effect asked for."""
    wish = _n(hypothesis.smallest_effect)
    confidence = f"{100 * n.reach_level:.3g}% confidence at this look"
    if decision == "keep":
        text = f"Kept: {_found(hypothesis, n)}; noise of one run {_n(n.noise_sd)}, {wish} was asked for."
    elif decision == "discard" and n.high < 0:
        text = f"Discarded: {_found(hypothesis, n)}, clearly the wrong way."
    elif decision == "discard":
        bound = f"at most {_n(n.reach)}, {confidence}"
        text = f"Discarded: {_found(hypothesis, n)}; a gain of {wish} is ruled out ({bound})."
    elif given_up is not None:
        text = (
            f"Undecided: {_found(hypothesis, n)}; a gain of {_n(given_up)}, {rule.resolution:g} times the noise of one "
            f"run, is ruled out ({confidence}), one of {wish} is not: about {pairs_needed(n, hypothesis, rule)} pairs "
            "would be needed."
        )
    else:
        text = (
            f"Undecided: {_found(hypothesis, n)}; noise of one run is {_n(n.noise_sd)}, {wish} was asked for; "
            f"about {pairs_needed(n, hypothesis, rule)} pairs would be needed."
        )
    return Verdict(decision=decision, final=True, sentence=text, numbers=n)


def _found(hypothesis: Hypothesis, n: Numbers) -> str:
    """`val_bpb is lower by 0.05 (gain between 0.04 and 0.06 at 99.6%, all looks; 3 pairs of runs)`."""
    better = hypothesis.direction
    worse = "higher" if better == "lower" else "lower"
    moved = f"{hypothesis.metric} is {better if n.effect >= 0 else worse} by {_n(abs(n.effect))}"
    if n.method == "exact":
        return f"{moved}, the same with every seed"
    if n.method == "screen":
        looks, runs = "this look", f"1 run against {_count(n.n_control, 'control run')}"
    else:
        looks, runs = "all looks", f"{_count(n.n_candidate, 'pair')} of runs"
    return f"{moved} (gain between {_n(n.low)} and {_n(n.high)} at {100 * n.level:.4g}%, {looks}; {runs})"


def pairs_needed(numbers: Numbers, hypothesis: Hypothesis, rule: Rule) -> int:
    """Pairs at which the interval's half width would be about the smallest effect."""
    z = _quantile(1e6, 1 - rule.look_alpha)
    return max(rule.min_pairs, math.ceil(2 * (z * numbers.noise_sd / hypothesis.smallest_effect) ** 2))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _n(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


@functools.lru_cache(maxsize=65536)
def _quantile(df: float, probability: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))


def _tail(df: float, t: float) -> float:
    """P(T > t)."""
    from scipy.special import stdtr

    return float(stdtr(df, -t))
