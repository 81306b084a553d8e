"""The experiments at a glance."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from experiments.calibration import Calibration, calibrate
from experiments.ledger import Ledger
from experiments.ports import RunsPort
from experiments.record import ExperimentRecord
from experiments.words import count
from training.runs.records import LIVE

LEARNT = 5
SUGGESTIONS = 4


class Line(BaseModel):
    """One experiment in a line."""

    model_config = ConfigDict(frozen=True)

    experiment: str
    state: str
    verdict: str | None = None
    statement: str
    change: str
    sentence: str | None = None
    score: float | None = Field(None, description="mean of the candidate's runs")
    metric: str
    commit: str | None = None
    runs: list[str] = Field([], description="runs that live or wait now")
    progress: str | None = None


class Overview(BaseModel):
    model_config = ConfigDict(frozen=True)

    best: Line | None = Field(description="the last kept recipe; None = nothing was kept yet")
    running: list[Line]
    queue: list[Line]
    last_learnt: list[Line]
    next: list[str]
    counts: dict[str, int] = Field(description="experiments by verdict")
    calibration: list[Calibration] = Field(description="how the proposers' predictions turned out")


def survey(ledger: Ledger, runs: RunsPort) -> Overview:
    best = ledger.best()
    kept = ledger.get(best.experiment) if best else None
    waiting = [record for record in ledger.open() if record.state in ("proposed", "preflight", "ready")]
    under_way = [ledger.get(record.id) or record for record in ledger.open() if record not in waiting]
    learnt = [r for r in ledger.find(limit=LEARNT * 3) if r.state in ("record", "done")][:LEARNT]
    return Overview(
        best=_line(kept) if kept else None,
        running=[_line(record, runs) for record in under_way],
        queue=[_line(record) for record in waiting],
        last_learnt=[_line(record) for record in learnt],
        next=suggestions(learnt, kept, idle=not under_way and not waiting),
        counts=ledger.counts(),
        calibration=calibrate(ledger.predictions()),
    )


def suggestions(learnt: list[ExperimentRecord], kept: ExperimentRecord | None, *, idle: bool) -> list[str]:
    """What the last verdicts ask for, in words, newest first."""
    found: list[str] = []
    for record in learnt:
        change = record.hypothesis.describe_change()
        if record.verdict == "inconclusive" and record.numbers and record.numbers.effect > 0:
            found.append(f"{record.id} ({change}) leaned the right way without proof: repeat it with a larger budget.")
        elif record.verdict == "crash" and record.advice:
            found.append(f"{record.id} ({change}) crashed: {record.advice.splitlines()[0]}.")
        elif record.verdict == "keep":
            found.append(f"{record.id} ({change}) was kept: try a further step the same way.")
        elif record.verdict == "no_effect":
            found.append(f"{record.id} ({change}) changed nothing: choose a setting the recipe reads.")
    if not learnt:
        found.append("Nothing has been tried yet: propose a first experiment (propose_and_run_experiment).")
    elif kept is None and not found:
        found.append("Nothing was kept yet: try a bolder change, or another category.")
    if idle and learnt:
        found.append("Nothing runs: propose the next experiment.")
    return found[:SUGGESTIONS]


def _line(record: ExperimentRecord, runs: RunsPort | None = None) -> Line:
    live = runs.list(states=LIVE, experiment=record.id, limit=20) if runs else []
    return Line(
        experiment=record.id,
        state=record.state,
        verdict=record.verdict if record.state in ("record", "done") else None,
        statement=record.hypothesis.statement,
        change=record.hypothesis.describe_change(),
        sentence=record.sentence,
        score=record.mean() if record.scores else (record.numbers.candidate_mean if record.numbers else None),
        metric=record.hypothesis.metric,
        commit=record.commit,
        runs=[run.id for run in live],
        progress=f"waits: {record.waits_for}" if record.waits_for else _progress(record) if runs else None,
    )


def _progress(record: ExperimentRecord) -> str:
    control, candidate = len(record.scored("control")), len(record.scored("candidate"))
    if record.state in ("test_run", "gate"):
        return "test run"
    return f"{candidate} candidate and {count(control, 'control run')} scored, at most {record.rule.max_pairs} pairs"
