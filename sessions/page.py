"""The page of a session as Markdown, made from its entries alone; every line knows what it belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sessions import tables
from sessions.entry import BY_HAND, SECTIONS, Entry
from sessions.text import closing_lines, fit, heading, inline

TOP = ""  # the place between the head of the page and its first section
LAST_ENTRY = re.compile(r"the last is ([0-9a-f]{12})\b")
LAST_LINE = re.compile(r"\*\d+ entries, each chained to the one before; the last is [0-9a-f]{12}\..*")
PLACES = (TOP, *SECTIONS, BY_HAND)
AUTHOR_WORDS = {"assistant": "assistant", "user": "researcher", "lab": "lab"}


class Owner(NamedTuple):
    """What a line of the page belongs to. `block` is empty for lines that are no block's."""

    role: str  # title | frame (the page's own) | record (the lab's tables) | lead (who and when) | body (the words)
    place: str
    block: str = ""


@dataclass
class Page:
    """Lines of a page and, of each, its owner."""

    lines: list[str] = field(default_factory=list)
    owners: list[Owner] = field(default_factory=list)

    def add(self, owner: Owner, *lines: str) -> None:
        self.lines += lines
        self.owners += [owner] * len(lines)

    def gap(self, owner: Owner) -> None:
        if self.lines and self.lines[-1] != "":
            self.add(owner, "")

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


@dataclass
class Block:
    """One piece of a section: a note, an event of the lab, or what a person added to the page itself."""

    id: str  # of the entry that made it; with .1, .2, ... for what one amendment added
    entry: Entry
    place: str
    lines: list[str]
    by_hand: bool = False
    tail: bool = False  # stays at the end of its section: it brings a heading of its own
    amended: str | None = None  # when a person last changed it

    @property
    def bullet(self) -> bool:
        return self.entry.kind == "event" and not self.by_hand and len(self.lines) == 1


@dataclass
class Content:
    """What the entries of a session come to: the newest state of every block, in order, and the facts of the head."""

    opened: Entry
    title: str
    places: dict[str, list[Block]]
    closed: Entry | None
    entries: Sequence[Entry]

    def block(self, block_id: str) -> Block | None:
        return next((b for blocks in self.places.values() for b in blocks if b.id == block_id), None)


def content(entries: Sequence[Entry]) -> Content:
    """Raises ValueError when there are no entries."""
    if not entries:
        raise ValueError("a session without entries has no page")
    opened = entries[0]
    result = Content(opened, "", {place: [] for place in PLACES}, None, entries)
    retitled = ""
    for entry in entries:
        if entry.kind == "note":
            _append(result, Block(entry.id, entry, entry.section or BY_HAND, list(fit(entry.text))))
        elif entry.kind == "event" and entry.text:
            _append(result, Block(entry.id, entry, entry.section or "Results", _event_lines(entry, opened.at)))
        elif entry.kind == "amendment":
            for number, change in enumerate(entry.data.get("changes", []), 1):
                retitled = _apply(result, entry, number, change) or retitled
        elif entry.kind == "close":
            result.closed = entry
    result.title = retitled or _title(opened, result.places)
    return result


def words(entries: Sequence[Entry], entry_id: str) -> str:
    """What an entry says now, people's edits of it taken in; empty when nothing of it is left, or it has no words."""
    return "\n\n".join(filter(None, (_said(b) for b in _blocks(content(entries)) if b.entry.id == entry_id)))


def last_words(entries: Sequence[Entry], section: str) -> str:
    """The newest note of a section as it stands now; what was struck out is none."""
    notes = [b for b in content(entries).places[section] if b.entry.kind != "event" and _said(b)]
    return _said(max(notes, key=lambda b: b.entry.id)) if notes else ""


def _blocks(state: Content) -> Iterator[Block]:
    for blocks in state.places.values():
        yield from blocks


def _said(block: Block) -> str:
    return ("\n".join(block.lines) if block.by_hand or block.amended else block.entry.text).strip()


def _append(result: Content, block: Block) -> None:
    blocks = result.places[block.place]
    at = len(blocks)
    while at and blocks[at - 1].tail:
        at -= 1
    blocks.insert(at, block)


def _apply(result: Content, entry: Entry, number: int, change: dict[str, Any]) -> str:
    """Take one change of an amendment into `result`; returns a new title or ''."""
    what, text = change.get("what"), str(change.get("text", ""))
    if what == "title":
        return text
    if what == "block":
        block = result.block(str(change.get("block")))
        if block is not None:
            block.lines = text.split("\n") if text else []
            block.amended = entry.at
    elif what == "insert":
        place = change["place"] if change.get("place") in result.places else BY_HAND
        new = Block(f"{entry.id}.{number}", entry, place, text.split("\n"), by_hand=True)
        new.tail = bool(change.get("tail"))
        blocks = result.places[place]
        anchor = next((i for i, b in enumerate(blocks) if b.id == change.get("after")), None)
        if anchor is not None:
            new.tail = new.tail or blocks[anchor].tail
            if not new.tail or blocks[anchor].tail:
                blocks.insert(anchor + 1, new)
                return ""
        if change.get("after") is None and not new.tail:
            blocks.insert(0, new)
        elif new.tail:
            blocks.append(new)
        else:
            _append(result, new)
    return ""


def _title(opened: Entry, places: dict[str, list[Block]]) -> str:
    """As given, else the first words of the objective, else of any note."""
    if opened.data.get("title"):
        return str(opened.data["title"])
    for place in ("Objective", *SECTIONS):
        for block in places[place]:
            if block.entry.kind == "note" and (words := heading("\n".join(block.lines))):
                return words
    return f"Session {opened.session}"


def _event_lines(entry: Entry, since: str) -> list[str]:
    """One line becomes a bullet with its time, its ids linked; more stays as it is."""
    lines = list(fit(entry.text))
    if len(lines) > 1 or lines[0][:1] in "-*+>|#`":
        return lines
    text = tables.BARE_ID.sub(lambda found: tables.reference(found[0]), lines[0])
    return [f"- **{tables.moment(entry.at, since)}** · {text}"]


def render(entries: Sequence[Entry]) -> Page:
    """The whole page."""
    state, page = content(entries), Page()
    _head(page, state)
    for place in PLACES:
        blocks = state.places[place]
        frame = Owner("frame", place)
        if place != TOP and (blocks or place != BY_HAND):
            page.gap(frame)
            page.add(frame, f"## {place}", "")
            if not any(block.lines or not block.by_hand for block in blocks):
                page.add(frame, "*Nothing yet.*" if state.closed is None else "*Nothing was written here.*", "")
        for block in blocks:
            _block(page, state, block)
    record = Owner("record", BY_HAND)
    for lines in (tables.summary(entries) if state.closed else [], tables.calls(entries)):
        if lines:
            page.gap(record)
            page.add(record, *lines, "")
    page.gap(record)
    page.add(
        record,
        "---",
        "",
        f"*{len(entries)} entries, each chained to the one before; the last is {entries[-1].hash[:12]}. "
        f"The journal of this page: [{state.opened.session}.jsonl](.journal/{state.opened.session}.jsonl).*",
    )
    return page


def _head(page: Page, state: Content) -> None:
    opened, frame = state.opened, Owner("frame", TOP)
    page.add(Owner("title", TOP), f"# {state.title}")
    page.add(frame, "")
    until = f"closed {tables.moment(state.closed.at, opened.at)}" if state.closed else "still open"
    facts = [f"Session {opened.session}, opened {tables.day(opened.at)} at {opened.at[11:16]} UTC, {until}"]
    if opened.data.get("hardware"):
        facts.append(f"Hardware: {inline(opened.data['hardware'])}")
    facts += tables.about(state.entries)
    page.add(frame, *[f"- {fact}" for fact in facts], "")
    page.add(
        frame,
        "*A page of the lab notebook, kept while the work was done. Times are UTC. Edit it freely: what you change "
        "is kept, and marked as changed by hand.*",
        "",
    )


def _block(page: Page, state: Content, block: Block) -> None:
    lead, frame, since = Owner("lead", block.place, block.id), Owner("frame", block.place), state.opened.at
    if block.by_hand and not block.lines:
        return  # a person took their own words out again
    when = tables.moment(block.entry.at, since)
    amended = f" · changed by hand {tables.moment(block.amended, since)}" if block.amended else ""
    if not block.lines:
        page.gap(frame)
        removed = tables.moment(block.amended or block.entry.at, since)
        page.add(lead, f"*{when}: an entry stood here until it was removed by hand, {removed}; the journal keeps it.*")
    elif block.bullet:
        previous = page.owners[-2].block if len(page.owners) > 1 else ""
        before = state.block(previous) if previous else None
        if before is not None and before.bullet and page.lines[-1] == "":
            page.lines.pop()  # bullets of one list stand together
            page.owners.pop()
        else:
            page.gap(frame)
        page.add(Owner("body", block.place, block.id), block.lines[0])
        if amended:
            page.add(lead, f"  *({amended.strip(' ·')})*")
    else:
        page.gap(frame)
        if block.by_hand:
            page.add(lead, f"*Added by hand, {when}:*{amended.replace(' · ', ' ')}", "")
        else:
            links = "".join(f" · {link}" for link in tables.links(block.entry.links))
            page.add(lead, f"**{when}** · {AUTHOR_WORDS[block.entry.author]}{links}{amended}", "")
        page.add(Owner("body", block.place, block.id), *block.lines)
        if block.by_hand or block.amended:
            page.add(frame, *(closing_lines("\n".join(block.lines)) or ()))
    page.add(frame, "")
