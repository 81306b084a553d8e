"""Reading a run's log in pages: from the end, from a byte, or by a filter. The cost is independent of its size."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from training.runs.levels import MARKS, Level, of_level
from training.runs.screen import Row, render
from workspace import durable
from workspace.errors import Refused, Unavailable
from workspace.secrets import MASK, mask

BLOCK_BYTES = 64 * 1024
PAGE_BYTES = 1024 * 1024  # read for one page without a filter, at most
SCAN_BYTES = 4 * 1024 * 1024  # read by one call with a filter, at most
LOOK_BACK = 8192  # bytes before a piece, for the beginning of a traceback
MAX_LINES = 2000
MAX_CHARACTERS = 12_000
MAX_LINE_CHARACTERS = 2000
_KEY_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----\s*$")
_KEY_LINE = re.compile(r"\s*(?:[A-Za-z0-9+/=]{0,76}|(?:Proc-Type|DEK-Info): .{0,80})\s*$")
_KEY_END = re.compile(r"\s*-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----")
_COLOUR = re.compile(rb"\x1b\[[0-9;:]*m")
SECRET_CHARACTERS = 512  # looked at beyond a line's cut, so that half a secret is not shown


class LogPage(BaseModel):
    """Some lines of a log, as a terminal would show them, credentials masked.

    `next_cursor` always stands behind the last whole line, so that a log that grows can be followed; a last line
    without its end is shown (`partial`) and comes again. `before=cursor` gives the lines before these.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str = ""
    lines: list[str]
    cursor: int = Field(description="byte these lines begin at; with a filter: where the search began")
    next_cursor: int = Field(description="byte after them")
    size_bytes: int
    at_end: bool = Field(description="nothing more was in the log")
    cut: str | None = Field(None, description="what was left out, and how to get it")
    starts: list[int] = Field([], exclude=True, description="byte each line begins at")
    partial: bool = Field(False, exclude=True)
    read_bytes: int = Field(0, exclude=True, description="read from the file for this page")


@dataclass(frozen=True)
class _Piece:
    """Bytes start..end of the log, whole lines unless `torn` (the beginning of its first line is not included)."""

    start: int
    end: int
    data: bytes
    torn: bool = False


def tail(
    path: Path,
    *,
    lines: int = 50,
    cursor: int | None = None,
    before: int | None = None,
    contains: str | None = None,
    level: Level | None = None,
    max_characters: int = MAX_CHARACTERS,
) -> LogPage:
    """A page of the log at `path`; a missing file is an empty log.

    The last `lines` lines; with `cursor` the first lines from that byte on (0: from the beginning), with `before` the
    last lines before that byte. `contains` keeps lines with this text (upper and lower case alike when it is all lower
    case), `level` errors (or errors and warnings) with whole tracebacks; such a call scans at most 4 MiB.
    Raises `Refused` for numbers that make no sense.
    """
    if not 1 <= lines <= MAX_LINES:
        raise Refused(f"lines = {lines} is not possible", valid=f"1 to {MAX_LINES}")
    if contains is not None and (not contains or "\n" in contains):
        raise Refused("contains must be some text within one line")
    if (cursor or 0) < 0 or (before or 0) < 0:
        raise Refused("a cursor is a byte position, 0 or more", valid="`next_cursor` or `cursor` of an earlier page")
    if cursor is not None and before is not None:
        raise Refused("cursor and before exclude each other", valid="cursor to go on, before to go back")
    try:
        file = durable.open_regular(path)
    except FileNotFoundError:
        return LogPage(lines=[], cursor=0, next_cursor=0, size_bytes=0, at_end=True, cut="there is no log yet")
    except OSError as error:
        raise Unavailable(f"{path.name} cannot be read: {error.strerror}") from error
    with file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        page = _Page(descriptor, size, _first_line(descriptor, size), lines, contains, level, max_characters)
        if cursor is not None:
            return page.forward(page.within(cursor))
        return page.backward(page.size if before is None else page.within(before))


class _Page:
    """One call's work: what to look for, what was found."""

    def __init__(
        self,
        descriptor: int,
        size: int,
        floor: int,
        lines: int,
        contains: str | None,
        level: Level | None,
        max_characters: int,
    ) -> None:
        self.descriptor = descriptor
        self.size = size
        self.floor = floor  # byte the log begins at: what was before was dropped to hold it to its cap
        self.wanted = lines
        self.contains = contains
        self.level = level
        self.filtered = contains is not None or level is not None
        self.max_characters = max_characters
        self.scanned = 0
        self.notes: list[str] = []

    def within(self, offset: int) -> int:
        if offset > self.size:
            self.notes.append(f"the log ends at byte {self.size}, before the position asked for")
        if offset < self.floor:
            self.notes.append(f"the log's first {self.floor} bytes were dropped (runs.log_gigabytes in lab.toml)")
        return max(self.floor, min(offset, self.size))

    # -- backwards: the newest lines before a byte ---------------------------------------------------------------------

    def backward(self, end: int) -> LogPage:
        if not self.filtered:
            piece = self._lines_before(end, self.wanted, PAGE_BYTES)
            found = self._rows(piece)[-self.wanted :]
            reached = piece.start
        else:
            found, reached = [], end
            budget = SCAN_BYTES
            while reached > self.floor and budget > 0 and len(found) < self.wanted:
                piece = self._lines_before(reached, None, min(budget, BLOCK_BYTES * 4))
                found = self._matching(piece, self.wanted + 1 - len(found), newest=True) + found
                budget -= reached - piece.start
                reached = piece.start
            if len(found) > self.wanted:
                found = found[-self.wanted :]
                reached = found[0][0]
            self._say_scanned(reached, end, earlier=True)
        kept = self._fit(found, newest=True)
        if kept and (len(kept) < len(found) or not self.filtered):
            reached = kept[0][0]
        return self._page(kept, start=reached, end=end)

    def _lines_before(self, end: int, count: int | None, limit: int) -> _Piece:
        """Whole lines ending at `end`: the last `count`, or as many as `limit` bytes hold."""
        blocks: list[bytes] = []
        start, newlines = end, 0
        while start > self.floor and end - start < limit and (count is None or newlines <= count):
            step = min(BLOCK_BYTES, start - self.floor, limit - (end - start))
            block = self._read(start - step, step)
            blocks.insert(0, block)
            newlines += block.count(b"\n")
            start -= step
        data = b"".join(blocks)
        if count is not None:  # no more lines than wanted: each costs time
            cut_at = len(data) - 1
            for _ in range(count):
                cut_at = data.rfind(b"\n", 0, max(0, cut_at))
                if cut_at < 0:
                    break
            else:
                return _Piece(start + cut_at + 1, end, data[cut_at + 1 :])
        if start == self.floor:
            return _Piece(start, end, data)
        if self._read(start - 1, 1) == b"\n":
            return _Piece(start, end, data)
        first = data.find(b"\n", 0, max(0, len(data) - 1))
        if first < 0:  # one line longer than the limit
            return _Piece(start, end, data, torn=True)
        return _Piece(start + first + 1, end, data[first + 1 :])

    # -- forwards: the first lines from a byte -------------------------------------------------------------------------

    def forward(self, start: int) -> LogPage:
        found: list[tuple[int, str]] = []
        reached = start
        budget = SCAN_BYTES if self.filtered else PAGE_BYTES
        while reached < self.size and budget > 0 and len(found) < self.wanted:
            piece = self._lines_from(reached, budget)
            if self.filtered:
                found += self._matching(piece, self.wanted + 1 - len(found), newest=False)
            else:
                found += self._rows(piece)
            budget -= piece.end - piece.start
            reached = piece.end
        if len(found) > self.wanted:
            reached = found[self.wanted][0]
            found = found[: self.wanted]
        if self.filtered:
            self._say_scanned(start, reached, earlier=False)
        kept = self._fit(found, newest=False)
        if len(kept) < len(found):
            reached = found[len(kept)][0]
        return self._page(kept, start=start, end=reached)

    def _lines_from(self, start: int, limit: int) -> _Piece:
        """Whole lines beginning at `start`, about a block of them; the unfinished last line of the log too."""
        data = b""
        while start + len(data) < self.size and len(data) < limit:
            data += self._read(start + len(data), min(BLOCK_BYTES, self.size - start - len(data), limit - len(data)))
            last = data.rfind(b"\n")
            if last >= 0:
                end = len(data) if start + len(data) == self.size else last + 1
                return _Piece(start, start + end, data[:end])
        return _Piece(start, start + len(data), data)

    # -- both ----------------------------------------------------------------------------------------------------------

    def _read(self, start: int, count: int) -> bytes:
        data = os.pread(self.descriptor, count, start)
        self.scanned += len(data)
        return data.ljust(count, b"\0") if len(data) < count else data  # cut shorter while we read

    def _line_start(self, end: int) -> int:
        """The byte the unfinished line before `end` begins at (within a page's reach)."""
        start = end
        while start > self.floor and end - start < PAGE_BYTES:
            step = min(BLOCK_BYTES, start - self.floor)
            newline = self._read(start - step, step).rfind(b"\n")
            if newline >= 0:
                return start - step + newline + 1
            start -= step
        return start if start == self.floor else end

    def _rows(self, piece: _Piece) -> list[tuple[int, str]]:
        """(byte it begins at, text) of each line shown."""
        if not piece.data:
            return []
        rows: list[Row] = render(piece.data.decode("utf-8", "replace"))
        starts = [piece.start]
        position = piece.data.find(b"\n")
        while position >= 0:
            starts.append(piece.start + position + 1)
            position = piece.data.find(b"\n", position + 1)
        shown = self._without_keys(piece.start, [(starts[row.line], row.text) for row in rows])
        if piece.torn:
            shown[0] = (shown[0][0], "[... the line's beginning is not shown] " + shown[0][1])
        return shown

    def _without_keys(self, start: int, rows: list[tuple[int, str]]) -> list[tuple[int, str]]:
        """Private keys masked, also one that began before: a line of a key alone has no telling shape."""
        before = os.pread(self.descriptor, min(LOOK_BACK, start - self.floor), max(self.floor, start - LOOK_BACK))
        begun = before.rfind(b"-----BEGIN ")
        if begun < 0 and not any("-----BEGIN " in text for _, text in rows):
            return rows
        inside, kept = False, []
        for text in before[begun:].decode("utf-8", "replace").splitlines() if begun >= 0 else ():
            inside = _key_goes_on(text, inside)
        for position, text in rows:
            was, inside = inside, _key_goes_on(text, inside)
            kept.append((position, MASK if inside or (was and _KEY_END.match(text)) else text))
        return kept

    def _matching(self, piece: _Piece, room: int, *, newest: bool) -> list[tuple[int, str]]:
        """The lines with the text and of the level, at most `room` of them (the newest or the oldest)."""
        if not self._may_match(piece.data):
            return []
        rows = self._rows(piece) if self.level is None else self._rows_of_level(piece, self.level)
        found: list[tuple[int, str]] = []
        for row in reversed(rows) if newest else rows:
            if self._holds(row[1]) and self._holds(mask(row[1])):  # a masked secret cannot be searched for
                found.append(row)
                if len(found) == room:
                    break
        return found[::-1] if newest else found

    def _rows_of_level(self, piece: _Piece, level: Level) -> list[tuple[int, str]]:
        """Looks some lines further back, where a traceback that reaches into the piece may have begun."""
        back = 0 if piece.torn else LOOK_BACK
        before = self._lines_before(piece.start, None, back)
        data = before.data + piece.data
        if not MARKS[level].search(data):
            return []
        rows = self._rows(_Piece(before.start, piece.end, data, piece.torn or before.torn))
        marked = of_level((text for _, text in rows), level)
        return [row for row, is_marked in zip(rows, marked, strict=True) if is_marked and row[0] >= piece.start]

    def _holds(self, text: str) -> bool:
        if self.contains is None:
            return True
        return self.contains in (text.lower() if self.contains == self.contains.lower() else text)

    def _may_match(self, data: bytes) -> bool:
        """False when no line of `data` can hold the text: the cheap test before lines are taken apart."""
        if self.contains is None or not self.contains.isascii():
            return True
        if b"\x1b" in data:
            data = _COLOUR.sub(b"", data)
        if b"\x1b" in data or b"\b" in data or data.count(b"\r") != data.count(b"\r\n"):
            return True
        wanted = self.contains.encode()
        return (wanted in data.lower()) if wanted == wanted.lower() else wanted in data

    def _fit(self, found: list[tuple[int, str]], *, newest: bool) -> list[tuple[int, str]]:
        """As many lines as the size allows, masked, long ones cut."""
        kept: list[tuple[int, str]] = []
        left = self.max_characters
        for start, text in reversed(found) if newest else found:
            limit = min(MAX_LINE_CHARACTERS, self.max_characters)
            line = cut(mask(text[: limit + SECRET_CHARACTERS]), limit, len(text))
            if kept and len(line) + 1 > left:
                break
            left -= len(line) + 1
            kept.append((start, line))
        if len(kept) < len(found):
            how = f"before={kept[-1][0]}" if newest else "cursor=next_cursor"
            self.notes.append(
                f"{len(found) - len(kept)} of {len(found)} lines did not fit {self.max_characters} characters;"
                f" get them with {how}"
            )
        return kept[::-1] if newest else kept

    def _say_scanned(self, start: int, end: int, *, earlier: bool) -> None:
        if (start > self.floor) if earlier else (end < self.size):
            how = f"before={start}" if earlier else f"cursor={end}"
            self.notes.append(f"searched bytes {start} to {end} of {self.size}; go on searching with {how}")

    def _page(self, kept: list[tuple[int, str]], *, start: int, end: int) -> LogPage:
        partial = False
        at_end = end == self.size
        if at_end and self.size > 0 and self._read(self.size - 1, 1) != b"\n":
            end = self._line_start(end)  # the unfinished line comes again once it has its end
            partial = bool(kept) and kept[-1][0] >= end
        return LogPage(
            lines=[text for _, text in kept],
            starts=[position for position, _ in kept],
            cursor=start,
            next_cursor=end,
            size_bytes=self.size,
            at_end=at_end,
            partial=partial,
            read_bytes=self.scanned,
            cut="; ".join(self.notes) or None,
        )


def _first_line(descriptor: int, size: int) -> int:
    """The byte the first whole line begins at: 0, or behind the hole that `training.runs.log_cap` punched."""
    try:
        begin = os.lseek(descriptor, 0, os.SEEK_DATA)
    except (OSError, AttributeError):  # nothing but a hole, or a system that does not tell
        return 0
    if begin == 0:
        return 0
    newline = os.pread(descriptor, BLOCK_BYTES, begin).find(b"\n")  # a line that is longer shows its end
    return min(begin + newline + 1, size)


def _key_goes_on(text: str, inside: bool) -> bool:
    """Whether a private key in PEM goes on after this line; `inside`: whether this line stands in one."""
    return _KEY_BEGIN.search(text) is not None or (inside and _KEY_LINE.match(text) is not None)


def cut(line: str, limit: int, length: int) -> str:
    """`line`, the beginning of a text of `length` characters; cut at `limit` with the number of those not shown."""
    if length <= limit:
        return line
    return f"{line[:limit]} [+{length - limit} characters]"
