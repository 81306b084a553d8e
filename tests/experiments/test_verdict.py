"""The verdict: what is kept, what is not, and how often chance alone is kept."""

from __future__ import annotations

import math
import random

import pytest

from experiments.hypothesis import Hypothesis
from experiments.verdict import SEEDS, Rule, compare, judge, seed_of, wanted

RULE = Rule()


def claim(**changes: object) -> Hypothesis:
    values: dict[str, object] = {
        "statement": "Halving optimizer.matrix_lr makes val_bpb lower",
        "change": {"optimizer.matrix_lr": 0.02},
        "direction": "lower",
        "smallest_effect": 0.01,
    }
    return Hypothesis.model_validate(values | changes)


def test_interval_is_the_textbook_one() -> None:
    """Against scipy's own two-sample t test with equal variances."""
    from scipy import stats

    control, candidate = [1.0, 1.2, 0.9, 1.1], [0.8, 0.7, 0.95]
    rule = Rule(confidence=0.95, min_candidates=6, paired=False)  # a single look: no correction
    numbers = compare(control, candidate, False, rule)
    test = stats.ttest_ind(control, candidate, equal_var=True)
    if numbers.method == "pooled":
        low, high = test.confidence_interval(0.95)
        assert numbers.low == pytest.approx(low) and numbers.high == pytest.approx(high)
        assert numbers.p == pytest.approx(test.pvalue / 2)
    assert numbers.method == "pooled"


def test_paired_interval_is_the_textbook_one() -> None:
    """Two intervals at half the error each; the narrower is read."""
    from scipy import stats

    control, candidate = [1.0, 1.2, 0.9, 1.1], [0.9, 1.15, 0.85, 1.0]
    numbers = compare(control, candidate, False, Rule(min_candidates=6))
    low, high = stats.ttest_rel(control, candidate).confidence_interval(0.975)
    assert numbers.method == "paired" and numbers.level == pytest.approx(0.975)
    assert (numbers.low, numbers.high) == (pytest.approx(low), pytest.approx(high))


def test_equal_seeds_show_a_gain_that_is_smaller_than_the_noise() -> None:
    control = [1.00, 1.05, 0.95, 1.02]
    candidate = [score - 0.01 + offset for score, offset in zip(control, (0.0, 0.0004, -0.0003, 0.0), strict=True)]
    assert judge(claim(smallest_effect=0.005), control, candidate, RULE).decision == "keep"
    assert judge(claim(smallest_effect=0.005), control, candidate[::-1], RULE).decision == "inconclusive"


def test_a_clear_gain_is_kept_and_only_after_the_second_run() -> None:
    control = [1.000, 1.002, 0.998]
    first = judge(claim(), control, [0.950], RULE)
    assert first.decision == "inconclusive" and not first.final
    second = judge(claim(), control, [0.950, 0.951], RULE)
    assert second.decision == "keep" and second.final
    assert second.numbers is not None
    assert second.numbers.effect == pytest.approx(0.0495) and second.numbers.low > 0
    assert second.sentence.startswith("Kept: val_bpb is lower by 0.0495")


def test_a_real_but_worthless_gain_is_discarded() -> None:
    verdict = judge(claim(smallest_effect=0.2), [1.0, 1.002, 0.998], [0.95, 0.951, 0.949], RULE)
    assert verdict.decision == "discard"


def test_the_wrong_way_is_discarded_after_one_run() -> None:
    verdict = judge(claim(), [1.0, 1.002, 0.998], [1.2], RULE)
    assert verdict.decision == "discard" and "wrong way" in verdict.sentence


def test_direction_higher() -> None:
    verdict = judge(
        claim(metric="tokens_per_s", direction="higher", kind="cost", smallest_effect=10.0),
        [100.0, 101.0, 99.0],
        [150.0, 151.0],
        RULE,
    )
    assert verdict.decision == "keep" and "higher by 50.5" in verdict.sentence


def test_noise_as_large_as_the_gain_is_undecided_to_the_last_pair() -> None:
    control = [1.00, 1.05, 0.95, 1.02, 0.98, 1.01]
    candidate = [1.03, 0.93, 0.99, 0.97, 1.00, 0.98]
    verdict = judge(claim(smallest_effect=0.005), control, candidate, RULE)
    assert verdict.decision == "inconclusive" and verdict.final
    assert "pairs would be needed" in verdict.sentence
    assert not judge(claim(smallest_effect=0.005), control[:3], candidate[:3], RULE).final


def test_history_sharpens_the_noise() -> None:
    control, candidate = [1.0, 1.01, 0.99], [0.97, 0.98]
    alone = compare(control, candidate, False, RULE)
    pooled = compare(control, candidate, False, RULE, [[2.0, 2.01, 1.99], [3.0, 3.01, 2.99]])
    assert pooled.df == alone.df + 4 and pooled.high - pooled.low < alone.high - alone.low
    assert pooled.effect == alone.effect


def test_scores_that_do_not_vary_prove_nothing_about_quality() -> None:
    verdict = judge(claim(), [1.0] * 3, [0.5, 0.5], RULE)
    assert verdict.decision == "inconclusive" and verdict.final and "does not vary" in verdict.sentence
    cheaper = claim(metric="parameters.total", kind="cost", smallest_effect=10)
    assert judge(cheaper, [100.0] * 3, [80.0, 80.0], RULE).decision == "keep"
    assert judge(cheaper, [100.0] * 3, [95.0], RULE).decision == "discard"


def test_non_inferiority_needs_both_halves() -> None:
    same = claim(kind="non_inferiority", smallest_effect=0.05, smallest_saving=0.3)
    control, candidate = [1.0, 1.004, 0.996], [1.001, 1.003, 0.999]
    half = judge(same, control, candidate, RULE, control_cost=[10, 10.1, 9.9], candidate_cost=[5, 5.1, 4.9])
    assert half.decision == "keep" and half.saving is not None and half.saving.effect == pytest.approx(0.5)
    dear = judge(same, control, candidate, RULE, control_cost=[10, 10.1, 9.9], candidate_cost=[10, 10.1, 9.9])
    assert dear.decision == "discard" and "training_seconds" in dear.sentence
    worse = judge(same, control, [1.2, 1.21], RULE, control_cost=[10, 10.1, 9.9], candidate_cost=[5, 5])
    assert worse.decision == "discard" and "margin" in worse.sentence


@pytest.mark.parametrize("bad", [([1.0], [1.0]), ([1.0, 1.1], []), ([1.0, math.nan], [1.0])])
def test_too_little_or_broken_scores_are_refused(bad: tuple[list[float], list[float]]) -> None:
    with pytest.raises(ValueError, match=r"."):
        compare(*bad, False, RULE)


def test_order_of_runs() -> None:
    assert wanted(RULE, [], []) == [("control", 0), ("candidate", 0), ("control", 1), ("control", 2)]
    assert wanted(RULE, [0], [0]) == [("control", 1), ("control", 2)]
    assert wanted(RULE, [0, 1, 2], [0]) == [("candidate", 1)]
    assert wanted(RULE, [0, 1, 2], [0, 1, 2]) == [("control", 3), ("candidate", 3)]
    assert wanted(RULE, [0, 1, 2, 3], [0, 1, 2]) == [("candidate", 3)]
    assert wanted(RULE, [0, 1, 2, 3, 4], []) == [("candidate", 0)]
    assert wanted(RULE, range(6), range(6)) == []


def test_generations_have_seeds_of_their_own_as_far_as_the_list_goes() -> None:
    taken = [{seed_of(RULE, generation, index) for index in range(RULE.max_pairs)} for generation in range(4)]
    assert not taken[0] & taken[1] and not taken[1] & taken[2] and not taken[2] & taken[3]
    assert SEEDS[-1] not in set().union(*taken)
    assert seed_of(Rule(max_pairs=20), 7, 19) == SEEDS[19]


def simulate(
    effect: float, campaigns: int, *, seed: int, smallest: float = 1.0, candidate_sd: float = 1.0, shared: float = 0.0
) -> tuple[float, float]:
    """Share of experiments kept and mean candidate runs; noise N(0, 1), `effect` in its standard deviations.

    `shared`: correlation of control and candidate of equal seed.
    """
    draw = random.Random(seed)
    hypothesis = claim(smallest_effect=smallest)
    kept = runs = 0
    for _ in range(campaigns):
        common = [draw.gauss(0, 1) for _ in range(RULE.max_pairs)]
        scores: dict[str, dict[int, float]] = {"control": {}, "candidate": {}}
        while True:
            for role, index in wanted(RULE, list(scores["control"]), list(scores["candidate"])):
                noise = math.sqrt(shared) * common[index] + math.sqrt(1 - shared) * draw.gauss(0, 1)
                scores[role][index] = noise if role == "control" else candidate_sd * noise - effect
            control, candidate = (list(scores[role].values()) for role in ("control", "candidate"))
            verdict = judge(hypothesis, control, candidate, RULE)
            if verdict.final:
                break
        kept += verdict.decision == "keep"
        runs += len(candidate)
    return kept / campaigns, runs / campaigns


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.95])
def test_null_simulation(shared: float) -> None:
    """Without any effect our rule keeps about 1 change in 100, keep-if-lower every second one."""
    kept, runs = simulate(0.0, 2000, seed=1, shared=shared)
    assert kept < 0.02  # nominal bound 0.025
    assert runs < 4


def test_keep_if_lower_for_comparison() -> None:
    draw = random.Random(1)
    assert sum(draw.gauss(0, 1) < draw.gauss(0, 1) for _ in range(2000)) / 2000 > 0.45


def test_power_simulation() -> None:
    """An effect of three standard deviations is found; with shared seeds, one of a single standard deviation."""
    assert simulate(3.0, 500, seed=2)[0] > 0.85
    assert simulate(1.0, 500, seed=2, shared=0.97, smallest=0.3)[0] > 0.85


def test_a_candidate_that_scatters_twice_as_much_does_not_break_the_bound() -> None:
    kept, _ = simulate(0.0, 1500, seed=3, candidate_sd=2.0)
    assert kept < 0.03
