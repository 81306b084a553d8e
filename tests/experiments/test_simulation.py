"""Simulated campaigns: the rule holds its error where others do not. Fixed seeds, bounds that can be missed."""

from __future__ import annotations

import functools
import json
from collections import Counter

import pytest
import typer
from typer.testing import CliRunner

from experiments import other_rules
from experiments.error_budget import campaign_budget
from experiments.rule import Rule
from experiments.simulation import NOISES, SimulatedMachine, our_campaign, simulate, upper_bound
from experiments.verdict import judge
from lab_mcp.cli_simulate import COLUMNS, SCENARIOS, cells, scenarios, simulate_command, table


@pytest.mark.parametrize(("noise", "drift"), [("normal", "none"), ("t3", "jumps"), ("outliers", "walk")])
def test_few_campaigns_keep_anything_without_effect(noise: str, drift: str) -> None:
    found = simulate(our_campaign, noise, drift, False, range(40))  # type: ignore[arg-type]
    assert found.with_false_keep <= 5  # of 40; at a true rate of 5 % this is missed once in seventy times
    assert found.null_cost / found.nulls < 2.6


def test_a_session_of_a_dozen_runs_keeps_no_more() -> None:
    """Learnt from its own runs alone, its noise would let 9 % of campaigns keep something."""
    short = functools.partial(our_campaign, session=12)
    found = simulate(short, "normal", "none", False, range(40))
    assert found.with_false_keep <= 5 and found.null_cost / found.nulls < 2.6


def test_keep_if_lower_keeps_chance_every_night() -> None:
    found = simulate(other_rules.keep_if_lower, "normal", "none", False, range(40))
    assert found.with_false_keep > 35 and 3.0 < found.false_keeps / found.campaigns < 6.0


def test_the_rules_of_others_keep_chance_too() -> None:
    for rule in (other_rules.mad_confidence, other_rules.two_seeds, other_rules.bootstrap_medians, other_rules.bca):
        assert simulate(rule, "normal", "none", False, range(12)).with_false_keep >= 3, rule.__name__


@pytest.mark.parametrize(("drift", "share"), [("none", 0.88), ("jumps", 0.77)])
def test_an_effect_of_three_standard_deviations_is_mostly_found(drift: str, share: float) -> None:
    found = simulate(our_campaign, "normal", drift, True, range(30))  # type: ignore[arg-type]
    assert found.planted == 240 and found.found / found.planted > share


def test_a_short_campaign_gives_the_shares_the_lab_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = set()

    def noted(claim: object, rule: Rule, *rest: object) -> object:
        shares.add(rule.alpha)
        return judge(claim, rule, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("experiments.simulation.judge", noted)
    our_campaign(SimulatedMachine("normal", "none", [5]), [0.0])
    assert shares == {campaign_budget(1).allot(())} == {campaign_budget(None).allot(())}


def test_the_same_seed_gives_the_same_campaigns() -> None:
    assert simulate(our_campaign, "t3", "walk", True, range(3)) == simulate(our_campaign, "t3", "walk", True, range(3))


@pytest.mark.parametrize("noise", NOISES)
def test_the_noise_is_what_it_is_called(noise: str) -> None:
    machine = SimulatedMachine(noise, "none", [3], runs=20_000)  # type: ignore[arg-type]
    scores = [machine.run(0.0) for _ in range(19_000)]
    mean = sum(scores) / len(scores)
    variance = sum((score - mean) ** 2 for score in scores) / len(scores)
    expected = {"normal": (0.0, 1.0), "t3": (0.0, 1.0), "outliers": (0.2, 1 + 16 * 0.05 * 0.95)}[noise]
    assert mean == pytest.approx(expected[0], abs=0.05) and variance == pytest.approx(expected[1], rel=0.35)


def test_upper_bound_is_clopper_and_pearsons() -> None:
    assert upper_bound(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100)) and upper_bound(5, 5) == 1.0


def test_command() -> None:
    app = typer.Typer()
    app.command()(simulate_command)
    done = CliRunner().invoke(app, ["--campaigns", "10", "--no-others", "--no-harder", "--workers", "1", "--json"])
    rows = json.loads(done.stdout)
    assert done.exit_code == 0 and {row["campaigns"] for row in rows} == {10}
    harder = table(scenarios(1))
    assert Counter(row["rule"] for row in [*rows, *harder]) == {"lab-mcp": 9} | dict.fromkeys(SCENARIOS, 1)
    assert all(len(cells(row)) == len(COLUMNS) for row in [*rows, *harder])
