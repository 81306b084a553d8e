"""Where runs lie, and whether they are there: a folder that is not mounted or was moved is no deleted one; who
supervises a run, and what its files say.

The folder of all runs carries a mark. A run's folder that is missing while the mark is there was deleted; without the
mark nothing is known of it for now. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Any

from workspace import clock, durable

FOLDER_VARIABLE = "LAB_LEASE_DIR"
# not the user's TMPDIR: every user of the machine must come to the same folder
DEFAULT_FOLDER = Path("/tmp/lab-mcp-leases")
MARK = ".runs"
MARK_TEXT = "The runs of this lab lie here. While this file is missing, the lab takes them for away, not for deleted.\n"


def mark(runs_dir: Path) -> None:
    """Say that these are the runs, all of them. Raises OSError."""
    if not is_whole(runs_dir):
        (runs_dir / MARK).write_text(MARK_TEXT, encoding="utf-8")


def is_whole(runs_dir: Path) -> bool:
    """Whether the folder is the one the runs were written to, as far as can be seen."""
    return seen(runs_dir / MARK) is True


def is_there(path: Path) -> bool:
    """Raises OSError when that cannot be seen: no permission, a disk that does not answer."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def seen(path: Path) -> bool | None:
    """`is_there`; None when that cannot be seen."""
    try:
        return is_there(path)
    except OSError:
        return None


def is_gone(folder: Path) -> bool:
    """Whether a run's folder was deleted for good; False when it is there, or when that cannot be seen."""
    mark = _identity(folder.parent / MARK)
    # twice the same mark: a disk may be mounted or taken off between two looks
    return mark is not None and seen(folder) is False and _identity(folder.parent / MARK) == mark


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


def moved_to(descriptor: int) -> Path | None:
    """The folder an open file of a run lies in now (Linux); None when it was deleted or cannot be reached."""
    try:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115  (it need not lead anywhere)
        here, there = os.fstat(descriptor), path.stat()
    except OSError:
        return None
    return path.parent if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino) else None


class AlreadySupervised(Exception):
    """Another supervisor holds this run."""


def take_lock(folder: Path) -> int:
    """A descriptor holding the exclusive lock of this run's supervisor. Raises AlreadySupervised."""
    descriptor = os.open(folder / ".supervisor", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise AlreadySupervised(folder.name) from error
    return descriptor


def read(path: Path) -> dict[str, Any]:
    """A JSON object, {} when it is absent or not whole."""
    try:
        value = durable.read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def say(text: str) -> None:
    """A line for supervisor.log. Not being able to write it ends nobody: the disk may be full."""
    with contextlib.suppress(OSError):
        os.write(2, f"{clock.now()} {text}\n".encode(errors="replace"))


def lease_folder() -> Path:
    """The machine's folder of device leases (`training.runs.leases`)."""
    return Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER)
