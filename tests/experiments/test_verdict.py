"""The verdict: what is kept, what is not, in which words, and after which runs."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from experiments.error_budget import ErrorBudget, charge, week_of
from experiments.hypothesis import Hypothesis
from experiments.lab import rule_of
from experiments.rule import TEST_SEED, Rule, seed_of, stage, wanted
from experiments.session_noise import LONGEST_GAP, Measured, SessionNoise, robust_scale, session_noise
from experiments.verdict import Runs, Verdict, judge
from workspace.settings import ExperimentSettings

RULE = Rule()
FIRST = RULE.min_controls  # replicate of the first pair
CONTROLS = (1.000, 1.003, 0.999, 1.001)


def claim(**changes: object) -> Hypothesis:
    values: dict[str, object] = {
        "statement": "Halving optimizer.matrix_lr makes val_bpb lower",
        "change": {"optimizer.matrix_lr": 0.02},
        "direction": "lower",
        "smallest_effect": 0.01,
    }
    return Hypothesis.model_validate(values | changes)


def verdict(
    first: float,
    pairs: list[tuple[float, float]] = [],  # noqa: B006  never changed
    *,
    beside: float | None = None,
    controls: tuple[float, ...] = CONTROLS,
    costs: list[tuple[float, float]] | None = None,
    rule: Rule = RULE,
    noise: SessionNoise | None = None,
    **claims: object,
) -> Verdict:
    """Of a candidate whose first run scored `first`, with (control, candidate) pairs after that."""
    control = dict(enumerate(controls)) | {FIRST + i: a for i, (a, _) in enumerate(pairs)}
    candidate = {0: first} | {FIRST + i: b for i, (_, b) in enumerate(pairs)}
    if beside is not None:
        control[FIRST] = beside
    runs = Runs(control, candidate)
    if costs is not None:
        runs = runs._replace(
            control_cost={FIRST + i: a for i, (a, _) in enumerate(costs)},
            candidate_cost={FIRST + i: b for i, (_, b) in enumerate(costs)},
        )
    return judge(claim(**claims), rule, noise or SessionNoise(), runs)


def test_a_clear_gain_is_kept_and_only_after_three_pairs() -> None:
    assert not verdict(0.95).final
    pairs = [(1.001, 0.951), (0.999, 0.950), (1.002, 0.953)]
    for count in (1, 2):
        assert not verdict(0.95, pairs[:count]).final
    kept = verdict(0.95, pairs)
    assert kept.decision == "keep" and kept.final and kept.numbers is not None
    assert kept.numbers.effect == pytest.approx(0.0493, abs=1e-4) and kept.numbers.low > 0
    assert kept.sentence.startswith("Kept: val_bpb is lower by 0.0493") and "3 pairs of runs" in kept.sentence
    assert kept.numbers.n_control == kept.numbers.n_candidate == 3, "the run that was selected is not counted"


def test_the_interval_of_pairs_is_the_textbook_one_where_nothing_else_is_known() -> None:
    """Against scipy's own paired t test."""
    from scipy import stats

    control, candidate = [1.0, 1.2, 0.9, 1.1], [0.9, 1.15, 0.85, 1.0]
    pairs = list(zip(control, candidate, strict=True))
    noise = SessionNoise(position=4, controls=((1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0)), run_freedom=3.0)  # no scatter
    numbers = verdict(0.9, pairs, controls=(), noise=noise).numbers
    assert numbers is not None
    test = stats.ttest_rel(control, candidate)
    low, high = test.confidence_interval(1 - 2 * RULE.look_alpha)
    assert (numbers.low, numbers.high) == (pytest.approx(low), pytest.approx(high))
    assert numbers.p == pytest.approx(test.pvalue / 2) and numbers.df == 3


def test_earlier_pairs_of_the_session_sharpen_the_noise() -> None:
    pairs = [(1.001, 0.991), (0.999, 0.994), (1.002, 0.995)]
    alone = verdict(0.99, pairs).numbers
    known = SessionNoise(pair_squares=20 * 4e-6, pair_freedom=20.0)
    helped = verdict(0.99, pairs, noise=known).numbers
    assert alone is not None and helped is not None
    assert helped.df > alone.df and helped.high - helped.low < alone.high - alone.low
    assert helped.effect == alone.effect


def test_a_candidate_that_scatters_more_is_judged_by_its_own_scatter() -> None:
    pairs = [(1.0, 0.90), (1.0, 1.02), (1.0, 0.96), (1.0, 0.98)]
    numbers = verdict(0.9, pairs, noise=SessionNoise(pair_squares=20 * 4e-6, pair_freedom=20.0)).numbers
    assert numbers is not None and numbers.df == 3 and numbers.low < 0


def test_a_single_run_gone_astray_does_not_carry_the_mean() -> None:
    usual = [(1.001, 0.999), (0.999, 1.000), (1.002, 1.001), (1.0, 1.0)]
    straight, astray = verdict(0.99, usual).numbers, verdict(0.99, [*usual[:3], (1.05, 1.0)]).numbers
    assert straight is not None and astray is not None
    assert astray.effect < 0.004 and astray.low < straight.low


def test_a_real_but_worthless_gain_is_discarded() -> None:
    assert verdict(0.95, [(1.0, 0.95), (1.001, 0.951), (0.999, 0.949)], smallest_effect=0.2).decision == "discard"


def test_the_wrong_way_is_discarded_after_one_run() -> None:
    found = verdict(1.2)
    assert (
        found.decision == "discard"
        and "wrong way" in found.sentence
        and "1 run against 4 control runs" in found.sentence
    )
    assert stage(RULE, 0, [], [0]) == 1


def test_direction_higher() -> None:
    found = verdict(
        150.0,
        [(100.0, 150.0), (101.0, 151.5), (99.0, 149.0)],
        controls=(100.0, 101.0, 99.0, 100.5),
        metric="tokens_per_s", direction="higher", kind="cost", smallest_effect=10.0,
    )  # fmt: skip
    assert found.decision == "keep" and "higher by 50.2" in found.sentence


def test_noise_as_large_as_the_gain_is_undecided_to_the_last_pair() -> None:
    rule = Rule(max_pairs=4)
    pairs = [(1.00, 0.97), (1.05, 1.00), (0.95, 0.96), (1.02, 0.97)]
    controls = (1.0, 1.03, 0.97, 1.01)
    assert not verdict(0.9, pairs[:3], controls=controls, smallest_effect=0.005, rule=rule).final
    found = verdict(0.9, pairs, controls=controls, smallest_effect=0.005, rule=rule)
    assert found.decision == "inconclusive" and found.final and "pairs would be needed" in found.sentence


def test_scores_that_do_not_vary_prove_nothing_about_quality() -> None:
    same = (1.0,) * 4
    found = verdict(0.5, [(1.0, 0.5), (1.0, 0.5)], controls=same)
    assert found.decision == "inconclusive" and found.final and "does not vary" in found.sentence
    assert not verdict(0.5, [(1.0, 0.5)], controls=same).final
    assert verdict(1.0, controls=same).decision == "discard", "a metric no seed reaches"
    cheaper = {"metric": "parameters.total", "kind": "cost", "smallest_effect": 10, "controls": (100.0,) * 4}
    assert verdict(80.0, [(100.0, 80.0)] * 2, **cheaper).decision == "keep"  # type: ignore[arg-type]
    assert verdict(95.0, **cheaper).decision == "discard"  # type: ignore[arg-type]


def test_non_inferiority_needs_both_halves() -> None:
    pairs = [(1.0, 1.001), (1.004, 1.003), (0.996, 0.999)]
    same = {"kind": "non_inferiority", "smallest_effect": 0.05, "smallest_saving": 0.3}
    half = verdict(1.0, pairs, costs=[(10, 5), (10.1, 5.1), (9.9, 4.9)], **same)  # type: ignore[arg-type]
    assert half.decision == "keep" and half.saving is not None and half.saving.effect == pytest.approx(0.5)
    dear = verdict(1.0, pairs, costs=[(10, 10), (10.1, 9.9), (9.9, 10)], **same)  # type: ignore[arg-type]
    assert dear.decision == "discard" and "training_seconds" in dear.sentence
    worse = verdict(1.3, costs=[], **same)  # type: ignore[arg-type]
    assert worse.decision == "discard" and "margin" in worse.sentence
    free = verdict(1.0, pairs, costs=[(0.0, 0.0)] * 3, **same)  # type: ignore[arg-type]
    assert free.decision == "discard" and "nothing of it can be saved" in free.sentence


def test_no_look_of_non_inferiority_counts_on_giving_up_at_the_resolution() -> None:
    """Its first look is wide open at twice the noise below the parent, where another claim would have ended."""
    pairs = [(1.0, 1.001), (1.004, 1.003), (0.996, 0.999)]
    costs = [(10.0, 5.0), (10.1, 5.1), (9.9, 4.9)]
    same = {"kind": "non_inferiority", "smallest_effect": 0.05, "smallest_saving": 0.3, "costs": costs}
    strict, plain = Rule(resolution=0.0), Rule()
    assert strict.look_alpha < 0.7 * plain.look_alpha
    found, asked = verdict(1.0, pairs, rule=plain, **same), verdict(1.0, pairs, rule=strict, **same)  # type: ignore[arg-type]
    assert found == asked and found.saving == asked.saving
    assert verdict(0.95, pairs, rule=plain) != verdict(0.95, pairs, rule=strict), "of a gain it does count"


def test_the_level_that_is_quoted_holds_over_all_looks() -> None:
    kept = verdict(0.95, [(1.001, 0.951), (0.999, 0.950), (1.002, 0.953)])
    assert kept.numbers is not None and kept.numbers.level == 1 - 2 * RULE.alpha
    assert f"at {100 * kept.numbers.level:.4g}%, all looks; 3 pairs" in kept.sentence
    screened = verdict(1.003)
    assert screened.decision == "discard" and "95% confidence at this look" in screened.sentence


def test_too_little_or_broken_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        verdict(math.nan)
    with pytest.raises(ValueError, match="first look"):
        verdict(1.0, controls=())


def test_order_of_runs() -> None:
    order: list[str] = []
    control, candidate = set[int](), set[int]()
    while runs := wanted(RULE, 4, control, candidate):
        for role, index in runs:
            (control if role == "control" else candidate).add(index)
        order.append(" ".join(f"{'AB'[role == 'candidate']}{index}" for role, index in runs))
    assert order[:5] == ["A0 A1 A2 A3 B0", "A4", "B4", "B5 A5", "A6 B6"]
    assert len(order) == RULE.max_pairs + 2
    assert wanted(RULE, 0, [], []) == [("candidate", 0)]


def test_every_experiment_has_seeds_of_its_own() -> None:
    taken = [
        {seed_of(experiment, index) for index in range(RULE.min_controls + RULE.max_pairs)} for experiment in range(9)
    ]
    assert len(set().union(*taken)) == sum(map(len, taken)) and TEST_SEED not in set().union(*taken)
    assert all(0 <= seed < 2**32 for seed in (seed_of(10**6, 20), seed_of(0, 0)))


def test_stale_controls_are_made_anew() -> None:
    def runs(count: int) -> list[Measured]:
        controls = [Measured("parent", "1", "control", i, i, 1.0 + 0.001 * i) for i in range(4)]
        return controls + [Measured("other", str(2 + i), "candidate", 0, 9 + i, 1.0) for i in range(count)]

    assert session_noise([], "parent", RULE).missing(RULE) == RULE.min_controls
    assert session_noise(runs(RULE.stale_after - 1), "parent", RULE).missing(RULE) == 0
    assert session_noise(runs(RULE.stale_after), "parent", RULE).missing(RULE) == 1
    assert session_noise(runs(0), "another parent", RULE).missing(RULE) == RULE.min_controls


def test_noise_is_that_of_neighbours_and_the_level_follows_a_jump() -> None:
    draw = random.Random(1)
    before = [Measured("p", "1", "control", i, i, draw.gauss(0, 1)) for i in range(40)]
    gap = [Measured("q", "2", "candidate", 0, 99, 0.0)] * 6
    after = [Measured("p", "3", "control", i, 100 + i, draw.gauss(6, 1)) for i in range(4)]
    noise = session_noise([*before, *gap, *after], "p", RULE)
    assert 0.5 < noise.run_variance < 1.6, "the jump is not noise"
    assert noise.level(noise.position + 1)[0] > 4


def test_the_level_is_this_sessions_and_the_noise_that_of_all_runs() -> None:
    draw = random.Random(2)
    earlier = [Measured("p", "1", "control", i, i, draw.gauss(9, 1)) for i in range(60)]
    lately = [Measured("p", "2", "control", i, 60 + i, draw.gauss(0, 1)) for i in range(6)]
    whole = session_noise([*earlier, *lately], "p", RULE)
    short = session_noise([*earlier, *lately], "p", RULE, session=6)
    assert [score for _, score in short.controls] == [run.value for run in lately]
    assert (short.run_squares, short.run_freedom, short.deviations) == (
        whole.run_squares, whole.run_freedom, whole.deviations,
    )  # fmt: skip
    assert abs(short.level(short.position + 1)[0]) < 1.5
    alone = session_noise(lately, "p", RULE)
    assert short.run_freedom > 50 and alone.run_freedom == 5
    new = session_noise(earlier, "p", RULE, session=0)
    assert new.controls == () and new.missing(RULE) == RULE.min_controls and new.run_freedom == 59


def test_runs_with_a_pause_between_them_are_no_neighbours() -> None:
    def runs(pause: int) -> list[Measured]:
        controls = [Measured("p", "1", "control", i, i, 50.0 * (i >= 3) + 0.1 * (i % 2)) for i in range(6)]
        pair = [Measured("p", "2", "control", 4, 94, 0.0), Measured("q", "2", "candidate", 4, 94, 50.0)]
        after = [Measured("p", "2", "control", 5, 95, 50.1), Measured("q", "2", "candidate", 5, 95, 50.1)]
        controls[3] = controls[3]._replace(pause=pause)
        return [*controls, pair[0], pair[1]._replace(pause=pause), *after]

    beside, apart = session_noise(runs(0), "p", RULE), session_noise(runs(LONGEST_GAP + 1), "p", RULE)
    assert beside.run_freedom == apart.run_freedom + 2, "the third and fourth control, and those of the two pairs"
    assert beside.pair_freedom == 1 and apart.pair_freedom == 0, "a pair torn apart is none"
    assert apart.position == beside.position + 2 * (LONGEST_GAP + 1)
    assert beside.missing(RULE) == 0 and session_noise(runs(0), "p", RULE, pause=LONGEST_GAP + 1).missing(RULE) == 1


def test_runs_gone_astray_do_not_move_the_usual_noise() -> None:
    draw = random.Random(3)
    runs = [draw.gauss(0, 1) for _ in range(2000)]
    assert robust_scale(runs) == pytest.approx(1, rel=0.05)
    astray = [run + 4.0 * (draw.random() < 0.05) for run in runs]
    assert statistics.stdev(astray) > 1.25 > robust_scale(astray)
    assert robust_scale([]) == robust_scale([0.0, 0.0, 0.0, 5.0]) == 0.0


def test_controls_too_far_apart_to_tell_of_noise_are_made_anew() -> None:
    """Four controls with four hours of other runs between them: their differences are drift, so nothing is known."""
    other = [Measured("other", "9", "candidate", 0, 99, 1.0)] * LONGEST_GAP
    spread = [run for i in range(4) for run in (Measured("p", "1", "control", i, i, 1.0 + 0.1 * i), *other[i // 3 :])]
    noise = session_noise(spread, "p", RULE)
    assert len(noise.controls) == 4 and noise.run_freedom == 0, "enough controls, none beside another"
    missing = noise.missing(RULE)
    assert missing == RULE.min_controls - 1
    controls = dict(enumerate([1.30, 1.31, 1.29][:missing]))
    seen = judge(claim(), RULE, noise, Runs(controls, {0: 1.295}))
    assert seen.numbers is not None and seen.numbers.method == "screen" and seen.numbers.noise_sd > 0


def test_the_simulated_rule_is_the_one_that_judges_experiments() -> None:
    assert rule_of(ExperimentSettings()) == Rule()


def test_error_budget_is_never_overspent_and_outlives_its_plan() -> None:
    budget, spent = ErrorBudget(total=0.05, planned=80), list[float]()
    for _ in range(400):
        spent.append(budget.allot(spent))
    assert sum(spent) <= 0.05 and min(spent) > 0 and spent[0] == spent[19] > spent[100]
    assert budget.allot([0.0] * 500) == spent[0], "what was screened out or kept costs nothing"
    assert ErrorBudget(planned=None).allot([]) > 0
    assert ErrorBudget(total=0.01).allot([0.005] * 4) < 1e-9, "an overdrawn budget gives next to nothing"
    with pytest.raises(ValueError, match="between 0 and 1"):
        ErrorBudget(total=5)


def test_what_is_charged() -> None:
    assert charge(0.002, ended=False, confirmed=False, kept=False) == 0.002
    assert charge(0.002, ended=True, confirmed=True, kept=False) == 0.002
    assert charge(0.002, ended=True, confirmed=False, kept=False) == 0.0
    assert charge(0.002, ended=True, confirmed=True, kept=True) == 0.0
    assert week_of("2026-11-22T23:59:59.000Z") == "2026-W47" != week_of("2026-11-23T00:00:00.000Z")


@pytest.mark.parametrize("resolution", [0.0, 3.0])
def test_looks_share_their_alpha(resolution: float) -> None:
    """Against 300,000 random walks, given up where the rule gives up."""
    import numpy as np
    from scipy.special import ndtri

    rule = Rule(alpha=0.01, min_pairs=3, max_pairs=10, resolution=resolution)
    walks = np.random.default_rng(5).standard_normal((300_000, 10)).cumsum(axis=1)
    alive, kept = np.ones(len(walks), bool), np.zeros(len(walks), bool)
    for count in range(1, 11):
        total = walks[:, count - 1]
        if count >= 3:
            kept |= alive & (total > -ndtri(rule.look_alpha) * np.sqrt(count))
        if resolution:
            alive &= total >= count * resolution / np.sqrt(2) - ndtri(rule.discard_confidence) * np.sqrt(count)
    assert kept.mean() == pytest.approx(rule.alpha, rel=0.08)
    assert rule.look_alpha > rule.alpha / 8, "less wasteful than the union bound"
