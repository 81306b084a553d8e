"""The file that is the truth of one session: entries, one a line, each carrying the hash of the one before."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from sessions.entry import GENESIS, Entry, fingerprint
from workspace import durable
from workspace.errors import Unavailable


class Journal:
    """`docs/sessions/.journal/<session>.jsonl`. Not locked here: the notebook calls it under its own lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[Entry] = []
        self.problems: list[str] = []  # lines that could not be read or do not fit the chain
        self._read_to = 0
        self._lines = 0

    @property
    def session(self) -> str:
        return self.path.stem

    @property
    def head(self) -> str:
        """The hash the next entry will carry."""
        return self.entries[-1].hash if self.entries else GENESIS

    @property
    def size(self) -> int:
        """Bytes read or written so far."""
        return self._read_to

    def next_id(self) -> str:
        last = int(self.entries[-1].id.rsplit("-", 1)[1]) if self.entries else 0
        return f"{self.session}-{max(last, self._lines) + 1:04d}"

    def by_key(self, key: str) -> Entry | None:
        return next((entry for entry in self.entries if entry.key == key), None)

    def load(self) -> None:
        """Read what was appended since the last call; a torn last line is cut off, a file that shrank read anew."""
        durable.repair_tail(self.path)
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            size = 0
        if size < self._read_to:
            self.entries, self.problems, self._read_to, self._lines = [], [], 0, 0
        if size == self._read_to:
            return
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            for line in file:
                self._lines += 1
                self._take(line)
        self._read_to = size

    def _take(self, line: bytes) -> None:
        where = f"line {self._lines}"
        try:
            record = json.loads(line)
            entry = Entry.from_json(record)
            int(entry.id.rsplit("-", 1)[1])
        except (ValueError, TypeError, AttributeError, IndexError) as error:
            self.problems.append(f"{where} cannot be read ({error})")
            return
        if fingerprint(record) != entry.hash:
            self.problems.append(f"{where} ({entry.id}) was changed after it was written")
        if entry.previous != self.head:
            self.problems.append(
                f"{where} ({entry.id}) does not follow the entry before it: something was removed or moved"
            )
        self.entries.append(entry)

    def append(self, entry: Entry) -> Entry:
        """Seal `entry` to the chain and write it durably. Raises `Unavailable` when the disk does not take it."""
        sealed = entry.sealed(self.head)
        new = not self.path.exists()
        try:
            durable.append_jsonl(self.path, sealed.as_json(), sync=True)
            if new:
                durable.sync_folder(self.path.parent)
            self._check_tail()
        except OSError as error:
            with contextlib.suppress(OSError):
                durable.repair_tail(self.path)
            raise Unavailable(
                f"the notebook could not be written ({error.strerror or error})",
                fix="free some disk space, then try again",
            ) from error
        self._lines += 1
        self._read_to = self.path.stat().st_size
        self.entries.append(sealed)
        return sealed

    def _check_tail(self) -> None:
        """A full disk may take half a line without an error."""
        with self.path.open("rb") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                raise OSError("no space left for the whole entry")
