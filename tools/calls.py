"""Calls that change something happen once: answered from the record when they come again, and journalled."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import anyio

from tools.tool import Caller
from workspace import clock
from workspace.database import Database
from workspace.errors import Refused

TABLES = [
    """
    CREATE TABLE calls (
      key TEXT PRIMARY KEY, tool TEXT NOT NULL, arguments TEXT NOT NULL,
      answer TEXT NOT NULL, at TEXT NOT NULL
    );
    CREATE INDEX calls_at ON calls (at);
    """,
    "CREATE TABLE agreements (key TEXT PRIMARY KEY, tool TEXT NOT NULL, arguments TEXT NOT NULL, at TEXT NOT NULL)",
]
KEEP_DAYS = 7
log = logging.getLogger(__name__)


class Journal(Protocol):
    """The notebook, as far as calls are concerned."""

    def journal(
        self, conversation: str, tool: str, arguments: dict[str, Any], outcome: str, key: str | None = None
    ) -> object: ...


class Calls:
    """The durable record key -> answer.

    The tool itself makes its effect idempotent under the same key (a run or experiment row carries it), so a
    service killed between effect and answer does the same thing again without a second effect.
    """

    def __init__(self, database: Database, journal: Journal | None) -> None:
        self.database = database
        self.journal = journal
        self._running: dict[str, tuple[str, str, anyio.Event]] = {}  # key -> tool, canonical arguments, "it is over"
        database.migrate("calls", TABLES)
        oldest = clock.stamp(datetime.now(UTC) - timedelta(days=KEEP_DAYS))
        with database.transaction() as tx:
            # a key somebody chose stays known: the run it started does, too
            tx.execute("DELETE FROM calls WHERE at < ? AND key NOT LIKE 'given:%'", (oldest,))
            tx.execute("DELETE FROM agreements WHERE at < ?", (oldest,))

    async def once(
        self,
        tool: str,
        arguments: dict[str, Any],
        caller: Caller,
        act: Callable[[], Awaitable[dict[str, Any]]],
    ) -> dict[str, Any]:
        """Run `act` unless its key has been answered: then give that answer again."""
        key = caller.key
        if key is None:
            return await self._act(tool, arguments, caller, act)
        call = (tool, _canonical(arguments))
        while key in self._running:  # the same call sent again while the first is still under way
            *first, over = self._running[key]
            if tuple(first) != call:
                raise _used()
            await over.wait()
        over = anyio.Event()
        self._running[key] = (*call, over)
        try:
            known = await anyio.to_thread.run_sync(self._known, key)
            if known is not None:
                if (known["tool"], known["arguments"]) != call:
                    raise _used()
                answer: dict[str, Any] = json.loads(known["answer"])
                return answer
            return await self._act(tool, arguments, caller, act)
        finally:
            over.set()
            del self._running[key]

    async def agreed(self, tool: str, arguments: dict[str, Any], key: str | None) -> bool:
        """Need the user not be asked about this call? It is under way or carried out, or they have said yes to it."""
        if key is None:
            return False
        call = (tool, _canonical(arguments))
        if key in self._running and self._running[key][:2] == call:
            return True
        if await anyio.to_thread.run_sync(self._known, key) is not None:
            return True  # and if it was another call, this one will be refused
        query = "SELECT 1 FROM agreements WHERE key = ? AND tool = ? AND arguments = ?"
        return await anyio.to_thread.run_sync(self.database.one, query, (key, *call)) is not None

    async def agree(self, tool: str, arguments: dict[str, Any], key: str | None) -> None:
        """Keep that the user said yes, before anything is done: a call sent again is not asked about again."""
        if key is not None:
            await anyio.to_thread.run_sync(self._agree, key, tool, _canonical(arguments))

    def _agree(self, key: str, tool: str, arguments: str) -> None:
        with self.database.transaction() as tx:
            tx.execute("INSERT OR REPLACE INTO agreements VALUES (?, ?, ?, ?)", (key, tool, arguments, clock.now()))

    async def _act(
        self, tool: str, arguments: dict[str, Any], caller: Caller, act: Callable[[], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        # A refusal changed nothing, so it is not recorded: the same call may succeed later.
        with anyio.CancelScope(shield=True):  # whoever asked may have gone: what was done is written down all the same
            answer = await act()
            try:
                await anyio.to_thread.run_sync(self._record, tool, arguments, caller, answer)
            except Exception:  # it happened: an error would say that it did not, and it would be asked for again
                log.exception("%s was carried out, but not written down", tool)
        return answer

    def _known(self, key: str) -> sqlite3.Row | None:
        return self.database.one("SELECT tool, arguments, answer FROM calls WHERE key = ?", (key,))

    def _record(self, tool: str, arguments: dict[str, Any], caller: Caller, answer: dict[str, Any]) -> None:
        if caller.key is not None:
            with self.database.transaction() as tx:
                tx.execute(
                    "INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?, ?)",
                    (caller.key, tool, _canonical(arguments), json.dumps(answer, ensure_ascii=False), clock.now()),
                )
        if self.journal is not None:
            self.journal.journal(caller.conversation, tool, arguments, _outcome(answer), key=caller.key)


def _used() -> Refused:
    return Refused(
        "this idempotency key was used for a different call",
        fix="use a new key for a new call, or repeat the first call unchanged",
    )


def _canonical(arguments: dict[str, Any]) -> str:
    return json.dumps(arguments, ensure_ascii=False, sort_keys=True)


def _outcome(answer: dict[str, Any]) -> str:
    """One line for the journal: the handle and its state."""
    shown = [str(answer[name]) for name in ("run_id", "experiment_id", "session_id", "state") if answer.get(name)]
    return " ".join(shown) or "done"
