"""All runs of a workspace: start, find, watch, stop. What a run's folder says is true; lab.db is brought up to it."""

from __future__ import annotations

import contextlib
import inspect
import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from training.runs import place, progress, store, waiting
from training.runs.comparison import differences
from training.runs.follower import Follower
from training.runs.launcher import Launcher, LocalLauncher
from training.runs.leases import Leases
from training.runs.levels import Level
from training.runs.place import read
from training.runs.placement import Device, Devices
from training.runs.prepare import Prepared, prepare
from training.runs.records import ENDED, LIVE, RunRecord, RunRequest
from training.runs.recovery import import_folders
from training.runs.retention import Retention
from training.runs.scheduler import Scheduler
from training.runs.store import Store
from training.runs.tail import LogPage, tail
from workspace import clock
from workspace.database import Database
from workspace.errors import LabError, Refused, Unavailable, unknown
from workspace.ids import Ids
from workspace.interpreter import passed_variables
from workspace.layout import Workspace
from workspace.outbox import Outbox
from workspace.settings import Settings

START_LOCKS = 64
WAIT_POLL_S = 0.3
MAX_LIST = 1000
OnProgress = Callable[[RunRecord], Awaitable[object] | object]
log = logging.getLogger(__name__)


class Runs:
    """The runs of one workspace. Synchronous and thread-safe, but for `wait`.

    `devices` gives the accelerators runs may use (default: what `training.hardware` finds). `on_end` is the command a
    supervisor executes after a run of an experiment, or one that queued runs waited for, to bring the service back.
    """

    def __init__(
        self,
        workspace: Workspace,
        settings: Settings,
        database: Database,
        outbox: Outbox,
        *,
        devices: Devices | None = None,
        launcher: Launcher | None = None,
        leases: Leases | None = None,
        on_end: Sequence[str] = (),
    ) -> None:
        self.workspace = workspace
        self.settings = settings
        self.database = database
        self.outbox = outbox
        self.on_end = list(on_end)
        self.devices: Devices = devices or (lambda: machine_devices(settings))
        self.launcher: Launcher = launcher or LocalLauncher(passed_variables(settings.runs.environment))
        self.store = Store(database)
        self.retention = Retention(workspace, database)
        self.ids = Ids(database, "run", workspace.runs_dir)
        self.leases = leases or Leases()
        self.scheduler = Scheduler(
            workspace, settings, database, self.store, self.launcher, self.leases, self.devices, on_end
        )
        self.follower = Follower(workspace, settings, database, outbox, self.store, self.launcher, self.leases)
        self._tick = threading.Lock()
        self._starting = [threading.Lock() for _ in range(START_LOCKS)]  # by a hash of the key
        self.follower.missing_runs()
        import_folders(workspace, database, self.store)

    # -- starting and stopping -----------------------------------------------------------------------------------------

    def start(self, request: RunRequest, key: str | None = None) -> RunRecord:
        """Queue a run and start it when its devices are free. The same `key` gives the same run, never a second one.

        Raises `LabError` when it cannot be; nothing has changed then. Durable when it returns. A `repo` that
        takes long to clone is refused for now, while its clone goes on.
        """
        with self._starting[hash(key) % START_LOCKS] if key else contextlib.nullcontext():
            existing = self.store.by_key(key) if key else None
            if existing is None:
                if missing := self.follower.missing_runs():
                    raise Unavailable(
                        f"the folder of {', '.join(missing[:4])} is not there, nor a sign that runs/ is what it was",
                        fix="mount or move back what runs/ is to be; if they are gone for good, stop_run those that "
                        f"live, or create the empty file runs/{place.MARK}",
                    )
                if request.resume is not None:
                    self._check_ended(request.resume)
                prepared = prepare(request, self.workspace, self.settings, self.devices())
                prepared.run |= {"wake_service": bool(self.on_end and request.experiment), "on_end": self.on_end}
                existing = self._insert(prepared, key)
        try:
            self.tick()
        except (OSError, LabError) as error:  # it is written down and queued; the next tick tries again
            log.warning("%s is queued, but could not be looked after at once: %s", existing, error)
        return self.get(existing)

    def _check_ended(self, run_id: str) -> None:
        """Whether another run may go on from this one. Raises `NotFound`, or `Refused` while it lives."""
        if self._row(run_id)["ended_at"] is None:
            raise Refused(f"{run_id} has not ended", fix=f"wait_for_run(run_id={run_id!r}), or stop_run, first")

    def _insert(self, prepared: Prepared, key: str | None) -> str:
        """Folder and row, or neither."""
        folder: Path | None = None
        try:
            with self.database.transaction() as tx:
                existing = self.store.by_key(key, tx) if key else None
                if existing:  # another process was first
                    prepared.discard()
                    return existing
                run_id = self.ids.allocate(tx)
                while self.workspace.run_dir(run_id).exists():
                    run_id = self.ids.allocate(tx)
                folder = self.workspace.run_dir(run_id)
                run = prepared.write(folder, run_id, key)
                self.store.insert(tx, run, prepared.need.as_json())
            return run_id
        except BaseException as error:
            prepared.discard()
            if folder:
                (folder / "run.json").unlink(missing_ok=True)  # first: without it the folder is no run
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError | sqlite3.OperationalError):
                raise Unavailable(
                    f"the run could not be written: {getattr(error, 'strerror', None) or error}",
                    fix="check free space and that the workspace is writable (`lab-mcp doctor`)",
                ) from error
            raise

    def stop(self, run_id: str, reason: str = "", by: str = "user", rule: str | None = None) -> RunRecord:
        """Ask a run to end: TERM, the grace time, KILL of its whole tree. A queued one ends at once.

        `rule`: of [alerts], when it is one that ends the run. Raises `NotFound` or, when the request cannot be
        written, `Unavailable`.
        """
        row = self._row(run_id)
        if row["ended_at"] is None:
            folder, reason = self.workspace.run_dir(run_id), reason.strip()[:300] or "stopped"
            try:
                asked = row["state"] == "stopping" and not place.is_there(folder)  # before: whoever insists is believed
                if asked and not self.follower.holds_a_lease(run_id):
                    self.follower.give_up(run_id, f"{reason} (by {by})")
                    return self.get(run_id)
                self.launcher.cancel(folder, reason, by, rule)
            except FileNotFoundError as error:  # neither folder nor supervisor
                if self.follower.holds_a_lease(run_id) and not self.launcher.end_unwatched(folder):
                    raise Unavailable(f"the run could not be ended: {error.strerror}") from error
                self.follower.give_up(run_id, f"{reason} (by {by})")
                return self.get(run_id)
            except OSError as error:
                raise Unavailable(f"the stop request could not be written: {error.strerror}") from error
            with self.database.transaction() as tx:
                self.store.change(tx, run_id, ["starting", "running"], state="stopping")
            self.follower.follow(self._row(run_id))
        return self.get(run_id)

    # -- looking -------------------------------------------------------------------------------------------------------

    def get(self, run_id: str) -> RunRecord:
        """Raises `NotFound` naming the closest ids."""
        return next(self._records([self._row(run_id)]))

    def list(
        self,
        states: Collection[str] | None = None,
        experiment: str | None = None,
        limit: int = 20,
        before: str | None = None,
        text: str | None = None,
    ) -> list[RunRecord]:
        """Runs, newest first; `before` a run id. Raises `Refused` for an unknown state, `NotFound` for that id."""
        if wrong := set(states or ()) - {*LIVE, *ENDED}:
            raise Refused(f"there is no state {sorted(wrong)[0]!r}", valid=", ".join((*LIVE, *ENDED)))
        if before is not None:
            self._row(before)
        return list(self._records(self.store.find(states, experiment, max(1, min(limit, MAX_LIST)), before, text)))

    def page(
        self,
        states: Collection[str] | None = None,
        experiment: str | None = None,
        limit: int = 20,
        before: str | None = None,
        text: str | None = None,
    ) -> tuple[Sequence[RunRecord], int]:
        """`list`, and how many runs match in all."""
        return self.list(states, experiment, limit, before, text), self.store.count(states, experiment, text)

    def detail(self, run_id: str, points: int = 20) -> dict[str, Any]:
        """`config`, `command`, `curve` (at most `points` of metrics.jsonl), `alerts`, `summary`, `source` of a run."""
        record = self.get(run_id)
        folder = self.workspace.run_dir(run_id)
        return {
            "config": read(folder / "config.json") or None,
            "command": read(folder / "run.json").get("command"),
            "curve": progress.curve(folder, points),
            "alerts": progress.alerts(folder),
            "summary": record.summary,
            "source": record.source,
        }

    def tail(
        self,
        run_id: str,
        lines: int = 50,
        cursor: int | None = None,
        contains: str | None = None,
        *,
        before: int | None = None,
        level: Level | None = None,
        max_characters: int = 12_000,
    ) -> LogPage:
        """A page of the run's log; see `training.runs.tail`."""
        self._row(run_id)
        log_file = self.workspace.run_dir(run_id) / "train.log"
        page = tail(
            log_file,
            lines=lines,
            cursor=cursor,
            before=before,
            contains=contains,
            level=level,
            max_characters=max_characters,
        )
        return page.model_copy(update={"run_id": run_id})

    def differences(self, run_id: str, other: str) -> dict[str, Any]:
        """Setting or result -> [of the one, of the other]; see `training.runs.comparison`. Raises `NotFound`."""
        self._row(run_id), self._row(other)
        return differences(self.workspace.run_dir(run_id), self.workspace.run_dir(other))

    def away(self) -> bool:
        """Whether runs/ itself is not there, as far as can be seen: what cannot be read is not missing then."""
        return self.follower.away()

    def watched(self) -> Sequence[RunRecord]:
        """The runs that are running now, without their progress."""
        return [store.record(row) for row in self.store.live() if row["state"] == "running"]

    def alerts(self, run_id: str) -> Sequence[dict[str, Any]]:
        """The newest alerts of a run, oldest first."""
        return progress.alerts(self.workspace.run_dir(run_id))

    async def wait(
        self,
        run_id: str,
        timeout_s: float,
        on_progress: OnProgress | None = None,
        until: Callable[[], bool] | None = None,
    ) -> RunRecord:
        """The run once it has ended, or as it is after `timeout_s` or when `until()` is true.

        `on_progress` is called when something changed.
        """
        deadline = time.monotonic() + timeout_s
        told: RunRecord | None = None
        while True:
            record = await anyio.to_thread.run_sync(self._look, run_id)
            left = deadline - time.monotonic()
            if record.ended or left <= 0 or (until is not None and await anyio.to_thread.run_sync(until)):
                return record
            if on_progress and (told is None or (record.state, record.progress) != (told.state, told.progress)):
                told = record
                answer = on_progress(record)
                if inspect.isawaitable(answer):
                    await answer
            await anyio.sleep(min(WAIT_POLL_S, max(0.01, left)))

    def _look(self, run_id: str) -> RunRecord:
        row = self._row(run_id)
        if row["ended_at"] is None:
            self.follower.follow(row)
        return self.get(run_id)

    def _row(self, run_id: str) -> sqlite3.Row:
        row = self.store.row(run_id)
        if row is None:
            raise unknown("run", run_id, self.store.ids()[::-1], fix="list_runs shows the runs there are")
        return row

    def _records(self, rows: Sequence[sqlite3.Row]) -> Iterator[RunRecord]:
        queued = any(row["state"] == "queued" for row in rows)
        queue = waiting.told(self.store.live(), self.workspace) if queued else {}
        for row in rows:
            if row["ended_at"] is not None:
                yield store.record(row)
                continue
            elapsed = clock.seconds_between(row["started_at"], clock.now()) if row["started_at"] else None
            found = progress.progress(self.workspace.run_dir(row["id"]), store.value(row["budget"]), elapsed)
            update: dict[str, Any] = {"elapsed_s": None if elapsed is None else round(elapsed, 1)}
            update |= queue.get(row["id"], {})
            if trouble := self.follower.trouble.get(row["id"]):
                update["reason"] = trouble
            yield store.record(row, found).model_copy(update=update)

    def holders(self, uuids: Sequence[str]) -> dict[str, str]:
        """The runs that hold these devices now, by uuid, whichever workspace of this machine they are of."""
        return self.scheduler.holders_of(uuids)

    # -- keeping up ----------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Bring lab.db up to the run folders, take up unwatched runs, start queued ones. Ended runs cost nothing.

        Every step can be repeated: a service killed between any two of them goes on at its next tick.
        """
        if not self._tick.acquire(blocking=False):
            return
        try:
            self.follower.look_again()
            for row in self.store.live():
                folder = self.workspace.run_dir(row["id"])
                if row["state"] != "queued" or row["attempts"] or (folder / "exit.json").exists():
                    self.follower.follow(row)
            self.scheduler.run()
            self.launcher.reap()
        finally:
            self._tick.release()


def machine_devices(settings: Settings) -> Sequence[Device]:
    """The accelerators runs may use on this machine, as they are now: of one kind, the lab's own when it has one.

    Where the lab's own torch can use none, users' scripts with another one may.
    """
    from training.hardware import devices
    from training.hardware.status import ORDER

    if settings.hardware.backend == "cpu" or not any(d.usable for d in devices.detect(settings.hardware).devices):
        return []
    status = devices.snapshot(settings.hardware)
    others = ([d for d in status.devices if d.usable and d.backend == kind] for kind in ORDER)
    return status.usable_devices() or next((found for found in others if found), [])
