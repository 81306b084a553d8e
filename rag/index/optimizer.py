"""The process that optimises a copy of a shard: `python -m rag.index.optimizer FOLDER`.

It works at the lowest priority, ends with its parent, and is only told about the copy: it can harm nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

from workspace import interpreter

LONGEST_S = 3600.0
PR_SET_PDEATHSIG = 1


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Begin to optimise the shard in `folder`; the process ends with 0 when it is done and on disk."""
    return subprocess.Popen(
        interpreter.python_command("rag.index.optimizer", str(folder), str(os.getpid())),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # errors go to the log, as those of the worker
        env=interpreter.service_environment(),
        cwd=folder.parent,
    )


def main() -> None:
    folder, parent = Path(sys.argv[1]), int(sys.argv[2])
    _end_with(parent)
    with contextlib.suppress(OSError):
        os.nice(19)
    import qdrant_edge as edge

    shard = edge.EdgeShard.load(str(folder))
    shard.optimize()
    shard.flush()
    shard.close()
    _to_disk(folder)


def _end_with(parent: int) -> None:
    """Let the kernel end this process when its parent dies; while it optimises no Python thread could."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before
        raise SystemExit(1)


def _to_disk(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


if __name__ == "__main__":
    main()
