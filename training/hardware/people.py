"""Whose process a pid is, as far as this machine lets us see."""

from __future__ import annotations

import psutil

from training.hardware.status import DeviceProcess


def describe(pid: int, memory_bytes: int | None, *, name: str | None = None, graphics: bool = False) -> DeviceProcess:
    """A device process with its name and user. Both stay None for a pid of another pid namespace (a container's)."""
    user: str | None = None
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            name = process.name()
            user = process.username()
    except (psutil.Error, KeyError):  # KeyError: a uid without a name in this container
        pass
    return DeviceProcess(pid=pid, name=name, user=user, memory_bytes=memory_bytes, graphics=graphics)
