"""The watch over live runs: reads what is new of each run's metrics, asks the rules, writes down what they find.

A round reads a bounded number of bytes. Nothing is kept but what can be read again: a service that starts anew reads
the metrics from their beginning, and an alert that is in the run's folder is not written twice.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from training.hardware.status import HardwareStatus
from training.runs.alerts.alert import Alert, write_once
from training.runs.alerts.curve import Curve
from training.runs.alerts.machine import DISK_RELIEF_S, DeviceRules, DiskRule, Written
from training.runs.progress import alerts as read_alerts
from training.runs.records import RunRecord
from training.runs.retention import size_of
from workspace import clock, durable
from workspace.errors import LabError
from workspace.layout import Workspace
from workspace.settings import Settings

ROUND_S = 2.0
DEVICES_S = 10.0
GAP_S = 60.0  # without a round: the service or the machine slept
DISK_S = 30.0
ROUND_BYTES = 1024 * 1024  # of one run's metrics in one round
log = logging.getLogger(__name__)


class Hardware(Protocol):
    """`training.telemetry.Sampler`."""

    def latest(self) -> HardwareStatus: ...
    def history(self, device: str = ..., since: float | None = ..., points: int = ...) -> list[Any]: ...


class RunsPort(Protocol):
    """`training.runs.manager.Runs`."""

    def away(self) -> bool: ...
    def watched(self) -> Sequence[RunRecord]: ...
    def stop(self, run_id: str, reason: str = "", by: str = "user", rule: str | None = None) -> RunRecord: ...


@dataclass
class _Watched:
    """One live run: how far its metrics were read, and the rules that remember."""

    folder: Path
    curve: Curve
    devices: DeviceRules
    offset: int = 0
    inode: int = 0
    behind: bool = True  # there is more to read
    raised: set[tuple[str, str | None]] = field(default_factory=set)
    stopped: set[tuple[str, str | None]] = field(default_factory=set)


class Watch:
    """See the module. `tick` is called again and again by one thread."""

    def __init__(
        self,
        workspace: Workspace,
        settings: Settings,
        runs: RunsPort,
        hardware: Hardware,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.workspace = workspace
        self.policies: Mapping[str, str] = settings.alerts.model_dump()
        self.sample_s = settings.hardware.sample_seconds
        self.runs = runs
        self.hardware = hardware
        self._now = wall_clock
        self._seen_at = self._since = 0.0  # epoch s: of the last round, and since when there was no gap
        self._watched: dict[str, _Watched] = {}
        self._disk, self._written = DiskRule(), Written()
        self._round_at = self._devices_at = self._disk_at = self._relief_at = 0.0  # monotonic seconds of the next

    def tick(self) -> None:
        """A round, at most every two seconds."""
        if time.monotonic() >= self._round_at:
            self._round_at = time.monotonic() + ROUND_S
            self.round()

    def round(self) -> None:
        """Look at every running run once."""
        now = time.monotonic()
        away = self.runs.away()  # not mounted, say: what cannot be read is not missing
        if away or not 0 <= self._now() - self._seen_at < GAP_S:
            self._since = self._now()
        self._seen_at = self._now()
        records = self.runs.watched()
        if away or not records:
            return
        self._watched = {r.id: self._watched.get(r.id) or self._begin(r) for r in records}
        status = self._status() if now >= self._devices_at else None
        for record in records:
            watched = self._watched[record.id]
            found = list(self._metrics(watched))
            if status is not None:
                found += self._devices(record, watched, status)
            for alert in found:
                self._raise(record.id, watched, alert, self.policies[alert.rule])
        if now >= self._disk_at:
            self._disk_at = now + DISK_S
            self._disk_round(now)

    def _begin(self, record: RunRecord) -> _Watched:
        folder = self.workspace.run_dir(record.id)
        watched = _Watched(folder, Curve(self._memory_total(record)), DeviceRules(self._utilisation))
        for alert in read_alerts(folder):
            rule = str(alert.get("class"))
            watched.raised.add((rule, alert.get("device")))
            if alert.get("severity") == "stop" == self.policies.get(rule):
                self._stop(record.id, rule, str(alert.get("text")))  # written, perhaps not yet done
        return watched

    def _memory_total(self, record: RunRecord) -> int | None:
        status = self._status()
        if status is None:
            return None
        held = [d.memory_total_bytes for d in status.devices if d.id in record.devices]
        if not held:
            return status.cpu.memory_limit_bytes or status.cpu.memory_total_bytes
        known = [total for total in held if total is not None]
        return min(known, default=None)

    # -- what there is to see ------------------------------------------------------------------------------------------

    def _metrics(self, watched: _Watched) -> Iterator[Alert]:
        now = self._now()
        for record in _new_records(watched):
            yield from watched.curve.add(record, now)
        if not watched.behind and (alert := watched.curve.stalled(now, self._since)) is not None:
            yield alert

    def _status(self) -> HardwareStatus | None:
        try:
            return self.hardware.latest()
        except LabError:  # the backend asked for is not there: gpu_status says so
            return None

    def _devices(self, record: RunRecord, watched: _Watched, status: HardwareStatus) -> list[Alert]:
        self._devices_at = time.monotonic() + DEVICES_S
        held = [device for device in status.devices if device.id in record.devices]
        if not held or record.started_at is None:
            return []
        return list(watched.devices.check(held, clock.seconds_between(record.started_at, clock.now())))

    def _utilisation(self, uuid: str, seconds: float) -> tuple[float, float] | None:
        try:
            points = self.hardware.history(uuid, self._now() - seconds, 1)
        except LabError:
            return None
        if not points or points[0].utilization_percent is None:
            return None
        return points[0].utilization_percent, points[0].samples * self.sample_s / seconds

    def _disk_round(self, now: float) -> None:
        """A disk that fills is told to every run; `stop` ends the one that fills it, and one more when that was not it.

        It can go on from its checkpoint once there is space: until then the queue waits (`training.runs.scheduler`).
        """
        try:
            alert = self._disk.check(now, shutil.disk_usage(self.workspace.runs_dir).free)
        except OSError as error:  # runs/ is away
            log.warning("the disk of the runs cannot be looked at: %s", error.strerror)
            return
        stopping = self.policies["disk_filling"] == "stop"
        if stopping:
            self._written.add(now, {run_id: size_of(watched.folder) for run_id, watched in self._watched.items()})
        if alert is None:
            return
        most = self._written.most() if stopping and now >= self._relief_at else None
        for run_id, watched in self._watched.items():
            if most is not None and run_id == most[0]:
                self._relief_at = now + DISK_RELIEF_S
                text = f"{alert.text}; this run wrote most, {most[1] / 1e9:.2f} GB in the last minutes"
                mine = replace(alert, text=text, numbers={**alert.numbers, "written_bytes": most[1]})
                self._raise(run_id, watched, mine, "stop")
                self._stop(run_id, mine.rule, mine.text)  # also when it was told before
            else:
                self._raise(run_id, watched, alert, "warn" if stopping else self.policies["disk_filling"])

    # -- what is done about it -----------------------------------------------------------------------------------------

    def _raise(self, run_id: str, watched: _Watched, alert: Alert, policy: str) -> None:
        key = (alert.rule, alert.device)
        if key in watched.raised:
            return
        try:
            new = write_once(watched.folder, alert, policy)
            watched.raised.add(key)
        except OSError as error:  # tried again when the rule finds it again; a stop does not wait for the disk
            log.warning("%s: an alert could not be written: %s", run_id, error.strerror)
            new = key not in watched.stopped
        if new and policy == "stop" and alert.rule != "disk_filling" and self._stop(run_id, alert.rule, alert.text):
            watched.stopped.add(key)

    def _stop(self, run_id: str, rule: str, text: str) -> bool:
        try:
            self.runs.stop(run_id, f"{rule}: {text}", by=f"alerts.{rule} in lab.toml", rule=rule)
        except LabError as error:
            log.warning("%s could not be stopped: %s", run_id, error)
            return False
        return True


def _new_records(watched: _Watched) -> Iterator[dict[str, Any]]:
    """The whole new lines of metrics.jsonl, at most ROUND_BYTES of them; torn and foreign lines are skipped."""
    try:
        with durable.open_regular(watched.folder / "metrics.jsonl") as file:
            found = os.fstat(file.fileno())
            if found.st_ino != watched.inode or found.st_size < watched.offset:  # written anew, after a resume
                watched.inode, watched.offset = found.st_ino, 0
                watched.curve = Curve(watched.curve.memory_total)
            file.seek(watched.offset)
            data = file.read(ROUND_BYTES)
    except OSError:
        watched.behind = False
        return
    end = data.rfind(b"\n") + 1
    if end == 0 and len(data) == ROUND_BYTES:
        end = len(data)  # no line of ours
    watched.offset += end
    watched.behind = watched.offset + len(data) - end < found.st_size
    for line in data[:end].split(b"\n"):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record
