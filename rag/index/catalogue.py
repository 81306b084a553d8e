"""The catalogue: every document the index should hold, and how far it has got. One SQLite file beside the vectors.

A document is `pending` until all its passages are in the store, then `written`, and `done` once the store has been
flushed to disk. Whatever is not `done` when a process dies is indexed again at the next start; passages have stable
ids, so doing it twice changes nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from workspace import clock
from workspace.database import Database

State = Literal["pending", "written", "done", "failed", "removing"]
DEADLY = "reading it ended the memory process several times"  # the reason of a document that is given up for that
BIBTEX_KEY = "bibtex"  # in the details of a document that is a bibliography's entry
READ_ATTEMPTS = 5  # times a document may be in hand while the process dies before it is held to be the cause
NOT_DONE = "state <> 'done'"  # SQLite uses the index of those only where a query says this in so many words
TABLES = [
    f"""
    CREATE TABLE documents (
      id TEXT PRIMARY KEY, kind TEXT NOT NULL, title TEXT NOT NULL, source TEXT NOT NULL, date TEXT NOT NULL,
      tags TEXT NOT NULL, details TEXT NOT NULL, hash TEXT NOT NULL, body TEXT, path TEXT,
      state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', chunks INTEGER NOT NULL DEFAULT 0,
      priority INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0,
      revision INTEGER NOT NULL, updated_at TEXT NOT NULL
    );
    CREATE INDEX documents_open ON documents (state, priority DESC, revision) WHERE {NOT_DONE};
    CREATE INDEX documents_kind ON documents (kind, state);
    CREATE TABLE files (
      path TEXT PRIMARY KEY, size INTEGER NOT NULL, modified_ns INTEGER NOT NULL, hash TEXT NOT NULL,
      document TEXT NOT NULL
    );
    CREATE INDEX files_hash ON files (hash);
    CREATE INDEX files_document ON files (document);
    CREATE TABLE revisions (last INTEGER NOT NULL);
    INSERT INTO revisions VALUES (0);
    """,
    "CREATE TABLE looks (number INTEGER PRIMARY KEY AUTOINCREMENT, places TEXT UNIQUE NOT NULL);",
]


@dataclass(frozen=True)
class Entry:
    """A document in the catalogue. `body` is the text of one handed over, `path` the key of one read from a file.

    `hash` covers everything its passages are made from: content and given details. `details` are those given from
    outside the file (by the caller, or a bibliography).
    """

    id: str
    kind: str
    title: str
    source: str
    hash: str
    date: str = ""
    tags: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    body: str | None = None
    path: str | None = None
    state: State = "pending"
    reason: str = ""
    chunks: int = 0
    priority: int = 0
    attempts: int = 0
    revision: int = 0


@dataclass(frozen=True)
class FileRow:
    path: str  # relative to the workspace, or `shelf:name`
    size: int
    modified_ns: int
    hash: str  # empty when it could not be read
    document: str


def _entry(row: sqlite3.Row) -> Entry:
    fields = {name: row[name] for name in Entry.__dataclass_fields__}
    return Entry(**{**fields, "tags": tuple(json.loads(row["tags"])), "details": json.loads(row["details"])})


class Catalogue:
    """Thread-safe; owned by the worker process."""

    def __init__(self, file: Path) -> None:
        self._database = Database(file)
        # what may be lost with the power, since it is then done again: waiting for the disk at each step of each
        # document would take longer than embedding a short one
        self._progress = Database(file, synchronous="NORMAL")
        self._database.migrate("catalogue", TABLES)
        with self._database.transaction() as tx:  # a store written but not flushed may have lost it with the power
            tx.execute(f"UPDATE documents SET state = 'pending' WHERE state = 'written' AND {NOT_DONE}")

    def put(self, entry: Entry) -> bool:
        """Add or replace a document; it is pending afterwards. False when exactly this is already there."""
        return self.put_all([entry]) > 0

    def put_all(self, entries: Iterable[Entry]) -> int:
        """The same for many in one transaction; how many were not there already."""
        with self._database.transaction() as tx:
            return sum(self._put(tx, entry) for entry in entries)

    def put_files(self, changes: Iterable[tuple[FileRow, Entry | None]]) -> None:
        """Record files and, where given, put their documents, in one transaction."""
        with self._database.transaction() as tx:
            for file, entry in changes:
                tx.execute(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
                    (file.path, file.size, file.modified_ns, file.hash, file.document),
                )
                if entry is not None:
                    self._put(tx, entry)

    def _put(self, tx: sqlite3.Connection, entry: Entry) -> bool:
        row = tx.execute("SELECT * FROM documents WHERE id = ?", (entry.id,)).fetchone()
        if row is not None:
            old = _entry(row)
            unchanged = old.hash == entry.hash and old.path == entry.path and old.kind == entry.kind
            if unchanged and old.state in ("pending", "written", "done") and entry.state == "pending":
                return False
        revision = tx.execute("UPDATE revisions SET last = last + 1 RETURNING last").fetchone()["last"]
        chunks = row["chunks"] if row is not None else 0
        tx.execute(
            "INSERT OR REPLACE INTO documents (id, kind, title, source, date, tags, details, hash, body, path, state,"
            " reason, chunks, priority, attempts, revision, updated_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?)",
            (
                *(entry.id, entry.kind, entry.title, entry.source, entry.date),
                *(json.dumps(entry.tags), json.dumps(entry.details), entry.hash, entry.body, entry.path),
                *(entry.state, entry.reason, chunks, entry.priority, revision, clock.now()),
            ),
        )
        return True

    def get(self, document: str) -> Entry | None:
        row = self._database.one("SELECT * FROM documents WHERE id = ?", (document,))
        return None if row is None else _entry(row)

    def present(self, documents: Collection[str]) -> set[str]:
        """Those of these ids that are documents and are not to be removed."""
        marks = ", ".join("?" for _ in documents)
        asked = f"SELECT id FROM documents WHERE state <> 'removing' AND id IN ({marks})"
        return {row["id"] for row in self._database.query(asked, list(documents))}

    def next(self, *, above: int = -1, after: Entry | None = None) -> Entry | None:
        """The next document to index or remove, of a priority over `above`; handed-over ones before files.

        With `after`, the next of its priority that was put later.
        """
        which, values = "priority > ?", [above]
        if after is not None:
            which, values = "priority = ? AND revision > ?", [after.priority, after.revision]
        # of each state the first one by the index: sorting all that waits would cost more than embedding a short one
        chosen = f"state = ? AND {NOT_DONE} AND {which}"
        first = f"SELECT * FROM documents WHERE {chosen} ORDER BY priority DESC, revision LIMIT 1"
        rows = [self._database.one(first, (state, *values)) for state in ("pending", "removing")]
        found = [_entry(row) for row in rows if row is not None]
        return min(found, key=lambda entry: (-entry.priority, entry.revision), default=None)

    def standing(self, entries: Sequence[Entry]) -> set[str]:
        """The ids of those that are still to be indexed as they were when they were taken."""
        marks = ", ".join("?" for _ in entries)
        rows = self._database.query(
            f"SELECT id, revision FROM documents WHERE state = 'pending' AND id IN ({marks})",
            [entry.id for entry in entries],
        )
        revisions = {row["id"]: row["revision"] for row in rows}
        return {entry.id for entry in entries if revisions.get(entry.id) == entry.revision}

    def opening(self, entry: Entry) -> bool:
        """Count an attempt at a document; False when the process died at it too often."""
        with self._progress.transaction() as tx:
            tx.execute(
                "UPDATE documents SET attempts = attempts + 1 WHERE id = ? AND revision = ?", (entry.id, entry.revision)
            )
        return entry.attempts < READ_ATTEMPTS

    def another_chance(self) -> None:
        """Those given up for the deaths of the process are to be indexed once more: it may have been killed."""
        with self._progress.transaction() as tx:
            tx.execute(
                "UPDATE documents SET state = 'pending', attempts = 0, reason = ''"
                f" WHERE state = 'failed' AND {NOT_DONE} AND reason = ?",
                (DEADLY,),
            )

    def put_back(self, entries: Iterable[Entry]) -> None:
        """They were taken and not finished, and the process lives: the attempt does not count."""
        with self._progress.transaction() as tx:
            tx.executemany("UPDATE documents SET attempts = 0 WHERE id = ?", [(entry.id,) for entry in entries])

    def written_all(self, documents: Iterable[tuple[Entry, int, str]]) -> None:
        """All passages of these are in the store, so many of each. Without effect on one that was put again meanwhile.

        The last of each names the bibliography's entry about it, if any: a document no more from this moment on.
        """
        standing = "SELECT 1 FROM documents WHERE id = ? AND path IS NULL AND state <> 'removing'"
        with self._progress.transaction() as tx:
            for entry, chunks, abstract in documents:
                effect = tx.execute(
                    "UPDATE documents SET state = 'written', title = ?, date = ?, tags = ?, details = ?, hash = ?,"
                    " chunks = ?, attempts = 0, reason = '' WHERE id = ? AND revision = ?",
                    (
                        *(entry.title, entry.date, json.dumps(entry.tags), json.dumps(entry.details), entry.hash),
                        *(chunks, entry.id, entry.revision),
                    ),
                ).rowcount
                if effect and abstract and tx.execute(standing, (abstract,)).fetchone():
                    self._removing(tx, abstract)

    def failed(self, entry: Entry, reason: str) -> None:
        with self._progress.transaction() as tx:
            tx.execute(
                "UPDATE documents SET state = 'failed', reason = ?, chunks = 0 WHERE id = ? AND revision = ?",
                (reason, entry.id, entry.revision),
            )

    def flushed(self) -> None:
        """The store was flushed: what was written before is done. The caller writes nothing meanwhile."""
        with self._progress.transaction() as tx:
            tx.execute(f"UPDATE documents SET state = 'done' WHERE state = 'written' AND {NOT_DONE}")

    def store_is_empty(self) -> None:
        """The store was made anew: whatever was in it is to be indexed again, also what is being written just now."""
        with self._database.transaction() as tx:
            tx.execute(
                "UPDATE documents SET state = 'pending', revision = ? + rowid"
                " WHERE state IN ('pending', 'written', 'done')",
                (self._renumbered(tx),),
            )

    def again(self, documents: Iterable[str] | None = None) -> int:
        """Index these documents again, or all; how many there were. Failed ones get another chance."""
        chosen = None if documents is None else list(documents)
        where = "" if chosen is None else f" AND id IN ({', '.join('?' for _ in chosen)})"
        with self._database.transaction() as tx:
            return tx.execute(
                "UPDATE documents SET state = 'pending', attempts = 0, reason = '', revision = ? + rowid"
                f" WHERE state <> 'removing'{where}",
                (self._renumbered(tx), *(chosen or ())),
            ).rowcount

    def _renumbered(self, tx: sqlite3.Connection) -> int:
        """What to add to the rowids of documents for new revisions of them, each of its own."""
        most = tx.execute("SELECT ifnull(max(rowid), 0) AS most FROM documents").fetchone()["most"]
        row = tx.execute("UPDATE revisions SET last = last + ? RETURNING last", (most,)).fetchone()
        return int(row["last"]) - int(most)

    def removing(self, document: str) -> bool:
        """Mark a document for removal; False when there is none. Its files are forgotten."""
        with self._database.transaction() as tx:
            return self._removing(tx, document)

    def _removing(self, tx: sqlite3.Connection, document: str) -> bool:
        tx.execute("DELETE FROM files WHERE document = ?", (document,))
        revision = tx.execute("UPDATE revisions SET last = last + 1 RETURNING last").fetchone()["last"]
        return (
            tx.execute(
                "UPDATE documents SET state = 'removing', priority = 1, revision = ? WHERE id = ?", (revision, document)
            ).rowcount
            > 0
        )

    def removed(self, entry: Entry) -> None:
        with self._progress.transaction() as tx:
            tx.execute("DELETE FROM documents WHERE id = ? AND revision = ?", (entry.id, entry.revision))

    def forget_files(self, paths: Iterable[str]) -> list[str]:
        """The files are gone; documents no other file holds are marked for removal and returned."""
        gone = []
        with self._database.transaction() as tx:
            for path in paths:
                row = tx.execute("DELETE FROM files WHERE path = ? RETURNING document", (path,)).fetchone()
                if row is None:
                    continue
                left = tx.execute("SELECT path FROM files WHERE document = ? LIMIT 1", (row["document"],)).fetchone()
                if left is None:
                    self._removing(tx, row["document"])
                    gone.append(row["document"])
                else:  # a copy of it stays: read it from there from now on
                    tx.execute(
                        "UPDATE documents SET path = ?, source = ? WHERE id = ?",
                        (left["path"], left["path"], row["document"]),
                    )
        return gone

    def move(self, old: str, new: FileRow) -> None:
        """A file has a new name and the same content; its document keeps its id."""
        with self._database.transaction() as tx:
            tx.execute("DELETE FROM files WHERE path = ?", (old,))
            tx.execute(
                "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
                (new.path, new.size, new.modified_ns, new.hash, new.document),
            )
            revision = tx.execute("UPDATE revisions SET last = last + 1 RETURNING last").fetchone()["last"]
            tx.execute(  # one that is being read this moment under its old name is read again
                "UPDATE documents SET path = ?, source = ?, revision = iif(state = 'pending', ?, revision)"
                " WHERE id = ? AND path = ?",
                (new.path, new.path, revision, new.document, old),
            )

    def files(self) -> dict[str, FileRow]:
        rows = self._database.query("SELECT * FROM files")
        return {row["path"]: FileRow(**dict(row)) for row in rows}

    def look_asked(self, places: Sequence[str]) -> None:
        """These places are to be looked at for changes, whatever becomes of this process."""
        with self._database.transaction() as tx:
            tx.execute("INSERT OR REPLACE INTO looks (places) VALUES (?)", (json.dumps(places),))

    def looks(self) -> dict[tuple[str, ...], int]:
        """The places that are still to be looked at, each with a number that grows when it is asked again."""
        rows = self._database.query("SELECT number, places FROM looks ORDER BY number")
        return {tuple(json.loads(row["places"])): row["number"] for row in rows}

    def looked(self, places: Sequence[str], number: int) -> None:
        """A look at `places` that began when `looks` gave them this number has come to its end."""
        with self._database.transaction() as tx:
            tx.execute("DELETE FROM looks WHERE places = ? AND number <= ?", (json.dumps(places), number))

    def entries(self, states: Iterable[State]) -> list[Entry]:
        marks = list(states)
        where = f"state IN ({', '.join('?' for _ in marks)})" + ("" if "done" in marks else f" AND {NOT_DONE}")
        rows = self._database.query(f"SELECT * FROM documents WHERE {where} ORDER BY revision", marks)
        return [_entry(row) for row in rows]

    def put_abstracts(self, choose: Callable[[Iterable[tuple[str, str]]], list[Entry]]) -> tuple[int, int]:
        """Make those of a bibliography's entries documents that `choose` picks, and no others; how many came and went.

        `choose` is told title and arXiv id of every paper that is a file. One transaction: none is found to be about
        an entry (see `written_all`) between the choosing and the putting.
        """
        papers = "kind = 'paper' AND state <> 'removing'"
        with self._database.transaction() as tx:
            rows = tx.execute(
                "SELECT title, coalesce(json_extract(details, '$.arxiv'), '') AS arxiv FROM documents"
                f" WHERE {papers} AND path IS NOT NULL AND path NOT LIKE 'shelf:%'"
            )
            chosen = choose((row["title"], row["arxiv"]) for row in rows)
            added = sum(self._put(tx, entry) for entry in chosen)
            there = tx.execute(
                f"SELECT id FROM documents WHERE {papers} AND path IS NULL"
                f" AND json_extract(details, '$.{BIBTEX_KEY}') IS NOT NULL"
            )
            gone = {row["id"] for row in there} - {entry.id for entry in chosen}
            for document in gone:
                self._removing(tx, document)
        return added, len(gone)

    def listed(self, kinds: Sequence[str], text: str, after: str, limit: int) -> tuple[list[Entry], int]:
        """Documents with `text` in id, title, source or tags, after the id `after`; and how many there are in all."""
        where, values = "state <> 'removing'", []
        if kinds:
            where += f" AND kind IN ({', '.join('?' for _ in kinds)})"
            values += list(kinds)
        if text:
            where += " AND instr(lower(id || ' ' || title || ' ' || source || ' ' || tags), ?) > 0"
            values.append(text.lower())
        total = self._database.one(f"SELECT count(*) AS n FROM documents WHERE {where}", values)
        rows = self._database.query(
            f"SELECT * FROM documents WHERE {where} AND id > ? ORDER BY id LIMIT ?", [*values, after, limit]
        )
        return [_entry(row) for row in rows], 0 if total is None else int(total["n"])

    def metrics(self) -> list[str]:
        """Names of the metrics documents were given with."""
        rows = self._database.query(
            "SELECT DISTINCT key FROM documents, json_each(documents.details, '$.metrics') ORDER BY key"
        )
        return [str(row["key"]) for row in rows]

    def waiting(self) -> int:
        row = self._database.one(
            f"SELECT count(*) AS n FROM documents WHERE state IN ('pending', 'removing') AND {NOT_DONE}"
        )
        return 0 if row is None else int(row["n"])

    def counts(self) -> dict[str, dict[str, int]]:
        """{kind: {state: documents}}."""
        counts: dict[str, dict[str, int]] = {}
        for row in self._database.query("SELECT kind, state, count(*) AS n FROM documents GROUP BY kind, state"):
            counts.setdefault(row["kind"], {})[row["state"]] = row["n"]
        return counts

    def take_over(self, other: Catalogue) -> None:
        """Copy another catalogue's documents, files and looks; every readable document is pending here."""
        for entry in other.entries(["pending", "written", "done", "failed"]):
            self.put(replace(entry, state="failed" if entry.state == "failed" else "pending"))
        self.put_files((file, None) for file in other.files().values())
        for places in other.looks():
            self.look_asked(places)

    def close(self) -> None:
        self._progress.close()
        self._database.close()
