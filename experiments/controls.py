"""What earlier runs on this machine, measured alike, say to an experiment; and was the machine slowed?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from experiments.ledger import Ledger
from experiments.measured_on import DEVICE, alike, differing, measured_on, of_experiment
from experiments.record import ExperimentRecord, Score
from experiments.session_noise import LONGEST_GAP, MEMORY, Measured, SessionNoise, session_noise
from training.config import TrainingConfig
from workspace.clock import now, seconds_between, stamp

# Scores drift between days far more than they scatter within one (throttling, other load, updates): older controls do
# not say where the parent stands now. How much runs scatter they do say.
SESSION_HOURS = 6
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 300, 3600  # of one that separates runs; between them, so many run lengths:
PAUSE_RUNS = LONGEST_GAP
SLOWED = 0.10  # a canary this much under the session's median: the machine was slowed
SPEEDS = ("tokens_per_s", "flops_per_token")  # how long a budget in steps, tokens or operations takes
CANARIES = 3  # earlier ones, before a machine is called slowed
LOOK_BACK = 10 * MEMORY  # runs of the same settings, among which are those on the same text and device


def noise_of_session(ledger: Ledger, record: ExperimentRecord, machine: str) -> tuple[SessionNoise, dict[str, str]]:
    """What is known before the experiment's own runs, and what that was measured on. Controls of the very same recipe
    in this session give the level; how runs scatter is learnt from every parent's, and from earlier sessions.

    Never a candidate's score for the level: those of a kept one were selected for being good and would make the next
    parent look better than it is.
    """
    assert record.control is not None and record.yardstick is not None
    metric, since = record.hypothesis.metric, _since()
    for last in (MEMORY, LOOK_BACK):  # further back only where some cannot be compared
        scored = ledger.measured_alike(record.yardstick, machine, last=last, but=record.id)
        reported = [one for one in scored if metric in one[2].values]
        known, on = alike(reported, record.control.digest, of_experiment(record))
        if len(known) == len(reported):
            break
    known = known[-MEMORY:]
    *before, lately = pauses([score for _, _, score in known], now())
    runs = [
        Measured(recipe, experiment, score.role, score.index, score.seed, score.values[metric], pause)
        for (recipe, experiment, score), pause in zip(known, before, strict=True)
    ]
    session = sum(score.at >= since for _, _, score in known)
    return session_noise(runs, record.control.digest, record.rule, session=session, pause=lately), on


def pauses(scores: Sequence[Score], until: str) -> list[int]:
    """How many runs would have fitted before each of these (in order of their ends), and between the last and
    `until`, where the machine did something else for long: too long for drift to be small. Else 0."""
    lengths = [seconds_between(score.started_at, score.at) for score in scores if score.started_at]
    length = max(statistics.median(lengths), 1.0) if lengths else None
    found, last = list[int](), None
    for start, end in (*((score.started_at or score.at, score.at) for score in scores), (until, until)):
        idle = seconds_between(last, start) if last else 0.0
        enough = idle > longest_pause(length)
        found.append(max(LONGEST_GAP + 1, int(idle / length) if length else 0) if enough else 0)
        last = end
    return found


def longest_pause(length: float | None) -> float:
    """Seconds between two runs of this length that still lie side by side: some run lengths, an hour for longer ones
    (or one length), some minutes for the shortest, whose proposals take longer to come than the runs do."""
    if length is None:
        return LONGEST_PAUSE_S
    return max(SHORTEST_PAUSE_S, min(PAUSE_RUNS * length, max(length, LONGEST_PAUSE_S)))


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
    session, on = ledger.measured_alike(record.yardstick, machine, since=_since()), measured_on(summary)
    return slowed(speeds, [score.values for _, _, score in session if not differing(score.on, on, [DEVICE])])


def speed_of_parent(ledger: Ledger, record: ExperimentRecord, machine: str) -> dict[str, float]:
    """The medians of `SPEEDS` over the parent's last runs on this machine; {} while it has none."""
    assert record.control is not None and record.yardstick is not None
    earlier = ledger.measured_alike(record.yardstick, machine, last=LOOK_BACK)
    values = [score.values for recipe, _, score in earlier if recipe == record.control.digest][-CANARIES:]
    known = {name: [each[name] for each in values if name in each] for name in SPEEDS}
    return {name: statistics.median(found) for name, found in known.items() if found and min(found) > 0}


def amount_in(seconds: float, config: TrainingConfig, speed: Mapping[str, float]) -> float:
    """How much of its budget so much training uses at this `speed`; infinite where that is not known."""
    tokens = seconds * speed.get("tokens_per_s", math.inf)
    return {
        "seconds": seconds,
        "steps": tokens / config.batch.tokens,
        "tokens": tokens,
        "flops": tokens * speed.get("flops_per_token", math.inf),
    }[config.budget.kind]


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
