"""A night of experiments that never ran: records as the lab keeps them, with scores drawn at random.

The verdicts follow a rule simpler than the lab's. The same arguments give the same night.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from experiments.hypothesis import Hypothesis
from experiments.record import Arm, ExperimentRecord, ParentRef, Score, Step, VerdictName
from experiments.verdict import Numbers
from training.config import TrainingConfig, apply
from workspace.clock import stamp

NOISE = 0.002
MACHINE = "bench/cpu/torch 2.13.0"
KNOBS = {
    "optimizer": ("optimizer.matrix_lr", [0.01, 0.02, 0.03, 0.05, 0.06, 0.08]),
    "schedule": ("schedule.warmdown", [0.2, 0.3, 0.6, 0.7, 0.8]),
    "architecture": ("model.depth", [3, 5, 6, 7]),
    "regularisation": ("optimizer.weight_decay", [0.0, 0.05, 0.1, 0.3]),
}
STARTED = datetime(2026, 11, 20, 20, 0, tzinfo=UTC)


def night(
    count: int, *, seed: int = 1, campaign: str | None = None, share_of_gains: float = 0.1, first: int = 1
) -> Iterator[ExperimentRecord]:
    """`count` experiments, oldest first; every 17th crashes, some gain three standard deviations of noise or more."""
    draw = random.Random(seed)
    settings = TrainingConfig()
    level, parent, generation = 1.0, ParentRef(commit="0" * 40, base="b" * 40), 0
    best: str | None = None
    for i in range(count):
        number = first + i
        category, (knob, values) = draw.choice(list(KNOBS.items()))
        value = draw.choice(values)
        gain = draw.uniform(3, 6) * NOISE if draw.random() < share_of_gains else -abs(draw.gauss(0, 2)) * NOISE
        claim = Hypothesis(
            statement=f"Setting {knob} to {value} lowers val_bpb by at least 0.004",
            change={knob: value}, direction="lower", smallest_effect=0.004, category=category,
            predicted_effect=0.005, why="the last experiments of this kind leaned this way",
        )  # fmt: skip
        at = stamp(STARTED + timedelta(minutes=7 * number))
        record = ExperimentRecord(
            id=f"exp-{number:04d}", state="done", hypothesis=claim, hypothesis_hash=claim.digest(),
            created_at=at, ended_at=stamp(STARTED + timedelta(minutes=7 * number + 6)), campaign=campaign,
            parent=parent, best_before=best, yardstick="y" * 64,
            control=_arm(parent.commit, settings), candidate=_arm(f"{number:040x}", apply(settings, {knob: value})),
            commit=f"{number:040x}", ref=f"refs/heads/lab/exp-{number:04d}", runs=[f"run-{10 * number:04d}"],
            steps=[Step(name="preflight", at=at)],
        )  # fmt: skip
        if i % 17 == 16:
            sentence = f"Crash: test run run-{10 * number:04d} ran out of memory."
            yield record.model_copy(
                update={"verdict": "crash", "sentence": sentence, "failure_class": "oom", "seconds": 12.0}
            )
            continue
        record = _measured(record, draw, level, gain, 10 * number)
        yield record
        if record.verdict == "keep":
            level, generation, best = level - gain, generation + 1, record.id
            settings = apply(settings, {knob: value})
            parent = ParentRef(commit=f"{number:040x}", base="b" * 40, experiment=record.id, generation=generation)


def _measured(record: ExperimentRecord, draw: random.Random, level: float, gain: float, run: int) -> ExperimentRecord:
    """Three controls and one candidate; three pairs when that looks promising."""
    control = [draw.gauss(level, NOISE) for _ in range(3)]
    candidate = [draw.gauss(level - gain, NOISE)]
    if sum(control) / 3 - candidate[0] > 1.5 * NOISE:
        candidate += [draw.gauss(level - gain, NOISE) for _ in range(2)]
    means = sum(control) / 3, sum(candidate) / len(candidate)
    effect, error = means[0] - means[1], NOISE * (1 / 3 + 1 / len(candidate)) ** 0.5
    low, high, reach = effect - 3 * error, effect + 3 * error, effect + 1.4 * error
    smallest = record.hypothesis.smallest_effect
    verdict: VerdictName = "inconclusive"
    if len(candidate) > 1 and low > 0 and effect >= smallest:
        verdict = "keep"
    elif reach < smallest or len(candidate) == 1:
        verdict = "discard"
    words = {"keep": "Kept", "discard": "Discarded", "inconclusive": "Undecided"}[verdict]
    sentence = f"{words}: val_bpb is {abs(effect):.3g} {'lower' if effect > 0 else 'higher'} "
    sentence += f"(gain between {low:.3g} and {high:.3g} at 99.0%)."
    looks = [Step(name=f"look {n + 1}", at=record.created_at) for n in range(len(candidate))]
    scores = [_score(record, "control", i, value, run + 1 + i) for i, value in enumerate(control)]
    scores += [_score(record, "candidate", i, value, run + 4 + i) for i, value in enumerate(candidate)]
    numbers = Numbers.model_validate(
        {
            "effect": effect, "low": low, "high": high, "level": 0.99, "error": error, "reach": reach,
            "reach_level": 0.92,
            "noise_sd": NOISE * draw.uniform(0.8, 1.2), "df": 6.0, "p": 0.001 if verdict == "keep" else 0.4,
            "n_control": 3, "n_candidate": len(candidate), "control_mean": means[0], "candidate_mean": means[1],
            "method": "pairs" if len(candidate) > 1 else "screen",
        }
    )  # fmt: skip
    return record.model_copy(
        update={
            "verdict": verdict, "sentence": sentence, "numbers": numbers, "scores": scores,
            "is_best": verdict == "keep", "runs": [*record.runs, *(s.run for s in scores)],
            "steps": [*record.steps, *looks],
            "seconds": 60.0 * len(scores), "device_seconds": 60.0 * len(scores),
        }
    )  # fmt: skip


def _score(
    record: ExperimentRecord, role: Literal["control", "candidate"], index: int, value: float, run: int
) -> Score:
    values = {"val_bpb": value, "training_seconds": 60.0, "peak_memory_bytes": 2.5e9, "tokens_per_s": 41_000.0}
    return Score(
        role=role, index=index, seed=1009 + 7919 * index, run=f"run-{run:04d}", value=value, values=values,
        machine=MACHINE, at=record.created_at,
    )  # fmt: skip


def _arm(commit: str, settings: TrainingConfig) -> Arm:
    content: dict[str, Any] = settings.model_dump(mode="json")
    return Arm(commit=commit, digest=commit * 2, settings=content)
