"""At a run's end: bring back the services that somebody's run waits for it with. Standard library only.

Its own service comes back when the run belongs to an experiment or others are queued beside it. A workspace that waits
for another one's run leaves a note in the machine's folder of leases; the supervisor of that run reads it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.runs.place import FOLDER_VARIABLE, say

ASKED_AT = "LAB_ASKED_AT"  # Unix time in s, in the environment of the command: a shutdown after it is obeyed
NOTE = ".waits"
NOTE_BYTES = 16 * 1024


def wake(folder: Path, run: Mapping[str, Any]) -> None:
    """Become run.json's `on_end` command (which ends at once when the service is there), or return."""
    command = run.get("on_end")
    if not command or not (run.get("wake_service") or queued_beside(folder)):
        return
    try:
        os.execvpe(command[0], command, {**os.environ, ASKED_AT: str(time.time())})
    except OSError as error:
        say(f"{command[0]}: {error.strerror}")


def wake_others(leases: Path) -> None:
    """Start the services of other workspaces of this user that wait for a lease and have none."""
    kept = {name: value for name, value in os.environ.items() if name == FOLDER_VARIABLE or name[:4] != "LAB_"}
    kept[ASKED_AT] = str(time.time())
    for note in _notes(leases):
        try:
            if _is_free(note["service_lock"]):
                subprocess.Popen(
                    note["command"], cwd="/", env=kept, stdin=subprocess.DEVNULL, start_new_session=True
                ).returncode = 0  # it is not waited for
        except (OSError, ValueError) as error:  # ValueError: a character that no path can have
            say(f"{note['workspace']}: {error}")


def _notes(leases: Path) -> Iterator[dict[str, Any]]:
    """The notes this user wrote, whole ones: anybody may put anything into the folder, and a note names a command."""
    try:
        paths = sorted(path for path in leases.iterdir() if path.name.endswith(NOTE))
    except OSError:
        return
    for path in paths:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            # without O_NONBLOCK, to open somebody's FIFO would wait for its writer
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                state = os.fstat(descriptor)
                ours = state.st_uid == os.getuid() and stat.S_ISREG(state.st_mode) and not state.st_mode & 0o022
                note = json.loads(os.read(descriptor, NOTE_BYTES)) if ours else None
            finally:
                os.close(descriptor)
            if note and _is_whole(note) and Path(note["workspace"]).is_dir():
                yield note


def _is_whole(note: Mapping[str, Any]) -> bool:
    command = note["command"]
    words = [note["workspace"], note["service_lock"], *command]
    return isinstance(command, list) and bool(command) and all(isinstance(word, str) for word in words)


def _is_free(lock: str) -> bool:
    """Whether nobody holds the lock of a service."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def queued_beside(folder: Path) -> bool:
    """Whether a run of the same workspace is written down, has not begun and has not ended."""
    try:
        siblings = [entry.path for entry in os.scandir(folder.parent) if entry.is_dir()]
    except OSError:
        return False
    return any(
        not os.path.exists(f"{path}/exit.json")  # noqa: PTH110  (a third of pathlib's time, thousands of times)
        and not os.path.exists(f"{path}/job.json")  # noqa: PTH110
        and os.path.exists(f"{path}/run.json")  # noqa: PTH110
        for path in siblings
    )
