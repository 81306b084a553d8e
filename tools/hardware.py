"""Tools about the machine: `gpu_status` and `service_status`."""

from __future__ import annotations

from typing import Any

import anyio.to_thread
from pydantic import Field

from tools.history import EXAMPLES, History, history
from tools.lab import Lab
from tools.tool import Arguments, Caller, Result, Tool
from training.containers import Container, containers
from training.hardware.status import Cpu, Device, HardwareStatus
from training.neighbours import Neighbour, elsewhere, probe
from training.runs.records import LIVE
from workspace.errors import Refused

GIB = 2**30


class GpuStatusArguments(Arguments):
    processes: bool = Field(False, description="also list the processes on each device")
    since: str | None = Field(None, max_length=40, description='also the past since "8h" ago or "2026-11-20T22:00"')
    until: str | None = Field(None, max_length=40, description="its end; default now")


class GpuStatusResult(Result):
    time: str
    backend: str = Field(description="what the lab trains on: hpu, rocm, cuda, mps or cpu")
    backend_reason: str
    summary: str = Field(description="one line for people")
    devices: list[Device] = Field(description="accelerators; empty on a machine that has only a CPU")
    cpu: Cpu
    running: list[str] = Field(description="ids of runs that are running now, with their devices")
    waiting: int = Field(description="runs in the queue")
    notes: list[str] = Field([], description="what could not be read, and why")
    history: History | None = None
    next: str


async def gpu_status(lab: Lab, arguments: GpuStatusArguments, caller: Caller) -> GpuStatusResult:
    status = lab.hardware.latest()
    devices = status.devices
    if not arguments.processes:
        devices = [device.model_copy(update={"processes": None}) for device in devices]
    if devices:
        holders = await anyio.to_thread.run_sync(lab.runs.holders, [device.uuid for device in devices])
        devices = [device.model_copy(update={"lease": holders.get(device.uuid)}) for device in devices]
    live = await anyio.to_thread.run_sync(lambda: lab.runs.list(states=LIVE, limit=50))
    running = [f"{run.id} ({', '.join(run.devices) or 'cpu'})" for run in live if run.state != "queued"]
    past: History | None = None
    if arguments.since is not None:
        since = arguments.since
        past = await anyio.to_thread.run_sync(lambda: history(lab, since, arguments.until))
    elif arguments.until is not None:
        raise Refused("until needs since", valid=EXAMPLES)
    waiting = sum(run.state == "queued" for run in live)
    return GpuStatusResult(
        time=status.time,
        backend=status.backend,
        backend_reason=status.backend_reason,
        summary=summary(status),
        devices=devices,
        cpu=status.cpu,
        running=running,
        waiting=waiting,
        notes=status.notes,
        history=past,
        next="wait_for_run or tail_log with a run id" if running else "start_training",
    )


def summary(status: HardwareStatus) -> str:
    """The machine in one line, for people."""
    parts = []
    for device in status.devices:
        words = [f"{device.id} {device.name}"]
        if device.utilization_percent is not None:
            words.append(f"{device.utilization_percent:.0f}% busy")
        if device.memory_used_bytes is not None and device.memory_total_bytes:
            words.append(f"{device.memory_used_bytes / GIB:.1f} of {device.memory_total_bytes / GIB:.1f} GiB used")
        if device.temperature_c is not None:
            words.append(f"{device.temperature_c:.0f} C")
        if not device.usable:
            words.append(f"not usable: {device.unusable_because}")
        parts.append(", ".join(words))
    if not parts:
        parts.append("no accelerator: training runs on the CPU")
    cpu = status.cpu
    free = cpu.memory_available_bytes / GIB
    parts.append(f"CPU {cpu.model}, {cpu.usable_cores:g} cores, {free:.1f} GiB memory available")
    return "; ".join(parts)


class ServiceStatusArguments(Arguments):
    pass


class ServiceStatusResult(Result):
    version: str
    pid: int
    url: str
    started_at: str
    workspace: str = Field(description="name of the workspace folder")
    queue: dict[str, int] = Field(description="runs by state, ended ones aside")
    to_document: int = Field(description="changes not yet in notebook and index")
    neighbours: list[Neighbour] = Field(description="services that answer here, and those lab.toml names")
    containers: list[Container] = Field([], description="running ones, where a Docker or Podman socket can be read")
    notes: list[str] = Field([], description="what could not be asked, and why")
    leaves_the_premises: list[str] = Field(description="what is switched on that may talk to the outside")


async def service_status(lab: Lab, arguments: ServiceStatusArguments, caller: Caller) -> ServiceStatusResult:
    named = lab.settings.services.urls()
    neighbours = await anyio.to_thread.run_sync(probe, named)
    running, obstacle = await anyio.to_thread.run_sync(containers)
    live = await anyio.to_thread.run_sync(lambda: lab.runs.list(states=LIVE, limit=1000))
    queue: dict[str, int] = {}
    for run in live:
        queue[run.state] = queue.get(run.state, 0) + 1
    network = lab.settings.network
    outside = [f"network.{name}" for name in type(network).model_fields if getattr(network, name)]
    outside += [f"services.{name}" for name in elsewhere(named)]
    proposer = lab.settings.proposer
    outside += [f"proposer.api = {proposer.api}"] if proposer.api != "off" else []
    outside += ["proposer.claude_code"] if proposer.claude_code else []
    search, ask = lab.settings.search, lab.settings.ask
    outside += [f"search.provider = {search.provider}"] if search.provider != "off" else []
    outside += [f"ask.api = {ask.api}"] if ask.api != "off" else []
    return ServiceStatusResult(
        version=lab.service["version"],
        pid=lab.service["pid"],
        url=lab.service["url"],
        started_at=lab.service["started_at"],
        workspace=lab.workspace.root.name,
        queue=queue,
        to_document=await anyio.to_thread.run_sync(lab.outbox.pending),
        neighbours=neighbours,
        containers=running,
        notes=[obstacle] if obstacle else [],
        leaves_the_premises=outside,
    )


TOOLS: list[Tool[Any, Any]] = [
    Tool(
        name="gpu_status",
        title="Hardware status",
        description=(
            "What the machine has and what it is doing: every GPU with utilisation, memory, temperature, power and "
            "clocks, the CPU and its memory, and which runs use them; with `since` also last night. "
            "Use it before starting anything, and when the user asks about the GPU. For one "
            "run's own progress use wait_for_run or list_runs."
        ),
        arguments=GpuStatusArguments,
        result=GpuStatusResult,
        run=gpu_status,
        example={},
        read_only=True,
        meta={"anthropic/alwaysLoad": True},
    ),
    Tool(
        name="service_status",
        title="Services",
        description=(
            "How the lab's own service is, and which neighbours answer on this machine (Qdrant, Ollama, llama.cpp, "
            "vLLM, AnythingLLM, TensorBoard, those of lab.toml, containers), with port, process and latency. Use it "
            "when something does not answer. Not for GPUs (gpu_status) or runs (list_runs)."
        ),
        arguments=ServiceStatusArguments,
        result=ServiceStatusResult,
        run=service_status,
        example={},
        read_only=True,
    ),
]
