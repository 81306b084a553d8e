"""What `doctor` asks of the machine: Python, packages, GPU and torch, the compiler, limits, git."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import psutil

from lab_mcp.finding import GIB, Finding, error, note, ok, warn
from training.hardware import devices, torch_build
from training.hardware.compiler import compile_obstacle
from training.hardware.status import HardwareStatus
from training.hardware.torch_build import TorchBuild
from workspace import interpreter
from workspace.errors import LabError
from workspace.settings import Settings

TESTED_PYTHONS = {(3, 11)}
PACKAGES = ("lab-mcp", "mcp", "torch", "qdrant-edge-py", "qdrant-client", "sentence-transformers", "nvidia-ml-py")
SMALLEST_SHM = GIB
FEWEST_FILES = 1024
OLDEST_GIT = (2, 28)


def python(settings: Settings) -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info[:2] in TESTED_PYTHONS:
        yield ok(f"Python {version}")
    else:
        tested = ", ".join(f"{a}.{b}" for a, b in sorted(TESTED_PYTHONS))
        yield note(f"Python {version} is declared to work but was not tested", f"tested: {tested}")


def packages(settings: Settings) -> Iterator[Finding]:
    versions = {name: _version(name) for name in PACKAGES}
    yield ok("versions: " + ", ".join(f"{name} {v}" for name, v in versions.items() if v))
    missing = [name for name in ("mcp", "torch", "nvidia-ml-py") if versions[name] is None]
    if missing:
        yield error(f"not installed: {', '.join(missing)}", "the lab needs them", "install lab-mcp again")
    if interpreter.is_shadowed():
        yield error(
            "other packages named tools, training, workspace, ... come before the lab's own",
            "the lab's processes would import somebody else's code",
            "install lab-mcp into an environment of its own",
        )
    if _version("pynvml"):
        yield note(
            "the package named pynvml is installed beside nvidia-ml-py",
            "it makes every use of NVML print a warning, in your scripts too",
            "pip uninstall pynvml",
        )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def hardware(settings: Settings) -> Iterator[Finding]:
    try:
        status = devices.snapshot(settings.hardware)
    except LabError as refusal:
        yield error(refusal.problem, "the service cannot say what to train on", refusal.fix or "correct the setting")
        return
    yield from judge_hardware(status, torch_build.installed())
    obstacle = compile_obstacle(status.backend)
    if obstacle is None:
        yield ok(f"torch.compile can be used on {status.backend}")
    else:
        yield warn(
            f"torch.compile cannot be used: {obstacle}",
            "training runs without it, slower; each run records this",
            "install what is missing, or leave it",
        )


def judge_hardware(status: HardwareStatus, build: TorchBuild) -> Iterator[Finding]:
    """What the devices, their drivers and the installed torch say together."""
    used = status.usable_devices()
    names = ", ".join(f"{d.id} {d.name}" for d in used) or status.cpu.model
    yield ok(f"training runs on {status.backend}: {names} ({status.backend_reason})")
    for text in status.notes:
        if "`lab-mcp doctor` says" not in text:  # said better below
            yield note(text)
    for device in status.devices:
        if not device.usable:
            yield warn(f"{device.id} {device.name} cannot be used", device.unusable_because or "", "see the reason")
    for kind, toolkit in (("cuda", "CUDA"), ("rocm", "ROCm")):
        if any(d.backend == kind and d.usable for d in status.devices) and not build.drives(kind):  # type: ignore[arg-type]
            yield error(
                f"there is a {toolkit} GPU, but {build.text}",
                "training would run on the CPU, some hundred times slower",
                f"install a torch built for {toolkit}; pytorch.org/get-started has the command",
            )
    yield from _driver(status, build)


def _driver(status: HardwareStatus, build: TorchBuild) -> Iterator[Finding]:
    offered = status.versions.get("cuda_driver")
    if offered is None or build.cuda is None:
        return
    has, needs = _numbers(offered), _numbers(build.cuda)
    driver = status.versions.get("nvidia_driver", "unknown")
    if has[:1] < needs[:1]:
        yield error(
            f"the NVIDIA driver {driver} is too old for this torch",
            f"it offers CUDA {offered}, torch was built with CUDA {build.cuda}; torch will not see the GPU",
            f"upgrade the driver, or install a torch built for CUDA {has[0]}",
        )
    elif has < needs:
        yield note(
            f"the NVIDIA driver {driver} offers CUDA {offered}, torch was built with {build.cuda}",
            "this works within one major version; some just-in-time kernels may not",
            "upgrade the driver when it is convenient",
        )
    else:
        yield ok(f"NVIDIA driver {driver} (CUDA {offered}) is new enough for CUDA {build.cuda}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def limits(settings: Settings) -> Iterator[Finding]:
    shm = Path("/dev/shm")
    if shm.is_dir():
        total = psutil.disk_usage(str(shm)).total
        if total < SMALLEST_SHM:
            yield warn(
                f"/dev/shm has only {total / 2**20:.0f} MiB",
                "data loaders with several workers die there with a bus error",
                "start the container with --shm-size=8g or --ipc=host",
            )
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < FEWEST_FILES:
        yield warn(
            f"only {soft} files may be open at once",
            "the index and many clients need more",
            f"ulimit -n {min(hard, 65536)}",
        )
    memory = psutil.virtual_memory()
    if memory.available < GIB:
        yield warn(
            f"only {memory.available / GIB:.1f} GiB of memory are available",
            "a training run may be ended by the kernel",
            "end other programs, or use a smaller model",
        )


def git(settings: Settings) -> Iterator[Finding]:
    program = shutil.which("git")
    if program is None:
        yield error("git is not installed", "the lab keeps recipes and experiments in git", "install git")
        return
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    version = answer.stdout.strip().removeprefix("git version ")
    if _numbers(version)[:2] < OLDEST_GIT:
        yield warn(
            f"git {version} is old", "a new repository's branch cannot be named by it", "install git 2.28 or newer"
        )
    else:
        yield ok(f"git {version}")


def outside_trackers(settings: Settings) -> Iterator[Finding]:
    """The lab itself sends nothing; a script of the user's may."""
    if _version("wandb") and os.environ.get("WANDB_MODE") not in ("offline", "disabled"):
        yield note(
            "wandb is installed and not set to offline",
            "the lab does not use it by itself, but a script of yours that does sends its figures out",
            "export WANDB_MODE=offline to keep them here",
        )


CHECKS: list[Callable[[Settings], Iterator[Finding]]] = [python, packages, hardware, limits, git, outside_trackers]
