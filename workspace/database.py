"""The SQLite connection (WAL, synchronous=FULL) and migrations. Each package owns its tables.

One process writes a workspace's `lab.db`: the service. Within it every thread has its own connection; writing
transactions take SQLite's write lock at their start, so they queue instead of failing.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from workspace.errors import Unavailable

Parameters = Sequence[Any] | dict[str, Any]
BUSY_TIMEOUT_S = 30.0


class Database:
    """A SQLite file. `synchronous` is FULL for state (a commit survives power loss), NORMAL for telemetry."""

    def __init__(self, path: Path, *, synchronous: str = "FULL") -> None:
        self.path = path
        self._synchronous = synchronous
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.transaction() as tx:
            tx.execute(
                "CREATE TABLE IF NOT EXISTS schema_versions (component TEXT PRIMARY KEY, version INTEGER NOT NULL)"
            )

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            try:
                connection = sqlite3.connect(
                    self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
                )
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute(f"PRAGMA synchronous={self._synchronous}")
                connection.execute("PRAGMA foreign_keys=ON")
            except sqlite3.OperationalError as error:
                raise Unavailable(
                    f"the lab's database {self.path.name} cannot be opened ({error})",
                    fix="check free space and that the workspace is writable (`lab-mcp doctor`)",
                ) from error
            self._local.connection = connection
            with self._guard:
                self._all.append(connection)
        return connection

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A writing transaction: committed when the block ends, rolled back when it raises. Not to be nested."""
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            with contextlib.suppress(sqlite3.OperationalError):  # SQLite may have rolled back already (disk full)
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def query(self, sql: str, parameters: Parameters = ()) -> list[sqlite3.Row]:
        return self._connection().execute(sql, parameters).fetchall()

    def one(self, sql: str, parameters: Parameters = ()) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._connection().execute(sql, parameters).fetchone()
        return row

    def migrate(self, component: str, steps: Sequence[str]) -> None:
        """Bring a component's tables to version `len(steps)`; step i is a script taking version i to i+1.

        Raises `Unavailable` when the file was written by a newer version of the lab.
        """
        with self.transaction() as tx:
            row = tx.execute("SELECT version FROM schema_versions WHERE component = ?", (component,)).fetchone()
            version = row["version"] if row else 0
            if version > len(steps):
                raise Unavailable(
                    f"{self.path.name} holds {component} tables of version {version}; this lab-mcp knows {len(steps)}",
                    fix="upgrade lab-mcp, or open the workspace with the newer version",
                )
            for step in steps[version:]:
                for statement in _statements(step):
                    tx.execute(statement)
            if version != len(steps):
                tx.execute("INSERT OR REPLACE INTO schema_versions VALUES (?, ?)", (component, len(steps)))

    def close(self) -> None:
        """Close every thread's connection."""
        with self._guard:
            for connection in self._all:
                connection.close()
            self._all.clear()
        self._local = threading.local()


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one (`executescript` would commit the open transaction)."""
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip(" \n;"):
                yield statement
            statement = ""
