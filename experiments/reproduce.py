"""An experiment done again: the same commit, settings and data, one more run, and whether it agrees within noise.

The new run is asked for like any other and has a seed of its own, so that nothing hangs on an old one. It agrees when
it lies in the prediction interval for one more run, mean ± t sd sqrt(1 + 1/n), of the n runs the verdict rests on.
Scores drift between sessions by more than that: with `pair` the parent is run beside it, and the gain is what is
compared, in which drift cancels. A reproduction is stored before its runs are asked for, and its runs have keys, so
that a kill at any point loses and doubles nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from experiments import gate
from experiments.agreement import LEVEL, Check, compare, gain_check, score_check
from experiments.ledger import Ledger
from experiments.lineage import Lineage
from experiments.measured_on import DEVICE, TEXT, differing, measured_on
from experiments.ports import NotebookPort, RunsPort
from experiments.preflight import configuration
from experiments.record import Arm, ExperimentRecord, Frozen
from experiments.rule import SEED_BLOCK, Role, seed_of
from experiments.words import count, listed, measured
from training.runs.records import RunRecord, RunRequest
from workspace import clock, durable
from workspace.errors import LabError, NotFound, Refused, Unavailable, unknown
from workspace.ids import number
from workspace.layout import Workspace

TABLES = [
    """
    CREATE TABLE reproductions (
      experiment TEXT NOT NULL, position INTEGER NOT NULL, key TEXT UNIQUE, open INTEGER NOT NULL,
      document TEXT NOT NULL, PRIMARY KEY (experiment, position)
    );
    CREATE INDEX reproductions_open ON reproductions (experiment) WHERE open = 1
    """
]
ATTEMPTS = 3  # of a run that was lost or preempted
MOST = SEED_BLOCK // 2  # reproductions of one experiment: their seeds are taken from the end of its block
# what of a run's summary tells how it was made; the first ones make scores that cannot be compared
YARDSTICK = ("data", "evaluated")
CIRCUMSTANCES = ("versions", "backend", "dtype", "compile", "parameters", "recipe_files")
Outcome = Literal["agrees", "differs", "not comparable", "failed"]
log = logging.getLogger(__name__)


class Reproduction(Frozen):
    """The `position`-th reproduction of an experiment. Times are ISO 8601 UTC."""

    experiment: str
    position: int
    key: str | None = None
    asked_at: str
    conversation: str | None = None
    same_seed: bool = False
    pair: bool = False
    seed: int
    runs: dict[str, str] = Field({}, description="run by role, the last where one was lost")
    outcome: Outcome | None = Field(None, description="None: still under way")
    sentence: str | None = None
    checks: list[Check] = []
    differences: list[str] = Field([], description="what was not as it was then")
    ended_at: str | None = None

    @property
    def id(self) -> str:
        return f"{self.experiment}/reproduction-{self.position}"

    @property
    def roles(self) -> tuple[Role, ...]:
        return ("control", "candidate") if self.pair else ("candidate",)


class Reproductions:
    """The reproductions of one workspace. Synchronous and thread-safe; `tick` is called about twice a second."""

    def __init__(
        self,
        workspace: Workspace,
        ledger: Ledger,
        lineage: Lineage,
        runs: RunsPort,
        notebook: NotebookPort | None = None,
    ) -> None:
        self.workspace = workspace
        self.ledger = ledger
        self.lineage = lineage
        self.runs = runs
        self.notebook = notebook
        self.database = ledger.database
        self.database.migrate("reproductions", TABLES)
        self._moving = threading.Lock()

    # -- asking and looking -------------------------------------------------------------------------------------------

    def start(
        self,
        experiment: str,
        *,
        same_seed: bool = False,
        pair: bool = False,
        key: str | None = None,
        conversation: str | None = None,
    ) -> Reproduction:
        """Run it again; returns at once. The same `key` gives the same reproduction.

        Raises `Refused` for what cannot be rebuilt or compared, with the reason; nothing has changed then.
        """
        with self._moving:
            if key is not None and (earlier := self._by_key(key)) is not None:
                return earlier
            record = self._record(experiment)
            position = self._next(experiment)
            seed = seed_of(number(experiment, "exp") or 0, SEED_BLOCK - position)
            if same_seed:
                seed = next(iter(_deciding(record).values()))
            made = Reproduction(
                experiment=experiment, position=position, key=key, asked_at=clock.now(), conversation=conversation,
                same_seed=same_seed, pair=pair, seed=seed,
            )  # fmt: skip
            self._rebuildable(record, made)
            with self.database.transaction() as tx:
                tx.execute(
                    "INSERT INTO reproductions VALUES (?, ?, ?, 1, ?)",
                    (experiment, position, key, made.model_dump_json()),
                )
            try:
                return self._move(made, record)
            except Unavailable as error:
                log.info("%s waits: %s", made.id, error)
                return made
            except LabError:  # a run that cannot be asked for: a file it needs is gone
                with self.database.transaction() as tx:
                    tx.execute(
                        "DELETE FROM reproductions WHERE experiment = ? AND position = ?", (experiment, position)
                    )
                raise

    def get(self, experiment: str, position: int | None = None) -> Reproduction:
        """One of an experiment's reproductions; the newest without `position`."""
        found = self.of(experiment)
        chosen = [each for each in found if position in (None, each.position)]
        if not chosen:
            raise NotFound(
                f"{experiment[:40]} has no such reproduction",
                valid=", ".join(str(each.position) for each in found) or "there is none yet",
                fix=f"lab-mcp reproduce {experiment[:40]}",
            )
        return chosen[-1]

    def of(self, experiment: str) -> list[Reproduction]:
        """Oldest first."""
        rows = self.database.query(
            "SELECT document FROM reproductions WHERE experiment = ? ORDER BY position", (experiment,)
        )
        return [Reproduction.model_validate_json(row["document"]) for row in rows]

    def busy(self) -> bool:
        return self.database.one("SELECT 1 FROM reproductions WHERE open = 1") is not None

    def tick(self) -> int:
        """Move every open reproduction on, if it can be; returns how many are still open."""
        rows = self.database.query("SELECT document FROM reproductions WHERE open = 1")
        for row in rows:
            with self._moving:
                asked = Reproduction.model_validate_json(row["document"])
                found = self.get(asked.experiment, asked.position)  # it may have moved meanwhile
                record = self.ledger.get(found.experiment)
                if found.outcome is not None or record is None:
                    continue
                try:
                    self._move(found, record)
                except Unavailable as error:
                    log.info("%s waits: %s", found.id, error)
                except LabError as error:
                    self._end(found, "failed", f"{found.id} could not be run: {error}")
        return len(rows)

    # -- what can be rebuilt ------------------------------------------------------------------------------------------

    def _record(self, experiment: str) -> ExperimentRecord:
        record = self.ledger.get(experiment)
        if record is None:
            raise unknown("experiment", experiment, self.ledger.ids())
        if record.state != "done":
            raise Refused(f"{experiment} has no verdict yet", fix=f"lab-mcp experiments {experiment} --wait")
        if record.numbers is None or not record.scored("candidate"):
            why = {"crash": "its run failed", "no_effect": "nothing was run"}.get(
                record.verdict or "", "it was given up"
            )
            raise Refused(
                f"{experiment} has no score to compare a new one with: {why} ({record.verdict})",
                fix=f"propose it again, with repeat_of = {experiment!r}",
            )
        return record

    def _rebuildable(self, record: ExperimentRecord, wish: Reproduction) -> None:
        if wish.position > MOST:
            raise Refused(f"{record.id} has been reproduced {MOST} times, and its seeds are used up")
        if wish.pair and record.control is None:
            raise Refused(f"{record.id} has no control on record", fix="reproduce it without --pair")
        for role in wish.roles:
            commit = self._commit(record, role)
            if not self.lineage.exists(commit):
                raise Refused(
                    f"the commit {commit[:12]} of {record.id} is no longer in the repository",
                    fix="fetch it from wherever else it is; git may have cleared it away when its ref was deleted",
                )
            configuration(_arm(record, role), wish.seed)  # refuses settings this version does not know

    def _commit(self, record: ExperimentRecord, role: Role) -> str:
        """Of the candidate, the commit its ref holds on to: the same tree, with the verdict in its message."""
        arm = _arm(record, role)
        return record.commit if role == "candidate" and record.commit else arm.commit

    # -- moving on ----------------------------------------------------------------------------------------------------

    def _move(self, found: Reproduction, record: ExperimentRecord) -> Reproduction:
        runs: dict[str, RunRecord] = {role: self._run(found, record, role) for role in found.roles}
        names = {role: run.id for role, run in runs.items()}
        if names != found.runs:
            found = self._store(found.model_copy(update={"runs": names}))
        if not all(run.ended for run in runs.values()):
            return found
        return self._conclude(found, record, runs)

    def _run(self, found: Reproduction, record: ExperimentRecord, role: Role) -> RunRecord:
        for attempt in range(ATTEMPTS):
            key = f"{found.id}/{role}" + (f"/again-{attempt}" if attempt else "")
            request = RunRequest(
                name=f"{record.id} again: {role}", purpose="replicate", experiment=record.id,
                config=configuration(_arm(record, role), found.seed),
                recipe_dir=self.lineage.materialise(self._commit(record, role)),
            )  # fmt: skip
            run = self.runs.start(request, key=key)
            if run.given_up or run.state not in ("lost", "preempted"):
                break
        return run

    def _conclude(self, found: Reproduction, record: ExperimentRecord, runs: Mapping[str, RunRecord]) -> Reproduction:
        metric = record.hypothesis.metric
        values: dict[str, float] = {}
        for role, run in runs.items():
            score = gate.numeric(run.summary).get(metric) if run.state == "succeeded" else None
            if score is None:
                why = run.reason or run.failure_class or "no reason was recorded"
                what = f"was {run.state} ({why})" if run.state != "succeeded" else f"did not report {metric}"
                return self._end(found, "failed", f"{record.id} was not reproduced: {role} run {run.id} {what}.")
            values[role] = score
        broken, differences = self._differences(record, runs["candidate"], "candidate")
        if "control" in runs:
            more = self._differences(record, runs["control"], "control")
            apart = _apart(runs)
            broken, differences = (
                broken or more[0] or bool(apart),
                list(dict.fromkeys([*apart, *differences, *more[1]])),
            )
        assert record.numbers is not None
        checks = [score_check(record, record.numbers, values["candidate"])]
        if "control" in values:
            sign = 1.0 if record.hypothesis.direction == "higher" else -1.0
            checks.append(gain_check(record, record.numbers, sign * (values["candidate"] - values["control"])))
        outcome: Outcome = "not comparable" if broken else "agrees" if checks[-1].inside else "differs"
        found = found.model_copy(update={"checks": checks, "differences": differences})
        return self._end(found, outcome, _sentence(found, record, outcome))

    def _differences(self, record: ExperimentRecord, run: RunRecord, role: Role) -> tuple[bool, list[str]]:
        """(is the yardstick another one?, what is not as it was when the old run of this arm was made)"""
        old = next((score.run for score in reversed(record.scores) if score.role == role), None)
        if old is None:
            return False, []
        try:
            then, now = self.runs.get(old).summary or {}, run.summary or {}
        except NotFound:
            return False, [f"what {old} was made with is not known any more: its run is gone"]
        broken = compare(then, now, YARDSTICK)
        return bool(broken), [*broken, *compare(then, now, CIRCUMSTANCES)]

    def _end(self, found: Reproduction, outcome: Outcome, sentence: str) -> Reproduction:
        """Tell the notebook and the folder, then close it: whatever is killed in between is told again, once."""
        ended = found.model_copy(update={"outcome": outcome, "sentence": sentence, "ended_at": clock.now()})
        folder = self.workspace.experiment_dir(found.experiment)
        folder.mkdir(parents=True, exist_ok=True)
        durable.write_json(folder / f"reproduction-{found.position}.json", ended.model_dump(mode="json"))
        if self.notebook is not None:
            links = {"experiments": [found.experiment], "runs": list(found.runs.values())}
            text = sentence + "".join(f"\n- {difference}" for difference in found.differences)
            try:
                self.notebook.event(found.conversation, text, links, f"{found.id}/ended", section="Results")
            except LabError as error:
                log.warning("%s is not in the notebook: %s", found.id, error)
        return self._store(ended)

    # -- storing ------------------------------------------------------------------------------------------------------

    def _next(self, experiment: str) -> int:
        """The next position: after those in the table and those only the folder knows."""
        files = self.workspace.experiment_dir(experiment).glob("reproduction-*.json")
        numbers = [int(name) for file in files if (name := file.stem.removeprefix("reproduction-")).isdecimal()]
        return max([*numbers, *(each.position for each in self.of(experiment))], default=0) + 1

    def _by_key(self, key: str) -> Reproduction | None:
        row = self.database.one("SELECT document FROM reproductions WHERE key = ?", (key,))
        return None if row is None else Reproduction.model_validate_json(row["document"])

    def _store(self, found: Reproduction) -> Reproduction:
        with self.database.transaction() as tx:
            tx.execute(
                "UPDATE reproductions SET open = ?, document = ? WHERE experiment = ? AND position = ?",
                (int(found.outcome is None), found.model_dump_json(), found.experiment, found.position),
            )
        return found


def _apart(runs: Mapping[str, RunRecord]) -> list[str]:
    """What the two runs of a pair were measured on where it is not the same: text, evaluation, kind of device."""
    control, candidate = (measured_on(runs[role].summary) for role in ("control", "candidate"))
    places = differing(control, candidate, (*TEXT, DEVICE))
    return [f"{place}: {candidate[place]} in the candidate, {control[place]} in the control" for place in places]


def _arm(record: ExperimentRecord, role: Role) -> Arm:
    arm = record.control if role == "control" else record.candidate
    assert arm is not None
    return arm


def _deciding(record: ExperimentRecord) -> dict[str, int]:
    """Seed by run of the candidate's runs the verdict rests on, newest first."""
    scores = sorted(record.scored("candidate").values(), key=lambda score: -score.index)
    return {score.run: score.seed for score in scores}


def _sentence(found: Reproduction, record: ExperimentRecord, outcome: Outcome) -> str:
    n, check = record.numbers, found.checks[-1]
    assert n is not None
    error = (check.high - check.low) / 8 or abs(check.expected) * 1e-6
    new = measured(check.found, error, sign=check.what == "gain")
    low, high = (measured(bound, error, sign=check.what == "gain") for bound in (check.low, check.high))
    old = count(n.n_candidate, "old pair" if check.what == "gain" and n.method == "pairs" else "old run")
    where = f"between {low} and {high}, where {LEVEL:.0%} of such results are expected after {old}"
    if outcome == "not comparable":
        return (
            f"{record.id} was run again ({check.what} {new}), but it cannot be compared: "
            f"{listed(found.differences[:3])}."
        )
    if outcome == "agrees":
        exact = " to the last digit" if check.found == check.expected and n.n_candidate == 1 else ""
        return f"{record.id} is reproduced{exact}: {check.what} {new} lies {where}."
    text = f"{record.id} is not reproduced: {check.what} {new} does not lie {where}."
    if found.differences:
        return f"{text} Not as it was then: {listed(found.differences[:3])}."
    return text + (" " + DRIFT if not found.pair else "")


DRIFT = (
    "No difference in data, software or hardware was found; scores drift between sessions, which a run beside its "
    "parent would show (--pair)."
)
