"""The Markdown file of a session on disk: written by the lab, edited by people at any moment, nothing of theirs lost.

Beside the journal lie two files. `<session>.rendered.json` is the page as the lab last wrote it and the one before
that, line by line with owners: a file that equals neither was edited. `<session>.replaced.md` is what the page was
swapped with: the new page before, the old one after, in one step where the system can (Linux, macOS); elsewhere the
file is looked at just before it is replaced. What came out of the swap is compared, and compared again the next
time: an editor that still had it open may have written to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sessions.page import Owner, Page
from workspace import durable

SETTLE_S = 0.02  # an editor that saves in place empties the file first: read until two readings agree
EMPTY_S = 1.0  # how long an empty file may be one that is just being written
Stamp = tuple[int, int, int]


@dataclass
class Rendered:
    """A page as it was written, and the hash of the last entry in it."""

    page: Page
    last: str

    def as_json(self) -> dict[str, Any]:
        runs = [[len(list(group)), *owner] for owner, group in itertools.groupby(self.page.owners)]
        return {"last": self.last, "lines": self.page.lines, "owners": runs}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Rendered:
        owners = [Owner(*owner) for count, *owner in value["owners"] for _ in range(count)]
        if len(owners) != len(value["lines"]):
            raise ValueError("lines and owners do not match")
        return cls(Page(list(value["lines"]), owners), str(value["last"]))


class PageFile:
    """One session's page and what is remembered of it. Not locked here."""

    def __init__(self, path: Path, journal_dir: Path, session: str) -> None:
        self.path = path
        self.session = session
        self._folder = path.parent
        self._state_file = journal_dir / f"{session}.rendered.json"
        self._replaced_file = journal_dir / f"{session}.replaced.md"
        self._replaced = ""  # sha256 of what is known to be in it after a swap
        self._seen: Stamp | None = None  # of the file when it was last known to hold `current`
        self._was_there = False
        self.current: Rendered | None = None
        self.previous: Rendered | None = None
        self._state_stamp: Stamp | None = None
        self.refresh()

    def refresh(self) -> None:
        """Read what is remembered of the page, when another process has changed that."""
        mark = stamp(self._state_file)
        if mark == self._state_stamp:
            return
        self._state_stamp, self._seen = mark, None
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a damaged memory is as good as none
            state = durable.read_json(self._state_file) or {}
            self.current = Rendered.from_json(state["current"])
            self.previous = Rendered.from_json(state["previous"]) if state.get("previous") else None
            self.path = self._folder / str(state["page"])
            self._replaced = str(state["expected"])

    @property
    def published(self) -> bool:
        """True when the page surely was on disk once (a kill may have come before its very first writing)."""
        return self.previous is not None or self._was_there

    def untouched(self) -> bool:
        """True when the file is, by size and time, still the one the lab wrote."""
        return self._seen is not None and self._seen == stamp(self.path)

    def read(self) -> str | None:
        """The file's text once it has stopped changing; None when it is not there or empty.

        A file renamed by a person (same session id at its front) is followed.
        """
        self._follow_rename()
        before, started = None, time.monotonic()
        while True:
            self._seen = None
            mark = stamp(self.path)
            try:
                now = decode(self.path.read_bytes())
            except FileNotFoundError:
                return None
            if self.current is not None and now == self.current.page.text:
                self._seen, self._was_there = mark, True
                return now
            if now == before and (now.strip() or time.monotonic() - started > EMPTY_S):
                return now if now.strip() else None
            before = now
            time.sleep(SETTLE_S)

    def late_edit(self) -> str | None:
        """What somebody wrote into the file as it was taken out, or after; None when nobody did.

        To be called before `publish`, and once more by the next process when this one was killed in between.
        """
        try:
            now = decode(self._replaced_file.read_bytes())
        except OSError:
            return None
        known = self.current is not None and now == self.current.page.text  # the swap never came to pass
        if known or digest(now) == self._replaced or not now.strip():
            return None
        self._replaced = digest(now)
        return now

    def publish(self, rendered: Rendered, expected: str | None) -> str | None:
        """Put a page in place of `expected` (None: of no file). Returns None, or the text that was there instead.

        In the second case a person's text came in between: it has to be taken in and the page written again.
        """
        self._remember(rendered, expected)
        mode = _mode(self.path)
        durable.write_text(self._replaced_file, rendered.page.text, mode=mode)
        mark = stamp(self._replaced_file)
        found = self._swap(rendered.page.text, mode)
        durable.sync_folder(self._folder)
        self._seen = mark if stamp(self.path) == mark else None
        self._was_there = True
        if found is None or not found.strip():
            return None
        self._replaced = digest(found)
        return found if found != expected else None

    def _swap(self, text: str, mode: int) -> str | None:
        """The new page in, the old one out to `replaced.md`; returns the text that was there (None: no file)."""
        if not self.path.exists():
            try:
                os.link(self._replaced_file, self.path)  # unlike a rename this fails when a file has appeared meanwhile
                self._replaced_file.unlink()
                return None
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                durable.write_text(self.path, text, mode=mode)
                return None
        if exchange(self._replaced_file, self.path):
            return decode(self._replaced_file.read_bytes())
        found = decode(self.path.read_bytes())
        self._replaced_file.unlink()
        with contextlib.suppress(OSError):
            os.link(self.path, self._replaced_file)
        durable.write_text(self.path, text, mode=mode)
        return found

    def _remember(self, rendered: Rendered, expected: str | None) -> None:
        """Before the page is replaced: after a kill in between, the file still equals one of the two remembered."""
        self.previous, self.current = self.current, rendered
        state = {
            "page": self.path.name,
            "expected": digest(expected or ""),
            "current": rendered.as_json(),
            "previous": self.previous.as_json() if self.previous else None,
        }
        durable.write_text(self._state_file, json.dumps(state, ensure_ascii=False, separators=(",", ":")))
        self._state_stamp = stamp(self._state_file)

    def _follow_rename(self) -> None:
        if not self.path.exists():
            found = [path for path in self._folder.glob(f"{self.session}-*.md") if path.is_file()]
            if len(found) == 1:
                self.path = found[0]


def decode(data: bytes) -> str:
    """Text of a file people edit: bytes that are no UTF-8 stay visible as `\\xff`, line ends become newlines."""
    return data.decode("utf-8-sig", errors="backslashreplace").replace("\r\n", "\n")


def remembered_since(journal: Path) -> bool:
    """True when the page of this journal was remembered after the journal's last entry was written."""
    mine, its = stamp(journal.with_suffix(".rendered.json")), stamp(journal)
    return mine is not None and its is not None and mine[2] >= its[2]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="backslashreplace")).hexdigest()


def stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode & 0o777
    except OSError:
        return 0o644


def exchange(first: Path, second: Path) -> bool:
    """Swap two files in one step; False where the system or the file system cannot."""
    swap = _swapper()
    return swap is not None and swap(os.fsencode(first), os.fsencode(second)) == 0


@functools.cache
def _swapper() -> Callable[[bytes, bytes], int] | None:
    platform: str = sys.platform
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None, use_errno=True)
        if platform == "linux":
            renameat2 = library.renameat2  # glibc since 2.28
            return lambda a, b: int(renameat2(-100, a, -100, b, 2))  # AT_FDCWD, RENAME_EXCHANGE
        if platform == "darwin":
            renamex_np = library.renamex_np
            return lambda a, b: int(renamex_np(a, b, 2))  # RENAME_SWAP
    return None
