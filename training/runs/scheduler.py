"""The queue: which queued run starts next, on which devices, and why the others wait."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.hardware.cpu import usable_cores
from training.runs import leases as leasing
from training.runs import placement
from training.runs.alerts.machine import DISK_LEAST_BYTES, GIB
from training.runs.launcher import Launcher
from training.runs.leases import Holder, Lease, Leases, Note
from training.runs.place import read
from training.runs.placement import Device, Devices, Need
from training.runs.store import Store
from workspace.database import Database
from workspace.errors import LabError, Unavailable
from workspace.layout import Workspace
from workspace.settings import Settings

MOST_PLACES = 16  # `runs.per_device` at its highest, also of another workspace
RETRY_S = 10.0  # after a launch that failed for lack of memory, space, ...
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Waiting:
    """Why a run waits, and whose end it waits for: runs of this workspace by id, others in words."""

    text: str
    blockers: Sequence[str] = ()


class Scheduler:
    """Starts queued runs in order: by priority, then by age. What a run waits for is kept from later ones."""

    def __init__(
        self,
        workspace: Workspace,
        settings: Settings,
        database: Database,
        store: Store,
        launcher: Launcher,
        leases: Leases,
        devices: Devices,
        wake: Sequence[str] = (),
    ) -> None:
        self.workspace = workspace
        self.settings = settings
        self.database = database
        self.store = store
        self.launcher = launcher
        self.leases = leases
        self.devices = devices
        self.cpu_slots = max(1, min(settings.runs.max_concurrent or 1, int(usable_cores())))
        self._retry_at: dict[str, float] = {}  # run -> monotonic seconds
        self._note = Note(self.leases.folder, workspace.root, wake, workspace.locks_dir / "service.lock")
        self._waits_for_others = False

    def run(self) -> int:
        """Start what can be started now; returns how many."""
        self._waits_for_others = False
        started = self._start_queued(self.store.live())
        try:
            self._note.leave(waits=self._waits_for_others)
        except OSError as error:  # without it, the next client brings a dead service back
            log.warning("no note could be left for other workspaces' runs: %s", error.strerror)
        return started

    def _start_queued(self, live: Sequence[sqlite3.Row]) -> int:
        queued = [row for row in live if row["state"] == "queued"]
        if not queued:
            return 0
        active = [row for row in live if row["state"] != "queued"]
        waiting: dict[str, Waiting] = {}
        started = 0
        reserved: set[str] = set()
        try:
            self._check_space()
            devices = self._devices(queued)
        except LabError as error:
            waiting = {row["id"]: Waiting(error.problem) for row in queued}
            queued = []
            devices = []
        ahead: list[str] = []
        for row in queued:
            try:
                reason = self._full(active) or self._try(row, devices, reserved, active, ahead)
            except LabError as error:  # e.g. no leases on this machine: it waits, and says for what
                reason = Waiting(error.problem)
            if reason is None:
                started += 1
                active.append(self.store.row(row["id"]) or row)
            else:
                waiting[row["id"]] = reason
                ahead.append(row["id"])
        self._tell(live, waiting)
        return started

    def _devices(self, queued: Sequence[sqlite3.Row]) -> Sequence[Device]:
        return self.devices() if any(json.loads(row["need"])["count"] for row in queued) else []

    def _check_space(self) -> None:
        """Raises `Unavailable` while the disk is so full that a run was, or would be, stopped for it."""
        if self.settings.alerts.disk_filling != "stop":
            return
        try:
            free = shutil.disk_usage(self.workspace.runs_dir).free
        except OSError:  # it is away: a run whose run.json cannot be read waits for that
            return
        if free < DISK_LEAST_BYTES:
            raise Unavailable(
                f"space: {free / GIB:.2f} GiB are free on the disk of the runs, and alerts.disk_filling is stop"
                f" (`lab-mcp clean` frees some; {DISK_LEAST_BYTES / GIB:g} GiB are enough)"
            )

    def _full(self, active: Sequence[sqlite3.Row]) -> Waiting | None:
        limit = self.settings.runs.max_concurrent
        if not limit or len(active) < limit:
            return None
        ids = [row["id"] for row in active]
        text = f"one of {len(ids)} active runs to end ({_names(ids)}): runs.max_concurrent is {limit}"
        return Waiting(text, ids)

    def _try(
        self,
        row: sqlite3.Row,
        devices: Sequence[Device],
        reserved: set[str],
        active: Sequence[sqlite3.Row],
        ahead: Sequence[str],
    ) -> Waiting | None:
        """Start a run, or why it waits. What it waits for is added to `reserved`."""
        if time.monotonic() < self._retry_at.get(row["id"], 0.0):
            return Waiting(str(row["waiting_for"] or "another attempt to start it"))
        need = Need(**json.loads(row["need"]))
        possible = placement.fitting(need, devices)
        if need.count > len(possible):
            return Waiting(f"{need.count} accelerator(s) it could use; now there is {placement.describe(devices)}")
        room, without = placement.room(need, devices, with_others=self.settings.hardware.share_with_others)
        names = [_lease_name(d) for d in room] if need.count else [f"cpu-{slot}" for slot in range(self.cpu_slots)]
        free = [name for name in names if name not in reserved]
        if names and len(free) < max(1, need.count) and len(names) >= need.count:
            reserved.update(names)  # also what is free of them, or later runs could pass it by for ever
            return Waiting("the runs before it in the queue", tuple(ahead))
        held = self._hold(row["id"], need, free, room, active, without)
        if held is None:
            holders = self._holders([_lease_name(d) for d in possible] if need.count else names)
            reserved.update(names, holders)
            return self._who_holds(need, holders, possible, without)
        try:
            return self._launch(row["id"], need, held, devices)
        finally:
            leasing.release(held)

    def _hold(
        self,
        run_id: str,
        need: Need,
        names: Sequence[str],
        room: Sequence[Device],
        active: Sequence[sqlite3.Row],
        without: dict[str, str],
    ) -> list[Lease] | None:
        """Leases on as many of `names` as the run needs; None, and nothing held, when there are too few.

        Devices that several runs may share but this one does not fit on are added to `without`.
        """
        places = self.settings.runs.per_device
        root = self.workspace.root
        if need.count == 0 or places == 1:
            return self.leases.acquire_some(names, max(1, need.count), run=run_id, workspace=root)
        held: list[Lease] = []
        with contextlib.ExitStack() as unless_complete:
            unless_complete.callback(lambda: leasing.release(held))
            for device in (d for d in room if _lease_name(d) in names):
                beside = [row for row in active if device.id in json.loads(row["devices"])]
                others = [Need(**json.loads(row["need"])) for row in beside]
                if not placement.fits_beside(need, device, others, places):
                    without[device.id] = f"{device.id} has no room beside {_names([row['id'] for row in beside])}"
                else:
                    held += self.leases.share(_lease_name(device), places, run=run_id, workspace=root) or []
                if len(held) == 2 * need.count:  # the device's lock and a place on it
                    unless_complete.pop_all()
                    return held
        return None

    def _launch(self, run_id: str, need: Need, held: Sequence[Lease], devices: Sequence[Device]) -> Waiting | None:
        folder = self.workspace.run_dir(run_id)
        names = [lease.resource for lease in held]
        chosen = [d for name in names for d in devices if _lease_name(d) == name] if need.count else []
        run = read(folder / "run.json")
        if not run:
            return Waiting("its run.json, which cannot be read")
        used = [{"id": d.id, "uuid": d.uuid, "index": d.index} for d in chosen]
        run["devices"] = used or [{"id": "cpu", "uuid": names[0], "index": None}]
        run["environment"] = run["environment"] | placement.environment(need, chosen)

        def claim() -> bool:
            with self.database.transaction() as tx:
                return self.store.claim(tx, run_id, [d["id"] for d in run["devices"]])

        try:
            self.launcher.submit(folder, run, held, claim)
        except OSError as error:
            log.warning("%s could not be launched: %s", run_id, error)
            with self.database.transaction() as tx:
                self.store.unclaim(tx, run_id)
            self._retry_at[run_id] = time.monotonic() + RETRY_S
            return Waiting(f"another attempt to start it: {error.strerror}")
        self._retry_at.pop(run_id, None)
        return None

    def _who_holds(
        self, need: Need, holders: Mapping[str, Holder], possible: Sequence[Device], without: dict[str, str]
    ) -> Waiting:
        ids = {_lease_name(d): d.id for d in possible}
        told, blockers = [], []
        for name, holder in holders.items():
            device = ids.get(name, name)
            told.append(f"{device} is held by {self.holder(holder)}" + self._room_beside(without.pop(device, "")))
            ours = holder.workspace == str(self.workspace.root)
            self._waits_for_others |= not ours
            blockers.append(holder.run if ours else self.holder(holder))
        told += without.values()
        blockers += [f"what else uses {device}" for device in without]
        what = "a CPU slot" if need.count == 0 else f"{need.count} accelerator{'s' if need.count > 1 else ''}"
        if without and any("not the lab's" in text for text in without.values()):
            told.append("hardware.share_with_others in lab.toml would allow to share")
        return Waiting(f"{what}: {'; '.join(told[:5])}" if told else what, blockers)

    @staticmethod
    def _room_beside(why: str) -> str:
        return ", which leaves too little memory" if "no room" in why else ""

    def _holders(self, names: Sequence[str]) -> dict[str, Holder]:
        """Who holds these leases; of a shared device, one of those on it."""
        places = [f"{name}+{place}" for name in names for place in range(MOST_PLACES)] if names else []
        found = self.leases.holders([*names, *places])
        return {name.rpartition("+")[0] or name: holder for name, holder in sorted(found.items(), reverse=True)}

    def holder(self, holder: Holder) -> str:
        """Who holds a lease, for people: a run, of which workspace when it is another one."""
        if holder.workspace == str(self.workspace.root):
            return holder.run
        name = Path(holder.workspace).name if holder.workspace != "unknown" else "unknown"
        return f"{holder.run} of workspace {name} ({holder.user})"

    def holders_of(self, uuids: Sequence[str]) -> dict[str, str]:
        """Who holds these devices now, by uuid."""
        return {uuid: self.holder(holder) for uuid, holder in self._holders(uuids).items()}

    def _tell(self, live: Sequence[sqlite3.Row], waiting: Mapping[str, Waiting]) -> None:
        """Store the reasons that changed."""
        known = {row["id"]: (row["waiting_for"], row["blockers"]) for row in live}
        new = {run_id: (reason.text, json.dumps(list(reason.blockers[:4]))) for run_id, reason in waiting.items()}
        changed = {run_id: values for run_id, values in new.items() if known[run_id] != values}
        if changed:
            with self.database.transaction() as tx:
                for run_id, (text, blockers) in changed.items():
                    self.store.change(tx, run_id, ["queued"], waiting_for=text, blockers=blockers)


def _lease_name(device: Device) -> str:
    return device.uuid or device.id


def _names(ids: Sequence[Any]) -> str:
    return ", ".join(ids[:4]) + (f" and {len(ids) - 4} more" if len(ids) > 4 else "")
