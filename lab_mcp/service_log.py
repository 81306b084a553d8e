"""The service's log: its standard error, which the keeper's starter sent to `.lab/service.log`, kept bounded."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
from pathlib import Path

from workspace.layout import Workspace

LOG_BYTES = 5_000_000


def set_up_logging(workspace: Workspace) -> None:
    """The service's log is its standard error, uvicorn's own lines included."""
    with contextlib.suppress(OSError):
        bound_log(workspace.service_log)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    logging.getLogger("mcp").setLevel(logging.WARNING)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def bound_log(file: Path, limit: int = LOG_BYTES) -> None:
    """Keep one earlier part of a log that has grown long. Raises OSError.

    Copied and emptied instead of renamed: keeper and service have it open, and go on writing at its (new) end.
    """
    if file.exists() and file.stat().st_size > limit:
        shutil.copyfile(file, file.with_suffix(".log.1"))
        os.truncate(file, 0)
