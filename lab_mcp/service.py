"""The service's process: what it does before and around `lab_mcp.server`, which is slow to import."""

from __future__ import annotations

import gc
import signal
import sys
from pathlib import Path

from lab_mcp.service_log import set_up_logging
from workspace.layout import Workspace


def main(root: str) -> int:
    """Serve the workspace at `root`; the exit code tells the keeper whether to try again."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    return run(Workspace(Path(root)))


def run(workspace: Workspace) -> int:
    """Serve the workspace until stopped; returns the exit code of this process."""
    set_up_logging(workspace)
    gc.disable()  # a tenth of the time to the first answer goes into looking for garbage among what is imported
    from lab_mcp.server import serve

    gc.freeze()  # nor is it looked through later
    gc.enable()
    return serve(workspace)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
