"""Simulated campaigns, judged by the functions that judge the real ones: how often is chance kept, at what cost?

A machine gives scores with a known truth: noise with standard deviation 1, a drift, and proposals most of which do
nothing. `our_campaign` puts them through the rule, the error budget, the session's noise and the verdict exactly as
`experiments.machine` does; only the runs are made up. Scores are better when lower; effects are in noise SDs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from experiments.error_budget import campaign_budget, charge
from experiments.hypothesis import Hypothesis
from experiments.rule import Rule, seed_of, stage, wanted
from experiments.session_noise import MEMORY, Measured, session_noise
from experiments.verdict import Runs, judge

Noise = Literal["normal", "t3", "outliers"]
Drift = Literal["none", "jumps", "walk"]
NOISES: dict[Noise, str] = {
    "normal": "normal",
    "t3": "t with 3 df, scaled to SD 1",
    "outliers": "normal, 5 % of runs worse by 4 SD",
}
DRIFTS: dict[Drift, str] = {
    "none": "none",
    "jumps": "a jump of N(0, 2 SD) every 12 runs",
    "walk": "a random walk, N(0, 2 SD) over 12 runs",
}
PROPOSALS = 80
PLANTED, PLANTED_EFFECT = 8, 3.0
JUMP_EVERY, JUMP_SD = 12, 2.0
TEST_FRACTION = 0.2  # of a full run, as `experiments.test_fraction`
CLAIM = Hypothesis(
    statement="A simulated change lowers val_bpb by at least one noise SD",
    change={"optimizer.matrix_lr": 0.02},
    direction="lower",
    smallest_effect=1.0,
)


class SimulatedMachine:
    """Gives the score of a run; its level drifts with the time runs take, test runs included (as their fifth)."""

    def __init__(self, noise: Noise, drift: Drift, seed: Sequence[int], runs: int = 2500) -> None:
        import numpy as np

        draw = np.random.default_rng(list(seed))
        if noise == "t3":
            errors = draw.standard_t(3, runs) / math.sqrt(3)
        else:
            errors = draw.standard_normal(runs)
        if noise == "outliers":
            errors += 4.0 * (draw.random(runs) < 0.05)
        self._errors: list[float] = errors.tolist()
        self._steps: list[float] = draw.standard_normal(2 * runs).tolist()
        self._drift, self._level, self._time, self._step = drift, 0.0, 0.0, 0
        self.full_runs = 0
        self.test_runs = 0
        self.planted: set[int] = set(draw.choice(PROPOSALS, PLANTED, replace=False).tolist())

    @property
    def cost(self) -> float:
        """Full-run equivalents so far."""
        return self.full_runs + TEST_FRACTION * self.test_runs

    def test_run(self) -> None:
        self._pass_time(TEST_FRACTION)
        self.test_runs += 1

    def run(self, truth: float, scatter: float = 1.0) -> float:
        """`scatter`: noise SDs of this run, as many times the usual."""
        self._pass_time(1.0)
        self.full_runs += 1
        return truth + self._level + scatter * self._errors[self.full_runs]

    def _pass_time(self, runs: float) -> None:
        before, self._time = self._time, self._time + runs
        if self._drift == "walk":
            self._move(JUMP_SD * math.sqrt(runs / JUMP_EVERY))
        elif self._drift == "jumps" and int(before / JUMP_EVERY) != int(self._time / JUMP_EVERY):
            self._move(JUMP_SD)

    def _move(self, sd: float) -> None:
        self._level += sd * self._steps[self._step]
        self._step += 1


@dataclass
class Outcome:
    """One campaign, or many added up."""

    campaigns: int = 0
    with_false_keep: int = 0
    false_keeps: int = 0
    nulls: int = 0
    null_cost: float = 0.0  # full-run equivalents, baseline and test runs included
    planted: int = 0
    found: int = 0
    endings: dict[str, int] = field(default_factory=dict)  # of proposals without effect: stage and decision

    def add(self, other: Outcome) -> None:
        for name in ("campaigns", "with_false_keep", "false_keeps", "nulls", "null_cost", "planted", "found"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for ending, count in other.endings.items():
            self.endings[ending] = self.endings.get(ending, 0) + count

    def note(self, effect: float, kept: bool, cost: float, ending: str = "") -> None:
        """One proposal has ended."""
        if effect:
            self.planted += 1
            self.found += kept
            return
        self.nulls += 1
        self.null_cost += cost
        self.false_keeps += kept
        if ending:
            self.endings[ending] = self.endings.get(ending, 0) + 1

    def end_campaign(self) -> Outcome:
        self.campaigns, self.with_false_keep = 1, int(self.false_keeps > 0)
        return self


Campaign = Callable[[SimulatedMachine, Sequence[float]], Outcome]


def our_campaign(
    machine: SimulatedMachine, effects: Sequence[float], *, session: int = MEMORY, variance: float = 1.0
) -> Outcome:
    """The lab's own rule on proposals with these true effects, each against the best so far.

    `session`: the newest so many runs tell where the parent stands. `variance`: that of every candidate's noise, in
    variances of its control's.
    """
    rule = Rule()
    budget = campaign_budget(len(effects))
    outcome, spent = Outcome(), list[float]()
    measured: list[Measured] = []
    best, generation = 0.0, 0
    for number, effect in enumerate(effects, 1):
        before = machine.cost
        machine.test_run()
        given = replace(rule, alpha=budget.allot(spent))
        recipe = f"recipe {generation}"
        noise = session_noise(measured, recipe, given, session=session)
        missing, looked = noise.missing(given), 0
        runs = Runs({}, {})
        while True:
            for role, index in wanted(given, missing, runs.control, runs.candidate):
                change = role == "candidate"
                score = machine.run(best - effect * change, math.sqrt(variance) if change else 1.0)
                arm = runs.control if role == "control" else runs.candidate
                arm[index] = score  # type: ignore[index]
                measured.append(Measured(recipe, str(number), role, index, seed_of(number, index), score))
            done = stage(given, missing, runs.control, runs.candidate)
            assert done > looked
            looked = done
            verdict = judge(CLAIM, given, noise, runs)
            if verdict.final:
                break
        kept = verdict.decision == "keep"
        spent.append(charge(given.alpha, ended=True, confirmed=looked > 2, kept=kept))
        outcome.note(effect, kept, machine.cost - before, f"{min(looked, 3)} {verdict.decision}")
        if kept:
            best, generation = best - effect, generation + 1
    return outcome.end_campaign()


def simulate(
    rule: Campaign, noise: Noise, drift: Drift, planted: bool, campaigns: Sequence[int], seed: int = 1
) -> Outcome:
    """The campaigns of these numbers, added up. The same arguments give the same outcome."""
    total = Outcome()
    scenario = [list(NOISES).index(noise), list(DRIFTS).index(drift), int(planted)]
    for number in campaigns:
        machine = SimulatedMachine(noise, drift, [seed, *scenario, number])
        effects = [PLANTED_EFFECT if planted and i in machine.planted else 0.0 for i in range(PROPOSALS)]
        total.add(rule(machine, effects))
    return total


def upper_bound(events: int, trials: int, confidence: float = 0.95) -> float:
    """One-sided upper bound of a rate (Clopper & Pearson 1934, Biometrika 26:404)."""
    from scipy.special import betaincinv

    return 1.0 if events >= trials else float(betaincinv(events + 1, trials - events, confidence))
