"""The outbox: what still has to be told to the notebook and the index, written in the same transaction as the
state change it tells of. The service drains it; a handler may see a message twice (a kill between handling and
ticking off) and must make the second time harmless, by the message's id.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from workspace import clock
from workspace.database import Database
from workspace.errors import Unavailable

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
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0  # doubled after each failure
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
        self._pauses: dict[str, tuple[float, float]] = {}  # topic -> (not before this monotonic time, pause)
        database.migrate("outbox", TABLES)
        with database.transaction() as tx:  # what was set aside may have failed for a reason that is gone by now
            tx.execute("UPDATE outbox SET attempts = 0 WHERE done_at IS NULL AND attempts > 0")

    def post(self, tx: sqlite3.Connection, topic: str, payload: Mapping[str, Any]) -> int:
        """Add a message inside the caller's transaction; it is handled after that commits."""
        cursor = tx.execute(
            "INSERT INTO outbox (topic, payload, created_at) VALUES (?, ?, ?)",
            (topic, json.dumps(payload, ensure_ascii=False), clock.now()),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def drain(self, handlers: Mapping[str, Handler], *, limit: int = 200) -> int:
        """Handle open messages of the given topics; returns how many were handled. Costs one indexed query per topic.

        A message whose handler raises stays open, and its topic pauses, longer each time. A handler that needs
        something that is away (`Unavailable`) is tried for ever; one that fails otherwise MAX_ATTEMPTS times has its
        message set aside with the error (`failed()` lists it) until the next start, so that one bad message cannot
        hold up the rest.
        """
        handled = 0
        for topic, handler in handlers.items():
            if time.monotonic() < self._pauses.get(topic, (0.0, 0.0))[0]:
                continue
            rows = self.database.query(
                "SELECT * FROM outbox WHERE topic = ? AND done_at IS NULL AND attempts < ? ORDER BY id LIMIT ?",
                (topic, MAX_ATTEMPTS, limit),
            )
            for row in rows:
                message = Message(row["id"], topic, json.loads(row["payload"]), row["created_at"])
                try:
                    handler(message)
                except Exception as error:  # noqa: BLE001  recorded with the message and tried again
                    self._failed(message, error)
                    break
                with self.database.transaction() as tx:
                    tx.execute("UPDATE outbox SET done_at = ? WHERE id = ?", (clock.now(), message.id))
                self._pauses.pop(topic, None)
                handled += 1
        return handled

    def _failed(self, message: Message, error: Exception) -> None:
        pause = min(2 * self._pauses.get(message.topic, (0.0, FIRST_PAUSE_S / 2))[1], LONGEST_PAUSE_S)
        self._pauses[message.topic] = (time.monotonic() + pause, pause)
        away = isinstance(error, Unavailable)
        log.warning("outbox message %d (%s) failed: %s", message.id, message.topic, error, exc_info=not away)
        with self.database.transaction() as tx:
            tx.execute(
                "UPDATE outbox SET attempts = attempts + ?, error = ? WHERE id = ?",
                (0 if away else 1, f"{type(error).__name__}: {error}"[:500], message.id),
            )

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
