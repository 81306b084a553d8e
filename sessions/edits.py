"""What a person changed in a page: found by comparing it with the page as it was rendered, line by line.

The result is a list of changes, plain data for an amendment entry:
  {"what": "block", "block": id, "place", "before", "text"}   the words of a block changed (text "": taken out)
  {"what": "insert", "place", "after": block id | None | "end", "text", "tail"}   a person's own words
  {"what": "title", "text"}                                      another title
  {"what": "frame", "before"}                                    lines of the page itself were removed: put back
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sessions.entry import BY_HAND, SECTIONS, Entry
from sessions.page import LAST_LINE, TOP, Owner, Page, render
from sessions.text import top_headings
from workspace import clock

Change = dict[str, Any]
NO_OWNER = Owner("frame", TOP)


def lines_of(text: str, base: Page) -> list[str]:
    """The lines of a file as an editor shows them (CRLF or LF, a last newline or none); the line that names the last
    entry is the page's own, whatever page it comes from. One that this page shows among a person's words (they moved
    it there once) stays as it is."""
    lines = text.replace("\r\n", "\n").split("\n")
    lines = lines[:-1] if lines and lines[-1] == "" else lines
    shown = {line for line in base.lines if LAST_LINE.fullmatch(line)}
    return [base.lines[-1] if LAST_LINE.fullmatch(line) and line not in shown else line for line in lines]


def distance(base: Page, text: str) -> int:
    """How many lines were written to, or taken out of, the words of `base` to make `text`, wherever they stand."""
    lines = Counter(line for line in lines_of(text, base) if line.strip())
    words = Counter(
        line for line, owner in zip(base.lines, base.owners, strict=True) if owner.role == "body" and line.strip()
    )
    return (words - lines).total() + (lines - Counter(base.lines)).total()


def unified(before: Sequence[str], after: Sequence[str]) -> str:
    return "\n".join(difflib.unified_diff(before, after, "rendered", "edited", lineterm="", n=2))


def amendment(entries: Sequence[Entry], base: Page, text: str, entry_id: str) -> Entry | None:
    """What a person made of `base`, the page of (the first of) these entries, as one entry; None when no words differ.

    Lines that would not show in the page after that are kept under "Edited by hand", so none can be lost.
    """
    lines = lines_of(text, base)
    changes = find_changes(base, lines, entry_id)
    if not changes:
        return None
    diff = unified(base.lines, lines)
    draft = amended(entry_id, changes, diff)
    if missing := unplaced(render([*entries, draft]), base, lines):
        draft = amended(entry_id, [*changes, by_hand(missing)], diff)
    return draft


def amended(entry_id: str, changes: list[Change], diff: str) -> Entry:
    """An amendment entry; its text is what a search should find: the person's words."""
    places = {change.get("place") for change in changes if change.get("place")}
    place = places.pop() if len(places) == 1 else None
    words = "\n\n".join(str(change["text"]) for change in changes if change.get("text"))
    return Entry(
        id=entry_id,
        at=clock.now(),
        kind="amendment",
        author="user",
        section=place if place in SECTIONS else None,
        text=words,
        data={"changes": changes, "diff": diff},
    )


def by_hand(lines: Sequence[str]) -> Change:
    return {"what": "insert", "place": BY_HAND, "after": "end", "text": "\n".join(lines), "tail": False}


def find_changes(base: Page, edited: Sequence[str], entry_id: str) -> list[Change]:
    """The changes that make `edited` of `base`; `entry_id` is the amendment they will belong to. [] when only blank
    lines of the page itself differ."""
    finder = _Finder(base, entry_id)
    for tag, i1, i2, j1, j2 in _opcodes(base.lines, edited):
        if tag == "equal":
            finder.keep(i1, i2)
        else:
            finder.take(i1, i2, list(edited[j1:j2]))
    return finder.result()


def unplaced(rendered: Page, base: Page, edited: Sequence[str]) -> list[str]:
    """The lines a person added that `rendered` does not show: there should be none."""
    have, wanted = Counter(rendered.lines), Counter(edited)
    missing: list[str] = []
    for tag, _, _, j1, j2 in _opcodes(base.lines, edited):
        if tag != "equal":
            for line in edited[j1:j2]:
                if line.strip() and have[line] < wanted[line] and not (line.startswith("# ") and line in have):
                    have[line] += 1
                    missing.append(line)
    return missing


def _opcodes(before: Sequence[str], after: Sequence[str]) -> list[tuple[str, int, int, int, int]]:
    """difflib's opcodes; what both begin and end with is set aside first, because difflib is slow on long pages."""
    start, end = 0, 0
    shorter = min(len(before), len(after))
    while start < shorter and before[start] == after[start]:
        start += 1
    while end < shorter - start and before[-1 - end] == after[-1 - end]:
        end += 1
    n, m = len(before) - end, len(after) - end
    middle = difflib.SequenceMatcher(None, before[start:n], after[start:m], autojunk=False).get_opcodes()
    found = [("equal", 0, start, 0, start)] if start else []
    found += [(tag, i1 + start, i2 + start, j1 + start, j2 + start) for tag, i1, i2, j1, j2 in middle]
    return found + ([("equal", n, len(before), m, len(after))] if end else [])


class _Finder:
    """Walks along the rendered page and gives every new line to a block, to a place, or to the title."""

    def __init__(self, base: Page, entry_id: str) -> None:
        self.base = base
        self.entry_id = entry_id
        self.bodies: dict[str, list[str]] = {}
        self.before: dict[str, list[str]] = {}
        self.places: dict[str, str] = {}
        for line, owner in zip(base.lines, base.owners, strict=True):
            if owner.role == "body":
                self.before.setdefault(owner.block, []).append(line)
                self.places[owner.block] = owner.place
        self.led = {owner.block for owner in base.owners if owner.role == "lead"}
        self.touched: dict[str, None] = {}
        self.changes: list[Change] = []
        self.lost: list[str] = []
        self.latest: dict[tuple[str, str | None], str] = {}  # the last block put after this anchor by this amendment

    def owner(self, at: int) -> Owner:
        return self.base.owners[at] if 0 <= at < len(self.base.owners) else NO_OWNER

    def keep(self, i1: int, i2: int) -> None:
        for at in range(i1, i2):
            if self.owner(at).role == "body":
                self.bodies.setdefault(self.owner(at).block, []).append(self.base.lines[at])

    def take(self, i1: int, i2: int, new: list[str]) -> None:
        """Lines i1..i2 of the page were replaced by `new` (either may be empty)."""
        blocks = list(dict.fromkeys(o.block for o in self.base.owners[i1:i2] if o.role == "body"))
        self.touched.update(dict.fromkeys(blocks))
        for at in range(i1, i2):
            if self.owner(at).role in ("frame", "record") and self.base.lines[at].strip():
                self.lost.append(self.base.lines[at])
        if any(o.role == "title" for o in self.base.owners[i1:i2]):
            new = self._title(new)
        if not new:
            return
        if blocks:
            self.bodies.setdefault(blocks[0], []).extend(new)
        else:
            self._place(i1, i2, new)

    def _title(self, new: list[str]) -> list[str]:
        titles = [line for line in new if re.match(r"# +\S", line)]
        if len(titles) == 1:
            self.changes.append({"what": "title", "text": titles[0][1:].strip()})
            return [line for line in new if line is not titles[0]]
        return new

    def _place(self, i1: int, i2: int, new: list[str]) -> None:
        """Lines that replace no words of a block: into the block around them, the one they touch, or the place."""
        before, after = self.owner(i1 - 1), self.owner(i2)
        if before.block and before.block == after.block:
            self._extend(before.block, new)
            return
        if not any(line.strip() for line in new):
            return
        touching = i1 == i2 and before.role == "body" and before.block in self.led
        if touching and new[0].strip() and self.base.lines[i1 - 1].strip():
            end = next((n for n, line in enumerate(new) if not line.strip()), len(new))
            self._extend(before.block, new[:end])
            new = new[end:]
        # replaced lines say where they stood; inserted ones stand with the line before them
        here = self.owner(i1) if i2 > i1 else before
        self._insert(here, i1, _trimmed(new))

    def _extend(self, block: str, new: list[str]) -> None:
        self.touched[block] = None
        self.bodies.setdefault(block, []).extend(new)

    def _insert(self, here: Owner, at: int, new: list[str]) -> None:
        if not new:
            return
        place, after = here.place, self._anchor(at, here.place)
        if here.role == "record":
            place, after = BY_HAND, "end"
        cut = min(top_headings("\n".join(new)), default=len(new)) if place != BY_HAND else len(new)
        for lines, tail in ((_trimmed(new[:cut]), False), (_trimmed(new[cut:]), True)):
            if lines:
                anchor = self.latest.get((place, after), after)
                self.changes.append(
                    {"what": "insert", "place": place, "after": anchor, "text": "\n".join(lines), "tail": tail}
                )
                self.latest[(place, after)] = f"{self.entry_id}.{len(self.changes)}"

    def _anchor(self, at: int, place: str) -> str | None:
        """The last block of `place` that begins before line `at`."""
        for owner in reversed(self.base.owners[:at]):
            if owner.place != place:
                return None
            if owner.block:
                return owner.block
        return None

    def result(self) -> list[Change]:
        for block in self.touched:
            before, now = "\n".join(self.before.get(block, [])), "\n".join(_trimmed(self.bodies.get(block, [])))
            if now != before:
                change = {"what": "block", "block": block, "place": self.places.get(block, BY_HAND)}
                self.changes.append({**change, "before": before, "text": now})
        if self.lost and not self.changes:
            self.changes.append({"what": "frame", "before": "\n".join(self.lost)})
        return self.changes


def _trimmed(lines: list[str]) -> list[str]:
    """Without blank lines at either end."""
    filled = [n for n, line in enumerate(lines) if line.strip()]
    return lines[filled[0] : filled[-1] + 1] if filled else []
