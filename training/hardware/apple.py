"""Apple silicon by what needs no root: `sysctl`, `system_profiler` (what it is) and `ioreg` (what it is doing)."""

from __future__ import annotations

import json
import platform
import re
import threading
import time

import psutil

from training.hardware.command import ToolFailed, ask
from training.hardware.status import Device, Reading

MINIMUM_INTERVAL_S = 10.0
UNKNOWN = "unknown: temperature, power, clocks, processes (macOS tells these to root only)"


class AppleProbe:
    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._card: Device | None = None
        self._last: Reading | None = None
        self._read_at = 0.0

    def read(self) -> Reading:
        if platform.system() != "Darwin" or platform.machine() != "arm64":
            return Reading()
        with self._guard:
            if self._last is None or time.monotonic() - self._read_at >= MINIMUM_INTERVAL_S:
                self._last = self._ask()
                self._read_at = time.monotonic()
            return self._last

    def close(self) -> None:
        self._last = None

    def _ask(self) -> Reading:
        try:
            if self._card is None:
                self._card = identity(ask("system_profiler", "SPDisplaysDataType", "-json") or "", _machine_uuid())
            text = ask("ioreg", "-r", "-d", "1", "-w", "0", "-c", "IOAccelerator") or ""
        except (ToolFailed, ValueError) as failure:
            return Reading(devices=[self._card] if self._card else [], notes=[f"Apple: {failure}"])
        return Reading(devices=[live(self._card, text)], versions={"macos": platform.mac_ver()[0]})


def _machine_uuid() -> str:
    text = ask("sysctl", "-n", "kern.uuid") or ""
    return text.strip() or platform.node()


def identity(profile: str, machine_uuid: str) -> Device:
    """The GPU in the JSON of `system_profiler SPDisplaysDataType -json`. Raises ValueError when there is none."""
    try:
        entries = json.loads(profile).get("SPDisplaysDataType", [])
    except ValueError as error:
        raise ValueError("the answer of system_profiler is not JSON") from error
    for entry in entries:
        name = entry.get("sppci_model") or entry.get("_name")
        if name and "Apple" in name:
            cores = entry.get("sppci_cores")
            return Device(
                id="mps:0",
                backend="mps",
                index=0,
                uuid=f"apple-{machine_uuid}",
                name=f"{name} ({cores} GPU cores)" if cores else name,
                unified=True,
                notes=[UNKNOWN],
            )
    raise ValueError("system_profiler names no Apple GPU")


def live(card: Device, registry: str) -> Device:
    """Utilisation and memory from the accelerator's `PerformanceStatistics`; absent keys stay None."""

    def value(key: str) -> int | None:
        found = re.search(rf'"{re.escape(key)}"\s*=\s*(\d+)', registry)
        return int(found.group(1)) if found else None

    memory = psutil.virtual_memory()
    busy = value("Device Utilization %")
    return card.model_copy(
        update={
            "utilization_percent": None if busy is None or busy > 100 else float(busy),
            "memory_total_bytes": memory.total,
            "memory_free_bytes": memory.available,
            "memory_used_bytes": value("In use system memory"),
        }
    )
