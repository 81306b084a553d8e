"""The machine's hardware, whoever made it: `detect()` once, `snapshot()` for the present moment."""

from __future__ import annotations

import os
import threading
from functools import cache
from pathlib import Path
from typing import Protocol

from training.hardware import torch_build
from training.hardware.amd import AmdProbe
from training.hardware.apple import AppleProbe
from training.hardware.cpu import CpuProbe
from training.hardware.gaudi import GaudiProbe
from training.hardware.nvidia import NvidiaProbe
from training.hardware.status import ORDER, BackendName, Cpu, Device, HardwareStatus, Reading
from training.hardware.torch_build import TorchBuild
from workspace import clock
from workspace.errors import Refused
from workspace.settings import HardwareSettings, load

__all__ = ["Cpu", "Device", "HardwareStatus", "Machine", "detect", "snapshot"]

VISIBILITY = {
    "cuda": ("CUDA_VISIBLE_DEVICES",),
    "rocm": ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    "hpu": ("HABANA_VISIBLE_DEVICES",),
}


class Probe(Protocol):
    """One vendor's devices. `read` never raises: what went wrong is a note."""

    def read(self) -> Reading: ...

    def close(self) -> None: ...


class Machine:
    """Every probe of this machine, kept open between readings. Thread-safe."""

    def __init__(self, build: TorchBuild | None = None) -> None:
        self.probes: list[Probe] = [GaudiProbe(), AmdProbe(), NvidiaProbe(), AppleProbe()]
        self.cpu = CpuProbe()
        self.build = build or torch_build.installed()
        self._guard = threading.Lock()

    def snapshot(self, settings: HardwareSettings) -> HardwareStatus:
        """Read everything now. Raises `Refused` when the backend asked for is not to be had."""
        with self._guard:
            readings = [probe.read() for probe in self.probes]
            cpu = self.cpu.read()
        devices = [_permit(device, settings) for reading in readings for device in reading.devices]
        notes = [note for reading in readings for note in reading.notes] + _order_notes(devices)
        versions = {name: text for reading in readings for name, text in reading.versions.items()}
        if self.build.version:
            versions["torch"] = self.build.version
        backend, reason = choose(settings.backend, devices, self.build, notes)
        devices = [d.model_copy(update={"trains": d.usable and d.backend == backend}) for d in devices]
        return HardwareStatus(
            time=clock.now(),
            backend=backend,
            backend_reason=reason,
            devices=devices,
            cpu=cpu,
            versions=versions,
            notes=notes,
        )

    def close(self) -> None:
        with self._guard:
            for probe in self.probes:
                probe.close()


@cache
def machine() -> Machine:
    """This process's one `Machine`."""
    return Machine()


def snapshot(settings: HardwareSettings | None = None) -> HardwareStatus:
    """The hardware at this moment. Without settings, `LAB_BACKEND` and the other variables alone decide."""
    return machine().snapshot(settings or load(Path(os.devnull)).hardware)


_detected: dict[str, HardwareStatus] = {}


def detect(settings: HardwareSettings | None = None) -> HardwareStatus:
    """What the machine has: the first snapshot of this process (its live values are as old as that)."""
    settings = settings or load(Path(os.devnull)).hardware
    key = settings.model_dump_json()
    if key not in _detected:
        _detected[key] = snapshot(settings)
    return _detected[key]


def choose(wanted: str, devices: list[Device], build: TorchBuild, notes: list[str]) -> tuple[BackendName, str]:
    """The backend of the lab's own trainer, and why. Raises `Refused` when `wanted` is not to be had."""
    there = [name for name in ORDER if any(d.backend == name and d.usable for d in devices)]
    if wanted != "auto":
        if wanted == "cpu":
            return "cpu", "asked for by the setting hardware.backend"
        if wanted in there and build.drives(wanted):
            return wanted, "asked for by the setting hardware.backend"
        missing = (
            f"{build.text} cannot use it" if wanted in there else "there is no device of this kind that may be used"
        )
        found = [f"{d.name} ({d.id}{'' if d.usable else ', ' + (d.unusable_because or 'not usable')})" for d in devices]
        raise Refused(
            f"hardware.backend = {wanted!r} is not to be had: {missing}. Found: "
            + ("; ".join([*found, build.text, *notes]) or "no accelerator"),
            valid="auto, cpu" + "".join(f", {name}" for name in there if build.drives(name)),
            fix="correct hardware.backend in lab.toml (or LAB_BACKEND); `lab-mcp doctor` says what is wrong",
        )
    for name in there:
        if build.drives(name):
            return name, f"the first usable of {', '.join(ORDER)}"
        notes.append(f"a {name} device is here, but {build.text} cannot use it; `lab-mcp doctor` says what to install")
    return "cpu", "no accelerator that can be used" if not there else f"{build.text} can use no accelerator found here"


def _permit(device: Device, settings: HardwareSettings) -> Device:
    """The device, marked as not to be used when a setting or the environment says so."""
    if not device.usable:
        return device
    for entry in map(str, settings.exclude_devices):
        if entry in (str(device.index), device.id) or (len(entry) > 4 and device.uuid.startswith(entry)):
            return device.model_copy(
                update={"usable": False, "unusable_because": "excluded by the setting hardware.exclude_devices"}
            )
    for variable in VISIBILITY.get(device.backend, ()):
        text = os.environ.get(variable)
        if text is None or text.strip() in ("all",):
            continue
        visible = [part.strip() for part in text.split(",")]
        if not any(part == str(device.index) or (len(part) > 4 and device.uuid.startswith(part)) for part in visible):
            return device.model_copy(update={"usable": False, "unusable_because": f"hidden by {variable}={text}"})
    return device


def _order_notes(devices: list[Device]) -> list[str]:
    """CUDA numbers unlike cards by speed, NVML by slot: with mixed cards an index in CUDA_VISIBLE_DEVICES misleads."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    mixed = len({d.name for d in devices if d.backend == "cuda"}) > 1
    by_number = any(c.isdigit() for c in text) and "GPU-" not in text
    if not (mixed and by_number) or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return []
    return [
        "CUDA_VISIBLE_DEVICES names unlike cards by number; CUDA may number them differently than shown here "
        "(set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name UUIDs)"
    ]
