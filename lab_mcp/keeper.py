"""The keeper: starts the workspace's service again when it dies. A small process, standard library only.

One keeper per workspace: it holds `keeper.lock`. The service holds `service.lock` for as long as it lives; a keeper
that finds a service already there (its own keeper was killed) waits on that lock instead of starting a second one.
A service that ends on purpose (idle, `lab-mcp shutdown`, its workspace moved away) exits with 0 and says so in the
lock's file, with the time, for a keeper that is not its parent: it ends too, and so does one that was asked for before
that end and comes late.
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
SERVING, ENDED = "serving", "ended"  # what the holder of `service.lock` says of itself


def lock(path: Path, *, wait: bool = False) -> int | None:
    """An exclusive flock on `path`; its descriptor, or None when somebody else holds it and `wait` is False."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def say(held: int, state: str) -> None:
    """Write into a held lock's file what its holder does, and since when (Unix time, s)."""
    with contextlib.suppress(OSError):  # a full disk: the next keeper then takes the end for a crash
        os.ftruncate(held, 0)
        os.pwrite(held, f"{state} {time.time()}\n".encode(), 0)


def ended_since(service_lock: Path, moment: float) -> bool:
    """Whether the last service that held the lock ended, or is ending, on purpose, and said so after `moment`.

    What was said at a time that is still to come (the clock has been set back) proves nothing.
    """
    try:
        state, _, since = service_lock.read_text(encoding="ascii", errors="replace").strip().partition(" ")
    except FileNotFoundError:
        return False
    try:
        return state == ENDED and moment < float(since) <= time.time()
    except ValueError:  # written by an earlier version
        return state == ENDED and moment <= 0


def _ended_on_purpose(service_lock: Path, asked_at: float) -> bool:
    """Wait for the end of a service that is not our child, if there is one.

    True when it meant to end, and when one did so that was gone already, but after this keeper was asked for.
    """
    free = lock(service_lock)
    waited = free is None
    if free is None:
        free = lock(service_lock, wait=True)
    assert free is not None
    os.close(free)
    return ended_since(service_lock, 0.0 if waited else asked_at)


def main(root: str, asked_at: str = "") -> int:
    """Keep the service of the workspace at `root`. `asked_at`: when this was asked for, Unix time in s (now)."""
    asked = float(asked_at) if asked_at else time.time()
    workspace = Workspace(Path(root))
    held = lock(workspace.locks_dir / "keeper.lock")
    if held is None:
        return 0
    service_lock = workspace.locks_dir / "service.lock"
    pause = FIRST_PAUSE_S
    while True:
        if _ended_on_purpose(service_lock, asked):
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
    sys.exit(main(*sys.argv[1:]))
