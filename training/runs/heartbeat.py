"""A supervisor's sign of life: heartbeat.json in the run's folder. Standard library only."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.runs.place import say
from workspace import clock
from workspace.process import this_process

EVERY_S = 2.0


class Heartbeat:
    """Writes the file. A full disk does not end a run: it is noted in the next one that can be written."""

    def __init__(self) -> None:
        self.due = 0.0  # monotonic seconds
        self.error: str | None = None

    def write(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.due = time.monotonic() + EVERY_S
        record = {**record, "supervisor": this_process().as_json(), "updated_at": clock.now()}
        if self.error:
            record["note"] = f"earlier heartbeats could not be written: {self.error}"
        temporary = folder / ".heartbeat.tmp"
        try:  # atomic, not durable: after a power loss it says nothing anyway, and an fsync may wait for the job's data
            temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
            temporary.replace(folder / "heartbeat.json")
        except OSError as error:
            if self.error is None:
                say(f"heartbeat not written: {error}")
            self.error = str(error.strerror)
