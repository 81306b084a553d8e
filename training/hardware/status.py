"""What a machine has and what it is doing, as data.

A value that could not be read is None, never 0, and a note says why.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

BackendName = Literal["hpu", "rocm", "cuda", "mps", "cpu"]
ORDER: tuple[BackendName, ...] = ("hpu", "rocm", "cuda", "mps", "cpu")
NOT_OURS = "not ours"
LOST = "fell off the bus: the driver lost it (see `dmesg` for its Xid error); it comes back after a reset or reboot"


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DeviceProcess(Part):
    """A process that holds memory of a device."""

    pid: int
    name: str | None = Field(None, description="None when it runs in another pid namespace or has just ended")
    user: str | None = None
    memory_bytes: int | None = Field(None, description="device memory it holds; None when the driver does not tell")
    graphics: bool = Field(False, description="it draws rather than computes")
    owner: str = Field(
        NOT_OURS, description="the run it belongs to, as `run-0007 of workspace NAME`; lab = the lab's own; or not ours"
    )


class Device(Part):
    """One accelerator."""

    id: str = Field(description="name within this machine, e.g. cuda:0")
    backend: BackendName
    index: int = Field(description="number as the vendor's tool shows it")
    uuid: str = Field(description="the same across reboots; device leases go by it")
    name: str
    usable: bool = Field(True, description="may the lab run something on it?")
    unusable_because: str | None = None
    trains: bool = Field(True, description="can the lab's own trainer use it? Scripts may, with another torch")
    lease: str | None = Field(None, description="the run that holds it, of whichever workspace of this machine")
    capability: str | None = Field(None, description="CUDA compute capability (9.0) or gfx name")
    utilization_percent: float | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = Field(None, description="on unified memory: what device processes hold")
    memory_free_bytes: int | None = Field(None, description="on unified memory: what the system can still give")
    unified: bool = Field(False, description="the device shares the system's memory")
    temperature_c: float | None = None
    temperature_slowdown_c: float | None = Field(None, description="the device slows itself down from here")
    power_w: float | None = None
    power_limit_w: float | None = None
    clock_mhz: int | None = None
    clock_max_mhz: int | None = None
    memory_clock_mhz: int | None = None
    throttle_reasons: list[str] | None = Field(None, description="why its clock is held down now; [] = it is not")
    processes: list[DeviceProcess] | None = Field(None, description="[] = none; None = not allowed to look")
    notes: list[str] = Field([], description="what could not be read, and why")


class Cpu(Part):
    """The processor and main memory, with the limits of the container we may be in."""

    model: str
    architecture: str
    physical_cores: int | None
    logical_cores: int
    usable_cores: float = Field(description="after affinity and a container's quota, e.g. 1.5")
    utilization_percent: float | None = Field(None, description="of all logical cores since the previous reading")
    load_1m: float | None = Field(None, description="processes running or waiting to run, mean of the last minute")
    memory_total_bytes: int
    memory_available_bytes: int = Field(description="what can be had without swapping, within a container's limit")
    memory_used_bytes: int
    memory_limit_bytes: int | None = Field(None, description="a container's limit; None = none")
    swap_used_bytes: int | None = None


class HardwareStatus(Part):
    """One reading of the whole machine."""

    time: str
    backend: BackendName = Field(description="what the lab's own trainer runs on")
    backend_reason: str
    devices: list[Device] = Field(description="accelerators, of every vendor; a CPU is not among them")
    cpu: Cpu
    versions: dict[str, str] = Field({}, description="drivers and torch, by name")
    notes: list[str] = []

    def usable_devices(self) -> list[Device]:
        """The devices of the chosen backend that the lab may run on."""
        return [d for d in self.devices if d.usable and d.backend == self.backend]


class Reading(Part):
    """What one vendor's probe found."""

    devices: list[Device] = []
    versions: dict[str, str] = {}
    notes: list[str] = []
