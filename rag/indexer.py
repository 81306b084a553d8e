"""The indexing thread: takes pending documents from the catalogue, cuts, embeds and stores their passages."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from rag.documents import chunks, files, text
from rag.documents.bibliography import Library
from rag.documents.document import Details, Document, Unreadable, clean
from rag.embedding.embedder import Embedder
from rag.index.catalogue import Entry
from rag.index.generation import Generations
from rag.index.store import Passage
from rag.scan import SHELF_PREFIX, fingerprint, given_by, path_of
from workspace.errors import LabError
from workspace.layout import Workspace

BATCH = 8  # passages embedded at once; larger ones are no faster on a CPU and make notes and searches wait
FLUSH_EVERY_S = 10.0
IDLE_S = 0.3  # without anything to do for so long: flush
log = logging.getLogger(__name__)


def start_of(date: str) -> float | None:
    """Seconds since 1970 at the start of `YYYY`, `YYYY-MM`, `YYYY-MM-DD` or an ISO moment; None for anything else."""
    padded = f"{date}-01-01"[:10] if len(date) == 4 else f"{date}-01" if len(date) == 7 else date
    try:
        moment = datetime.fromisoformat(padded)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class Indexer:
    """Runs until `stop`. `changed` is called after each document; errors of one document never stop the others."""

    def __init__(self, workspace: Workspace, generations: Generations, embedder: Callable[[], Embedder]) -> None:
        self.workspace = workspace
        self.generations = generations
        self.current = ""
        self.error = ""  # why indexing stands still
        self.library = Library()
        self._embedder = embedder
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._idle = threading.Condition()
        self._last_flush = time.monotonic()
        self._dirty = False
        self._thread = threading.Thread(target=self._run, name="indexer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def stop(self, timeout_s: float) -> bool:
        """Finish the batch in hand and end; False when that took longer than `timeout_s`."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing is pending; False when `timeout_s` has passed before."""
        with self._idle:
            return self._idle.wait_for(lambda: self.generations.building.catalogue.waiting() == 0, timeout_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                if self._one():
                    self.error = ""
                    continue
                self._finish()
            except Exception as error:  # the thread must outlive any failure of one round; status shows it
                log.exception("indexing failed; trying again")
                known = isinstance(error, LabError)
                self.error = (str(error) if known else f"{type(error).__name__}: {error}")[:300]
                self._stopping.wait(2.0)
                continue
            self._wake.wait(IDLE_S if self._dirty else None)
        try:
            self._flush()
        except Exception:  # what was not flushed is indexed again at the next start
            log.exception("the index could not be flushed at the end")

    def _one(self, above: int = -1) -> bool:
        """Do the next document; False when there is none."""
        catalogue = self.generations.building.catalogue
        entry = catalogue.next(above=above)
        if entry is None:
            return False
        before, self.current = self.current, entry.source
        try:
            if entry.state == "removing":
                self._remove(entry)
            else:
                self._index(entry)
        finally:
            self.current = before
        with self._idle:
            self._idle.notify_all()
        if time.monotonic() - self._last_flush > FLUSH_EVERY_S:
            self._flush()
        return True

    def _finish(self) -> None:
        """Nothing is pending: flush, and swap a rebuilt generation in."""
        if self._dirty:
            self._flush()
        if self.generations.serving is not None:
            self._flush()
            self.generations.swap()
        with self._idle:
            self._idle.notify_all()

    def _flush(self) -> None:
        building = self.generations.building
        building.store.flush()
        building.catalogue.flushed()
        self._dirty = False
        self._last_flush = time.monotonic()
        building.store.maintain()

    def _remove(self, entry: Entry) -> None:
        self.generations.building.store.delete(entry.id)
        self.generations.building.catalogue.removed(entry)
        self._dirty = True

    def _index(self, entry: Entry) -> None:
        building = self.generations.building
        try:
            if not building.catalogue.opening(entry):
                raise Unreadable("reading it ended the memory process several times")
            document = self._read(entry)
            entry, abstract = self._joined(entry, document.details)
            passages = self._passages(entry, document)
            first = list(itertools.islice(passages, BATCH))
            building.catalogue.opened(entry)
        except (Unreadable, OSError) as error:
            reason = str(error) if isinstance(error, Unreadable) else f"it cannot be read ({error.strerror})"
            self._fail(entry, reason)
            return
        except Exception as error:  # a parser's own failure is this document's, not the others'
            log.exception("reading %s failed", entry.source)
            self._fail(entry, f"it cannot be read ({type(error).__name__}: {error})"[:300])
            return
        if not first:
            self._fail(entry, "it holds no text")
            return
        count = 0
        batch = first
        while batch:
            building.store.upsert(batch, self._embedder().embed([passage.searchable for passage in batch]))
            self._dirty = True
            count += len(batch)
            if self._stopping.is_set():
                return
            self._urgent(entry)
            batch = list(itertools.islice(passages, BATCH))
        building.store.delete(entry.id, from_number=count)
        details = self._complete(entry, document.details)
        entry = replace(entry, title=details.title, date=details.date, tags=details.tags)
        building.catalogue.written(entry, count, abstract=abstract)

    def _fail(self, entry: Entry, reason: str) -> None:
        self.generations.building.store.delete(entry.id)
        self.generations.building.catalogue.failed(entry, reason)
        self._dirty = True

    def _read(self, entry: Entry) -> Document:
        if entry.path is None:
            return text.read_markdown(clean(entry.body or ""))
        path = path_of(entry.path, self.workspace)
        return files.read(path, self.workspace.root, breathe=lambda: self._urgent(entry))

    def _urgent(self, entry: Entry) -> None:
        """A note or an experiment does not wait for a long paper."""
        while entry.priority == 0 and not self._stopping.is_set() and self._one(above=0):
            pass

    def _joined(self, entry: Entry, found: Details) -> tuple[Entry, str]:
        """With what a bibliography says about a paper of this title, as the next scan would give it; and the document
        that the abstract there is while no paper is."""
        if entry.path is None or entry.path.startswith(SHELF_PREFIX) or entry.details:
            return entry, ""
        match = self.library.titled(found.title, found.arxiv)
        if match is None:
            return entry, ""
        given = given_by(match.details)
        path = path_of(entry.path, self.workspace)
        content = files.content_hash(files.parts(path, self.workspace.root))
        return replace(entry, details=given, hash=fingerprint(content, given)), match.identity

    def _complete(self, entry: Entry, found: Details) -> Details:
        """What was given goes before what was found in the text."""
        given = text.details_of(entry.details).over(Details(date=entry.date, tags=entry.tags))
        if entry.path is None:
            return replace(given, title=entry.title)
        title = Path(entry.path.removeprefix("shelf:")).stem.replace("_", " ")
        return given.over(found).over(Details(title=title))

    def _passages(self, entry: Entry, document: Document) -> Iterator[Passage]:
        details = self._complete(entry, document.details)
        source = entry.source
        worth = (chunk for chunk in chunks.cut(document.blocks) if _has_words(chunk.text))
        for number, chunk in enumerate(worth):
            yield Passage(
                *(entry.id, number, entry.kind, details.title, source, chunk.section, chunk.text, entry.hash),
                date=details.date,
                time=start_of(details.date),
                tags=details.tags,
                page=chunk.pages[0] if chunk.pages else None,
                page_end=chunk.pages[1] if chunk.pages else None,
                start=chunk.start,
                end=chunk.end,
                campaign=str(entry.details.get("campaign") or ""),
                metrics=dict(entry.details.get("metrics") or {}),
            )


def _has_words(text: str) -> bool:
    return sum(character.isalpha() for character in text[:300]) >= 3
