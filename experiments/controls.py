"""The session of an experiment: runs made lately, on this machine, measured alike; and was the machine slowed?"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from experiments.ledger import Ledger
from experiments.record import ExperimentRecord
from experiments.session_noise import Measured, SessionNoise, session_noise
from workspace.clock import stamp

# Scores drift between days far more than they scatter within one (throttling, other load, updates): older runs say
# nothing about now.
SESSION_HOURS = 6
SLOWED = 0.10  # a canary this much under the session's median: the machine was slowed
CANARIES = 3  # earlier ones, before a machine is called slowed


def noise_of_session(ledger: Ledger, record: ExperimentRecord, machine: str) -> SessionNoise:
    """What the session knows before the experiment's own runs. Controls of the very same recipe give the level; how
    runs scatter is learnt from every parent's.

    Never a candidate's score for the level: those of a kept one were selected for being good and would make the next
    parent look better than it is.
    """
    assert record.control is not None and record.yardstick is not None
    metric = record.hypothesis.metric
    runs = [
        Measured(recipe, experiment, score.role, score.index, score.seed, score.values[metric])
        for recipe, experiment, score in ledger.session(record.yardstick, machine, _since(), record.id)
        if metric in score.values
    ]
    return session_noise(runs, record.control.digest, record.rule)


def _since() -> str:
    return stamp(datetime.now(UTC) - timedelta(hours=SESSION_HOURS))


def canary_speeds(summary: Mapping[str, Any] | None) -> dict[str, float]:
    """The speeds in a run's canary: {"canary.bandwidth_gb_s": 11.2, "canary.matmul_gflops.float32": 95.0}."""
    canary = (summary or {}).get("canary")
    if not isinstance(canary, Mapping):
        return {}
    found = {"canary.bandwidth_gb_s": canary.get("bandwidth_gb_s")}
    rates = canary.get("matmul_gflops")
    if isinstance(rates, Mapping):
        found |= {f"canary.matmul_gflops.{name}": rate for name, rate in rates.items()}
    return {name: float(speed) for name, speed in found.items() if isinstance(speed, int | float)}


def slowed_run(ledger: Ledger, record: ExperimentRecord, summary: Mapping[str, Any] | None, machine: str) -> str | None:
    """`slowed` for one run of the experiment; where the budget is not seconds, a slow machine changes no score."""
    assert record.candidate is not None and record.yardstick is not None
    speeds = canary_speeds(summary)
    if not speeds or record.candidate.settings.get("budget", {}).get("kind") != "seconds":
        return None
    session = ledger.session(record.yardstick, machine, _since(), "")
    return slowed(speeds, [score.values for _, _, score in session])


def slowed(canary: Mapping[str, float], earlier: Sequence[Mapping[str, float]]) -> str | None:
    """In words, how a run's canary fell behind the session's; None when it did not, or nothing is known.

    A canary maps what was measured to a speed (larger is faster). What the run did not measure, or fewer than
    `CANARIES` earlier runs did, is not judged.
    """
    for name in sorted(canary):
        known = [speeds[name] for speeds in earlier if name in speeds]
        if len(known) < CANARIES:
            continue
        usual = statistics.median(known)
        if usual > 0 and canary[name] < (1 - SLOWED) * usual:
            return f"{name} {canary[name]:.4g} against {usual:.4g} in the session, {1 - canary[name] / usual:.0%} less"
    return None
