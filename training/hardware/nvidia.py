"""NVIDIA devices by NVML (nvidia-ml-py). What a device does not tell stays None, with a note.

Unified memory (GB10 of a DGX Spark, Jetson): NVML answers NOT_SUPPORTED to the memory question, and some drivers answer
with wrong numbers. There the system's memory is the device's: total = MemTotal, free = MemAvailable, used = what the
device's processes hold (as nvtop #411, gpustat #179 and gpud #1170 do it).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pynvml

from training.hardware.people import describe
from training.hardware.status import LOST, Device, DeviceProcess, Reading

RETRY_S = 60.0  # between attempts to start NVML when the driver refuses
INTEGRATED = re.compile(r"\b(GB10|Thor|Orin|Xavier|Tegra)\b")
THROTTLE = {
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal, software",
    0x40: "thermal, hardware",
    0x80: "power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability limit",
}
START_PROBLEMS = {
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "NVIDIA: the driver in the kernel and its library differ in version, so no GPU can be used; "
        "this follows an upgrade of the driver: reboot"
    ),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "NVIDIA: the library is here but the kernel driver is not loaded",
    pynvml.NVML_ERROR_NO_PERMISSION: (
        "NVIDIA: no permission to talk to the driver; this user needs access to /dev/nvidia* (often: group video)"
    ),
}


class _Lost(Exception):
    """The device answered GPU_IS_LOST."""


class NvidiaProbe:
    """Holds NVML open, so that a reading costs only the questions themselves."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._cards: list[tuple[Any, Device]] = []  # NVML handle, what never changes
        self._versions: dict[str, str] = {}
        self._notes: list[str] = []
        self._started = False
        self._tried_at: float | None = None

    def read(self) -> Reading:
        with self._guard:
            if not self._started:
                self._start()
            if not self._started:
                return Reading(notes=self._notes)
            devices = [_live(handle, card) for handle, card in self._cards]
            return Reading(devices=devices, versions=self._versions, notes=self._notes)

    def _start(self) -> None:
        if self._tried_at is not None and time.monotonic() - self._tried_at < RETRY_S:
            return
        self._tried_at = time.monotonic()
        self._notes = []
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:  # that one means: no NVIDIA driver here
                self._notes = [START_PROBLEMS.get(error.value, f"NVIDIA: the driver does not answer ({error})")]
            return
        self._started = True
        self._versions = _versions()
        try:
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            self._notes = [f"NVIDIA: devices cannot be counted ({error})"]
            return
        self._cards = []
        for index in range(count):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                self._cards.append((handle, _identity(handle, index)))
            except pynvml.NVMLError as error:
                lost = error.value == pynvml.NVML_ERROR_GPU_IS_LOST
                self._notes.append(f"NVIDIA: GPU {index} {LOST if lost else f'cannot be opened ({error})'}")

    def close(self) -> None:
        with self._guard:
            if self._started:
                self._started = False
                self._tried_at = None
                self._cards = []
                pynvml.nvmlShutdown()


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    notes: dict[str, list[str]] = {}
    if (driver := _ask(notes, "driver version", pynvml.nvmlSystemGetDriverVersion)) is not None:
        found["nvidia_driver"] = driver
    if (cuda := _ask(notes, "CUDA version", pynvml.nvmlSystemGetCudaDriverVersion_v2)) is not None:
        found["cuda_driver"] = f"{cuda // 1000}.{cuda % 1000 // 10}"
    return found


def _ask(notes: dict[str, list[str]], what: str, question: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None with a note of what is unknown and why. Raises `_Lost`."""
    try:
        return question(*arguments)
    except pynvml.NVMLError as error:
        if error.value == pynvml.NVML_ERROR_GPU_IS_LOST:
            raise _Lost from error
        notes.setdefault(str(error), []).append(what)
        return None


def _as_text(notes: dict[str, list[str]]) -> list[str]:
    return [f"unknown: {', '.join(what)} ({reason})" for reason, what in notes.items()]


def _identity(handle: Any, index: int) -> Device:
    """What never changes. Raises NVMLError when not even name and UUID can be read."""
    notes: dict[str, list[str]] = {}
    try:
        capability = _ask(notes, "compute capability", pynvml.nvmlDeviceGetCudaComputeCapability, handle)
        slowdown = _ask(
            notes,
            "slow-down temperature",
            pynvml.nvmlDeviceGetTemperatureThreshold,
            handle,
            pynvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN,
        )
        clock_max = _ask(notes, "highest clock", pynvml.nvmlDeviceGetMaxClockInfo, handle, pynvml.NVML_CLOCK_SM)
    except _Lost:
        capability = slowdown = clock_max = None
    return Device(
        id=f"cuda:{index}",
        backend="cuda",
        index=index,
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        capability="{}.{}".format(*capability) if capability else None,
        temperature_slowdown_c=slowdown or None,  # a device without one answers 0
        clock_max_mhz=clock_max,
        notes=_as_text(notes),
    )


def _live(handle: Any, card: Device) -> Device:
    notes: dict[str, list[str]] = {}
    try:
        processes = _processes(notes, handle)
        values: dict[str, Any] = {"processes": processes, **_memory(notes, handle, card.name, processes)}
        rates = _ask(notes, "utilisation", pynvml.nvmlDeviceGetUtilizationRates, handle)
        power = _ask(notes, "power", pynvml.nvmlDeviceGetPowerUsage, handle)
        limit = _ask(notes, "power limit", pynvml.nvmlDeviceGetEnforcedPowerLimit, handle)
        values |= {
            "utilization_percent": None if rates is None else float(rates.gpu),
            "power_w": None if power is None else power / 1000,
            "power_limit_w": None if limit is None else limit / 1000,
            "temperature_c": _ask(
                notes, "temperature", pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU
            ),
            "clock_mhz": _ask(notes, "clock", pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_SM),
            "memory_clock_mhz": _ask(
                notes, "memory clock", pynvml.nvmlDeviceGetClockInfo, handle, pynvml.NVML_CLOCK_MEM
            ),
            "throttle_reasons": _throttle(notes, handle),
        }
    except _Lost:
        return card.model_copy(update={"usable": False, "unusable_because": LOST, "notes": [LOST]})
    remarks: list[str] = values.pop("notes", [])
    return card.model_copy(update={**values, "notes": card.notes + _as_text(notes) + remarks})


def _memory(
    notes: dict[str, list[str]], handle: Any, name: str, processes: list[DeviceProcess] | None
) -> dict[str, Any]:
    unified = INTEGRATED.search(name) is not None
    if not unified:
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            return {
                "memory_total_bytes": memory.total,
                "memory_used_bytes": memory.used,
                "memory_free_bytes": memory.free,
            }
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_GPU_IS_LOST:
                raise _Lost from error
            if error.value != pynvml.NVML_ERROR_NOT_SUPPORTED or _partitioned(handle):
                notes.setdefault(str(error), []).append("memory")
                return {}
    system = psutil.virtual_memory()
    held = None if processes is None else [p.memory_bytes for p in processes]
    remarks = []
    if held is not None and None in held:
        remarks.append("memory used counts only the processes whose share the driver tells")
    return {
        "unified": True,
        "memory_total_bytes": system.total,
        "memory_free_bytes": system.available,
        "memory_used_bytes": None if held is None else sum(m for m in held if m is not None),
        "notes": remarks,
    }


def _partitioned(handle: Any) -> bool:
    """Is the device split by MIG? Then NOT_SUPPORTED does not mean unified memory."""
    try:
        return bool(pynvml.nvmlDeviceGetMigMode(handle)[0] == pynvml.NVML_DEVICE_MIG_ENABLE)
    except pynvml.NVMLError:
        return False


def _processes(notes: dict[str, list[str]], handle: Any) -> list[DeviceProcess] | None:
    found: dict[int, DeviceProcess] = {}
    computing = _ask(notes, "processes", _with_fallback, "Compute", handle)
    drawing = _ask(notes, "graphics processes", _with_fallback, "Graphics", handle)
    if computing is None:
        return None
    for process in drawing or []:
        found[process.pid] = describe(process.pid, process.usedGpuMemory, graphics=True)
    for process in computing:
        found[process.pid] = describe(process.pid, process.usedGpuMemory)
    return sorted(found.values(), key=lambda p: -(p.memory_bytes or 0))


def _with_fallback(kind: str, handle: Any) -> list[Any]:
    """Drivers before 510 know only the second version of the question."""
    try:
        answer: list[Any] = getattr(pynvml, f"nvmlDeviceGet{kind}RunningProcesses_v3")(handle)
    except pynvml.NVMLError_FunctionNotFound:
        answer = getattr(pynvml, f"nvmlDeviceGet{kind}RunningProcesses_v2")(handle)
    return answer


def _throttle(notes: dict[str, list[str]], handle: Any) -> list[str] | None:
    bits = _ask(notes, "throttle reasons", pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
    return None if bits is None else [text for bit, text in THROTTLE.items() if bits & bit]
