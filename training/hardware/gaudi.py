"""Intel Gaudi by `hl-smi` (CSV). Clocks, throttle reasons and other users' processes are not to be had without root."""

from __future__ import annotations

import csv
import io
import threading
import time

from training.hardware.command import ToolFailed, ask, number, whole
from training.hardware.status import Device, Reading

FIELDS = (
    "index", "uuid", "name", "driver_version", "memory.total", "memory.used",
    "utilization.aip", "temperature.aip", "power.draw",
)  # fmt: skip
MINIMUM_INTERVAL_S = 10.0  # the tool costs a process start per reading
UNKNOWN = ["unknown: clocks, throttle reasons, power limit, processes (hl-smi does not tell these without root)"]


class GaudiProbe:
    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._last = Reading()
        self._read_at: float | None = None

    def read(self) -> Reading:
        with self._guard:
            if self._read_at is None or time.monotonic() - self._read_at >= MINIMUM_INTERVAL_S:
                self._last = _ask()
                self._read_at = time.monotonic()
            return self._last

    def close(self) -> None:
        self._read_at = None


def _ask() -> Reading:
    try:
        text = ask("hl-smi", "-Q", ",".join(FIELDS), "-f", "csv")
    except ToolFailed as failure:
        return Reading(notes=[f"Gaudi: {failure}"])
    if text is None:
        return Reading()
    return parse(text)


def parse(text: str) -> Reading:
    """The devices in `hl-smi -Q ... -f csv`: a header, then a line per device."""
    rows = [row for row in csv.reader(io.StringIO(text), skipinitialspace=True) if row]
    if not rows or "index" not in rows[0][0]:
        return Reading(notes=["Gaudi: the answer of hl-smi is not the table it was asked for"])
    header = [cell.split(" ")[0] for cell in rows[0]]
    devices: list[Device] = []
    versions: dict[str, str] = {}
    notes: list[str] = []
    for row in rows[1:]:
        values = dict(zip(header, (cell.strip() for cell in row), strict=False))
        index = whole(values.get("index"))
        if index is None or not values.get("uuid"):
            notes.append("Gaudi: hl-smi printed a line without index or uuid; that device is left out")
            continue
        versions["gaudi_driver"] = values.get("driver_version", "unknown")
        total, used = _mebibytes(values.get("memory.total")), _mebibytes(values.get("memory.used"))
        devices.append(
            Device(
                id=f"hpu:{index}",
                backend="hpu",
                index=index,
                uuid=values["uuid"],
                name=values.get("name", "Gaudi"),
                utilization_percent=number(values.get("utilization.aip")),
                memory_total_bytes=total,
                memory_used_bytes=used,
                memory_free_bytes=None if total is None or used is None else total - used,
                temperature_c=number(values.get("temperature.aip")),
                power_w=number(values.get("power.draw")),
                notes=UNKNOWN,
            )
        )
    return Reading(devices=devices, versions=versions, notes=notes)


def _mebibytes(text: str | None) -> int | None:
    value = number(text)
    return None if value is None else round(value * 2**20)
