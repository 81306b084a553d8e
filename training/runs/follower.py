"""What run folders say, brought into lab.db: runs that run, ended, lost their supervisor or their folder."""

from __future__ import annotations

import logging
import sqlite3
import time
from typing import Any

from training.runs import place
from training.runs.alerts.ending import record_end
from training.runs.launcher import Launcher, Observation
from training.runs.leases import Leases
from training.runs.place import read
from training.runs.records import GIVEN_UP
from training.runs.store import Store
from workspace import clock
from workspace.database import Database
from workspace.errors import LabError, Unavailable
from workspace.layout import Workspace
from workspace.outbox import Outbox
from workspace.settings import Settings

KNOWN_BY = 20  # ended runs: where none of the newest lies, these are not the runs
LAUNCH_ATTEMPTS = 3  # of a supervisor that ends before it has started the job
ADOPT_PAUSES_S = (0.0, 1.0, 5.0, 30.0)
log = logging.getLogger(__name__)


class Follower:
    """Follows the runs of one workspace. Every step can be repeated, and is taken once."""

    def __init__(
        self,
        workspace: Workspace,
        settings: Settings,
        database: Database,
        outbox: Outbox,
        store: Store,
        launcher: Launcher,
        leases: Leases,
    ) -> None:
        self.workspace = workspace
        self.settings = settings
        self.database = database
        self.outbox = outbox
        self.store = store
        self.launcher = launcher
        self.leases = leases
        self.trouble: dict[str, str] = {}  # live run -> why nothing can be said of it now
        self._unmarked: str | None = None  # why runs/ could not be marked
        self._given_up = set(store.given_up(GIVEN_UP))
        self._adoptions: dict[str, tuple[int, float]] = {}  # run -> how often, monotonic seconds of the next

    def follow(self, row: sqlite3.Row) -> None:
        """One run: what does its folder say? Trouble with one run must not hold up the others."""
        try:
            self._step(row, self.launcher.poll(self.workspace.run_dir(row["id"])))
            self.trouble.pop(row["id"], None)
        except (OSError, LabError) as error:
            if self.trouble.get(row["id"]) != str(error):
                self.trouble[row["id"]] = str(error)
                log.warning("%s: %s", row["id"], error)

    def _step(self, row: sqlite3.Row, seen: Observation) -> None:
        run_id = row["id"]
        if row["state"] == "queued" and (seen.started or seen.supervised):  # an attempt thought failed went on
            with self.database.transaction() as tx:
                self.store.change(tx, run_id, ["queued"], state="starting")
        if seen.exit:
            self.record_end(run_id, seen.exit, started=seen.started)
        elif not seen.present:
            self._vanished(row)
        elif seen.supervised:
            if seen.started:
                self._record_running(row, seen)
        elif seen.started:
            self._adopt(run_id)
        elif row["state"] != "queued":
            self._launch_again(row)

    def _vanished(self, row: sqlite3.Row) -> None:
        """Its folder is not there: `lost` only when it was deleted and nothing of the run is alive.

        Raises `Unavailable` while runs/ itself is away: its end may be read once that is back.
        """
        if not place.is_gone(self.workspace.run_dir(row["id"]), self.store.home()):
            raise Unavailable(
                "its folder is not there, nor a sign that runs/ is what it was: nothing is known of it",
                fix="mount or move back what runs/ is to be; or stop_run it, if it is gone for good",
            )
        if self.holds_a_lease(row["id"]):  # its supervisor is ending it, if it has one
            self.launcher.end_unwatched(self.workspace.run_dir(row["id"]))
        else:
            gone = {"state": "lost", "reason": "its run folder was deleted", "started_at": row["started_at"]}
            self.record_end(row["id"], gone, started=False)

    def _record_running(self, row: sqlite3.Row, seen: Observation) -> None:
        stopping = seen.heartbeat.get("state") == "stopping" or row["state"] == "stopping"
        state = "stopping" if stopping else "running"
        if row["state"] == state and row["announced"]:
            return
        started_at = seen.heartbeat.get("started_at") or row["started_at"] or clock.now()
        with self.database.transaction() as tx:
            self.store.change(tx, row["id"], ["starting", "running", "stopping"], state=state, started_at=started_at)
            self._announce(tx, row["id"])

    def _announce(self, tx: sqlite3.Connection, run_id: str) -> None:
        if self.store.announce(tx, run_id):
            self.outbox.post(tx, "run.started", {"run": run_id})

    def give_up(self, run_id: str, reason: str) -> None:
        """Somebody says that a run whose folder is away will not come back. Should it, what it says is true."""
        self.record_end(run_id, {"state": "lost", "reason": f"{reason}; {GIVEN_UP}"}, started=False)
        self._given_up.add(run_id)

    def look_again(self) -> None:
        """Runs that were given up: has the end that their supervisors waited to write appeared?"""
        for run_id in sorted(self._given_up):
            if final := read(self.workspace.run_dir(run_id) / "exit.json"):
                self.record_end(run_id, final, started=False, instead_of="lost")
                self._given_up.discard(run_id)

    def record_end(self, run_id: str, final: Any, *, started: bool, instead_of: str | None = None) -> None:
        folder = self.workspace.run_dir(run_id)
        record_end(folder, final, self.settings.alerts.model_dump())
        summary = read(folder / "summary.json") or None
        with self.database.transaction() as tx:
            if started:
                self._announce(tx, run_id)
            if instead_of:
                self.store.change(tx, run_id, [instead_of], ended_at=None)
            if self.store.end(tx, run_id, final, summary):
                self.outbox.post(tx, "run.ended", {"run": run_id})
        self._adoptions.pop(run_id, None)

    def _adopt(self, run_id: str) -> None:
        """A new supervisor for a started run without one; ever more slowly when they keep ending."""
        count, not_before = self._adoptions.get(run_id, (0, 0.0))
        if time.monotonic() < not_before:
            return
        if self.launcher.adopt(self.workspace.run_dir(run_id)):
            pause = ADOPT_PAUSES_S[min(count + 1, len(ADOPT_PAUSES_S) - 1)]
            self._adoptions[run_id] = (count + 1, time.monotonic() + pause)
            log.warning("%s had lost its supervisor; a new one watches it", run_id)

    def _launch_again(self, row: sqlite3.Row) -> None:
        """Claimed, but its supervisor never started the job: back into the queue, or given up."""
        if row["attempts"] < LAUNCH_ATTEMPTS:
            with self.database.transaction() as tx:
                self.store.change(tx, row["id"], ["starting", "stopping", "running"], state="queued")
            return
        reason = f"its supervisor did not start, {row['attempts']} times; supervisor.log in its folder says why"
        final = {"state": "failed", "class": "exit", "reason": reason}
        self.launcher.close_run(self.workspace.run_dir(row["id"]), final)

    def missing_runs(self) -> list[str]:
        """Live runs whose folders are not there, while runs/ does not show that it is what it was: it may be away.

        Without a live one: the newest ended ones, when not one of their folders is there: it may not be mounted yet.
        When there are none, it is marked as what it is, and that mark is the lab's from now on: a disk mounted over the
        folder that a lab without runs was first started with has another one, or gets one.
        """
        runs_dir, home = self.workspace.runs_dir, self.store.home()
        if home and place.mark_of(runs_dir) == home:
            return []
        if not place.is_whole(runs_dir, home) and (missing := self._missing()):
            return missing
        try:
            runs_dir.mkdir(parents=True, exist_ok=True)
            mark = place.mark(runs_dir)
        except OSError as error:
            if error.strerror != self._unmarked:  # told once, not with every tick
                self._unmarked = error.strerror
                log.warning("runs/ could not be marked: %s", error.strerror)
        else:
            with self.database.transaction() as tx:
                self.store.move_home(tx, mark)
        return []

    def _missing(self) -> list[str]:
        missing = [row["id"] for row in self.store.live() if not place.seen(self.workspace.run_dir(row["id"]))]
        ended = self.store.newest_ended(KNOWN_BY)
        if not missing and not any(place.seen(self.workspace.run_dir(run_id)) for run_id in ended):
            return ended
        return missing

    def away(self) -> bool:
        """Whether runs/ is not what it was, as far as can be seen: not mounted, say."""
        return not place.is_whole(self.workspace.runs_dir, self.store.home())

    def holds_a_lease(self, run_id: str) -> bool:
        """Whether something of the run is alive, whatever its folder says: a lease ends with the job."""
        root = str(self.workspace.root)
        return any((h.run, h.workspace) == (run_id, root) for h in self.leases.holders().values())
