"""All processes of one run, wherever they went, and ending them. Standard library only.

On Linux the supervisor is a "child subreaper": whatever its job leaves behind becomes its own child, so the tree below
it is complete, `setsid` or not. Processes that lost their ancestors while no supervisor was alive are known again by
the run's tag in their environment (`LAB_RUN_TREE`), or by its control group where the system allowed one
(`training.runs.cgroup`). A process is only ever signalled as pid + start time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from training.runs import cgroup
from workspace.process import TAG_VARIABLE, start_time

PR_SET_CHILD_SUBREAPER = 36
KILL_ROUND_S = 0.02
KILL_LIMIT_S = 30.0  # a process in uninterruptible sleep cannot be ended; after this it is reported instead


class Process(NamedTuple):
    pid: int
    started: str
    parent: int


def become_subreaper() -> bool:
    """Make this process the parent of its descendants' orphans. False where the system has no such thing."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    return bool(ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def processes() -> list[Process]:
    """Every live (not zombie) process of this machine that we may see."""
    if Path("/proc/self/stat").exists():
        return list(_from_proc())
    answer = subprocess.run(
        ["ps", "-axo", "pid=,ppid=,stat=,lstart="], capture_output=True, text=True, timeout=10, check=True
    )
    rows = (line.split(maxsplit=3) for line in answer.stdout.splitlines())
    return [Process(int(r[0]), r[3].strip(), int(r[1])) for r in rows if len(r) == 4 and not r[2].startswith("Z")]


def _from_proc() -> Iterable[Process]:
    for name in os.listdir("/proc"):  # noqa: PTH208  (half a millisecond against three)
        if not name.isdigit():
            continue
        try:
            stat = Path(f"/proc/{name}/stat").read_bytes()
        except OSError:
            continue
        fields = stat[stat.rindex(b")") + 2 :].split()
        if fields[0] not in b"ZX":
            yield Process(int(name), fields[19].decode(), int(fields[1]))


def has_tag(pid: int, tag: str) -> bool:
    """Whether a process was started with `LAB_RUN_TREE=tag` in its environment (Linux; False where unreadable)."""
    try:
        return f"{TAG_VARIABLE}={tag}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def members(
    roots: Collection[int], tag: str, *, spare: Collection[int] = (), group: Path | None = None
) -> list[Process]:
    """The live processes below `roots` (themselves included), those carrying the tag and those in the control group.

    This process is never among them; `spare` names pids that are left out although their descendants are not.
    """
    everything = processes()
    children: dict[int, list[Process]] = {}
    for process in everything:
        children.setdefault(process.parent, []).append(process)
    by_pid = {process.pid: process for process in everything}
    tagged = [p.pid for p in everything if has_tag(p.pid, tag)] if tag else []
    grouped = cgroup.pids(group) if group else []
    pending = [by_pid[pid] for pid in {*roots, *tagged, *grouped} if pid in by_pid]
    found: dict[int, Process] = {}
    while pending:
        process = pending.pop()
        if process.pid not in found:
            found[process.pid] = process
            pending += children.get(process.pid, [])
    left_out = {os.getpid(), *spare}
    return sorted(process for pid, process in found.items() if pid not in left_out)


def send(process: Process, number: signal.Signals) -> bool:
    """Signal exactly this process; False when it is gone or not ours to signal."""
    descriptor = _hold(process.pid)
    try:
        if start_time(process.pid) != process.started:
            return False
        if descriptor is None:
            os.kill(process.pid, number)
        else:
            signal.pidfd_send_signal(descriptor, number)
        return True
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _hold(pid: int) -> int | None:
    """A descriptor of the process: while it is compared and signalled, its pid cannot become another's.

    None where there is no such thing (other systems, old kernels, containers that forbid it).
    """
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def kill_all(remaining: Callable[[], list[Process]]) -> list[Process]:
    """KILL what `remaining` lists, again and again until nothing new appears; returns what could not be ended."""
    deadline = time.monotonic() + KILL_LIMIT_S
    while True:
        left = remaining()
        if not left or time.monotonic() > deadline:
            return left
        for process in left:
            send(process, signal.SIGKILL)
        time.sleep(KILL_ROUND_S)


def reap(child: int = -1) -> dict[int, int]:
    """Collect ended children (all, or one): pid -> wait status."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = status
    return ended
