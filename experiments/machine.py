"""The state machine of one experiment: every step is stored before the next begins, and doing one twice does no harm.

    proposed -> preflight -> ready -> test_run -> gate -> measuring -> verdict -> record -> done
                   ^           |                             |
                   +-----------+ parent moved                +-- one look per candidate run

Runs are started under keys such as `exp-0003/candidate/1`, commits are functions of their content, files are
rewritten whole: whoever resumes after a kill finds what was begun.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments import folder, gate
from experiments.controls import amount_in, canary_speeds, noise_of_session, slowed_run, speed_of_parent
from experiments.interruptions import (
    Interruption,
    before_the_pairs,
    in_a_pair,
    name_of,
    slowed_before,
    times_anew,
    too_often,
)
from experiments.ledger import Ledger
from experiments.lineage import Lineage
from experiments.measured_on import device_of, measured_on, other_device, other_session, other_text
from experiments.plumbing import GitFailed
from experiments.ports import RunsPort
from experiments.preflight import Preflight, Refusal, configuration
from experiments.record import Arm, ExperimentRecord, Score, Step, VerdictName
from experiments.recording import Recording
from experiments.rule import TEST_SEED, Role, seed_of, stage, wanted
from experiments.session_noise import SessionNoise
from experiments.verdict import Runs, judge
from training.config import TrainingConfig
from training.runs.records import LIVE, Purpose, RunRecord, RunRequest
from workspace import clock
from workspace.ids import number
from workspace.layout import Workspace

ATTEMPTS = 3  # of a run that was lost or preempted, through no fault of the recipe
LONGEST_TEST_S = 3600.0
QUIET = "propose it again when nothing else uses the machine"
ONE_KIND = "leave the lab devices of one kind ([hardware] exclude_devices in lab.toml), then propose it again"


@dataclass
class Machine:
    """Moves experiments on, one step at a time. One thread at a time."""

    workspace: Workspace
    ledger: Ledger
    lineage: Lineage
    preflight: Preflight
    runs: RunsPort
    recording: Recording
    test_fraction: float
    machine: Callable[[], str]  # names hardware and software: scores of one name are comparable within a session
    _known: dict[str, str] = field(default_factory=dict)  # key -> run id, to spare looking it up

    def advance(self, record: ExperimentRecord, *, may_measure: bool) -> ExperimentRecord:
        """Do the next step if it can be done now; returns the record as it then is.

        Raises `Unavailable` when something outside is missing for the moment.
        """
        if record.cancelled_by and record.state not in ("proposed", "verdict", "record", "done"):
            sentence = f"Invalid: cancelled by {record.cancelled_by} before there was a verdict."
            after = self._end(record, Refusal("invalid", sentence))
        elif record.state == "ready" and not may_measure:
            return record
        else:
            after = getattr(self, f"_{record.state}")(record)
        if after is not record and after.state not in ("preflight", "done"):
            folder.write_results(self.workspace, after)
        return after

    def without_git(self, record: ExperimentRecord, lost: GitFailed) -> ExperimentRecord:
        """The step that ends an experiment, made without what git refuses for good: what was measured is recorded."""
        return self._verdict(record, lost) if record.state == "verdict" else self._record(record, lost)

    def give_up(self, record: ExperimentRecord, refusal: Refusal) -> ExperimentRecord:
        """End an experiment that cannot go on."""
        return self._end(record, refusal)

    # -- before the runs ----------------------------------------------------------------------------------------------

    def _proposed(self, record: ExperimentRecord) -> ExperimentRecord:
        folder.freeze(self.workspace, record)
        return self._step(record, "frozen", state="preflight")

    def _preflight(self, record: ExperimentRecord) -> ExperimentRecord:
        examined, refusal = self.preflight.examine(record)
        if refusal is not None:
            return self._end(examined, refusal)
        assert examined.parent is not None and examined.candidate is not None
        data = {"parent": examined.parent.commit, "candidate": examined.candidate.commit}
        return self._step(examined, "preflight", data, state="ready")

    def _ready(self, record: ExperimentRecord) -> ExperimentRecord:
        if not self.preflight.current(record):
            note = "The parent has changed since this was proposed; it is compared with the new one."
            return self._step(record, "parent moved", state="preflight", notes=[*record.notes, note])
        if record.skip_test_run:
            note = f"No test run: {record.skip_test_run}"
            return self._step(record, "test run skipped", state="measuring", notes=[*record.notes, note])
        return self._step(record, "admitted", state="test_run")

    # -- test run and gate --------------------------------------------------------------------------------------------

    def _test_run(self, record: ExperimentRecord) -> ExperimentRecord:
        run = self._start(record, "test", "test", record.candidate, lambda arm: self._test_config(record, arm))
        return self._step(record, "test run", {"run": run.id}, state="gate") if run.ended else record

    def _test_config(self, record: ExperimentRecord, arm: Arm) -> TrainingConfig:
        config = configuration(arm, TEST_SEED)
        most = amount_in(LONGEST_TEST_S, config, speed_of_parent(self.ledger, record, self.machine()))
        amount = min(config.budget.amount * self.test_fraction, most)
        if config.budget.kind in ("steps", "tokens"):
            amount = max(1, round(amount))
        return config.model_copy(update={"budget": config.budget.model_copy(update={"amount": float(amount)})})

    def _gate(self, record: ExperimentRecord) -> ExperimentRecord:
        run = self.runs.get(next(s for s in reversed(record.steps) if s.name == "test run").data["run"])
        where = f"test run {run.id}"
        refusal = self._failure(run, where)
        if refusal is not None:
            return self._end(record, refusal)
        answer = gate.assess(
            where, run.summary or {}, gate.read_losses(self.workspace.root / run.folder), record.hypothesis.metric
        )
        if not answer.passed:
            verdict: VerdictName = "invalid" if answer.finding == "no_metric" else "crash"
            return self._end(record, Refusal(verdict, answer.sentence, answer.advice, answer.finding))
        notes = record.notes
        if answer.advice:
            notes = [*notes, f"{answer.sentence} To use it better: {answer.advice}."]
        data = {"finding": answer.finding, "on": measured_on(run.summary)}
        return self._step(record, "gate", data, state="measuring", notes=notes)

    # -- measuring ----------------------------------------------------------------------------------------------------

    def _measuring(self, record: ExperimentRecord) -> ExperimentRecord:
        if not _done(record, "controls"):
            return self._step(record, "controls", self._known_of_session(record))
        if note := other_session(record):
            return self._step(record, "controls", self._known_of_session(record), notes=[*record.notes, note])
        noise = _session(record)
        progress = record.rule, noise.missing(record.rule), record.scored("control"), record.scored("candidate")
        look = f"look {stage(*progress)}"
        if stage(*progress) and not _done(record, look):
            return self._look(record, look, noise)
        scores: list[Score] = []
        for role, index in wanted(*progress):
            arm = record.control if role == "control" else record.candidate
            name = f"{role}/{index + 1}"
            again = times_anew(record.steps, name)
            key = f"{name}/anew" + (f"-{again}" if again > 1 else "") if again else name
            run = self._start(record, key, role, arm, _seeded(_seed(record, index)))
            if run.ended:
                if why := slowed_run(self.ledger, record, run.summary, self.machine()):
                    return self._void(record, name, "the machine was slowed", f"run {run.id}: {why}", QUIET)
                score = self._score(record, role, index, run)
                if isinstance(score, Refusal):
                    return self._end(record, score)
                before = [*record.scores, *scores]
                if (changed := other_text(record, before, score)) is not None:
                    return self._end(record, Refusal("invalid", *changed))
                if why := other_device(before, score):
                    return self._void(record, name, "its runs came to lie on different devices", why, ONE_KIND)
                scores.append(score)
        if scores and (paused := self._interruption(record, scores)) is not None:
            return self._interrupted(record, paused)
        return self.ledger.add_scores(record, scores) if scores else record

    def _known_of_session(self, record: ExperimentRecord) -> dict[str, Any]:
        noise, on = noise_of_session(self.ledger, record, self.machine())
        return {"session": noise.model_dump(mode="json"), "on": on}

    def _void(self, record: ExperimentRecord, name: str, what: str, why: str, advice: str) -> ExperimentRecord:
        """A run that says nothing beside the others (on a slowed machine in a budget of seconds, or on a device of
        another kind): once it is made anew, twice is the end."""
        if not slowed_before(record.steps, name):
            return self._step(record, f"void {name}", {"why": why})
        return self._end(record, Refusal("invalid", f"Invalid: {what}, twice in a row ({why}).", advice))

    def _interruption(self, record: ExperimentRecord, new: list[Score]) -> Interruption | None:
        """A pause that makes what was measured before it void. Where both looks before the pairs are over, only the
        two runs of a pair are compared."""
        scores = [*record.scores, *new]
        if not _done(record, "look 2"):
            session = next(step for step in reversed(record.steps) if step.name == "controls")
            return before_the_pairs(scores, session.at, clock.now())
        return in_a_pair(scores, [(score.role, score.index) for score in new], record.rule.min_controls)

    def _interrupted(self, record: ExperimentRecord, paused: Interruption) -> ExperimentRecord:
        """Make anew what lies before a pause. Before the pairs the session is looked at anew, too: what it knew of the
        parent's level is as old."""
        if too_often(record, paused):
            sentence = f"Invalid: it was interrupted again and again ({paused.why})."
            advice = "propose it again when the machine stays awake and nothing else comes between its runs"
            return self._end(record, Refusal("invalid", sentence, advice))
        names = [name_of(score) for score in paused.void]
        data: dict[str, Any] = {"why": paused.why, "void": names, "runs": [score.run for score in paused.void]}
        if paused.session:
            data |= self._known_of_session(record)
        anew = ", ".join(names) or "the parent"
        note = f"{paused.why[0].upper()}{paused.why[1:]}: {anew} measured anew."
        noted = record.model_copy(update={"notes": [*record.notes, note]})
        step = Step(name="controls" if paused.session else "pause", at=clock.now(), data=data)
        return self.ledger.advance(noted, step, void=paused.void)

    def _score(self, record: ExperimentRecord, role: Role, index: int, run: RunRecord) -> Score | Refusal:
        refusal = self._failure(run, f"{role} run {run.id}")
        if refusal is not None and role == "control" and refusal.verdict == "crash":
            sentence = refusal.sentence.replace("Crash: ", "Invalid: the parent itself fails: ", 1)
            return Refusal("invalid", sentence, refusal.advice, refusal.failure_class)
        if refusal is not None:
            return refusal
        values = gate.numeric(run.summary) | canary_speeds(run.summary)
        needed = [record.hypothesis.metric]
        if record.hypothesis.kind == "non_inferiority":
            needed.append(record.hypothesis.cost_metric)
        for metric in needed:
            if metric not in values:
                sentence = f"Invalid: {role} run {run.id} did not report {metric}."
                return Refusal("invalid", sentence, gate.ADVICE["no_metric"], "no_metric")
        return Score(
            role=role,
            index=index,
            seed=_seed(record, index),
            run=run.id,
            value=values[needed[0]],
            values=values,
            machine=self.machine(),
            on=measured_on(run.summary),
            started_at=run.started_at,
            at=run.ended_at or clock.now(),
        )

    def _look(self, record: ExperimentRecord, name: str, noise: SessionNoise) -> ExperimentRecord:
        """One look at the scores. What it may use is fixed by the stage and by what the session was when the
        experiment began, so that a kill, or another experiment, never makes it another look."""
        control, candidate = record.scored("control"), record.scored("candidate")
        runs = Runs({i: s.value for i, s in control.items()}, {i: s.value for i, s in candidate.items()})
        if record.hypothesis.kind == "non_inferiority":
            cost = record.hypothesis.cost_metric
            runs = runs._replace(
                control_cost={i: s.values[cost] for i, s in control.items()},
                candidate_cost={i: s.values[cost] for i, s in candidate.items()},
            )
        verdict = judge(record.hypothesis, record.rule, noise, runs)
        data = verdict.model_dump(mode="json")
        if not verdict.final:
            return self._step(record, name, data, numbers=verdict.numbers, saving=verdict.saving)
        advice = None
        if verdict.decision == "inconclusive":
            advice = "repeat it with a larger budget or a bolder change, or ask for a larger effect"
        return self._step(
            record, name, data, state="verdict", verdict=verdict.decision, sentence=verdict.sentence,
            advice=advice, numbers=verdict.numbers, saving=verdict.saving,
        )  # fmt: skip

    # -- the end ------------------------------------------------------------------------------------------------------

    def _verdict(self, record: ExperimentRecord, lost: GitFailed | None = None) -> ExperimentRecord:
        self._stop_runs(record)
        return self.recording.decide(record, lost)

    def _record(self, record: ExperimentRecord, lost: GitFailed | None = None) -> ExperimentRecord:
        return self.recording.record(record, lost)

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _step(
        self, record: ExperimentRecord, name: str, data: dict[str, Any] | None = None, **changes: Any
    ) -> ExperimentRecord:
        changed = record.model_copy(update=changes)
        return self.ledger.advance(changed, Step(name=name, at=clock.now(), data=data or {}))

    def _end(self, record: ExperimentRecord, refusal: Refusal) -> ExperimentRecord:
        """A verdict without (all) the measurements; what still runs is stopped."""
        ended = self._step(
            record, "ended early", state="verdict", verdict=refusal.verdict, sentence=refusal.sentence,
            advice=refusal.advice, failure_class=refusal.failure_class,
        )  # fmt: skip
        self._stop_runs(record)
        return ended

    def _stop_runs(self, record: ExperimentRecord) -> None:
        for run in self.runs.list(states=LIVE, experiment=record.id, limit=100):
            self.runs.stop(run.id, reason=f"{record.id} has ended", by="lab")

    def _start(
        self,
        record: ExperimentRecord,
        name: str,
        purpose: Purpose,
        arm: Arm | None,
        config: Callable[[Arm], TrainingConfig],
    ) -> RunRecord:
        """The run of this name: found by its key, else started; again under another key if it was lost."""
        assert arm is not None
        for attempt in range(ATTEMPTS):
            key = f"{record.id}/{name}" + (f"/again-{attempt}" if attempt else "")
            if key in self._known:
                run = self.runs.get(self._known[key])
            else:
                request = RunRequest(
                    kind="recipe",
                    name=f"{record.id} {name}",
                    purpose=purpose,
                    experiment=record.id,
                    session=record.session,
                    config=config(arm),
                    recipe_dir=self._recipe_dir(arm),
                    prefer_resource=None if purpose == "test" else self._device_of(record),
                )
                run = self.runs.start(request, key=key)
                self._known[key] = run.id
            if run.given_up or run.state not in ("lost", "preempted"):
                break
        return run

    def _device_of(self, record: ExperimentRecord) -> str | None:
        """The name of the device the experiment is measured on, where there are devices of several names to take."""
        device, wanted = self.preflight.device(), device_of(record)
        names = device.names if device is not None else ()
        there = wanted is not None and any(wanted.lower() in name.lower() for name in names)
        return wanted if there and len(set(names)) > 1 else None

    def _recipe_dir(self, arm: Arm) -> Path:
        return self.lineage.materialise(arm.commit)

    def _failure(self, run: RunRecord, where: str) -> Refusal | None:
        """Why a run that has ended gives no score; None when it succeeded."""
        if run.state == "succeeded":
            return None
        if run.state in ("cancelled", "lost", "preempted"):
            end = f"{run.state}, as somebody gave it up" if run.given_up else run.state
            reason = f" ({run.reason})" if run.reason else ""
            return Refusal("invalid", f"Invalid: {where} was {end}{reason}.", "propose it again")
        finding = "timed_out" if run.state == "timed_out" else run.failure_class or "exit"
        answer = gate.failure(finding, where, run.reason)
        end = gate.log_end(self.workspace.root / run.folder)
        advice = f"{answer.advice}\n\nEnd of {where}'s log:\n\n{gate.as_code(end)}" if end else answer.advice
        return Refusal("crash", answer.sentence, advice, finding)


def _seed(record: ExperimentRecord, index: int) -> int:
    return seed_of(number(record.id, "exp") or 0, index)


def _session(record: ExperimentRecord) -> SessionNoise:
    """As it was when the experiment began to measure, or began anew after a pause."""
    step = next(step for step in reversed(record.steps) if step.name == "controls")
    return SessionNoise.model_validate(step.data["session"])


def _seeded(seed: int) -> Callable[[Arm], TrainingConfig]:
    return lambda arm: configuration(arm, seed)


def _done(record: ExperimentRecord, name: str) -> bool:
    return any(step.name == name for step in record.steps)
