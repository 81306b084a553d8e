"""The indexing thread: takes pending documents from the catalogue, cuts, embeds and stores their passages.

Passages of several documents are embedded together, so that many short ones cost no more than one long one, and while
one batch is embedded, the one before it is stored and the next is read. A document in whose hand the process died is
taken alone the next time: what kills a reader is to be known by its name.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rag.documents import chunks, files, text
from rag.documents.bibliography import Library
from rag.documents.document import Block, Details, Document, Unreadable, clean
from rag.embedding.embedder import Embedder
from rag.index.catalogue import DEADLY, Entry
from rag.index.generation import Generations
from rag.index.store import Passage
from rag.scan import SHELF_PREFIX, fingerprint, given_by, path_of
from workspace.errors import LabError, Unavailable
from workspace.layout import Workspace

if TYPE_CHECKING:
    from rag.embedding.embedder import Vectors

BATCH = 8 * chunks.TARGET  # characters embedded at once; more is no faster on a CPU and makes notes and searches wait
MOST_AT_ONCE = 64  # passages, however short
GATHER_S = 0.5  # of reading, after which what is there is embedded: the next ones may be long, or unreadable
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


@dataclass(eq=False)
class _Open:
    """A document in hand: its passages are taken one after the other, over several batches if need be."""

    entry: Entry
    abstract: str  # the bibliography's entry about it
    passages: Iterator[Passage]
    ahead: Passage | None  # the one taken next; None at the end
    taken: int = 0

    def take(self) -> Passage:
        assert self.ahead is not None
        passage, self.ahead = self.ahead, next(self.passages, None)
        self.taken += 1
        return passage


@dataclass
class _Batch:
    """Passages that are embedded together, and the documents that are complete with them."""

    passages: list[tuple[_Open, Passage]] = field(default_factory=list)
    ends: list[_Open] = field(default_factory=list)
    length: int = 0  # characters

    @property
    def full(self) -> bool:
        return len(self.passages) >= MOST_AT_ONCE or self.length >= BATCH

    def fill(self, one: _Open) -> None:
        """With what there is of a document, as far as there is room."""
        before = one.taken
        while one.ahead is not None and not self.full:
            self.length += len(one.ahead.text)
            self.passages.append((one, one.take()))
        if one.ahead is None and one.taken > before:
            self.ends.append(one)

    def drop(self, one: _Open) -> None:
        self.passages = [(other, passage) for other, passage in self.passages if other is not one]
        self.length = sum(len(passage.text) for _, passage in self.passages)


class Indexer:
    """Runs until `stop`; errors of one document never stop the others."""

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
                if self._round() or self._stopping.is_set():
                    continue
                self._finish()
                self.error = ""
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

    def _round(self, above: int = -1) -> bool:
        """Take documents in hand, as many as make a batch, until none is left over; False when nothing is pending."""
        hand: list[_Open] = []
        before = self.current
        try:
            batch = self._gather(hand, above)
            found = bool(batch.passages)
            vectors = self._embedded(batch)
            while vectors is not None:
                ahead = self._gather(hand, above, vectors)
                made = vectors.result()
                first = batch.passages[0][0].entry
                self._urgent(first.priority)
                vectors = None if self._stopping.is_set() else self._embedded(ahead)
                self.current = first.source
                self._store(hand, batch, made)
                self.error = ""
                self._told()
                batch = ahead
        finally:
            self.current = before
            if hand:
                self.generations.building.catalogue.put_back(one.entry for one in hand)
        return found

    def _embedded(self, batch: _Batch) -> Future[Vectors] | None:
        """Begun in a thread that holds up no end of the process; None for nothing."""
        texts = [passage.searchable for _, passage in batch.passages]
        if not texts:
            return None
        vectors: Future[Vectors] = Future()

        def embed() -> None:
            try:
                vectors.set_result(self._embedder().embed(texts))
            except BaseException as error:  # noqa: BLE001  raised again where the vectors are waited for
                vectors.set_exception(error)

        threading.Thread(target=embed, name="embedding", daemon=True).start()
        return vectors

    def _gather(self, hand: list[_Open], above: int, under_way: Future[Vectors] | None = None) -> _Batch:
        """The next batch, of the documents in hand and of others that are taken until it is full or something waits:
        what is `under_way` to be stored, or what was read first to be embedded."""
        batch = _Batch()
        for one in self._documents(hand, above, under_way):
            try:
                batch.fill(one)
            except Exception as error:  # noqa: BLE001  cutting this one failed, not the others
                hand.remove(one)
                batch.drop(one)
                self._unreadable(one.entry, error)
            if batch.full:
                break
        return batch

    def _documents(self, hand: list[_Open], above: int, under_way: Future[Vectors] | None) -> Iterator[_Open]:
        """Those in hand, then those that may be embedded with them: as urgent, and none held to be dangerous. One that
        changed while it is in hand has to leave it first."""
        yield from list(hand)
        patient_until = time.monotonic() + GATHER_S
        while not self._stopping.is_set() and not any(one.entry.attempts for one in hand):
            busy = bool(hand) or under_way is not None
            if (under_way is not None and under_way.done()) or (busy and time.monotonic() > patient_until):
                return
            after = hand[-1].entry if hand else None
            entry = self.generations.building.catalogue.next(above=above, after=after)
            if entry is None or (busy and entry.attempts) or entry.id in [one.entry.id for one in hand]:
                return
            if entry.state == "removing":
                self._remove(entry)
                continue
            self.current = entry.source
            one = self._opened(entry)
            if one is None:
                self._urgent(entry.priority)
                continue
            hand.append(one)
            yield one

    def _store(self, hand: list[_Open], batch: _Batch, vectors: Vectors) -> None:
        """What is complete with a batch leaves the hand, and what changed since it was taken, too."""
        building = self.generations.building
        standing = building.catalogue.standing([one.entry for one in hand])
        hand[:] = [one for one in hand if one.entry.id in standing]
        rows = [row for row, (one, _) in enumerate(batch.passages) if one in hand]
        if rows:
            building.store.upsert([batch.passages[row][1] for row in rows], vectors[rows])
            self._dirty = True
        complete = [one for one in batch.ends if one in hand]
        for one in complete:
            building.store.delete(one.entry.id, from_number=one.taken)
        building.catalogue.written_all((one.entry, one.taken, one.abstract) for one in complete)
        hand[:] = [one for one in hand if one not in complete]

    def _told(self) -> None:
        """After each step: whoever waits for the end looks again, and the disk gets what is due."""
        with self._idle:
            self._idle.notify_all()
        if time.monotonic() - self._last_flush > FLUSH_EVERY_S:
            self._flush()

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
        self._told()

    def _opened(self, entry: Entry) -> _Open | None:
        """Read a document; None when it cannot be, which is recorded with the reason."""
        try:
            if not self.generations.building.catalogue.opening(entry):
                raise Unreadable(DEADLY)
            document = self._read(entry)
            entry, abstract = self._joined(entry, document.details)
            details = self._complete(entry, document.details)
            passages = _passages(entry, details, document.blocks)
            first = next(passages, None)
            if first is None:
                raise Unreadable("it holds no text")
        except LabError:  # of what went on beside the reading: the store, not this document
            self.generations.building.catalogue.put_back([entry])
            raise
        except Exception as error:  # noqa: BLE001  a parser's own failure is this document's, not the others'
            self._unreadable(entry, error)
            return None
        entry = replace(entry, title=details.title, date=details.date, tags=details.tags)
        return _Open(entry, abstract, passages, first)

    def _unreadable(self, entry: Entry, error: Exception) -> None:
        if isinstance(error, Unreadable):
            reason = str(error)
        elif isinstance(error, OSError):
            reason = f"it cannot be read ({error.strerror})"
        else:
            log.error("reading %s failed", entry.source, exc_info=error)
            reason = f"it cannot be read ({type(error).__name__}: {error})"[:300]
        try:
            self.generations.building.store.delete(entry.id)
        except LabError:  # the store is away, which is not this document's fault
            self.generations.building.catalogue.put_back([entry])
            raise
        self.generations.building.catalogue.failed(entry, reason)
        self._dirty = True
        self._told()

    def _read(self, entry: Entry) -> Document:
        if entry.path is None:
            return text.read_note(clean(entry.body or ""))
        path = path_of(entry.path, self.workspace)
        return files.read(path, self.workspace.root, breathe=lambda: self._breathe(entry.priority))

    def _breathe(self, priority: int) -> None:
        """In the middle of a document. Raises `Unavailable`: what fails here is not that document."""
        try:
            self._urgent(priority)
        except LabError:
            raise
        except Exception as error:
            problem = f"indexing what is more urgent failed ({type(error).__name__}: {error})"
            raise Unavailable(problem, fix="it is tried again; the memory's log says more") from error

    def _urgent(self, priority: int) -> None:
        """A note or an experiment does not wait for a long paper."""
        while priority == 0 and not self._stopping.is_set() and self._round(above=0):
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


def _passages(entry: Entry, details: Details, blocks: Iterable[Block]) -> Iterator[Passage]:
    moment = start_of(details.date)
    worth = (chunk for chunk in chunks.cut(blocks) if _has_words(chunk.text))
    for number, chunk in enumerate(worth):
        yield Passage(
            *(entry.id, number, entry.kind, details.title, entry.source, chunk.section, chunk.text, entry.hash),
            date=details.date,
            time=moment,
            tags=details.tags,
            page=chunk.pages[0] if chunk.pages else None,
            page_end=chunk.pages[1] if chunk.pages else None,
            start=chunk.start,
            end=chunk.end,
            marks=chunk.marks,
            campaign=str(entry.details.get("campaign") or ""),
            metrics=dict(entry.details.get("metrics") or {}),
        )


def _has_words(text: str) -> bool:
    return sum(map(str.isalpha, text[:300])) >= 3
