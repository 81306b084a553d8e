"""The lab notebook: sessions of notes, events and calls, kept as chained entries and shown as Markdown pages.

A session belongs to one conversation and begins with the first call that changes something. The journal file of a
session is its truth; page, index and messages to others follow from it, whatever is killed when.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from sessions import export as exporting
from sessions import page, tables
from sessions.binder import Binder, Bound
from sessions.entry import AUTHORS, SECTIONS, Author, Entry, Links, section_name
from sessions.index import Index, Session
from sessions.journal import Journal
from sessions.text import clean, clean_value, cut, heading, slug
from workspace import clock
from workspace.database import Database
from workspace.errors import LabError, Refused
from workspace.layout import Workspace
from workspace.outbox import Outbox
from workspace.secrets import mask, mask_value

LONGEST_NOTE = 20_000  # characters
LONGEST_TITLE = 120
LONGEST_OUTCOME = 600
MOST_LINKS = 50


class Notebook:
    """Thread-safe; every method may be called from any thread of the service.

    `hardware` is asked once per session for the line in the page's head. Every note, event, amendment and closing
    posts `note.written` {"session", "entry"} to the outbox.
    """

    def __init__(
        self, workspace: Workspace, database: Database, outbox: Outbox, hardware: Callable[[], str] | None = None
    ) -> None:
        self._index = Index(database, outbox)
        self._binder = Binder(workspace, self._index)
        self._workspace = workspace
        self._hardware = hardware

    # sessions

    def session_for(self, conversation: str, create: bool = False, title: str | None = None) -> Session | None:
        """The open session of a conversation; with `create` a new one when there is none."""
        with self._binder.exclusive():
            found = self._index.of_conversation(conversation)
            return self._open(conversation, title, title or "") if found is None and create else found

    def new(self, title: str, conversation: str = "") -> Session:
        """Begin a session; what the conversation writes from now on goes there."""
        if not heading(title):
            raise Refused("a session needs a title of at least one word", fix="name what the session is about")
        with self._binder.exclusive():
            return self._open(conversation, title, title)

    def close(self, session: str, key: str | None = None) -> Session:
        """End a session: the page gets its summary. Closing twice does nothing more."""
        with self._binder.exclusive():
            bound = self._binder.bind(session)
            if self.get(session).open:
                self._binder.append(bound, self._entry(bound, "close", "lab", key=key))
            return self.get(session)

    def get(self, session: str) -> Session:
        """Raises `NotFound` naming the closest sessions."""
        with self._binder.exclusive():
            bound = self._binder.bind(session)
            found = self._index.get(session)
            if found is None:
                self._index.sync(bound.journal, bound.page.path.name)
                found = self._index.get(session)
            assert found is not None
            return found

    def list(self, limit: int = 20, text: str | None = None) -> list[Session]:
        """The newest sessions first; with `text` those whose title or words contain it."""
        with self._binder.exclusive():
            return self._index.find(limit, text)

    # writing

    def write(
        self,
        *,
        section: str,
        text: str,
        conversation: str | None = None,
        session: str | None = None,
        links: Links | Mapping[str, Any] | None = None,
        key: str | None = None,
        author: Author = "assistant",
    ) -> Entry:
        """Add a note to a section of a named session, else of the conversation's. The same `key` adds nothing twice.

        Raises `LabError` for an unknown section, an empty or overlong text; `NotFound` for an unknown session.
        """
        name, words, about = section_name(section), _words(text, LONGEST_NOTE), _links(links)
        if author not in AUTHORS:
            raise LabError(f"nobody called {author!r} writes notes", valid=", ".join(AUTHORS))
        with self._binder.exclusive():
            if (earlier := self._earlier(key)) is not None:
                return earlier
            bound = self._bound(conversation, session, hint=words)
            about = tables.merged(about, tables.mentioned(words))
            entry = self._entry(bound, "note", author, section=name, text=words, links=about, key=key)
            return self._binder.append(bound, entry)

    def journal(
        self,
        conversation: str,
        tool: str,
        arguments: Mapping[str, Any],
        outcome: Any,
        key: str | None = None,
        session: str | None = None,
    ) -> Entry:
        """Record a call that changed something; `outcome` in words or as JSON-like data. Secrets are masked."""
        given = clean_value(mask_value(dict(arguments)))
        words = outcome if isinstance(outcome, str) else exporting.compact(clean_value(mask_value(outcome)))
        words = cut(mask(clean(words)), LONGEST_OUTCOME)
        with self._binder.exclusive():
            if (earlier := self._earlier(key)) is not None:
                return earlier
            hint = next((str(given[n]) for n in ("hypothesis", "name", "purpose", "title") if given.get(n)), tool)
            bound = self._bound(conversation, session, hint=hint)
            links = tables.merged(tables.mentioned(words), tables.mentioned(exporting.compact(given)))
            entry = self._entry(bound, "journal", "lab", links=links, key=key)
            return self._binder.append(
                bound, Entry(**{**vars(entry), "tool": cut(clean(tool), 80), "arguments": given, "outcome": words})
            )

    def event(
        self,
        conversation: str | None,
        text: str,
        links: Links | Mapping[str, Any] | None = None,
        key: str | None = None,
        *,
        section: str = "Results",
        facts: Mapping[str, Any] | None = None,
        session: str | None = None,
    ) -> Entry:
        """What the lab itself has to tell: a run ended, a verdict was reached.

        Without conversation and session it goes to the session that first spoke of the run or experiment, else to
        the day's session of unattended work. `facts` is what the closing summary shows, newest last per id:
        {"run", "name", "state", "metric", "value", "direction": "lower"|"higher", "elapsed_s"} or
        {"experiment", "change", "verdict", "metric", "value"}; `result` in words may stand for metric and value.
        """
        name, words, about = section_name(section), _words(text, LONGEST_NOTE), _links(links)
        known = clean_value(mask_value(dict(facts or {})))
        named = [str(known[n]) for n in ("run", "experiment") if known.get(n)]
        about = tables.merged(about, tables.mentioned(" ".join([*named, words])))
        with self._binder.exclusive():
            if (earlier := self._earlier(key)) is not None:
                return earlier
            if conversation is None and session is None:
                owners = [self._index.owner(ref) for ref in (*about.experiments, *about.runs)]
                session = next((owner for owner in owners if owner is not None), None)
            bound = self._bound(conversation, session, hint=words)
            data = {"facts": [known]} if known else {}
            entry = self._entry(bound, "event", "lab", section=name, text=words, links=about, key=key, data=data)
            return self._binder.append(bound, entry)

    # reading

    def read(self, session: str) -> str:
        """The session's page as Markdown, people's edits taken in."""
        with self._binder.exclusive():
            found = self.get(session)
            self._binder.absorb(found)
            return self._binder.text(self._binder.bind(session))

    def entries(self, session: str) -> Sequence[Entry]:
        with self._binder.exclusive():
            return [*self._binder.bind(session).journal.entries]

    def entry(self, entry_id: str) -> Entry:
        """One entry by its id, e.g. `2026-11-21-01-0003` (what `note.written` names)."""
        session = entry_id.rpartition("-")[0]
        found = [entry for entry in self.entries(session) if entry.id == entry_id]
        if not found:
            raise LabError(f"session {session} has no entry {entry_id[:40]!r}")
        return found[0]

    def latest(self, section: str = "Next steps") -> Entry | None:
        """The newest words written under a section, in any session, as they stand now."""
        with self._binder.exclusive():
            for name in self._index.in_section(section_name(section)):
                if said := self.words(name):
                    return replace(self.entry(name), text=said)
            return None

    def words(self, entry_id: str) -> str:
        """What an entry says now, people's edits of it taken in; empty when it was struck out."""
        return page.words(self.entries(entry_id.rpartition("-")[0]), entry_id)

    def export(self, range: str = "all", fmt: Literal["md", "html"] = "md") -> str:
        """One document of all sessions, one session, one day, or `FROM..TO` (days or sessions, both included).

        Its relative links hold for a file in a folder two levels below the workspace, such as docs/exports/.
        """
        if fmt not in ("md", "html"):
            raise LabError(f"a notebook cannot be exported as {fmt!r}", valid="md, html")
        with self._binder.exclusive():
            chosen = exporting.select(self._index.all(), range)
            return exporting.document([(session, self.read(session.id)) for session in chosen], fmt)

    # care

    def absorb_edits(self, session: str | None = None) -> int:
        """Take in what people changed in the pages; returns how many pages were. Called before every writing too."""
        return self._binder.absorb(self.get(session) if session else None)

    def recover(self) -> int:
        """After a start: index, pages and outbox brought in line with the journals; returns entries told of anew."""
        return self._binder.recover()

    def verify(self, session: str | None = None) -> Sequence[str]:
        """What is wrong with a session's journal (or with any): changed, removed or unreadable entries. [] is good."""
        with self._binder.exclusive():
            ids = [session] if session else [found.id for found in self._index.all()]
            problems = []
            for name in ids:
                fresh = Journal(self._workspace.journal_dir / f"{name}.jsonl")
                fresh.load()
                problems += [f"session {name}: {problem}" for problem in fresh.problems + self._index.problems(fresh)]
            return problems

    # inside

    def _open(self, conversation: str, title: str | None, hint: str) -> Session:
        at = clock.now()
        session = self._binder.next_session(at[:10])
        words = heading(mask(title), LONGEST_TITLE) if title else ""
        data = {
            "title": words,
            "slug": slug(words or heading(mask(hint))),
            "conversation": cut(clean(conversation), 200),
            "hardware": cut(clean(self._hardware()), 200) if self._hardware else "",
        }
        entry = Entry(f"{session}-0001", at, "open", "lab", data=data)
        self._binder.create(entry, str(data["slug"]))
        return self.get(session)

    def _bound(self, conversation: str | None, session: str | None, hint: str) -> Bound:
        """The files of the session to write to; opened now when the conversation has none."""
        if session is not None:
            return self._binder.bind(session)
        title = None
        if conversation is None:
            conversation, title = f"unattended {clock.now()[:10]}", f"Unattended work of {tables.day(clock.now())}"
        found = self._index.of_conversation(conversation) or self._open(conversation, title, hint)
        return self._binder.bind(found.id)

    def _entry(self, bound: Bound, kind: Any, author: Author, **rest: Any) -> Entry:
        return Entry(bound.journal.next_id(), clock.now(), kind, author, **rest)

    def _earlier(self, key: str | None) -> Entry | None:
        """The entry already written under this key."""
        found = None if key is None else self._index.by_key(key)
        return None if found is None else self.entry(found)


def _words(text: str, longest: int) -> str:
    words = mask(clean(text))
    if not words:
        raise LabError("the note is empty", fix="write at least one word")
    if len(words) > longest:
        raise LabError(
            f"the note has {len(words)} characters",
            valid=f"at most {longest}",
            fix="put long output in a file of the workspace and name it in the note, or write several notes",
        )
    return words


def _links(given: Links | Mapping[str, Any] | None) -> Links:
    """Cleaned links; a single id may stand for a list. Raises `LabError` for an unknown kind or a wrong id."""
    if isinstance(given, Links):
        given = given.as_json()
    known = ("runs", "experiments", "papers")
    if wrong := [name for name in given or {} if name not in known]:
        raise LabError(f"a note cannot be linked to {wrong[0]!r}", valid=", ".join(known))
    lists: dict[str, list[str]] = {}
    for name, items in (given or {}).items():
        items = [items] if isinstance(items, str) else items
        lists[name] = [cut(clean(str(item)), 200) for item in items or () if clean(str(item))]
        if len(lists[name]) > MOST_LINKS:
            raise LabError(f"a note links to {len(lists[name])} {name}", valid=f"at most {MOST_LINKS}")
    for name, prefix in (("runs", "run-"), ("experiments", "exp-")):
        for item in lists.get(name, []):
            if not tables.ID.fullmatch(item) or not item.startswith(prefix):
                raise LabError(f"{item[:80]!r} is no id of a {name[:-1]}", valid=f"{prefix}0007 and the like")
    return Links.from_json(lists)


__all__ = ["SECTIONS", "Entry", "Links", "Notebook", "Session"]
