"""The queue: which queued run starts next, on which devices, and why the others wait."""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.runs import leases as leasing
from training.runs import placement
from training.runs.launcher import Launcher
from training.runs.leases import Holder, Lease, Leases
from training.runs.placement import Device, Devices, Need
from training.runs.store import Store
from training.runs.supervisor import read
from workspace.database import Database
from workspace.errors import LabError
from workspace.layout import Workspace
from workspace.settings import Settings

RETRY_S = 10.0  # after a launch that failed for lack of memory, space, ...
log = logging.getLogger(__name__)


class Scheduler:
    """Starts queued runs in order: by purpose, then by age. What a run waits for is kept from later ones."""

    def __init__(
        self,
        workspace: Workspace,
        settings: Settings,
        database: Database,
        store: Store,
        launcher: Launcher,
        leases: Leases,
        devices: Devices,
    ) -> None:
        self.workspace = workspace
        self.settings = settings
        self.database = database
        self.store = store
        self.launcher = launcher
        self.leases = leases
        self.devices = devices
        self._retry_at: dict[str, float] = {}  # run -> monotonic seconds

    def run(self) -> int:
        """Start what can be started now; returns how many."""
        live = self.store.live()
        queued = [row for row in live if row["state"] == "queued"]
        if not queued:
            return 0
        active = [row["id"] for row in live if row["state"] != "queued"]
        waiting: dict[str, str] = {}
        started = 0
        reserved: set[str] = set()
        try:
            devices = self._devices(queued)
        except LabError as error:
            waiting = {row["id"]: error.problem for row in queued}
            queued = []
            devices = []
        for row in queued:
            try:
                reason = self._full(active) or self._try(row, devices, reserved)
            except LabError as error:  # e.g. no leases on this machine: it waits, and says for what
                reason = error.problem
            if reason is None:
                started += 1
                active.append(row["id"])
            else:
                waiting[row["id"]] = reason
        self._tell(live, waiting)
        return started

    def _devices(self, queued: Sequence[sqlite3.Row]) -> Sequence[Device]:
        return self.devices() if any(json.loads(row["need"])["count"] for row in queued) else []

    def _full(self, active: Sequence[str]) -> str | None:
        limit = self.settings.runs.max_concurrent
        if not limit or len(active) < limit:
            return None
        return f"one of {len(active)} active runs to end ({_names(active)}): runs.max_concurrent is {limit}"

    def _try(self, row: sqlite3.Row, devices: Sequence[Device], reserved: set[str]) -> str | None:
        """Start a run, or why it waits. What it waits for is added to `reserved`."""
        if time.monotonic() < self._retry_at.get(row["id"], 0.0):
            return str(row["waiting_for"] or "another attempt to start it")
        need = Need(**json.loads(row["need"]))
        options = self._options(need, devices)
        if need.count > len(options):
            return f"{need.count} accelerator(s) it could use; now there is {placement.describe(devices)}"
        free = [name for name in options if name not in reserved]
        if len(free) < max(1, need.count):
            return "the runs before it in the queue"
        held = self.leases.acquire_some(free, max(1, need.count), run=row["id"], workspace=self.workspace.root)
        if held is None:
            reserved.update(options)
            return self._who_holds(need, options, devices)
        try:
            return self._launch(row["id"], need, held, devices)
        finally:
            leasing.release(held)

    def _options(self, need: Need, devices: Sequence[Device]) -> list[str]:
        """Names of the leases that would do, the best first."""
        if need.count == 0:
            return [f"cpu-{slot}" for slot in range(self.settings.runs.max_concurrent or 1)]
        return [_lease_name(device) for device in placement.by_room(need, devices)]

    def _launch(self, run_id: str, need: Need, held: Sequence[Lease], devices: Sequence[Device]) -> str | None:
        folder = self.workspace.run_dir(run_id)
        names = [lease.resource for lease in held]
        chosen = [d for name in names for d in devices if _lease_name(d) == name] if need.count else []
        run = read(folder / "run.json")
        if not run:
            return "its run.json, which cannot be read"
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
            return f"another attempt to start it: {error.strerror}"
        return None

    def _who_holds(self, need: Need, options: Sequence[str], devices: Sequence[Device]) -> str:
        holders = self.leases.holders(options)
        names = {_lease_name(d): d.id for d in devices}
        told = [f"{names.get(name, name)} is held by {self._holder(h)}" for name, h in holders.items()]
        what = "a CPU slot" if need.count == 0 else f"{need.count} accelerator{'s' if need.count > 1 else ''}"
        return f"{what}: {'; '.join(told[:4])}" if told else what

    def _holder(self, holder: Holder) -> str:
        if holder.workspace == str(self.workspace.root):
            return holder.run
        name = Path(holder.workspace).name if holder.workspace != "unknown" else "unknown"
        return f"{holder.run} of workspace {name} ({holder.user})"

    def _tell(self, live: Sequence[sqlite3.Row], waiting: dict[str, str]) -> None:
        """Store the reasons that changed."""
        known = {row["id"]: row["waiting_for"] for row in live}
        changed = {run_id: reason for run_id, reason in waiting.items() if known[run_id] != reason}
        if changed:
            with self.database.transaction() as tx:
                for run_id, reason in changed.items():
                    self.store.change(tx, run_id, ["queued"], waiting_for=reason)


def _lease_name(device: Device) -> str:
    return device.uuid or device.id


def _names(ids: Sequence[Any]) -> str:
    return ", ".join(ids[:4]) + (f" and {len(ids) - 4} more" if len(ids) > 4 else "")
