"""A night of experiments that never ran: records as the lab keeps them, with scores drawn at random.

The verdicts are those of the lab's own rule on these scores. The same arguments give the same night.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from experiments.hypothesis import Hypothesis
from experiments.record import Arm, ExperimentRecord, ParentRef, Score, Step
from experiments.verdict import SEEDS, Role, Rule, judge, ready_for_look, wanted
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
    count: int, *, seed: int = 1, campaign: str | None = None, share_of_gains: float = 0.15, first: int = 1
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
            parent=parent, best_before=best, yardstick="y" * 64, rule=Rule(),
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
    scores: list[Score] = []
    steps = list(record.steps)
    while True:
        control = [s.value for s in scores if s.role == "control"]
        candidate = [s.value for s in scores if s.role == "candidate"]
        if ready_for_look(record.rule, range(len(control)), range(len(candidate))):
            verdict = judge(record.hypothesis, control, candidate, record.rule)
            steps.append(Step(name=f"look {len(candidate)}", at=record.created_at, data={}))
            if verdict.final:
                break
        for role, index in wanted(record.rule, range(len(control)), range(len(candidate))):
            truth = level - (gain if role == "candidate" else 0.0)
            scores.append(_score(record, role, index, draw.gauss(truth, NOISE), run + len(scores) + 1))
    return record.model_copy(
        update={
            "verdict": verdict.decision, "sentence": verdict.sentence, "numbers": verdict.numbers, "scores": scores,
            "is_best": verdict.decision == "keep", "runs": [*record.runs, *(s.run for s in scores)], "steps": steps,
            "seconds": 60.0 * len(scores), "device_seconds": 60.0 * len(scores),
        }
    )  # fmt: skip


def _score(record: ExperimentRecord, role: Role, index: int, value: float, run: int) -> Score:
    values = {"val_bpb": value, "training_seconds": 60.0, "peak_memory_bytes": 2.5e9, "tokens_per_s": 41_000.0}
    return Score(
        role=role, index=index, seed=SEEDS[index], run=f"run-{run:04d}", value=value, values=values, machine=MACHINE,
        at=record.created_at,
    )  # fmt: skip


def _arm(commit: str, settings: TrainingConfig) -> Arm:
    content: dict[str, Any] = settings.model_dump(mode="json")
    return Arm(commit=commit, digest=commit * 2, settings=content)
