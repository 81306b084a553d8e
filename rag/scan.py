"""Finding out what changed among the files: new, changed, moved, deleted, unreadable. By content, not by name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from rag.documents import bibliography, files, latex, text
from rag.documents.bibliography import Library
from rag.documents.document import Details, Unreadable
from rag.index.catalogue import BIBTEX_KEY, Catalogue, Entry, FileRow, State
from workspace.errors import Unavailable
from workspace.layout import Workspace

SHELF = Path(__file__).resolve().parent / "shelf"
SHELF_PREFIX = "shelf:"
AT_ONCE, AT_ONCE_S = 200, 0.5  # files written down in one transaction, each of which waits for the disk; seconds apart
FIRST_AT_ONCE = 25  # so that reading begins at once; then twice as many each time


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
    """One pass over folders and files; `relabel(document, source)` is told of each move, `wake` of what is new.

    Raises `Unavailable` soon after `stopping` was set.
    """

    def __init__(
        self,
        workspace: Workspace,
        catalogue: Catalogue,
        relabel: Callable[[str, str], None],
        library: Library,
        *,
        found: Found | None = None,
        wake: Callable[[], None] = lambda: None,
        stopping: threading.Event | None = None,
    ) -> None:
        self.workspace = workspace
        self.catalogue = catalogue
        self.relabel = relabel
        self.library = library
        self.known = catalogue.files()
        self.hashes: dict[str, list[str]] = {}
        for row in self.known.values():
            self.hashes.setdefault(row.hash, []).append(row.path)
        self.found = found if found is not None else Found()
        self._wake = wake
        self._stopping = stopping or threading.Event()
        self._new: list[tuple[FileRow, Entry | None]] = []  # not yet in the catalogue
        self._fresh: dict[str, Entry] = {}  # the documents among them
        self._written_at = time.monotonic()
        self._at_once = min(FIRST_AT_ONCE, AT_ONCE)
        self.described: set[str] = set()  # keys of bibliography entries that are about a file

    def shelf(self) -> None:
        """The reading notes that come with the lab."""
        keys = {f"{SHELF_PREFIX}{path.stem}": path for path in sorted(SHELF.glob("*.md"))}
        for key, path in keys.items():
            self._file(key, path)
        self._gone(key for key in self.known if key.startswith(SHELF_PREFIX) and key not in keys)
        self._write()

    def paths(self, places: Iterable[Path]) -> None:
        """Files and folders inside the workspace; what has gone from them, or with them, is forgotten."""
        root = self.workspace.root
        seen: dict[str, Path] = {}
        prefixes: list[str] = []
        for place in places:
            if self._is_away(place):
                continue
            key = self.workspace.relative(place)
            # the file of this name and those below the folder of this name: what it is now need not be what it was
            prefixes += [""] if place == root else [f"{key}/", f"{key}\n"]
            if place.is_dir():
                for path in files.find(place, root):
                    seen[self._key(path)] = path
            elif place.is_file():
                seen[self._key(place)] = place
        self._bibliographies(seen.values())
        for path in self._parts_of_others(seen.values()):
            del seen[self._key(path)]
        gone = {
            key
            for key in self.known
            if not key.startswith(SHELF_PREFIX) and key not in seen and f"{key}\n".startswith(tuple(prefixes))
        }
        for key, path in seen.items():
            if files.is_document(path):
                self._file(key, path)
        self._gone(gone)
        self._loose_entries([key for key in self.known if key not in seen and key not in gone])
        self._wake()

    def _key(self, path: Path) -> str:
        """A file's name in the catalogue; one that is no UTF-8 is written with escapes."""
        relative = path.relative_to(self.workspace.root).as_posix()
        return relative.encode(errors="surrogateescape").decode(errors="backslashreplace")

    def _is_away(self, place: Path) -> bool:
        """Whether `place` is not there because its disk may not be: nothing of it is known to have gone."""
        papers, above = self.workspace.papers_dir, [place, *place.parents]
        leads_nowhere = any(each.is_symlink() and not each.exists() for each in above)
        return leads_nowhere or (papers in above and not papers.exists())

    def _put(self, row: FileRow, entry: Entry | None) -> None:
        self._new.append((row, entry))
        if entry is not None:
            self._fresh[entry.id] = entry
        if len(self._new) >= self._at_once or time.monotonic() - self._written_at > AT_ONCE_S:
            self._write()

    def _write(self) -> None:
        if self._new:
            self.catalogue.put_files(self._new)
            self._new, self._fresh = [], {}
            self._at_once = min(AT_ONCE, 2 * self._at_once)
            self._wake()
        self._written_at = time.monotonic()

    def _document(self, name: str) -> Entry | None:
        return self._fresh.get(name) or self.catalogue.get(name)

    def _file(self, key: str, path: Path) -> None:
        if self._stopping.is_set():
            raise Unavailable("memory is closing")
        known = self.known.get(key)
        if path_of(key, self.workspace) != path:
            self._unreadable(key, known, "its name is not UTF-8: rename it")
            return
        before = self._document(known.document) if known else None
        details = self._details(key, path, before)
        try:
            given = given_by(details)
            if path.suffix.lower() == ".tex":
                files.check_size(path)  # it is read to find its parts
            parts = files.parts(path, self.workspace.root)
            now = files.content(parts)
            row = FileRow(key, now.size, now.modified_ns, "", known.document if known else "")
            if known and (known.size, known.modified_ns) == (row.size, row.modified_ns):
                row = known
            else:
                files.check_size(path)
                row = replace(row, hash=files.content_hash(parts))
        except (Unreadable, OSError):
            self._unreadable(key, known)
            return
        if before is not None and (holder := self._other_holder(key, before)) is not None:
            if self._holds(holder, row.hash):  # a copy as before
                self.found.unchanged += 1
                if row is not known:
                    self._put(row, None)
                    self._remember(row, holder.id)
                return
            row = replace(row, document="")  # the two went different ways: this is a document of its own from now on
        if not row.document and self._same_content(key, row):
            return
        entry = self._entry(key, path, row, details, given)
        if before is None or before.id != entry.id:
            before = self._document(entry.id)
        unchanged = before is not None and (before.hash, before.path) == (entry.hash, entry.path)
        if before is None:
            self.found.added += 1
        elif unchanged:
            self.found.unchanged += 1
        else:
            self.found.changed += 1
        if row is known and unchanged and before is not None and before.state != "failed":
            return
        self._put(replace(row, document=entry.id), entry)
        self._remember(row, entry.id)

    def _entry(self, key: str, path: Path, row: FileRow, details: Details, given: dict[str, Any]) -> Entry:
        identity = row.document or self._identity(key, path, row.hash)
        title = details.title or path.stem
        made = fingerprint(row.hash, given)
        return Entry(identity, "paper", title, key, made, details.date, details.tags, given, path=key)

    def _other_holder(self, key: str, entry: Entry) -> Entry | None:
        """The document this file is only a copy of: that which is read from another file, as long as that is there."""
        if entry.path in (None, key) or not path_of(str(entry.path), self.workspace).exists():
            return None
        return entry

    def _holds(self, entry: Entry, content: str) -> bool:
        """Whether the file a document is read from has this content now; it may not have been looked at yet."""
        if entry.path is None or entry.state == "removing":
            return False
        row, path = self.known.get(entry.path), path_of(entry.path, self.workspace)
        try:
            parts = files.parts(path, self.workspace.root)
            now = files.content(parts)
            if row and (row.size, row.modified_ns) == (now.size, now.modified_ns):
                return row.hash == content
            return files.content_hash(parts) == content
        except (Unreadable, OSError):
            return False

    def _same_content(self, key: str, row: FileRow) -> bool:
        """The same content is known under another name: the file was moved, or is a copy. Nothing is read again."""
        for other in self.hashes.get(row.hash, ()):
            old = self.known.get(other)
            if other == key or old is None or old.hash != row.hash:
                continue
            entry = self._document(old.document)
            if entry is None or entry.state == "removing":
                continue
            new = replace(row, document=entry.id)
            if entry.path == other and not path_of(other, self.workspace).exists():
                self._write()
                self.relabel(entry.id, key)  # first: where the store does not answer, nothing has happened
                self.catalogue.move(other, new)
                del self.known[other]
                self.found.moved += 1
            elif self._holds(entry, row.hash):
                self._put(new, None)
                self.found.duplicates += 1
            else:
                continue
            self._remember(new, entry.id)
            return True
        return False

    def _remember(self, row: FileRow, document: str) -> None:
        self.known[row.path] = replace(row, document=document)
        self.hashes.setdefault(row.hash, []).append(row.path)

    def _unreadable(self, key: str, known: FileRow | None, reason: str = "") -> None:
        """Listed all the same: the indexer will find the reason again and record it, where none is given."""
        identity = known.document if known else self._identity(key, Path(key), key)
        state: State = "failed" if reason else "pending"
        entry = Entry(identity, "paper", Path(key).name, key, "", path=key, state=state, reason=reason)
        self._put(FileRow(key, 0, 0, "", identity), entry)

    def _identity(self, key: str, path: Path, content: str) -> str:
        """`paper-` and the file's name; where that is taken, with the beginning of its content's hash."""
        if key.startswith(SHELF_PREFIX):
            return key
        slug = re.sub(r"[^a-z0-9.]+", "-", path.stem.lower()).strip("-.")[:48] or "file"
        for candidate in (f"paper-{slug}", f"paper-{slug}-{hashlib.sha256(content.encode()).hexdigest()[:6]}"):
            taken = self._document(candidate)
            if taken is None or taken.path == key:
                return candidate
        return f"paper-{slug}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"

    def _gone(self, keys: Iterable[str]) -> None:
        self._write()
        self.found.removed += len(self.catalogue.forget_files([key for key in keys if key in self.known]))

    def _bibliographies(self, seen: Iterable[Path]) -> None:
        """Those of the papers folder count wherever the files they are about lie."""
        bibliographies = files.find(self.workspace.papers_dir, self.workspace.root, (files.BIBLIOGRAPHY,))
        paths = [path for path in seen if path.suffix.lower() == files.BIBLIOGRAPHY]
        self.library.read(list(dict.fromkeys([*paths, *bibliographies])), self._parsed)

    def _parsed(self, path: Path) -> list[bibliography.Entry]:
        key = self._key(path)
        try:
            files.check_size(path)
            parsed = bibliography.parse(text.decode(path.read_bytes(), path.name))
        except (Unreadable, OSError):
            self._unreadable(key, self.known.get(key))
            return []
        if key in self.known:  # it could not be read before
            self._gone([key])
        return parsed

    def _parts_of_others(self, seen: Iterable[Path]) -> set[Path]:
        """LaTeX files that are read as parts of a whole document among those seen, and so are none by themselves."""
        sources = [path for path in seen if path.suffix.lower() == ".tex"]
        parts: set[Path] = set()
        for path in sources:
            with contextlib.suppress(Unreadable, OSError):  # listed with the reason in its turn
                files.check_size(path)
                source, found = latex.join(path, self.workspace.root)
                parts.update(part for part in found[1:] if latex.BEGIN in source)
        return parts & set(sources)

    def _details(self, key: str, path: Path, before: Entry | None) -> Details:
        entry = self.library.about(path)
        if entry is None and before is not None and not key.startswith(SHELF_PREFIX):
            entry = self.library.titled(before.title, before.details.get("arxiv", ""))
        if entry is None:
            return Details()
        self.described.add(entry.key)
        return entry.details

    def _loose_entries(self, elsewhere: Iterable[str]) -> None:
        """Entries with an abstract and no file are documents themselves, as long as both is so. `elsewhere` are the
        keys of files that this scan did not look at."""
        loose = [one for one in self.library.entries if one.abstract and one.key not in self.described]
        if loose:
            paths = [PurePath(key) for key in elsewhere if not key.startswith(SHELF_PREFIX)]
            loose = [one for one in loose if not any(map(one.describes, paths))]
        chosen: list[Entry] = []

        def choose(papers: Iterable[tuple[str, str]]) -> list[Entry]:
            joined = {entry.key for paper in papers if (entry := self.library.titled(*paper))} if loose else set()
            chosen.extend(_loose(one) for one in loose if one.key not in joined)
            return chosen

        added, removed = self.catalogue.put_abstracts(choose)
        self.found.added += added
        self.found.unchanged += len(chosen) - added
        self.found.removed += removed


def _loose(entry: bibliography.Entry) -> Entry:
    details = entry.details
    given = given_by(details) | {BIBTEX_KEY: entry.key}
    return Entry(
        entry.identity,
        "paper",
        details.title,
        f"arXiv:{details.arxiv}" if details.arxiv else entry.key,
        fingerprint(hashlib.sha256(entry.abstract.encode()).hexdigest(), given),
        details.date,
        details.tags,
        given,
        body=f"## Abstract\n\n{entry.abstract}",
    )


def given_by(details: Details) -> dict[str, Any]:
    """What a bibliography says about a file, as it is kept with the document."""
    given = {"title": details.title, "date": details.date, "authors": details.authors, "arxiv": details.arxiv}
    tags = {"tags": list(details.tags)} if details.tags else {}
    return {name: value for name, value in given.items() if value} | tags


def fingerprint(content: str, given: dict[str, Any]) -> str:
    """Of all that a document's passages are made from: its content's hash, and what is given about it."""
    return hashlib.sha256(json.dumps([content, given], sort_keys=True).encode()).hexdigest()
