"""One thread samples the hardware, keeps the last reading at hand and its history in `telemetry.db`.

Fine samples are kept for a day, means of a minute for 90 days; both are bounded in number as well.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from training.hardware import devices
from training.hardware.status import Cpu, Device, HardwareStatus
from workspace import clock
from workspace.database import Database
from workspace.errors import LabError, Refused, Unavailable, unknown
from workspace.layout import Workspace
from workspace.settings import HardwareSettings, Settings

FINE_KEPT_S = 24 * 3600.0
COARSE_KEPT_S = 90 * 24 * 3600.0
COARSE_S = 60.0
PRUNE_S = 600.0
BOUND_S = 24 * 3600.0  # counting every row costs; only a clock that jumps about makes too many
MOST_ROWS = {"fine": 2_000_000, "coarse": 4_000_000}  # 16 devices at the finest rate; about 200 MB at the very most
STALE_S = 30.0  # a wedged driver can hold a reading up; older than this, `latest` says so
COLUMNS = ("utilization_percent", "memory_used_bytes", "temperature_c", "power_w", "clock_mhz", "throttled")
TABLES = [
    """
    CREATE TABLE telemetry_devices (number INTEGER PRIMARY KEY, uuid TEXT NOT NULL UNIQUE, name TEXT NOT NULL);
    CREATE TABLE fine (
      device INTEGER NOT NULL, time REAL NOT NULL,
      utilization_percent REAL, memory_used_bytes INTEGER, temperature_c REAL, power_w REAL, clock_mhz REAL,
      throttled REAL,
      PRIMARY KEY (device, time)
    ) WITHOUT ROWID;
    CREATE TABLE coarse (
      device INTEGER NOT NULL, time REAL NOT NULL, samples INTEGER NOT NULL,
      utilization_percent REAL, memory_used_bytes INTEGER, temperature_c REAL, power_w REAL, clock_mhz REAL,
      throttled REAL, utilization_least REAL, utilization_most REAL, memory_most_bytes INTEGER,
      PRIMARY KEY (device, time)
    ) WITHOUT ROWID;
    """
]
MEANS = ", ".join(f"avg({column}) AS {column}" for column in COLUMNS)
log = logging.getLogger(__name__)


class Point(BaseModel):
    """The mean over one stretch of time; None where nothing was known."""

    model_config = ConfigDict(frozen=True)

    time: str = Field(description="start of the stretch")
    samples: int
    utilization_percent: float | None
    utilization_least: float | None = Field(description="lowest within the stretch, so that a dip is not averaged away")
    utilization_most: float | None
    memory_used_bytes: int | None
    memory_most_bytes: int | None
    temperature_c: float | None
    power_w: float | None
    clock_mhz: float | None
    throttled: float | None = Field(description="part of the stretch in which the clock was held down, 0 to 1")


class Sampler:
    """Samples every `settings.hardware.sample_seconds`. `latest()` never touches the hardware once it has started."""

    def __init__(self, workspace: Workspace, settings: Settings, *, machine: devices.Machine | None = None) -> None:
        self._settings: HardwareSettings = settings.hardware
        self._machine = machine or devices.machine()
        self._database = Database(workspace.telemetry_file, synchronous="NORMAL")
        self._database.migrate("telemetry", TABLES)
        self._numbers: dict[str, int] = {
            row["uuid"]: row["number"] for row in self._database.query("SELECT uuid, number FROM telemetry_devices")
        }
        self._latest: tuple[float, HardwareStatus] | None = None
        self._problem: LabError | None = None
        self._rolled_up_at = 0.0
        self._pruned_at = 0.0
        self._bounded_at = 0.0
        self._unstored = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="hardware sampler", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread and close the file. A thread held up inside a driver is left to end with the process."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
            if self._thread.is_alive():
                return
        self._database.close()

    def latest(self) -> HardwareStatus:
        """The last reading (a fresh one when there is none yet), at most a few sampling intervals old.

        Raises `Refused` when the backend asked for in the settings is not to be had.
        """
        if self._problem is not None:
            raise self._problem
        if self._latest is None:
            return self._machine.snapshot(self._settings)
        read_at, status = self._latest
        age = time.monotonic() - read_at
        if age < max(STALE_S, 3 * self._settings.sample_seconds):
            return status
        note = f"this reading is {age:.0f} s old: the driver or a vendor's tool does not answer"
        return status.model_copy(update={"notes": [*status.notes, note]})

    def fresh(self) -> HardwareStatus:
        """A reading made now (milliseconds): for a decision, e.g. which device is free."""
        return self._machine.snapshot(self._settings)

    def sample(self) -> HardwareStatus:
        """Read once, remember it and store it."""
        status = self._machine.snapshot(self._settings)
        self._latest = (time.monotonic(), status)
        try:
            self._store(status)
            self._unstored = False
        except (sqlite3.Error, Unavailable) as error:  # a full disk must not end the readings: the history has a gap
            if not self._unstored:
                log.warning("hardware samples cannot be stored for now: %s", error)
            self._unstored = True
        return status

    def _store(self, status: HardwareStatus) -> None:
        moment = clock.parse(status.time).timestamp()
        rows = [(_number_of(self, "cpu", status.cpu.model), moment, *_cpu_values(status.cpu))]
        rows += [(_number_of(self, d.uuid, d.name), moment, *_device_values(d)) for d in status.devices]
        with self._database.transaction() as tx:
            tx.executemany(f"INSERT OR REPLACE INTO fine VALUES (?, ?{', ?' * len(COLUMNS)})", rows)
            if moment - self._rolled_up_at >= COARSE_S:
                roll_up(tx, moment)
                self._rolled_up_at = moment
            if moment - self._pruned_at >= PRUNE_S:
                prune(tx, moment)
                self._pruned_at = moment
            if moment - self._bounded_at >= BOUND_S:
                bound(tx)
                self._bounded_at = moment

    def history(
        self, device: str = "cpu", since: float | None = None, points: int = 60, until: float | None = None
    ) -> list[Point]:
        """At most `points` means of equal stretches from `since` to `until` (epoch s; the last hour by default).

        `device` is a UUID, or an id as in `HardwareStatus` (`cuda:0`), or `cpu`. Stretches without a sample are left
        out. Raises `NotFound` for an unknown device.
        """
        if not 1 <= points <= 2000:
            raise Refused(f"points = {points} is not allowed", valid="1 to 2000")
        until = time.time() if until is None else until
        since = until - 3600 if since is None else since
        if since >= until:
            raise Refused("`since` is not before `until`", valid="an earlier moment")
        number = self._numbers.get(self._uuid(device))
        if number is None:
            raise unknown("device", device, [*self._numbers])
        width = (until - since) / points
        fine = since >= time.time() - FINE_KEPT_S
        rows = self._database.query(_HISTORY["fine" if fine else "coarse"], (since, width, number, since, until))
        return [
            Point(time=clock.from_epoch(since + row["stretch"] * width), **_without(row, "stretch")) for row in rows
        ]

    def _uuid(self, device: str) -> str:
        if self._latest is not None:
            for known in self._latest[1].devices:
                if device == known.id:
                    return known.uuid
        return device

    def _run(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                self.sample()
                self._problem = None
            except LabError as error:
                self._problem = error
            except Exception:  # whatever a driver's binding throws: the sampler must outlive it
                log.exception("the hardware could not be read")
            self._stop.wait(max(0.05, self._settings.sample_seconds - (time.monotonic() - started)))


def _number_of(sampler: Sampler, uuid: str, name: str) -> int:
    number = sampler._numbers.get(uuid)
    if number is None:
        with sampler._database.transaction() as tx:
            tx.execute("INSERT OR IGNORE INTO telemetry_devices (uuid, name) VALUES (?, ?)", (uuid, name))
            number = int(tx.execute("SELECT number FROM telemetry_devices WHERE uuid = ?", (uuid,)).fetchone()[0])
        sampler._numbers[uuid] = number
    return number


def _device_values(device: Device) -> tuple[Any, ...]:
    throttled = None if device.throttle_reasons is None else float(bool(device.throttle_reasons))
    return (
        device.utilization_percent, device.memory_used_bytes, device.temperature_c, device.power_w, device.clock_mhz,
        throttled,
    )  # fmt: skip


def _cpu_values(cpu: Cpu) -> tuple[Any, ...]:
    return (cpu.utilization_percent, cpu.memory_used_bytes, None, None, None, None)


def roll_up(tx: sqlite3.Connection, moment: float) -> None:
    """Make the minutes that have passed since the last time into coarse rows."""
    whole_minute = moment - moment % COARSE_S
    for number in _numbers(tx):
        last = tx.execute(
            "SELECT max(time) FROM coarse WHERE device = ? AND time < ?", (number, whole_minute)
        ).fetchone()[0]
        begin = 0.0 if last is None else last + COARSE_S
        tx.execute(
            f"""INSERT OR REPLACE INTO coarse
            SELECT device, CAST(time / {COARSE_S} AS INTEGER) * {COARSE_S} AS minute, count(*), {MEANS},
                   min(utilization_percent), max(utilization_percent), max(memory_used_bytes)
            FROM fine WHERE device = ? AND time >= ? AND time < ? GROUP BY device, minute""",
            (number, begin, whole_minute),
        )


def prune(tx: sqlite3.Connection, moment: float) -> None:
    """Drop what is older than it is kept."""
    for number in _numbers(tx):
        for table, kept in (("fine", FINE_KEPT_S), ("coarse", COARSE_KEPT_S)):
            tx.execute(f"DELETE FROM {table} WHERE device = ? AND time < ?", (number, moment - kept))


def bound(tx: sqlite3.Connection) -> None:
    """Drop the oldest of what is too much, whatever its time says."""
    numbers = _numbers(tx)
    for number in numbers:
        for table, most in MOST_ROWS.items():
            edge = tx.execute(
                f"SELECT time FROM {table} WHERE device = ? ORDER BY time DESC LIMIT 1 OFFSET ?",
                (number, most // len(numbers)),
            ).fetchone()
            if edge is not None:
                tx.execute(f"DELETE FROM {table} WHERE device = ? AND time <= ?", (number, edge[0]))


def _numbers(tx: sqlite3.Connection) -> list[int]:
    return [row[0] for row in tx.execute("SELECT number FROM telemetry_devices")]


def _history_sql(table: str) -> str:
    if table == "fine":
        extremes = "min(utilization_percent), max(utilization_percent), max(memory_used_bytes)"
        count, means = "count(*)", MEANS
    else:  # a minute with more samples weighs more
        extremes = "min(utilization_least), max(utilization_most), max(memory_most_bytes)"
        count = "sum(samples)"
        means = ", ".join(
            f"sum({c} * samples) / sum(CASE WHEN {c} IS NULL THEN NULL ELSE samples END) AS {c}" for c in COLUMNS
        )
    least, most, memory = extremes.split(", ")
    return f"""SELECT CAST((time - ?) / ? AS INTEGER) AS stretch, {count} AS samples, {means},
               {least} AS utilization_least, {most} AS utilization_most, {memory} AS memory_most_bytes
               FROM {table} WHERE device = ? AND time >= ? AND time < ? GROUP BY stretch ORDER BY stretch"""


_HISTORY = {table: _history_sql(table) for table in ("fine", "coarse")}


def _without(row: sqlite3.Row, name: str) -> dict[str, Any]:
    values = {key: row[key] for key in row.keys() if key != name}  # noqa: SIM118  a Row iterates over its values
    for key in ("memory_used_bytes", "memory_most_bytes"):
        values[key] = None if values[key] is None else round(values[key])
    return {k: round(v, 2) if isinstance(v, float) else v for k, v in values.items()}
