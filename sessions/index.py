"""The notebook's tables in lab.db: an index over the journal files, rebuilt from them at any time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sessions.entry import Entry
from sessions.journal import Journal
from sessions.page import content
from workspace.database import Database
from workspace.outbox import Outbox

TABLES = [
    """
    CREATE TABLE notebook_sessions (
      session TEXT PRIMARY KEY, date TEXT NOT NULL, number INTEGER NOT NULL, conversation TEXT NOT NULL,
      title TEXT NOT NULL, page TEXT NOT NULL, opened_at TEXT NOT NULL, closed_at TEXT, updated_at TEXT NOT NULL,
      entries INTEGER NOT NULL, last_hash TEXT NOT NULL, bytes INTEGER NOT NULL
    );
    CREATE INDEX notebook_conversations ON notebook_sessions (conversation, opened_at);
    CREATE TABLE notebook_entries (
      entry TEXT PRIMARY KEY, session TEXT NOT NULL, kind TEXT NOT NULL, section TEXT, at TEXT NOT NULL,
      key TEXT, text TEXT NOT NULL
    );
    CREATE INDEX notebook_keys ON notebook_entries (key) WHERE key IS NOT NULL;
    CREATE INDEX notebook_of_session ON notebook_entries (session, entry);
    CREATE TABLE notebook_links (
      ref TEXT NOT NULL, session TEXT NOT NULL, at TEXT NOT NULL, PRIMARY KEY (ref, session)
    );
    """
]
TOLD = ("note", "event")  # with words in them, these are told of (note.written); amendments and the closing always

LOOKED_BACK = 50  # entries of a section, until one is found of which something is left


@dataclass(frozen=True)
class Session:
    """What a list of sessions shows. `page` is the file's name in docs/sessions."""

    id: str
    title: str
    date: str
    conversation: str
    page: str
    opened_at: str
    updated_at: str
    closed_at: str | None
    entries: int

    @property
    def open(self) -> bool:
        return self.closed_at is None


class Index:
    """Reads and writes the tables; every writing method is one transaction."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self._database = database
        self._outbox = outbox
        database.migrate("notebook", TABLES)

    def sizes(self) -> dict[str, int]:
        """Of each session, how many bytes of its journal the index has taken in."""
        rows = self._database.query("SELECT session, bytes FROM notebook_sessions")
        return {row["session"]: row["bytes"] for row in rows}

    def sync(self, journal: Journal, page: str) -> int:
        """Take in what the index does not have yet and tell of it; returns how many entries were told of."""
        state, last = content(journal.entries), journal.entries[-1]
        opened, told = state.opened, 0
        number = int(journal.session.rsplit("-", 1)[1])
        with self._database.transaction() as tx:
            fresh = self._unknown(tx, journal)
            for entry in fresh:
                self._add(tx, entry)
                if entry.kind in ("amendment", "close") or (entry.kind in TOLD and entry.text):
                    self._outbox.post(tx, "note.written", {"session": journal.session, "entry": entry.id})
                    told += 1
            tx.execute(
                "INSERT OR REPLACE INTO notebook_sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(journal.session, journal.session[:10], number, str(opened.data.get("conversation", ""))),
                    *(state.title, page, opened.at, state.closed.at if state.closed else None, last.at),
                    *(len(journal.entries), journal.head, journal.size),
                ),
            )
        return told

    def _unknown(self, tx: sqlite3.Connection, journal: Journal) -> list[Entry]:
        """The entries the index lacks: usually those after the last one it has."""
        session = (journal.session,)
        row = tx.execute("SELECT entries, last_hash FROM notebook_sessions WHERE session = ?", session).fetchone()
        seen = row["entries"] if row is not None else 0
        if 0 < seen <= len(journal.entries) and journal.entries[seen - 1].hash == row["last_hash"]:
            return journal.entries[seen:]
        rows = tx.execute("SELECT entry FROM notebook_entries WHERE session = ?", session).fetchall()
        known = {row["entry"] for row in rows}
        return [entry for entry in journal.entries if entry.id not in known]

    def _add(self, tx: sqlite3.Connection, entry: Entry) -> None:
        tx.execute(
            "INSERT OR REPLACE INTO notebook_entries VALUES (?, ?, ?, ?, ?, ?, ?)",
            (entry.id, entry.session, entry.kind, entry.section, entry.at, entry.key, entry.text),
        )
        for ref in (*entry.links.runs, *entry.links.experiments):
            tx.execute("INSERT OR IGNORE INTO notebook_links VALUES (?, ?, ?)", (ref, entry.session, entry.at))

    def by_key(self, key: str) -> str | None:
        """The id of the entry written under `key`."""
        row = self._database.one("SELECT entry FROM notebook_entries WHERE key = ?", (key,))
        return None if row is None else str(row["entry"])

    def owner(self, ref: str) -> str | None:
        """The session that spoke first of a run or experiment: the one that started it."""
        row = self._database.one("SELECT session FROM notebook_links WHERE ref = ? ORDER BY at LIMIT 1", (ref,))
        return None if row is None else str(row["session"])

    def of_conversation(self, conversation: str) -> Session | None:
        """The newest session of a conversation that is not closed."""
        row = self._database.one(
            "SELECT * FROM notebook_sessions WHERE conversation = ? AND closed_at IS NULL "
            "ORDER BY date DESC, number DESC LIMIT 1",
            (conversation,),
        )
        return None if row is None else _session(row)

    def get(self, session: str) -> Session | None:
        row = self._database.one("SELECT * FROM notebook_sessions WHERE session = ?", (session,))
        return None if row is None else _session(row)

    def all(self) -> list[Session]:
        return [_session(row) for row in self._database.query("SELECT * FROM notebook_sessions ORDER BY date, number")]

    def find(self, limit: int, text: str | None) -> list[Session]:
        """The newest sessions first, those whose title or entries contain `text`."""
        pattern = "%" + (text or "").replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        rows = self._database.query(
            "SELECT * FROM notebook_sessions WHERE title LIKE :p ESCAPE '\\' OR session LIKE :p ESCAPE '\\' "
            "OR session IN (SELECT session FROM notebook_entries WHERE text LIKE :p ESCAPE '\\') "
            "ORDER BY date DESC, number DESC LIMIT :limit",
            {"p": pattern, "limit": limit},
        )
        return [_session(row) for row in rows]

    def in_section(self, section: str) -> Iterator[str]:
        """The entries written under a section, newest first."""
        rows = self._database.query(
            "SELECT entry FROM notebook_entries WHERE section = ? AND text != '' ORDER BY at DESC, entry DESC LIMIT ?",
            (section, LOOKED_BACK),
        )
        return (str(row["entry"]) for row in rows)

    def last_number(self, date: str) -> int:
        row = self._database.one("SELECT max(number) AS n FROM notebook_sessions WHERE date = ?", (date,))
        return int(row["n"] or 0) if row else 0

    def problems(self, journal: Journal) -> list[str]:
        """Where index and journal differ: what the index has seen must still be there, with the same words."""
        if self._database.one("SELECT 1 FROM notebook_sessions WHERE session = ?", (journal.session,)) is None:
            return ["the session is not in the index"]
        rows = self._database.query("SELECT entry, text FROM notebook_entries WHERE session = ?", (journal.session,))
        return not_as_seen(journal, {row["entry"]: row["text"] for row in rows})


def not_as_seen(journal: Journal, seen: Mapping[str, str]) -> list[str]:
    """What is wrong with a journal whose entries had these words, by id, when they were written. A chain that was
    hashed anew from its first change on shows here only."""
    if not journal.entries:
        return ["its journal is missing or empty"]
    present = {entry.id: entry.text for entry in journal.entries}
    gone = sorted(name for name in seen if name not in present)
    other = sorted(name for name in seen if present.get(name, seen[name]) != seen[name])
    return [
        *([f"entries are gone from the journal: {', '.join(gone[:5])}"] if gone else []),
        *([f"entries say something else than when they were written: {', '.join(other[:5])}"] if other else []),
    ]


def _session(row: sqlite3.Row) -> Session:
    names = ("title", "date", "conversation", "page", "opened_at", "updated_at", "closed_at", "entries")
    return Session(id=row["session"], **{name: row[name] for name in names})
