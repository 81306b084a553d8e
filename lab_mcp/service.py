"""The service's process: what it does before and around `lab_mcp.server`, which is slow to import."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lab_mcp.connection import FATAL
from lab_mcp.keeper import ANOTHER_SERVICE, REFUSED_TO_START, lock
from lab_mcp.service_log import set_up_logging
from workspace.errors import LabError
from workspace.layout import Workspace

if TYPE_CHECKING:
    from rag.client import Memory

INTERRUPTED = 130  # as a shell says it of Ctrl-C


def main(root: str) -> NoReturn:
    """Serve the workspace at `root`; the exit code of this process tells the keeper whether to try again."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    run(Workspace(Path(root)))


def run(workspace: Workspace) -> NoReturn:
    """Serve the workspace until stopped; then this process ends, though a thread of it may still wait for something."""
    set_up_logging(workspace)
    try:
        code = _serve(workspace)
    except KeyboardInterrupt:
        code = INTERRUPTED
    # Threads of the background's rounds would be waited for, and one may sit out an audit or a model's answer.
    logging.shutdown()
    os._exit(code)


def _serve(workspace: Workspace) -> int:
    try:
        workspace.create_folders()
    except OSError as error:
        print(f"{FATAL}the workspace is not writable ({error.strerror})", file=sys.stderr, flush=True)
        return REFUSED_TO_START
    held = lock(workspace.locks_dir / "service.lock")
    if held is None:
        print("lab-mcp: this workspace already has a running service (`lab-mcp status`)", file=sys.stderr, flush=True)
        return ANOTHER_SERVICE
    gc.disable()  # a tenth of the time to the first answer goes into looking for garbage among what is imported
    memory = _early_memory(workspace)
    from lab_mcp.server import serve

    gc.freeze()  # nor is it looked through later
    gc.enable()
    return serve(workspace, held, memory)


def _early_memory(workspace: Workspace) -> Memory | None:
    """Memory, whose worker opens the index on another core while this process imports: the first search finds it there.

    None where there is no other core, where documents wait for their indexing, which would take all cores, and where
    the settings are wrong, of which `serve` tells.
    """
    from rag.client import Memory
    from rag.index.inspect import work_waits
    from workspace import settings

    if (os.cpu_count() or 1) == 1 or work_waits(workspace.index_dir):
        return None
    try:
        memory = Memory(workspace, settings.load(workspace.settings_file))
    except (LabError, OSError):  # as `serve` will find, which says it
        return None
    memory.start()
    return memory


if __name__ == "__main__":
    main(sys.argv[1])
