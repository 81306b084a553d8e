"""The SQLite connection (WAL, synchronous=FULL) and migrations. Each package owns its tables.

One process writes a workspace's `lab.db`: the service. Within it every thread has its own connection; writing
transactions take SQLite's write lock at their start, so they queue instead of failing.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from workspace.errors import Unavailable

Parameters = Sequence[Any] | dict[str, Any]
BUSY_TIMEOUT_S = 30.0
# primary result codes that tell of the machine's state, not of a mistake in a statement
OUTSIDE_CAUSES = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "it is read-only",
    sqlite3.SQLITE_IOERR: "the disk cannot be read or written",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened",
    sqlite3.SQLITE_BUSY: "another process keeps it locked",
    sqlite3.SQLITE_CORRUPT: "it is damaged",
    sqlite3.SQLITE_NOTADB: "it is not a database",
}


class _Owner:
    """Closes a thread's connection when the thread has ended: worker threads come and go for weeks.

    The connection cannot do this itself: it is part of a reference cycle with its cache of statements.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def __del__(self) -> None:
        self.connection.close()


class Database:
    """A SQLite file. `synchronous` is FULL for state (a commit survives power loss), NORMAL for telemetry."""

    def __init__(self, path: Path, *, synchronous: str = "FULL") -> None:
        self.path = path
        self._synchronous = synchronous
        self._local = threading.local()
        self._all: weakref.WeakSet[_Owner] = weakref.WeakSet()
        self._guard = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with self.transaction() as tx:
            tx.execute(
                "CREATE TABLE IF NOT EXISTS schema_versions (component TEXT PRIMARY KEY, version INTEGER NOT NULL)"
            )

    def _connection(self) -> sqlite3.Connection:
        owner: _Owner | None = getattr(self._local, "owner", None)
        if owner is None:
            with self._explained():
                connection = sqlite3.connect(
                    self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
                )
                owner = _Owner(connection)
                connection.row_factory = sqlite3.Row
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute(f"PRAGMA synchronous={self._synchronous}")
                connection.execute("PRAGMA foreign_keys=ON")
            self._local.owner = owner
            with self._guard:
                self._all.add(owner)
        return owner.connection

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what the machine is to blame for (a full disk, ...) into `Unavailable`; a wrong statement stays."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            cause = OUTSIDE_CAUSES.get((getattr(error, "sqlite_errorcode", None) or 0) & 0xFF)
            if cause is None:
                raise
            raise Unavailable(
                f"the lab's database {self.path.name} cannot be used: {cause} ({error})",
                fix="check free space and that the workspace is writable (`lab-mcp doctor`)",
            ) from error

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A writing transaction: committed when the block ends, rolled back when it raises. Not to be nested.

        Raises `Unavailable` when the disk is full, the file read-only, or another process holds it for 30 s.
        """
        connection = self._connection()
        with self._explained():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.OperationalError):  # SQLite may have rolled back already (disk full)
                    connection.execute("ROLLBACK")
                raise

    def query(self, sql: str, parameters: Parameters = ()) -> list[sqlite3.Row]:
        with self._explained():
            return self._connection().execute(sql, parameters).fetchall()

    def one(self, sql: str, parameters: Parameters = ()) -> sqlite3.Row | None:
        with self._explained():
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
            for owner in self._all:
                owner.connection.close()
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
