"""Locks that a killed git left on the lab's own refs.

To move refs/heads/lab/exp-0001 git makes exp-0001.lock beside it, for milliseconds. A git that is killed meanwhile
leaves it there, and from then on that ref can never be moved. It is taken away only where nobody can hold it:

- it is older than `STALE_S`, and a git of ours is killed after `plumbing.TIMEOUT_S`: those of this service are over;
- no process of this machine named git works in the repository (its own folder or its arguments name the repository's
  folders, or cannot be seen): so neither one that a killed service left, nor one of the user's, is at it;
- the repository lies on a disk of this machine: on a network file system another machine's git may be at work.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path

from workspace.layout import NETWORK_FILE_SYSTEMS, file_system

STALE_S = 300.0
WATCHERS = ("fsmonitor--daemon",)  # lives for days, and touches no ref
log = logging.getLogger(__name__)


def remove(lock: Path, folders: Sequence[Path]) -> str | None:
    """Take `lock` away; None when it is gone, else why it stays. `folders`: of the repository, with its worktrees."""
    try:
        before = lock.lstat()
        if (why := _may_be_held(lock, before, folders)) is not None:
            return why
        now = lock.lstat()
        if (now.st_ino, now.st_mtime_ns) != (before.st_ino, before.st_mtime_ns):
            return f"{lock.name} has just been made anew"
        lock.unlink()
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{lock.name} was left by a git that was killed and cannot be removed ({error.strerror})"
    log.warning("%s was left by a git that was killed; it was removed", lock.name)
    return None


def _may_be_held(lock: Path, found: os.stat_result, folders: Sequence[Path]) -> str | None:
    """Why it is not proven that nobody holds it."""
    age_s = time.time() - found.st_mtime
    if not stat.S_ISREG(found.st_mode):
        return f"{lock.name} is no file, so it was not made by git"
    if age_s < STALE_S:
        return f"{lock.name} is {max(0.0, age_s):.0f} s old: the lab takes it away when it is {STALE_S:.0f} s old"
    if (kind := file_system(lock.parent.resolve())) in NETWORK_FILE_SYSTEMS:
        return f"{lock.name} lies on a network file system ({kind}): another machine may hold it"
    if (at_work := _at_work([folder.resolve() for folder in folders])) is not None:
        return f"{lock.name} may be held by git, process {at_work}"
    return None


def _at_work(folders: Sequence[Path]) -> int | None:
    """The pid of a git process that works in one of these folders, or may."""
    import psutil

    for process in psutil.process_iter():
        try:
            name = process.name()
            if name != "git" and not name.startswith("git-"):
                continue
            arguments = process.cmdline()
            if any(word in arguments for word in WATCHERS):
                continue
            place = Path(process.cwd())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        except psutil.AccessDenied:
            return int(process.pid)
        if any(place == folder or folder in place.parents for folder in folders):
            return int(process.pid)
        if any(str(folder) in argument for folder in folders for argument in arguments):
            return int(process.pid)
    return None
