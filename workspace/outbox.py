"""The outbox: what still has to be told to the notebook and the index, written in the same transaction as the
state change it tells of. The service drains it; a handler may see a message twice (a kill between handling and
ticking off) and must make the second time harmless, by the message's id.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from workspace import clock
from workspace.database import Database

TABLES = [
    """
    CREATE TABLE outbox (
      id INTEGER PRIMARY KEY AUTOINCREMENT,
      topic TEXT NOT NULL, payload TEXT NOT NULL, created_at TEXT NOT NULL,
      done_at TEXT, attempts INTEGER NOT NULL DEFAULT 0, error TEXT
    );
    CREATE INDEX outbox_open ON outbox (topic, id) WHERE done_at IS NULL;
    """
]
MAX_ATTEMPTS = 8
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Message:
    id: int
    topic: str
    payload: dict[str, Any]
    created_at: str


Handler = Callable[[Message], None]


class Outbox:
    """Messages per topic, handled in order within their topic."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.posted = threading.Event()  # set when there may be something to drain
        database.migrate("outbox", TABLES)
        self.posted.set()

    def post(self, tx: sqlite3.Connection, topic: str, payload: Mapping[str, Any]) -> int:
        """Add a message inside the caller's transaction; it is handled after that commits."""
        cursor = tx.execute(
            "INSERT INTO outbox (topic, payload, created_at) VALUES (?, ?, ?)",
            (topic, json.dumps(payload, ensure_ascii=False), clock.now()),
        )
        self.posted.set()
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def drain(self, handlers: Mapping[str, Handler], *, limit: int = 200) -> int:
        """Handle open messages; returns how many were handled.

        A message whose handler raises stays open and stops its topic for this round; after MAX_ATTEMPTS it is set
        aside with its error (`failed()` lists it) so that one bad message cannot hold up the rest for ever.
        """
        self.posted.clear()
        handled = 0
        for topic, handler in handlers.items():
            rows = self.database.query(
                "SELECT * FROM outbox WHERE topic = ? AND done_at IS NULL AND attempts < ? ORDER BY id LIMIT ?",
                (topic, MAX_ATTEMPTS, limit),
            )
            for row in rows:
                message = Message(row["id"], topic, json.loads(row["payload"]), row["created_at"])
                try:
                    handler(message)
                except Exception as error:  # any failure of a handler is recorded with the message and tried again
                    log.exception("outbox message %d (%s) failed", message.id, topic)
                    with self.database.transaction() as tx:
                        tx.execute(
                            "UPDATE outbox SET attempts = attempts + 1, error = ? WHERE id = ?",
                            (f"{type(error).__name__}: {error}"[:500], message.id),
                        )
                    break
                with self.database.transaction() as tx:
                    tx.execute("UPDATE outbox SET done_at = ? WHERE id = ?", (clock.now(), message.id))
                handled += 1
            if len(rows) == limit:
                self.posted.set()
        return handled

    def pending(self) -> int:
        row = self.database.one(
            "SELECT count(*) AS n FROM outbox WHERE done_at IS NULL AND attempts < ?", (MAX_ATTEMPTS,)
        )
        assert row is not None
        return int(row["n"])

    def failed(self) -> list[Message]:
        """Messages set aside after MAX_ATTEMPTS."""
        rows = self.database.query(
            "SELECT * FROM outbox WHERE done_at IS NULL AND attempts >= ? ORDER BY id", (MAX_ATTEMPTS,)
        )
        return [Message(r["id"], r["topic"], json.loads(r["payload"]), r["created_at"]) for r in rows]
