"""Whose process a pid is, as far as this machine lets us see."""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

import psutil

from training.hardware.status import NOT_OURS, DeviceProcess
from workspace.process import TAG_VARIABLE

LAB = "lab"


def describe(pid: int, memory_bytes: int | None, *, name: str | None = None, graphics: bool = False) -> DeviceProcess:
    """A device process with its name, user and owner. Name and user stay None for a pid of another pid namespace."""
    user: str | None = None
    owner = NOT_OURS
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            name = process.name()
            owner = _owner(pid, process.create_time())
            user = process.username()
    except (psutil.Error, KeyError):  # KeyError: a uid without a name in this container
        pass
    return DeviceProcess(pid=pid, name=name, user=user, memory_bytes=memory_bytes, graphics=graphics, owner=owner)


@functools.lru_cache(maxsize=256)
def _owner(pid: int, created: float) -> str:
    """The run a process belongs to by its environment or that of an ancestor, `lab`, or `not ours`."""
    process = psutil.Process(pid)
    for candidate in (process, *process.parents()):
        if candidate.pid == os.getpid():
            return LAB
        with contextlib.suppress(psutil.Error, OSError):
            environment = candidate.environ()
            if tag := environment.get(TAG_VARIABLE):
                run = tag.partition(":")[0]
                folder = environment.get("LAB_RUN_DIR")
                return f"{run} of workspace {Path(folder).parent.parent.name}" if folder else run
    return NOT_OURS
