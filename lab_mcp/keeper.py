"""The keeper: starts the workspace's service again when it dies. A small process, standard library only.

One keeper per workspace: it holds `keeper.lock`. The service holds `service.lock` for as long as it lives; a keeper
that finds a service already there (its own keeper was killed) waits on that lock instead of starting a second one.
A service that ends on purpose (idle, `lab-mcp shutdown`, its workspace moved away) exits with 0 and says so in the
lock's file, for a keeper that is not its parent; the keeper ends too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

from workspace import interpreter
from workspace.layout import Workspace

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 8.0  # far less than a client waits (connection.START_TIMEOUT_S)
HEALTHY_S = 60.0  # a service that lived this long resets the pause
REFUSED_TO_START = 3  # the service's exit code when trying again cannot help
ANOTHER_SERVICE = 4  # the service's exit code when the lock is held
SERVING, ENDED = b"serving\n", b"ended\n"  # what the holder of `service.lock` says of itself


def lock(path: Path, *, wait: bool = False) -> int | None:
    """An exclusive flock on `path`; its descriptor, or None when somebody else holds it and `wait` is False."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def say(held: int, state: bytes) -> None:
    """Write into a held lock's file what its holder does."""
    with contextlib.suppress(OSError):  # a full disk: the next keeper then takes the end for a crash
        os.ftruncate(held, 0)
        os.pwrite(held, state, 0)


def _ended_on_purpose(service_lock: Path) -> bool:
    """Wait for the end of a service that is not our child, if there is one. True when it meant to end."""
    free = lock(service_lock)
    waited = free is None
    if free is None:
        free = lock(service_lock, wait=True)
    assert free is not None
    last = os.pread(free, 64, 0)
    os.close(free)
    return waited and last == ENDED


def main(root: str) -> int:
    workspace = Workspace(Path(root))
    held = lock(workspace.locks_dir / "keeper.lock")
    if held is None:
        return 0
    service_lock = workspace.locks_dir / "service.lock"
    pause = FIRST_PAUSE_S
    while True:
        if _ended_on_purpose(service_lock):
            return 0
        started = time.monotonic()
        code = subprocess.call(
            interpreter.python_command("lab_mcp.service", root), stdin=subprocess.DEVNULL, cwd="/", close_fds=True
        )
        if code in (0, REFUSED_TO_START):
            return code
        if code == ANOTHER_SERVICE:
            continue
        if time.monotonic() - started > HEALTHY_S:
            pause = FIRST_PAUSE_S
        print(f"keeper: service ended with {code}, starting it again in {pause:.1f} s", flush=True)
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
