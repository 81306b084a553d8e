"""Which devices a run may use: what it needs, what the machine has, what is possible at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from training.hardware.status import NOT_OURS
from training.runs.records import RunRequest
from workspace.errors import Refused, closest

GB = 10**9
FOREIGN_BYTES = 256 * 2**20  # a process that holds less of a device does not compute on it in earnest


class Process(Protocol):
    """The part of a device's process that placing a run needs."""

    @property
    def pid(self) -> int: ...
    @property
    def name(self) -> str | None: ...
    @property
    def user(self) -> str | None: ...
    @property
    def memory_bytes(self) -> int | None: ...
    @property
    def graphics(self) -> bool: ...
    @property
    def owner(self) -> str: ...


class Device(Protocol):
    """The part of `training.hardware`'s Device that placing a run needs."""

    @property
    def id(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def index(self) -> int: ...
    @property
    def uuid(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def memory_total_bytes(self) -> int | None: ...
    @property
    def memory_free_bytes(self) -> int | None: ...
    @property
    def processes(self) -> Sequence[Process] | None: ...
    @property
    def trains(self) -> bool: ...


Devices = Callable[[], Sequence[Device]]


@dataclass(frozen=True)
class Need:
    """What a run needs: `count` accelerators, 0 = a CPU slot; bytes of memory each; part of their name."""

    count: int
    memory_bytes: int = 0  # asked for
    name: str = ""
    predicted_bytes: int = 0  # of our own model; what counts where runs share a device and nothing was asked for
    recipe: bool = False  # only devices our own trainer can use

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def need_of(request: RunRequest, devices: Sequence[Device]) -> Need:
    """What `request` asks for, checked against what is there. Raises `Refused` with what there is."""
    wish = (request.prefer_resource or "").strip()
    count = request.gpu_count
    memory = request.gpu_memory_min_gb
    if count is not None and count < 0:
        raise Refused(f"gpu_count = {count} is not possible", valid="0 (CPU) or more")
    if memory is not None and not (math.isfinite(memory) and memory > 0):
        raise Refused(f"gpu_memory_min_gb = {memory} is not possible", valid="a number above 0")
    if wish.lower() == "cpu" or count == 0:
        if count or memory or wish.lower() not in ("", "cpu"):
            raise Refused(
                "a run on the CPU has no GPUs, and no GPU memory",
                valid='prefer_resource="cpu" alone, or GPU wishes without it',
            )
        return Need(0)
    if count is None:
        count = 1 if memory or wish or any(request.kind == "script" or d.trains for d in devices) else 0
    if count == 0:
        return Need(0)
    need = Need(count, int((memory or 0) * GB), "" if wish.lower() == "gpu" else wish, recipe=request.kind == "recipe")
    if len(fitting(need, devices)) < count:
        raise _impossible(need, devices)
    return need


def fitting(need: Need, devices: Sequence[Device]) -> list[Device]:
    """The devices that could serve `need`, whoever uses them now. Memory nobody can tell is taken to be enough."""
    return [
        d
        for d in devices
        if need.name.lower() in d.name.lower()
        and (d.trains or not need.recipe)
        and (d.memory_total_bytes is None or d.memory_total_bytes >= need.memory_bytes)
    ]


def room(need: Need, devices: Sequence[Device], *, with_others: bool = False) -> tuple[list[Device], dict[str, str]]:
    """`fitting` devices a run could start on now, those with the most free memory first; why not on the others, by id.

    Left out: devices without the needed memory free, and (unless `with_others`) those somebody else computes on.
    """
    found: list[Device] = []
    without: dict[str, str] = {}
    for device in fitting(need, devices):
        free = device.memory_free_bytes
        others = [] if with_others else foreign(device)
        if others:
            without[device.id] = f"{device.id} is in use by {'; '.join(map(_named, others[:2]))}, not the lab's"
        elif free is not None and free < need.memory_bytes:
            asked = f"{need.memory_bytes / GB:g} GB asked for"
            without[device.id] = f"{device.id} has {free / GB:.1f} GB free of the {asked}"
        else:
            found.append(device)
    return sorted(found, key=lambda d: (-((d.memory_free_bytes or 0) // GB), d.index)), without


def foreign(device: Device) -> list[Process]:
    """Processes that compute on the device and do not belong to the lab."""
    return [
        p
        for p in device.processes or ()
        if p.owner == NOT_OURS and not p.graphics and (p.memory_bytes is None or p.memory_bytes >= FOREIGN_BYTES)
    ]


def fits_beside(need: Need, device: Device, others: Sequence[Need], places: int) -> bool:
    """Whether a run fits on a device beside `others` that run there; what they were promised counts, used or not.

    A run that neither asked for memory nor can be predicted gets one of `places` equal parts. A run alone on a device
    is not held to a prediction: it may be wrong, and waiting would not help.
    """
    total, free = device.memory_total_bytes, device.memory_free_bytes
    if total is None or not others:
        return True
    share = total // places
    wanted = share_of(need, share)
    promised = sum(share_of(other, share) for other in others)
    return promised + wanted <= total and (free is None or wanted <= free)


def share_of(need: Need, share: int) -> int:
    return need.memory_bytes or need.predicted_bytes or share


def _named(process: Process) -> str:
    held = "" if process.memory_bytes is None else f", {process.memory_bytes / GB:.1f} GB"
    user = "" if process.user is None else f" of {process.user}"
    return f"{process.name or 'a process'}{user} (pid {process.pid}{held})"


def describe(devices: Sequence[Device]) -> str:
    """`cuda:0 NVIDIA H200 (141 GB), ...`."""
    parts = []
    for device in devices:
        total = device.memory_total_bytes
        parts.append(f"{device.id} {device.name}" + (f" ({total / GB:.0f} GB)" if total else ""))
    return ", ".join(parts) if parts else "no accelerator, only the CPU"


def environment(need: Need, chosen: Sequence[Device]) -> dict[str, str]:
    """Variables that show a job exactly its devices."""
    if need.count == 0:
        return {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "LAB_BACKEND": "cpu"}
    backend = chosen[0].backend
    indices = ",".join(str(d.index) for d in chosen)
    visible = {"LAB_BACKEND": backend}
    if backend == "cuda":
        by_uuid = all(d.uuid.startswith(("GPU-", "MIG-")) for d in chosen)
        visible["CUDA_VISIBLE_DEVICES"] = ",".join(d.uuid for d in chosen) if by_uuid else indices
        visible["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    elif backend == "rocm":
        visible["HIP_VISIBLE_DEVICES"] = indices
    elif backend == "hpu":
        visible["HABANA_VISIBLE_DEVICES"] = visible["HABANA_VISIBLE_MODULES"] = indices
    return visible


def _impossible(need: Need, devices: Sequence[Device]) -> Refused:
    wanted = f"{need.count} accelerator{'s' if need.count > 1 else ''}"
    if need.memory_bytes:
        wanted += f" with at least {need.memory_bytes / GB:g} GB"
    if need.name:
        wanted += f" named like {need.name!r}"
        near = closest(need.name, [d.name for d in devices])
        if near:
            wanted += f" (closest: {', '.join(near)})"
    return Refused(
        f"this machine cannot give {wanted}",
        valid=f"what there is: {describe(devices)}",
        fix='ask for less, or prefer_resource="cpu"',
    )
