"""Where runs lie, and whether they are there: a folder that is not mounted or was moved is no deleted one; who
supervises a run, and what its files say.

The folder of all runs carries a mark with a random id, which the lab remembers. A run's folder that is missing while
the mark is there was deleted; without the mark, or beside another one (that of the bare folder a disk was to be mounted
on, say), nothing is known of it for now. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from pathlib import Path
from typing import Any

from workspace import clock, durable

FOLDER_VARIABLE = "LAB_LEASE_DIR"
# not the user's TMPDIR: every user of the machine must come to the same folder
DEFAULT_FOLDER = Path("/tmp/lab-mcp-leases")
MARK = ".runs"
MARK_TEXT = "The runs of this lab lie here. While this file is missing, the lab takes them for away, not for deleted.\n"


def mark(runs_dir: Path) -> str:
    """Say that these are the runs, all of them; the id of the mark that is there now. Raises OSError."""
    found = mark_of(runs_dir)
    if found is None or not re.fullmatch(r"[0-9a-f]{16}", found):  # none, a person's empty one, or one without an id
        found = os.urandom(8).hex()
        durable.write_text(runs_dir / MARK, f"{MARK_TEXT}{found}\n")
    return found


def mark_of(runs_dir: Path) -> str | None:
    """The id in the folder's mark: its last line. "": a person made it, empty. None: there is none to be seen."""
    try:
        with durable.open_regular(runs_dir / MARK) as file:
            return file.read(4096).decode(errors="replace").strip().rpartition("\n")[2]
    except OSError:
        return None


def mark_beside(folder: Path) -> str | None:
    """The id in the mark of the runs among which this folder lies; None when one of the two is not to be seen."""
    found = mark_of(folder.parent)
    # twice the same mark: a disk may be mounted or taken off between two looks
    return found if found and seen(folder) and mark_of(folder.parent) == found else None


def is_whole(runs_dir: Path, mark: str | None = None) -> bool:
    """Whether the folder is the one the runs were written to, as far as can be seen: it has this mark.

    None: any mark. An empty one says so too: a person made it.
    """
    found = mark_of(runs_dir)
    return found is not None and (not mark or found in ("", mark))


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


def is_gone(folder: Path, mark: str | None = None) -> bool:
    """Whether a run's folder was deleted for good: it is missing from the runs with this mark (None: any)."""
    before = _identity(folder.parent / MARK)
    if before is None or not is_whole(folder.parent, mark) or seen(folder) is not False:
        return False
    return _identity(folder.parent / MARK) == before  # a disk may be mounted or taken off between two looks


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
