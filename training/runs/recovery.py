"""Run folders lab.db does not know: the database was lost, or the service was killed while it wrote a run down."""

from __future__ import annotations

import logging
import sqlite3

from training.runs.place import read
from training.runs.store import Store
from workspace.database import Database
from workspace.ids import number
from workspace.layout import Workspace

REQUIRED = ("kind", "name", "purpose", "created_at", "command", "cwd", "environment", "need")
log = logging.getLogger(__name__)


def import_folders(workspace: Workspace, database: Database, store: Store) -> int:
    """Give every whole run folder its row; returns how many were missing.

    An ended run gets its end (nobody is told again), a started one is taken up by the next tick, one that never
    started is queued: its run.json is durable, so it was on its way. Folders without a whole run.json are left alone.
    """
    if not workspace.runs_dir.is_dir():
        return 0
    known = set(store.ids())
    names = sorted(p.name for p in workspace.runs_dir.iterdir() if number(p.name, "run") and p.name not in known)
    imported = 0
    for name in names:
        folder = workspace.run_dir(name)
        run = read(folder / "run.json")
        if run.get("id") != name or any(field not in run for field in REQUIRED):
            continue
        try:
            with database.transaction() as tx:
                store.insert(tx, run, run["need"])
                final = read(folder / "exit.json")
                if final:
                    store.announce(tx, name)
                    store.end(tx, name, final, read(folder / "summary.json") or None)
                elif (folder / "job.json").exists() or (folder / "heartbeat.json").exists():
                    store.change(tx, name, ["queued"], state="starting", attempts=1)
        except (sqlite3.IntegrityError, KeyError) as error:  # a copied folder: its key is taken
            log.warning("%s is not taken into the list of runs: %s", name, error)
            continue
        imported += 1
    if imported:
        log.warning("%d run folders were not in lab.db and have been taken in", imported)
    return imported
