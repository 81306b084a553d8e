"""At a run's end: bring the service back when an experiment or a queued run waits for it. Standard library only."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workspace import clock


def wake(folder: Path, run: Mapping[str, Any]) -> None:
    """Become run.json's `on_end` command (which ends at once when the service is there), or return."""
    command = run.get("on_end")
    if not command or not (run.get("wake_service") or queued_beside(folder)):
        return
    try:
        os.execvpe(command[0], command, os.environ)
    except OSError as error:
        print(f"{clock.now()} {command[0]}: {error.strerror}", file=sys.stderr, flush=True)


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
