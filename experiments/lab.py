"""The experiments of one workspace: propose, look, list, cancel, and move on.

Thread-safe and synchronous. `tick` is called about once a second; everything long happens in child processes.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments import folder, hypothesis, preflight, similar
from experiments.error_budget import campaign_budget
from experiments.fingerprints import ChildFingerprint
from experiments.leaderboard import Leaderboard, leaderboard
from experiments.ledger import Ledger
from experiments.lineage import Lineage
from experiments.machine import Machine
from experiments.overview import Overview, survey
from experiments.plumbing import GitFailed
from experiments.ports import Device, Fingerprinter, MemoryPort, NotebookPort, RunsPort
from experiments.preflight import Preflight, Refusal
from experiments.record import ENDING, MEASURING, VERDICTS, Duplicate, ExperimentRecord, Version
from experiments.recording import Recording
from experiments.results import Results
from experiments.rule import Rule
from training.config import TrainingConfig, apply, load_recipe, read_recipe
from workspace import clock
from workspace.database import Database
from workspace.errors import LabError, Refused, Unavailable, closest, unknown
from workspace.ids import Ids
from workspace.layout import Workspace
from workspace.outbox import Outbox
from workspace.process import host_name
from workspace.settings import ExperimentSettings, Settings

FAILURES = 5  # of the same step in a row, through an error of the lab's own, after which an experiment is given up
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # between tries, while something outside is missing
LONGEST_WAIT_S = 24 * 3600.0  # for something outside, after which an experiment without a verdict is given up
GIT_TRIES = 15  # at the end of an experiment, in ten minutes: longer than a lock left by a killed git is let be
SHORTEST_REASON = 8  # characters
log = logging.getLogger(__name__)


class Experiments:
    """See the module. `slots`: how many experiments may measure at once (default: `runs.max_concurrent`, or one)."""

    def __init__(
        self,
        workspace: Workspace,
        settings: Settings,
        database: Database,
        outbox: Outbox,
        runs: RunsPort,
        memory: MemoryPort | None = None,
        notebook: NotebookPort | None = None,
        *,
        fingerprint: Fingerprinter | None = None,
        device: Callable[[], Device | None] | None = None,
        rule: Rule | None = None,
        slots: int | None = None,
    ) -> None:
        self.workspace = workspace
        self.database = database
        self.outbox = outbox
        self.runs = runs
        self.memory = memory
        self.rule = rule or rule_of(settings.experiments)
        self.error_budget = round(1 - settings.experiments.confidence, 12)
        self.slots = slots or max(1, settings.runs.max_concurrent)
        self.ledger = Ledger(database)
        self.ledger.restore(folder.read_all(workspace, self.ledger.ids()))
        self.results = Results(workspace, self.ledger)
        self.ids = Ids(database, "exp", workspace.experiments_dir)
        self.lineage = Lineage(workspace, settings.git.prefix)
        find = device or (lambda: _device(settings))
        self.machine = Machine(
            workspace=workspace,
            ledger=self.ledger,
            lineage=self.lineage,
            preflight=Preflight(self.lineage, self.ledger, fingerprint or ChildFingerprint(workspace), memory, find),
            runs=runs,
            recording=Recording(workspace, self.ledger, self.results, outbox, self.lineage, runs, notebook),
            test_fraction=settings.experiments.test_fraction,
            machine=lambda: machine_name(find()),
        )
        self._proposing = threading.Lock()
        self._ticking = threading.Lock()
        self._failures: dict[str, int] = {}
        self._pauses: dict[str, tuple[float, float]] = {}  # experiment -> monotonic time of the next try, last pause

    # -- asking for something -----------------------------------------------------------------------------------------

    def propose(
        self,
        claim: hypothesis.Hypothesis | Mapping[str, Any],
        budget: Mapping[str, Any] | None = None,
        session: str | None = None,
        conversation: str | None = None,
        skip_test_run: str | None = None,
        key: str | None = None,
        *,
        campaign: str | None = None,
        proposer: str = "assistant",
        planned: int | None = None,
    ) -> ExperimentRecord:
        """Write an experiment down; it runs by itself. Returns at once; the same `key` gives the same experiment.

        `budget`: {"kind": "seconds"|"steps"|"tokens"|"flops", "amount": number} for both arms instead of the recipe's.
        `skip_test_run`: the reason for going without. `planned`: how many experiments the campaign is meant
        for. Raises `Refused` for a hypothesis that
        cannot be tested, an unknown setting, a value out of range.
        """
        checked = hypothesis.parse(claim)
        with self._proposing:
            if key is not None and (earlier := self.ledger.by_key(key)) is not None:
                return earlier
            self._check(checked, budget, skip_test_run)
            now = clock.now()
            with self.database.transaction() as tx:
                record = ExperimentRecord(
                    id=self.ids.allocate(tx),
                    key=key,
                    state="proposed",
                    hypothesis=checked,
                    hypothesis_hash=checked.digest(),
                    created_at=now,
                    session=session,
                    conversation=conversation,
                    campaign=campaign,
                    proposer=proposer,
                    budget=dict(budget) if budget is not None else None,
                    skip_test_run=skip_test_run.strip() if skip_test_run else None,
                    rule=self._rule(campaign, planned, now),
                )
                self.ledger.insert(tx, record)
                self.outbox.post(tx, "experiment.proposed", {"experiment": record.id})
        try:
            folder.freeze(self.workspace, record)
        except OSError as error:  # it is proposed all the same: preflight freezes it before anything runs
            log.warning("%s is not yet in its folder: %s", record.id, error)
        return record

    def amend(self, experiment: str, changes: Mapping[str, Any], why: str) -> ExperimentRecord:
        """Word the hypothesis anew: kept as a further version; the one frozen before the runs is the one judged.

        Raises `Refused` without a reason, or when the new wording cannot be tested either.
        """
        record = self.get(experiment)
        if len(why.strip()) < SHORTEST_REASON:
            raise Refused("a new version of a hypothesis needs a reason", valid="a sentence")
        latest = record.versions[-1].hypothesis if record.versions else record.hypothesis
        checked = hypothesis.parse({**latest.model_dump(exclude_none=True), **changes})
        if checked != latest:
            version = Version(
                at=clock.now(), why=why.strip()[:600], hypothesis=checked, hypothesis_hash=checked.digest(),
                state=record.state,
            )  # fmt: skip
            self.ledger.add_version(experiment, version)
            folder.write_results(self.workspace, self.get(experiment))
        return self.get(experiment)

    def cancel(self, experiment: str, by: str = "user") -> ExperimentRecord:
        """End an experiment: its runs are stopped, its verdict is `invalid`. One with a verdict stays as it is."""
        self.get(experiment)
        self.ledger.cancel(experiment, by[:80])
        return self.get(experiment)

    def _rule(self, campaign: str | None, planned: int | None, now: str) -> Rule:
        """The rule with the experiment's share of its campaign's error budget, or of the week's; frozen with it."""
        budget = campaign_budget(planned if campaign else None, self.error_budget)
        return dataclasses.replace(self.rule, alpha=budget.allot(self.ledger.charges(campaign, now)))

    def _check(self, claim: hypothesis.Hypothesis, budget: Mapping[str, Any] | None, skip_test_run: str | None) -> None:
        """What can be refused at once, against the recipe as it lies there. Preflight looks again, at a commit."""
        if budget is not None and (wrong := [name for name in budget if name not in ("kind", "amount")]):
            raise Refused(f"a budget has no {wrong[0]!r}", valid='kind and amount: {"kind": "seconds", "amount": 60}')
        if skip_test_run is not None and len(skip_test_run.strip()) < SHORTEST_REASON:
            raise Refused(
                "skip_test_run needs a reason, which is recorded", valid="a sentence, e.g. 'exp-0007 just ran it'"
            )
        if claim.repeat_of is not None:
            self.get(claim.repeat_of)
        recipe = preflight.with_budget(load_recipe(self.workspace.recipe_dir), budget)
        if claim.patch is None:
            apply(recipe, claim.change, source="change")
        else:
            parent = self.lineage.parent(self.ledger.best())
            self.machine.preflight.changed_files(parent.commit, claim)

    # -- looking ------------------------------------------------------------------------------------------------------

    def get(self, experiment: str) -> ExperimentRecord:
        """One experiment, whole. Raises `NotFound` naming the closest."""
        record = self.ledger.get(experiment)
        if record is None:
            raise unknown("experiment", experiment, self.ledger.ids())
        return record

    def list(
        self,
        limit: int = 20,
        verdict: str | None = None,
        text: str | None = None,
        before: str | None = None,
        campaign: str | None = None,
        category: str | None = None,
    ) -> list[ExperimentRecord]:
        """Newest first, without steps and scores. `text`: words that all occur; `before`: an experiment's id."""
        if verdict is not None and verdict not in VERDICTS:
            near = closest(verdict, VERDICTS) or VERDICTS
            raise Refused(f"there is no verdict {verdict[:40]!r}", valid=", ".join(near))
        limit = max(1, min(limit, 1000))
        return self.ledger.find(
            limit=limit, verdict=verdict, text=text, before=before, campaign=campaign, category=category
        )

    def leaderboard(self, limit: int = 10, metric: str | None = None) -> Leaderboard:
        """The kept experiments that can be compared, best first, and which ones are left out."""
        return leaderboard(self.ledger, limit, metric)

    def overview(self) -> Overview:
        """What is best, what runs, what waits, what was learnt last, what to do next."""
        return survey(self.ledger, self.runs)

    def starting_point(self) -> tuple[TrainingConfig, str, dict[str, Any]]:
        """What the next experiment starts from: its settings, the user's recipe it goes back to, [search_space]."""
        parent = self.lineage.parent(self.ledger.best())
        recipe_dir = self.lineage.materialise(parent.commit)
        space = read_recipe(recipe_dir).get("search_space", {})
        return load_recipe(recipe_dir), parent.base, space if isinstance(space, dict) else {}

    def passages(self, query: str) -> Sequence[dict[str, str]]:
        """What the memory holds near `query`: experiments and papers. Empty while it is away."""
        if self.memory is None:
            return []
        try:
            hits = self.memory.search(query[:500], kinds=["experiment", "paper"], limit=6).hits
        except LabError as error:
            log.info("nothing was looked up for a proposal: %s", error)
            return []
        return [{"id": h.id, "kind": h.kind, "title": h.title, "quote": h.quote} for h in hits]

    def similar(self, claim: hypothesis.Hypothesis | Mapping[str, Any]) -> tuple[Sequence[Duplicate], str | None]:
        """Earlier experiments that changed the same settings, and what to ask about them."""
        checked = hypothesis.parse(claim)
        found = similar.similar(self.ledger, checked)
        return found, similar.question(found, checked)

    def busy(self) -> bool:
        """Is any experiment under way?"""
        return bool(self.ledger.open())

    # -- moving on ----------------------------------------------------------------------------------------------------

    def tick(self) -> int:
        """Move every open experiment one step on, if it can be; returns how many moved. Not two ticks at once."""
        if not self._ticking.acquire(blocking=False):
            return 0
        try:
            records = self.ledger.open()
            measuring = sum(record.state in MEASURING for record in records)
            moved = 0
            for record in records:
                if record.state == "ready" and measuring >= self.slots and not record.cancelled_by:
                    continue
                after = self._advance(record.id, may_measure=measuring < self.slots)
                if after is not None:
                    moved += 1
                    measuring += (after.state in MEASURING) - (record.state in MEASURING)
            return moved
        finally:
            self._ticking.release()

    def _advance(self, experiment: str, *, may_measure: bool) -> ExperimentRecord | None:
        """One step of one experiment; None when nothing moved. An error holds up this experiment only."""
        if time.monotonic() < self._pauses.get(experiment, (0.0, 0.0))[0]:
            return None
        stored = self.get(experiment)
        record = stored.model_copy(update={"waits_since": None, "waits_for": None, "waits_tries": 0})
        try:
            after = self._moved(stored, record, may_measure)
        except Unavailable as error:
            if (ended := self._waited_too_long(stored, error)) is not None:
                return ended
            log.info("%s waits at %s: %s", experiment, record.state, error)
            return None
        except Exception as error:  # noqa: BLE001  the lab's own mistake must not stop the other experiments
            return self._failed(stored, error)
        self._failures.pop(experiment, None)
        self._pauses.pop(experiment, None)
        if after is not record:
            return after
        if stored.waits_since is not None:
            self.ledger.wait(experiment, None, None)
        return None

    def _moved(self, stored: ExperimentRecord, record: ExperimentRecord, may_measure: bool) -> ExperimentRecord:
        """A step; the last ones are made without git where it has failed too often: others wait behind them."""
        try:
            return self.machine.advance(record, may_measure=may_measure)
        except GitFailed as error:
            if record.state not in ENDING or stored.waits_tries + 1 < GIT_TRIES:
                raise
            log.warning("%s ends without git after %d tries: %s", record.id, GIT_TRIES, error)
            return self.machine.without_git(record, error)

    def _waits(self, record: ExperimentRecord, what: str, error: Exception) -> None:
        """Note what is missing, and let it rest for a while, longer each time. Only failures of git's are counted."""
        pause = min(2 * self._pauses.get(record.id, (0.0, FIRST_PAUSE_S / 2))[1], LONGEST_PAUSE_S)
        self._pauses[record.id] = (time.monotonic() + pause, pause)
        tries = record.waits_tries + 1 if isinstance(error, GitFailed) else 0
        self.ledger.wait(record.id, record.waits_since or clock.now(), what, tries)

    def _waited_too_long(self, record: ExperimentRecord, error: Unavailable) -> ExperimentRecord | None:
        """Note what is missing; an experiment without a verdict is given up after a day of it."""
        waited_s = clock.seconds_between(record.waits_since, clock.now()) if record.waits_since else 0.0
        if waited_s < LONGEST_WAIT_S or record.state in ENDING:
            self._waits(record, str(error), error)
            return None  # what was measured is not thrown away
        hours = f"{waited_s / 3600:.0f} hours"
        refusal = Refusal("invalid", f"Invalid: for {hours} it could not go on: {error.problem}", error.fix)
        return self.machine.give_up(record, refusal)

    def _failed(self, record: ExperimentRecord, error: Exception) -> ExperimentRecord | None:
        count = self._failures[record.id] = self._failures.get(record.id, 0) + 1
        log.exception("%s failed at %s (%d of %d)", record.id, record.state, count, FAILURES)
        refused = isinstance(error, LabError)
        what = str(error) if refused else f"the lab failed at {record.state} ({type(error).__name__})"
        if record.state in ENDING:  # what was measured is not thrown away: it is tried again until it succeeds
            self._waits(record, what, error)
            return None
        if not refused and count < FAILURES:
            return None
        self._failures.pop(record.id)
        return self.machine.give_up(record, Refusal("invalid", f"Invalid: {what}"))


def rule_of(settings: ExperimentSettings) -> Rule:
    """The rule the settings ask for, with some pairs beyond what a keep needs. `alpha` is each experiment's own."""
    return Rule(
        resolution=settings.resolution,
        min_controls=settings.replicates,
        min_pairs=settings.confirmations,
        max_pairs=max(Rule.max_pairs, settings.confirmations + 2),
    )


def machine_name(device: Device | None) -> str:
    """Names the hardware and software a score was taken on."""
    backend = device.backend if device else "unknown"
    return f"{host_name()}/{backend}/torch {_torch_version()}"


@functools.cache
def _torch_version() -> str:
    return importlib.metadata.version("torch")


def _device(settings: Settings) -> Device | None:
    """The device the trainer will use; on a CPU, main memory."""
    from training.hardware.devices import detect

    status = detect(settings.hardware)
    usable = status.usable_devices()
    if status.backend == "cpu":
        return Device("cpu", status.cpu.memory_limit_bytes or status.cpu.memory_total_bytes)
    memory = min((d.memory_total_bytes for d in usable if d.memory_total_bytes is not None), default=None)
    return Device(status.backend, memory, tuple(dict.fromkeys(d.name for d in usable)))
