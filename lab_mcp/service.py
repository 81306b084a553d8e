"""The service's process: what it does before and around `lab_mcp.server`, which is slow to import."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from lab_mcp.service_log import set_up_logging
from workspace.layout import Workspace

INTERRUPTED = 130  # as a shell says it of Ctrl-C


def main(root: str) -> NoReturn:
    """Serve the workspace at `root`; the exit code of this process tells the keeper whether to try again."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    run(Workspace(Path(root)))


def run(workspace: Workspace) -> NoReturn:
    """Serve the workspace until stopped; then this process ends, though a thread of it may still wait for something."""
    set_up_logging(workspace)
    gc.disable()  # a tenth of the time to the first answer goes into looking for garbage among what is imported
    from lab_mcp.server import serve

    gc.freeze()  # nor is it looked through later
    gc.enable()
    try:
        code = serve(workspace)
    except KeyboardInterrupt:
        code = INTERRUPTED
    # Threads of the background's rounds would be waited for, and one may sit out an audit or a model's answer.
    logging.shutdown()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1])
