"""The processor, main memory and the limits of a container (cgroup v1 and v2), by psutil and /proc."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
import threading
import time
from functools import cache
from pathlib import Path

import psutil

from training.hardware.status import Cpu

MIN_INTERVAL_S = 0.2  # a shorter one says more about the reader than about the machine


class CpuProbe:
    """Reads the CPU; utilisation is measured between two readings, so the first has none."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._guard = threading.Lock()
        self._before: tuple[float, float, float] | None = None  # monotonic s, busy s, total s
        self._utilization: float | None = None

    def read(self) -> Cpu:
        memory = psutil.virtual_memory()
        cores, limit, used = container_limits(self._root)
        total = memory.total
        available = memory.available
        if limit is not None and limit < total:
            available = min(available, max(0, limit - (used or 0)))
        else:
            limit = None
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        return Cpu(
            model=model_name(),
            architecture=platform.machine(),
            physical_cores=_physical_cores(),
            logical_cores=os.cpu_count() or 1,
            usable_cores=_usable(cores),
            utilization_percent=self._busy(),
            load_1m=None if load is None else round(load, 2),
            memory_total_bytes=total,
            memory_available_bytes=available,
            memory_used_bytes=total - memory.available,
            memory_limit_bytes=limit,
            swap_used_bytes=_swap_used(),
        )

    def _busy(self) -> float | None:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # guest time is already counted in user time
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        moment = time.monotonic()
        with self._guard:
            if self._before is None:
                self._before = (moment, total - idle, total)
            elif moment - self._before[0] >= MIN_INTERVAL_S and total > self._before[2]:
                share = (total - idle - self._before[1]) / (total - self._before[2])
                self._utilization = round(100 * min(1.0, max(0.0, share)), 1)
                self._before = (moment, total - idle, total)
            return self._utilization


@cache
def _physical_cores() -> int | None:
    count: int | None = psutil.cpu_count(logical=False)
    return count


def _swap_used() -> int | None:
    try:
        return int(psutil.swap_memory().used)
    except (OSError, RuntimeError):  # no /proc/vmstat in some sandboxes
        return None


@cache
def model_name() -> str:
    """`Intel(R) Xeon(R) ...`, `Apple M4 Max`, ...; the architecture where the system has no name for it."""
    with contextlib.suppress(OSError):
        found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return found.group(1).strip()
    with contextlib.suppress(OSError):
        return Path("/proc/device-tree/model").read_text().strip("\0\n ")
    if platform.system() == "Darwin":
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            answer = subprocess.run(
                ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, timeout=5, check=True
            )
            return answer.stdout.strip()
    return platform.processor() or platform.machine()


def usable_cores() -> float:
    """Cores this process may use, after affinity and a container's quota; 1.5 is possible."""
    return _usable(container_limits()[0])


def _usable(quota: float | None) -> float:
    own = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    return round(min(own, quota), 2) if quota else own


def memory_bytes() -> int:
    """The machine's memory, or what a container allows of it."""
    total: int = psutil.virtual_memory().total
    return min(total, container_limits()[1] or total)


def container_limits(root: Path = Path("/")) -> tuple[float | None, int | None, int | None]:
    """(cores, memory limit in bytes, memory used in bytes) that our cgroup allows; None where it sets no limit.

    The tightest limit on the way from our cgroup up to the root holds. Inside a container the cgroup's own folder
    is usually mounted as the root, so the path the kernel names may not exist there: then the mount itself is read.
    """
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None, None, None
    cores: list[float] = []
    memory: list[tuple[int, int | None]] = []
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        for base in _mounts(root, controllers):
            for folder in _up_to(base, path):
                if (quota := _cores(folder)) is not None:
                    cores.append(quota)
                if (limit := _memory(folder)) is not None:
                    memory.append(limit)
    tightest = min(memory, key=lambda pair: pair[0], default=(None, None))
    return min(cores, default=None), tightest[0], tightest[1]


def _mounts(root: Path, controllers: str) -> list[Path]:
    hierarchy = root / "sys/fs/cgroup"
    if controllers == "":
        return [hierarchy, hierarchy / "unified"]
    return [
        hierarchy / name for name in {controllers, *controllers.split(",")} if name in ("cpu", "cpu,cpuacct", "memory")
    ]


def _up_to(base: Path, path: str) -> list[Path]:
    relative = Path(path.lstrip("/"))
    if ".." in relative.parts:
        return [base]
    return [base / part for part in (relative, *relative.parents) if (base / part).is_dir()]


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None


def _cores(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    old_quota, old_period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return old_quota / old_period if old_quota and old_period and old_quota > 0 else None


def _memory(folder: Path) -> tuple[int, int | None] | None:
    limit = _number(folder / "memory.max")
    if limit is not None:
        return limit, _working_set(folder, "memory.current", "inactive_file")
    limit = _number(folder / "memory.limit_in_bytes")
    if limit is not None and limit < 2**60:  # v1 writes "no limit" as a huge number
        return limit, _working_set(folder, "memory.usage_in_bytes", "total_inactive_file")
    return None


def _working_set(folder: Path, usage_name: str, reclaimable: str) -> int | None:
    """Memory in use without the page cache that the kernel would give back at once."""
    usage = _number(folder / usage_name)
    if usage is None:
        return None
    with contextlib.suppress(OSError):
        found = re.search(rf"^{reclaimable} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
        if found:
            return max(0, usage - int(found.group(1)))
    return usage
