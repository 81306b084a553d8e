"""The sessions' files as one whole: one lock, appending, taking in people's edits, writing pages, recovery."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO

from sessions import edits
from sessions.entry import Entry
from sessions.index import Index, Session
from sessions.journal import Journal
from sessions.page import LAST_ENTRY, Page, render
from sessions.pagefile import PageFile, Rendered, remembered_since
from workspace.errors import NotFound, unknown
from workspace.layout import Workspace

try:
    import fcntl
except ImportError:  # Windows: only the threads of one service are kept apart there
    fcntl = None  # type: ignore[assignment]

PUBLISH_ROUNDS = 5  # a page edited again and again while it is written is left to the next access
log = logging.getLogger(__name__)


@dataclass
class Bound:
    """One session: its journal and its page."""

    journal: Journal
    page: PageFile


class Binder:
    """Everything under docs/sessions. Every public method takes the notebook's lock, across threads and processes."""

    def __init__(self, workspace: Workspace, index: Index) -> None:
        self._workspace = workspace
        self.index = index
        self._thread_lock = threading.RLock()
        self._depth = 0
        self._bound: dict[str, Bound] = {}
        self._recovered = False
        self._told_at_start = 0

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """The only writer of the notebook while the block runs; may be nested. Recovers first, once a process."""
        with self._thread_lock, contextlib.ExitStack() as stack:
            if self._depth == 0:
                stack.enter_context(self._file_lock())
            self._depth += 1
            try:
                if not self._recovered:
                    self._recovered = True
                    self._told_at_start = self._recover()
                yield
            finally:
                self._depth -= 1

    @contextlib.contextmanager
    def _file_lock(self) -> Iterator[IO[bytes]]:
        self._workspace.locks_dir.mkdir(parents=True, exist_ok=True)
        self._workspace.journal_dir.mkdir(parents=True, exist_ok=True)
        ignore = self._workspace.journal_dir / ".gitignore"
        if not ignore.exists():  # the journals belong in git; what is remembered of pages does not
            ignore.write_text("*.rendered.json\n*.replaced.md\n", encoding="utf-8")
        with (self._workspace.locks_dir / "notebook.lock").open("ab") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file  # closing the file gives the lock back

    def recover(self) -> int:
        """Bring index, outbox and pages in line with the journals; returns how many entries nobody had been told of."""
        with self.exclusive():
            told, self._told_at_start = self._told_at_start + self._recover(), 0
            return told

    def _recover(self) -> int:
        told, sizes = 0, self.index.sizes()
        for path in sorted(self._workspace.journal_dir.glob("*.jsonl")):
            indexed = sizes.get(path.stem) == path.stat().st_size
            if indexed and remembered_since(path):
                continue
            bound = self._bind(path.stem)
            if not bound.journal.entries:
                continue
            if bound.journal.problems:
                log.warning("notebook %s: %s", path.stem, "; ".join(bound.journal.problems[:3]))
            if not indexed:
                told += self.index.sync(bound.journal, bound.page.path.name)
            self._absorb(bound)
        return told

    def create(self, entry: Entry, slug: str) -> Bound:
        """A new session from its opening entry. Its page is written with the first entry that follows."""
        session = entry.session
        page = PageFile(self._workspace.sessions_dir / f"{session}-{slug}.md", self._workspace.journal_dir, session)
        bound = Bound(Journal(self._workspace.journal_dir / f"{session}.jsonl"), page)
        bound.journal.append(entry)
        self._bound[session] = bound
        self.index.sync(bound.journal, page.path.name)
        return bound

    def next_session(self, date: str) -> str:
        """`2026-11-21-01`, ...: after the highest number the index, a journal or a page of that day has had."""
        numbers = [self.index.last_number(date)]
        for folder in (self._workspace.journal_dir, self._workspace.sessions_dir):
            for path in folder.glob(f"{date}-*"):
                digits = path.name[len(date) + 1 :].split("-")[0].split(".")[0]
                numbers += [int(digits)] if digits.isdecimal() else []
        return f"{date}-{max(numbers) + 1:02d}"

    def bind(self, session: str) -> Bound:
        """The files of a session, read up to date. Raises `NotFound` naming the closest sessions."""
        bound = self._bind(session) if re.fullmatch(r"\d{4}-\d{2}-\d{2}-\d{2,}", session) else None
        if bound is None or not bound.journal.entries:
            self._bound.pop(session, None)
            known = self.index.all()
            if any(found.id == session for found in known):
                raise NotFound(
                    f"the journal of session {session} is gone", fix="restore docs/sessions/.journal from git"
                )
            raise unknown("session", session, [found.id for found in known])
        return bound

    def _bind(self, session: str) -> Bound:
        bound = self._bound.get(session)
        if bound is None:
            journal = Journal(self._workspace.journal_dir / f"{session}.jsonl")
            journal.load()
            slug = journal.entries[0].data.get("slug") or "session" if journal.entries else "session"
            page = self._workspace.sessions_dir / f"{session}-{slug}.md"
            bound = self._bound[session] = Bound(journal, PageFile(page, self._workspace.journal_dir, session))
        else:
            bound.journal.load()
            bound.page.refresh()
        return bound

    def append(self, bound: Bound, entry: Entry) -> Entry:
        """Add an entry (its id and chain are given here), tell of it, write the page.

        The journal is the truth: once the entry is in it, nothing that fails later undoes it, and the same entry
        sent again (by its key) only brings the rest in line.
        """
        if entry.key is not None and (earlier := bound.journal.by_key(entry.key)) is not None:
            self.index.sync(bound.journal, bound.page.path.name)
            return earlier
        if bound.page.current is not None or bound.page.path.exists():
            self._absorb(bound)
        written = self._write(bound, entry)
        self._publish(bound, bound.page.current.page.text if bound.page.current else None)
        return written

    def _write(self, bound: Bound, entry: Entry) -> Entry:
        written = bound.journal.append(replace(entry, id=bound.journal.next_id()))
        self.index.sync(bound.journal, bound.page.path.name)
        return written

    def text(self, bound: Bound) -> str:
        """The page as it stands; from the entries when it cannot be read or written."""
        with contextlib.suppress(OSError):
            if (text := bound.page.read()) is not None:
                return text
        return render(bound.journal.entries).text

    def absorb(self, session: Session | None = None) -> int:
        """Take in what people changed in one page or in all; returns how many pages were changed by hand."""
        with self.exclusive():
            ids = [session.id] if session else [found.id for found in self.index.all()]
            changed = 0
            for name in ids:
                bound = self._bind(name)
                if bound.journal.entries:
                    changed += self._absorb(bound)
            return changed

    def _absorb(self, bound: Bound) -> bool:
        page, name, before = bound.page, bound.page.path.name, len(bound.journal.entries)
        if (late := page.late_edit()) is not None:
            self._amend_late(bound, late)
        try:
            text = None if page.untouched() else page.read()
        except OSError as error:  # an unreadable page must not keep the lab from writing its journal
            log.warning("the page of session %s cannot be read (%s)", bound.journal.session, error.strerror)
            return False
        expected = text
        if page.path.name != name:
            self.index.sync(bound.journal, page.path.name)
        if page.untouched():
            expected = page.current.page.text if page.current else None
        elif text is None:
            if page.published:
                gone = {"what": "missing", "before": "the page was deleted or emptied by hand, and written again"}
                self._write(bound, edits.amended(bound.journal.next_id(), [gone], ""))
        elif page.previous is None or text != page.previous.page.text:
            self._amend(bound, text)
        if page.current is None or page.current.last != bound.journal.head or expected != page.current.page.text:
            self._publish(bound, expected)
        return len(bound.journal.entries) > before

    def _publish(self, bound: Bound, expected: str | None) -> None:
        """Write the page; a text that appeared in its place meanwhile is taken in, and the page written again."""
        try:
            for _ in range(PUBLISH_ROUNDS):
                rendered = Rendered(render(bound.journal.entries), bound.journal.head)
                found = bound.page.publish(rendered, expected)
                if found is None:
                    return
                self._amend(bound, found, raced=True)
                expected = rendered.page.text
        except OSError as error:
            log.warning("the page of session %s could not be written (%s)", bound.journal.session, error.strerror)

    def _amend(self, bound: Bound, text: str, raced: bool = False) -> None:
        """Keep what a person made of the page as one entry: wholly or not at all."""
        base, entries = self._base(bound, text, raced), bound.journal.entries
        if (amendment := edits.amendment(entries, base, text, bound.journal.next_id())) is not None:
            self._write(bound, amendment)

    def _amend_late(self, bound: Bound, text: str) -> None:
        """Lines written into a page that had just been replaced: those not shown yet go under "Edited by hand"."""
        base = self._base(bound, text)
        lines = edits.lines_of(text, base)
        if missing := edits.unplaced(render(bound.journal.entries), base, lines):
            diff = edits.unified(base.lines, lines)
            self._write(bound, edits.amended(bound.journal.next_id(), [edits.by_hand(missing)], diff))

    def _base(self, bound: Bound, text: str, raced: bool = False) -> Page:
        """The page `text` was edited from: the one whose last line, naming the last entry, is in it.

        An editor that was open while notes were added saves an older page; what it lacks was not taken out by hand.
        And what it holds may have been taken in before: by a process killed before it could write the page, or
        because the editor saves the same words again.
        """
        newest = [bound.page.previous, bound.page.current] if raced else [bound.page.current, bound.page.previous]
        remembered = [rendered for rendered in newest if rendered is not None]
        named, entries = LAST_ENTRY.findall(text), bound.journal.entries
        last = remembered[0].last if remembered else bound.journal.head
        if named:
            last = next((entry.hash for entry in entries if entry.hash.startswith(named[-1])), last)
        number = next((n for n, entry in enumerate(entries, 1) if entry.hash == last), len(entries))
        base = next((rendered.page for rendered in remembered if rendered.last == last), None)
        base = base or render(entries[:number])
        shown = entries[:number]
        for entry in entries[number:]:
            if entry.kind == "amendment":
                page = render([*shown, entry])
                if edits.distance(page, text) < edits.distance(base, text):
                    base, shown = page, [*shown, entry]
        return base
