"""Finding out what changed among the files: new, changed, moved, deleted, unreadable. By content, not by name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rag.documents import bibliography, files, text
from rag.documents.document import Details, Unreadable
from rag.index.catalogue import Catalogue, Entry, FileRow
from workspace.layout import Workspace

SHELF = Path(__file__).resolve().parent / "shelf"
SHELF_PREFIX = "shelf:"


@dataclass
class Found:
    """What a scan found, in numbers."""

    added: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    duplicates: int = 0


def path_of(key: str, workspace: Workspace) -> Path:
    """The file a catalogue key names."""
    if key.startswith(SHELF_PREFIX):
        return SHELF / f"{key.removeprefix(SHELF_PREFIX)}.md"
    return workspace.root / key


class Scan:
    """One pass over folders and files; `relabel(document, source)` is told of each move."""

    def __init__(self, workspace: Workspace, catalogue: Catalogue, relabel: Callable[[str, str], None]) -> None:
        self.workspace = workspace
        self.catalogue = catalogue
        self.relabel = relabel
        self.known = catalogue.files()
        self.hashes: dict[str, list[str]] = {}
        for row in self.known.values():
            self.hashes.setdefault(row.hash, []).append(row.path)
        self.found = Found()
        self.entries: list[bibliography.Entry] = []
        self.described: set[str] = set()  # keys of bibliography entries that are about a file

    def shelf(self) -> None:
        """The reading notes that come with the lab."""
        keys = {f"{SHELF_PREFIX}{path.stem}": path for path in sorted(SHELF.glob("*.md"))}
        for key, path in keys.items():
            self._file(key, path)
        self._gone(key for key in self.known if key.startswith(SHELF_PREFIX) and key not in keys)

    def paths(self, places: Iterable[Path]) -> None:
        """Files and folders inside the workspace; what has gone from the folders is forgotten."""
        root = self.workspace.root
        seen: dict[str, Path] = {}
        prefixes: list[str] = []
        for place in places:
            key = self.workspace.relative(place)
            if place.is_dir():
                prefixes.append("" if place == root else f"{key}/")
                for path in files.find(place, root):
                    seen[path.relative_to(root).as_posix()] = path
            else:
                prefixes.append(f"{key}\n")  # exactly this file
                if place.is_file():
                    seen[place.relative_to(root).as_posix()] = place
        self._bibliographies(path for key, path in seen.items() if path.suffix.lower() == files.BIBLIOGRAPHY)
        gone = [
            key
            for key in self.known
            if not key.startswith(SHELF_PREFIX)
            and key not in seen
            and any(f"{key}\n".startswith(prefix) for prefix in prefixes)
        ]
        for key, path in seen.items():
            if files.is_document(path):
                self._file(key, path)
        self._loose_entries()
        self._gone(gone)

    def _file(self, key: str, path: Path) -> None:
        known = self.known.get(key)
        details = self._details(path)
        try:
            stat = path.stat()
            row = FileRow(key, stat.st_size, stat.st_mtime_ns, "", known.document if known else "")
            given = _given(details)
            if known and (known.size, known.modified_ns) == (row.size, row.modified_ns):
                row = known
            else:
                files.check_size(path)
                row = replace(row, hash=files.content_hash(path))
        except (Unreadable, OSError):
            self._unreadable(key, known)
            return
        if known is None and row.hash in self.hashes and self._same_content(key, row):
            return
        entry = self._entry(key, path, row, details, given)
        before = self.catalogue.get(entry.id)
        unchanged = before is not None and (before.hash, before.path) == (entry.hash, entry.path)
        if before is None:
            self.found.added += 1
        elif unchanged:
            self.found.unchanged += 1
        else:
            self.found.changed += 1
        if row is known and unchanged and before is not None and before.state != "failed":
            return
        self.catalogue.put_files([(replace(row, document=entry.id), entry)])
        self._remember(row, entry.id)

    def _entry(self, key: str, path: Path, row: FileRow, details: Details, given: dict[str, Any]) -> Entry:
        identity = row.document or self._identity(key, path, row.hash)
        fingerprint = hashlib.sha256(json.dumps([row.hash, given], sort_keys=True).encode()).hexdigest()
        title = details.title or path.stem
        return Entry(identity, "paper", title, key, fingerprint, details.date, details.tags, given, path=key)

    def _same_content(self, key: str, row: FileRow) -> bool:
        """The same content is known under another name: the file was moved, or is a copy. Nothing is read again."""
        for other in self.hashes[row.hash]:
            old = self.known.get(other)
            if old is None or not row.hash:
                continue
            moved = not path_of(other, self.workspace).exists()
            new = replace(row, document=old.document)
            if moved:
                self.relabel(old.document, key)  # first: where the store does not answer, nothing has happened
                self.catalogue.move(other, new)
                del self.known[other]
                self.found.moved += 1
            else:
                self.catalogue.put_files([(new, None)])
                self.found.duplicates += 1
            self._remember(new, old.document)
            return True
        return False

    def _remember(self, row: FileRow, document: str) -> None:
        self.known[row.path] = replace(row, document=document)
        self.hashes.setdefault(row.hash, []).append(row.path)

    def _unreadable(self, key: str, known: FileRow | None) -> None:
        """Listed all the same: the indexer will find the reason again and record it."""
        identity = known.document if known else self._identity(key, Path(key), key)
        entry = Entry(identity, "paper", Path(key).name, key, "", path=key)
        self.catalogue.put_files([(FileRow(key, 0, 0, "", identity), entry)])

    def _identity(self, key: str, path: Path, content: str) -> str:
        """`paper-` and the file's name; where that is taken, with the beginning of its content's hash."""
        if key.startswith(SHELF_PREFIX):
            return key
        slug = re.sub(r"[^a-z0-9.]+", "-", path.stem.lower()).strip("-.")[:48] or "file"
        for candidate in (f"paper-{slug}", f"paper-{slug}-{hashlib.sha256(content.encode()).hexdigest()[:6]}"):
            taken = self.catalogue.get(candidate)
            if taken is None or taken.path == key:
                return candidate
        return f"paper-{slug}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def _gone(self, keys: Iterable[str]) -> None:
        self.found.removed += len(self.catalogue.forget_files([key for key in keys if key in self.known]))

    def _bibliographies(self, paths: Iterable[Path]) -> None:
        for path in paths:
            try:
                files.check_size(path)
                self.entries += bibliography.parse(text.decode(path.read_bytes(), path.name))
            except (Unreadable, OSError):
                key = self.workspace.relative(path)
                self._unreadable(key, self.known.get(key))

    def _details(self, path: Path) -> Details:
        for entry in self.entries:
            if entry.describes(path):
                self.described.add(entry.key)
                return entry.details
        return Details()

    def _loose_entries(self) -> None:
        """Entries with an abstract and no file are documents themselves."""
        for entry in self.entries:
            if entry.key in self.described or not entry.abstract:
                continue
            details = entry.details
            content = json.dumps([_given(details), entry.abstract], sort_keys=True)
            fingerprint = hashlib.sha256(content.encode()).hexdigest()
            source = f"arXiv:{details.arxiv}" if details.arxiv else entry.key
            identity = "paper-" + (re.sub(r"[^a-z0-9.]+", "-", entry.key.lower()).strip("-.")[:48] or "entry")
            document = Entry(
                *(identity, "paper", details.title, source, fingerprint, details.date, details.tags),
                details=_given(details),
                body=f"## Abstract\n\n{entry.abstract}",
            )
            if self.catalogue.put(document):
                self.found.added += 1
            else:
                self.found.unchanged += 1


def _given(details: Details) -> dict[str, Any]:
    given = {"title": details.title, "date": details.date, "authors": details.authors, "arxiv": details.arxiv}
    return {name: value for name, value in given.items() if value} | ({"tags": details.tags} if details.tags else {})
