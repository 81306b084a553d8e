"""Who a process is: a pid alone is reused, so identity is host + boot + pid + start time. Standard library only."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TAG_VARIABLE = "LAB_RUN_TREE"  # in the environment of every process of a run: the run's id, a colon, something random


@dataclass(frozen=True)
class ProcessIdentity:
    """One process on one boot of one host."""

    pid: int
    started: str  # start time as the kernel gives it (clock ticks since boot on Linux, `ps lstart` elsewhere)
    boot: str
    host: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ProcessIdentity:
        return cls(int(value["pid"]), str(value["started"]), str(value["boot"]), str(value["host"]))


@functools.cache
def boot_id() -> str:
    """Names the present boot of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        pass
    try:  # macOS and BSD
        answer = subprocess.run(
            ["sysctl", "-n", "kern.boottime"], capture_output=True, text=True, timeout=5, check=True
        )
        return answer.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@functools.cache
def host_name() -> str:
    return socket.gethostname()


def start_time(pid: int) -> str | None:
    """The start time of a live process, None when there is none (a zombie counts as none)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except (ProcessLookupError, PermissionError):
        return None
    else:
        fields = stat[stat.rindex(")") + 2 :].split()
        return None if fields[0] in "ZX" else fields[19]
    answer = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, timeout=5, check=False
    )
    text = answer.stdout.strip()
    return None if not text or text.startswith("Z") else text.split(maxsplit=1)[1]


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a live process of this host, None when it is gone."""
    started = start_time(pid)
    return None if started is None else ProcessIdentity(pid, started, boot_id(), host_name())


def this_process() -> ProcessIdentity:
    identity = identify(os.getpid())
    assert identity is not None
    return identity


def is_alive(identity: ProcessIdentity) -> bool:
    """True when exactly this process still runs here. A process of another host or boot is not alive here."""
    if identity.host != host_name() or identity.boot != boot_id():
        return False
    return start_time(identity.pid) == identity.started
