"""Short readable ids (`run-0007`, `exp-0003`) from a high-water mark; never reused.

The mark is kept in the database and, beside the folders it names, in a file: it survives deleted folders and a
rebuilt database.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path

from workspace import durable
from workspace.database import Database

TABLES = ["CREATE TABLE id_marks (kind TEXT PRIMARY KEY, last INTEGER NOT NULL)"]
MARK_FILE = ".last-id"


class Ids:
    """Allocates ids of one kind; `folder` is where things with these ids lie."""

    def __init__(self, database: Database, kind: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        database.migrate("ids", TABLES)
        seen = [n for path in folder.glob(f"{kind}-*") if (n := number(path.name, kind)) is not None]
        with contextlib.suppress(FileNotFoundError, ValueError):
            seen.append(int((folder / MARK_FILE).read_text()))
        with database.transaction() as tx:
            tx.execute("INSERT OR IGNORE INTO id_marks VALUES (?, 0)", (kind,))
            tx.execute("UPDATE id_marks SET last = max(last, ?) WHERE kind = ?", (max(seen, default=0), kind))

    def allocate(self, tx: sqlite3.Connection) -> str:
        """The next id, inside the caller's transaction. The mark file is raised before the id is given out."""
        row = tx.execute("UPDATE id_marks SET last = last + 1 WHERE kind = ? RETURNING last", (self.kind,)).fetchone()
        last = int(row["last"])
        self.folder.mkdir(parents=True, exist_ok=True)
        durable.write_text(self.folder / MARK_FILE, f"{last}\n")
        return f"{self.kind}-{last:04d}"


def number(name: str, kind: str) -> int | None:
    """7 for `run-0007` of kind `run`, else None."""
    match = re.fullmatch(rf"{re.escape(kind)}-(\d{{4,}})", name)
    return int(match.group(1)) if match else None
