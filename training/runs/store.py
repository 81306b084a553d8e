"""The table of runs in lab.db. Every change of state is one conditional UPDATE, so it happens once or not at all."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Mapping
from typing import Any

from training.runs.records import ENDED, PRIORITY, RunRecord
from workspace import clock
from workspace.database import Database
from workspace.ids import number

TABLES = [
    """
    CREATE TABLE runs (
      id TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, key TEXT UNIQUE,
      state TEXT NOT NULL, class TEXT, kind TEXT NOT NULL, name TEXT NOT NULL,
      purpose TEXT NOT NULL, priority INTEGER NOT NULL, experiment TEXT, session TEXT,
      created_at TEXT NOT NULL, started_at TEXT, ended_at TEXT, elapsed_s REAL,
      exit_code INTEGER, signal TEXT, reason TEXT,
      attempts INTEGER NOT NULL DEFAULT 0, announced INTEGER NOT NULL DEFAULT 0,
      waiting_for TEXT, need TEXT NOT NULL, devices TEXT NOT NULL DEFAULT '[]',
      budget TEXT, source TEXT, summary TEXT
    );
    CREATE INDEX runs_live ON runs (priority, number) WHERE ended_at IS NULL;
    CREATE INDEX runs_experiment ON runs (experiment, number) WHERE experiment IS NOT NULL;
    """,
    """
    ALTER TABLE runs ADD COLUMN blockers TEXT;
    UPDATE runs SET priority = 2 * priority + 3;
    """,
    # all a search by text looks at: the rows themselves hold summaries, which it would read past
    "CREATE INDEX runs_text ON runs (number, id, name, reason, purpose, state, experiment, ended_at);",
    "CREATE TABLE runs_home (one INTEGER PRIMARY KEY CHECK (one = 1), mark TEXT NOT NULL);",
]
SUMMARY_CHARACTERS = 65536


class Store:
    """Reads and writes of the table `runs`. Writing functions take the caller's transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database
        database.migrate("runs", TABLES)

    # -- reading -------------------------------------------------------------------------------------------------------

    def row(self, run_id: str) -> sqlite3.Row | None:
        return self.database.one("SELECT * FROM runs WHERE id = ?", (run_id,))

    def by_key(self, key: str, tx: sqlite3.Connection | None = None) -> str | None:
        """The id of the run started with this key."""
        sql = "SELECT id FROM runs WHERE key = ?"
        row = tx.execute(sql, (key,)).fetchone() if tx else self.database.one(sql, (key,))
        return str(row["id"]) if row else None

    def live(self) -> list[sqlite3.Row]:
        """Runs that have not ended, in the order they are to be started."""
        return self.database.query("SELECT * FROM runs WHERE ended_at IS NULL ORDER BY priority, number")

    def ids(self) -> list[str]:
        """Every id, newest first."""
        return [r["id"] for r in self.database.query("SELECT id FROM runs ORDER BY number DESC")]

    def newest_ended(self, limit: int) -> list[str]:
        """Runs that ended and were not lost: their folders are there, unless somebody deleted them."""
        sql = "SELECT id FROM runs WHERE ended_at IS NOT NULL AND state != 'lost' ORDER BY number DESC LIMIT ?"
        return [row["id"] for row in self.database.query(sql, (limit,))]

    def given_up(self, reason: str) -> list[str]:
        """Lost runs whose reason ends with this one."""
        rows = self.database.query("SELECT id, reason FROM runs WHERE state = 'lost'")
        return [row["id"] for row in rows if str(row["reason"]).endswith(reason)]

    def home(self) -> str | None:
        """The mark of the folder these runs lie in (`training.runs.place`); None as long as it has none with an id."""
        row = self.database.one("SELECT mark FROM runs_home")
        return str(row["mark"]) if row else None

    def find(
        self,
        states: Collection[str] | None,
        experiment: str | None,
        limit: int,
        before: str | None,
        text: str | None,
    ) -> list[sqlite3.Row]:
        """Newest first. `before` is a run id; `text` is looked for in id, name, reason and purpose."""
        where, values = _where(states, experiment, text)
        if before is not None:
            where += " AND number < ?"
            values.append(number(before, "run") or 0)
        by = "+number" if "ended_at IS NULL" in where else "number"  # with the +, the index of live runs is used
        newest = f"SELECT number FROM runs WHERE {where} ORDER BY {by} DESC LIMIT ?"
        return self.database.query(
            f"SELECT * FROM runs WHERE number IN ({newest}) ORDER BY number DESC", [*values, limit]
        )

    def count(self, states: Collection[str] | None, experiment: str | None, text: str | None) -> int:
        """How many runs match."""
        where, values = _where(states, experiment, text)
        row = self.database.one(f"SELECT count(*) AS n FROM runs WHERE {where}", values)
        return int(row["n"]) if row else 0

    # -- writing -------------------------------------------------------------------------------------------------------

    def insert(self, tx: sqlite3.Connection, run: Mapping[str, Any], need: Mapping[str, Any]) -> None:
        """Add a run, queued; `run` is its run.json."""
        columns = {
            "id": run["id"],
            "number": number(run["id"], "run"),
            "key": run.get("key"),
            "state": "queued",
            "kind": run["kind"],
            "name": run["name"],
            "purpose": run["purpose"],
            "priority": run.get("priority") if run.get("priority") is not None else PRIORITY[run["purpose"]],
            "experiment": run.get("experiment"),
            "session": run.get("session"),
            "created_at": run["created_at"],
            "need": json.dumps(dict(need)),
            "budget": _text(run.get("budget")),
            "source": _text(run.get("source")),
        }
        names = ", ".join(columns)
        tx.execute(f"INSERT INTO runs ({names}) VALUES ({', '.join('?' * len(columns))})", list(columns.values()))

    def change(self, tx: sqlite3.Connection, run_id: str, from_states: Collection[str], **columns: Any) -> bool:
        """Set columns if the run is in one of `from_states`; whether it was."""
        sets = ", ".join(f"{name} = ?" for name in columns)
        marks = ",".join("?" * len(from_states))
        cursor = tx.execute(
            f"UPDATE runs SET {sets} WHERE id = ? AND state IN ({marks})", [*columns.values(), run_id, *from_states]
        )
        return cursor.rowcount == 1

    def move_home(self, tx: sqlite3.Connection, mark: str) -> None:
        tx.execute("INSERT OR REPLACE INTO runs_home VALUES (1, ?)", (mark,))

    def claim(self, tx: sqlite3.Connection, run_id: str, devices: list[str]) -> bool:
        """queued -> starting, counted as an attempt; False when somebody else was first or it was cancelled."""
        cursor = tx.execute(
            "UPDATE runs SET state = 'starting', attempts = attempts + 1, devices = ?,"
            " waiting_for = NULL, blockers = NULL WHERE id = ? AND state = 'queued'",
            (json.dumps(devices), run_id),
        )
        return cursor.rowcount == 1

    def unclaim(self, tx: sqlite3.Connection, run_id: str) -> None:
        """starting -> queued after an attempt that does not count."""
        tx.execute(
            "UPDATE runs SET state = 'queued', attempts = attempts - 1 WHERE id = ? AND state = 'starting'", (run_id,)
        )

    def announce(self, tx: sqlite3.Connection, run_id: str) -> bool:
        """True for the first caller who may tell that the run has started."""
        return tx.execute("UPDATE runs SET announced = 1 WHERE id = ? AND announced = 0", (run_id,)).rowcount == 1

    def end(
        self, tx: sqlite3.Connection, run_id: str, final: Mapping[str, Any], summary: Mapping[str, Any] | None
    ) -> bool:
        """Record the end from an exit.json; False when an end is recorded already."""
        text = _text(summary)
        if text and len(text) > SUMMARY_CHARACTERS:
            text = _text({k: v for k, v in (summary or {}).items() if isinstance(v, int | float | bool | None)})
        cursor = tx.execute(
            "UPDATE runs SET state = ?, class = ?, exit_code = ?, signal = ?, reason = ?,"
            " waiting_for = NULL, blockers = NULL,"
            " started_at = coalesce(?, started_at), ended_at = ?, elapsed_s = ?, summary = ?"
            " WHERE id = ? AND ended_at IS NULL",
            (
                final["state"] if final.get("state") in ENDED else "lost",
                final.get("class"),
                final.get("exit_code"),
                final.get("signal"),
                final.get("reason"),
                final.get("started_at"),
                final.get("ended_at") or clock.now(),
                final.get("elapsed_s"),
                text,
                run_id,
            ),
        )
        return cursor.rowcount == 1


def _where(states: Collection[str] | None, experiment: str | None, text: str | None) -> tuple[str, list[Any]]:
    where, values = ["1"], list[Any]()
    if states is not None:
        where.append(f"state IN ({','.join('?' * len(states))})")
        values += states
        if not set(states) & set(ENDED):
            where.append("ended_at IS NULL")  # lets the small index of live runs answer
    if experiment is not None:
        where.append("experiment = ?")
        values.append(experiment)
    if text:
        pattern = "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        where.append("(" + " OR ".join(f"{c} LIKE ? ESCAPE '\\'" for c in ("id", "name", "reason", "purpose")) + ")")
        values += [pattern] * 4
    return " AND ".join(where), values


def record(row: sqlite3.Row, progress: dict[str, Any] | None = None) -> RunRecord:
    """The row as a `RunRecord`."""
    return RunRecord(
        id=row["id"],
        state=row["state"],
        failure_class=row["class"],
        kind=row["kind"],
        name=row["name"],
        purpose=row["purpose"],
        priority=row["priority"],
        experiment=row["experiment"],
        session=row["session"],
        created_at=row["created_at"],
        started_at=row["started_at"],
        ended_at=row["ended_at"],
        elapsed_s=row["elapsed_s"],
        exit_code=row["exit_code"],
        signal=row["signal"],
        reason=row["reason"],
        devices=json.loads(row["devices"]),
        progress=progress,
        waiting_for=row["waiting_for"],
        source=value(row["source"]),
        summary=value(row["summary"]),
        folder=f"runs/{row['id']}",
    )


def _text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def value(text: str | None) -> Any:
    """The JSON value of a column."""
    return None if text is None else json.loads(text)
