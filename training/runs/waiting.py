"""What queued runs wait for, in words: the reason the scheduler stored, the position, what would free them and when."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from training.runs import progress, store
from workspace import clock
from workspace.layout import Workspace


def told(live: Sequence[sqlite3.Row], workspace: Workspace) -> dict[str, dict[str, Any]]:
    """`waiting_for`, `queue_position` and `freed_by` of every queued run; `live` in the order of the queue."""
    by_id = {row["id"]: row for row in live}
    queued = [row for row in live if row["state"] == "queued"]
    left: dict[str, str] = {}  # a run that others wait for -> how long it takes
    found = {}
    for position, row in enumerate(queued, 1):
        blockers = store.value(row["blockers"]) or []
        for run_id in blockers:
            if run_id in by_id and run_id not in left:
                left[run_id] = _left(by_id[run_id], workspace)
        freed_by = ", or of ".join(name + left.get(name, "") for name in blockers)
        parts = [row["waiting_for"], f"position {position} of {len(queued)} in the queue"]
        if any(left.get(name) for name in blockers):
            parts.append(f"freed by the end of {freed_by}")
        found[row["id"]] = {
            "queue_position": position,
            "waiting_for": "; ".join(part for part in parts if part),
            "freed_by": f"the end of {freed_by}" if freed_by else None,
        }
    return found


def _left(row: sqlite3.Row, workspace: Workspace) -> str:
    """` (about 40 s left)` when a running run tells it."""
    if row["state"] not in ("running", "stopping"):
        return ""
    elapsed = clock.seconds_between(row["started_at"], clock.now()) if row["started_at"] else None
    found = progress.progress(workspace.run_dir(row["id"]), store.value(row["budget"]), elapsed)
    seconds = (found or {}).get("eta_s")
    return "" if seconds is None else f" (about {seconds:.0f} s left)"
