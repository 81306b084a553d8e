"""Which devices a run may use: what it needs, what the machine has, what is possible at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from training.runs.records import RunRequest
from workspace.errors import Refused, closest

GB = 10**9


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


Devices = Callable[[], Sequence[Device]]


@dataclass(frozen=True)
class Need:
    """What a run needs: `count` accelerators, 0 = a CPU slot; bytes of memory each; part of their name."""

    count: int
    memory_bytes: int = 0
    name: str = ""

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
        count = 1 if devices or memory or wish else 0
    if count == 0:
        return Need(0)
    need = Need(count, int((memory or 0) * GB), "" if wish.lower() == "gpu" else wish)
    if request.kind == "recipe" and count > 1:
        raise Refused(
            f"gpu_count = {count}: the built-in trainer uses one accelerator",
            valid="gpu_count = 1",
            fix="drop gpu_count",
        )
    if len(fitting(need, devices)) < count:
        raise _impossible(need, devices)
    return need


def fitting(need: Need, devices: Sequence[Device]) -> list[Device]:
    """The devices that could serve `need`, whoever uses them now. Memory nobody can tell is taken to be enough."""
    return [
        d
        for d in devices
        if need.name.lower() in d.name.lower()
        and (d.memory_total_bytes is None or d.memory_total_bytes >= need.memory_bytes)
    ]


def by_room(need: Need, devices: Sequence[Device]) -> list[Device]:
    """`fitting` devices with the needed memory free now, those with the most free first."""
    free = {d.uuid: d.memory_free_bytes for d in devices}
    room = [d for d in fitting(need, devices) if (free[d.uuid] or need.memory_bytes) >= need.memory_bytes]
    return sorted(room, key=lambda d: (-((free[d.uuid] or 0) // GB), d.index))


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
