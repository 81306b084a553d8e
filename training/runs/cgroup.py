"""A control group of one run (cgroup v2), where the system lets us make one. Standard library only.

Nothing leaves it: not by `setsid`, not by forgetting its environment, not by losing its parents. `cgroup.kill` ends all
of it at once. Where there is no cgroup v2, or no permission (most containers), `create` gives None and the run's tree
is known by descent and by its tag (`training.runs.tree`).
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

PREFIX = "lab-mcp-"
REMOVE_LIMIT_S = 1.0  # a group can be removed once the kernel has let go of its last process


def own_group() -> Path | None:
    """The folder of the group this process is in; None without cgroup v2."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    mount = next((fields[1] for fields in map(str.split, mounts) if len(fields) > 2 and fields[2] == "cgroup2"), None)
    group = next((line[3:] for line in groups if line.startswith("0::")), None)
    return None if mount is None or group is None else Path(mount + group)


def create(name: str) -> Path | None:
    """A new group beside this process, which stays where it is; None where that is not allowed."""
    parent = own_group()
    if parent is None:
        return None
    group = parent / (PREFIX + name)
    try:
        group.mkdir(exist_ok=True)  # an earlier attempt to start this run may have made it
    except OSError:
        return None
    if (group / "cgroup.kill").exists() and os.access(group / "cgroup.procs", os.W_OK):
        return group
    remove(group)  # a kernel before 5.14
    return None


def pids(group: Path) -> list[int]:
    """The processes in the group and in groups below it; [] when it is gone."""
    found: list[int] = []
    for folder, below, _ in os.walk(group):
        with contextlib.suppress(OSError, ValueError):
            found += [int(line) for line in Path(folder, "cgroup.procs").read_text().split()]
        below.sort()
    return found


def kill(group: Path) -> bool:
    """KILL everything in the group; False when that could not be asked for."""
    try:
        (group / "cgroup.kill").write_text("1")
    except OSError:
        return False
    return True


def remove(group: Path) -> None:
    """Remove an emptied group and those a job made below it; one that cannot be removed stays, empty."""
    deadline = time.monotonic() + REMOVE_LIMIT_S
    while group.is_dir():
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # noqa: PTH106
        if time.monotonic() > deadline:
            return
        time.sleep(0.005)
