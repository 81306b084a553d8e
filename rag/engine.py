"""Memory itself, inside its worker process: owns index and embedder, answers calls from several threads."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rag.embedding import embedder as embedding
from rag.embedding.embedder import Embedder
from rag.embedding.reranker import Reranker
from rag.evaluation.measures import RECALL_DEPTH
from rag.index.catalogue import Entry
from rag.index.generation import Generations, owner
from rag.index.place import Place, place_for
from rag.index.store import SCHEMA, Narrowing, passage_id
from rag.indexer import Indexer
from rag.query import LONGEST_QUERY, Query
from rag.ranking import METHODS, Wording
from rag.records import Excerpt, IndexReport, Listed, Listing, MemoryStatus, Opening, Problem, Rankings, SearchPage
from rag.scan import Found, Scan
from rag.scanner import Scanner
from rag.search import Stores, search
from workspace.errors import LabError, NotFound, Unavailable, unknown
from workspace.layout import Workspace

SHOWN_PROBLEMS = 20
LOOK_S = 10.0  # an answer waits so long for the looking, whatever it was told about the indexing
FRESH_S = 6.0  # the very first search of a new workspace waits so long for the starter shelf
SHOWN = "shown"  # among rankings: what is left after the floor and the folding of near-duplicates
KEPT_VECTORS = 256  # of queries
SETTLE_AFTER_S = 3.0  # after the embedder is there: the first search comes first
SLOW_LOAD_S = 1.5  # a search waits so long for the embedder, then answers by words
log = logging.getLogger(__name__)


class Engine:
    """Opens or makes the index of a workspace. Raises `Unavailable` when another process has it."""

    def __init__(
        self,
        workspace: Workspace,
        model: str,
        floor: float,
        *,
        load: Callable[[], Embedder] | None = None,
        place: Place | None = None,
        schema: int = SCHEMA,
        reranker: str = "",
        shelf: bool = True,
    ) -> None:
        self.workspace = workspace
        self.floor = floor
        self.model = model
        self._load = load or (lambda: embedding.load(model, workspace.cache_dir))
        self._embedder: Embedder | None = None
        self._embedder_error: Exception | None = None
        self._loaded = threading.Event()
        self._settling = threading.Event()  # somebody waits for it, or for the end
        self._settled = threading.Event()
        self._closing = threading.Event()
        self._vector = functools.lru_cache(KEPT_VECTORS)(self._embedded)  # the next page asks for the same again
        self._reranker_name = reranker
        self._reranker: Reranker | None = None
        self._reranker_error = ""
        self._open = contextlib.ExitStack()
        self._open.enter_context(owner(workspace.index_dir))
        self._loading = threading.Thread(target=self._load_embedder, name="embedder", daemon=True)
        self._loading.start()
        try:
            dimension = self._dimension(model)
            place = place or place_for("", workspace.root.name)
            self.generations = Generations(workspace.index_dir, model, dimension, place, schema)
            self.indexer = Indexer(workspace, self.generations, self._wait_for_embedder)
            self.generations.wake = self.indexer.wake
            self._scanner = Scanner(self._scan, self.generations.building.catalogue)
            if shelf:
                self._scan().shelf()
        except BaseException:
            self._open.close()
            raise
        self.indexer.start()
        self._scanner.resume()
        if reranker:
            threading.Thread(target=self._load_reranker, name="reranker", daemon=True).start()

    def _dimension(self, model: str) -> int:
        """The length of the model's vectors: from its files where they are known, else from the loaded model."""
        folder = embedding.packaged_folder() if model == embedding.PACKAGED_MODEL else None
        if folder is not None:
            return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"])
        return self._wait_for_embedder().dimension

    def _load_embedder(self) -> None:
        try:
            self._embedder = self._load()
            self._embedder.embed_query("warm")
        except Exception as error:  # told to whoever needs the embedder
            log.exception("the embedder cannot be loaded")
            self._embedder_error = error
        self._loaded.set()
        try:
            self._settling.wait(SETTLE_AFTER_S)
            if self._embedder is not None and not self._closing.is_set():
                self._embedder.settle(self._closing)
        finally:
            self._settled.set()

    def _load_reranker(self) -> None:
        try:
            self._reranker = Reranker(self._reranker_name)
        except Exception as error:  # searches say so and go on without it
            log.exception("the reranker cannot be loaded")
            self._reranker_error = str(error)[:300]

    def _embedded(self, text: str) -> list[float]:
        vector: list[float] = self._wait_for_embedder().embed_query(text).tolist()
        return vector

    def _wait_for_embedder(self) -> Embedder:
        self._loaded.wait()
        if self._embedder is None:
            raise self._embedder_error or Unavailable("the embedder cannot be loaded")
        return self._embedder

    def search(self, query: Query) -> SearchPage:
        self._loaded.wait(SLOW_LOAD_S)
        if self.generations.fresh:
            self.indexer.wait_idle(FRESH_S)
            self.generations.fresh = False
        embed = self._vector if self._embedder is not None and self._loaded.is_set() else None
        serving = self.generations.serving
        try:
            page = search(query, self.generations, embed, self.floor, self._reranker)
        except LabError:
            raise
        except Exception:
            if self.generations.serving is serving:
                raise
            page = search(query, self.generations, embed, self.floor, self._reranker)  # the old was closed
        partial = self._partial()
        return replace(page, partial=partial) if partial else page

    def _partial(self) -> str:
        reasons = []
        waiting = self.generations.building.catalogue.waiting()
        if self._embedder_error is not None:
            reasons.append(f"found by words only: {str(self._embedder_error)[:300]}")
        elif not self._loaded.is_set():
            reasons.append("found by words only: the embedding model is still loading")
        if self._reranker_name and self._reranker is None:
            reasons.append(f"not reranked: {self._reranker_error or 'the reranker is still loading'}")
        if self.generations.serving is not None:
            reasons.append(f"the index is being rebuilt; {waiting} documents are found by words only until then")
        elif waiting:
            reasons.append(f"{waiting} document{'s are' if waiting != 1 else ' is'} still being indexed")
        if self._scanner.busy:
            reasons.append("the files are still being looked through for changes")
        if self._scanner.error:
            reasons.append(f"looking for changes failed ({self._scanner.error}): `rag_index` looks again")
        if self.indexer.error:
            reasons.append(f"indexing stands still: {self.indexer.error}")
        return "; ".join(reasons)

    def add(self, entry: Entry) -> bool:
        """Take a text in; it is durable when this returns and searchable shortly after. False: nothing changed."""
        return self.add_all([entry]) > 0

    def add_all(self, entries: Iterable[Entry]) -> int:
        """Take texts in, all or none; how many changed something."""
        changed = self.generations.building.catalogue.put_all(map(_fingerprinted, entries))
        if changed:
            self.indexer.wake()
        return changed

    def remove(self, document: str) -> bool:
        """False when there is no such document."""
        removed = self.generations.building.catalogue.removing(document)
        self.indexer.wake()
        return removed

    def documents(self, kinds: Sequence[str], text: str, after: str, limit: int) -> Listing:
        """A page of the documents in memory."""
        entries, total = self.generations.building.catalogue.listed(kinds, text, after, limit + 1)
        shown = [
            Listed(e.id, e.kind, e.title, e.source, e.date, list(e.tags), e.state, e.reason, e.chunks)
            for e in entries[:limit]
        ]
        return Listing(shown, total, shown[-1].id if len(entries) > limit else None)

    def opening(self, document: str, passages: int) -> Opening:
        """How a document begins. Raises `NotFound`."""
        catalogue = self.generations.building.catalogue
        entry = catalogue.get(document)
        if entry is None:
            raise unknown(
                "document", document, [e.id for e in catalogue.listed((), document.split("-")[0], "", 500)[0]]
            )
        ids = [passage_id(document, number) for number in range(min(passages, entry.chunks))]
        found = Stores(self.generations).passages(ids)
        shown = [found[one] for one in ids if one in found]
        return Opening(
            *(entry.id, entry.kind, entry.title, entry.details.get("authors", ""), entry.source, entry.date),
            passages=[Excerpt(one.text, one.section, one.page) for one in shown],
            total=entry.chunks,
        )

    def reindex(self, ids: Sequence[str] | None) -> int:
        """Read and embed documents again (all for None); how many. Raises `NotFound` for an id that is not there."""
        catalogue = self.generations.building.catalogue
        for name in ids or ():
            if catalogue.get(name) is None:
                near = catalogue.listed((), name.split("-")[0], "", 500)[0]
                raise unknown("document", name, [entry.id for entry in near])
        count = catalogue.again(ids)
        self.indexer.wake()
        return count

    def rankings(self, texts: Sequence[str]) -> Rankings:
        """The documents each way of ranking finds for each text, best first, and those a search shows."""
        import statistics  # here, since it would hold up the first search

        self._settling.set()
        self._settled.wait()  # all are asked for in the same way
        stores = Stores(self.generations)
        embed = self._vector if self._embedder is not None else None
        found: dict[str, list[list[str]]] = {name: [] for name in (*METHODS, SHOWN)}
        took: dict[str, list[float]] = {name: [] for name in found}
        for text in texts:
            asked = Query(text[:LONGEST_QUERY], limit=RECALL_DEPTH)
            wording = Wording(asked.text, embed(asked.text) if embed else None)
            for name, method in METHODS.items():
                started = time.perf_counter()
                ids = method(wording, stores, Narrowing(), self.floor)
                took[name].append(time.perf_counter() - started)
                passages = stores.passages(ids)
                found[name].append(list(dict.fromkeys(passages[one].document for one in ids if one in passages)))
            started = time.perf_counter()
            page = search(asked, self.generations, embed, self.floor, self._reranker)
            took[SHOWN].append(time.perf_counter() - started)
            found[SHOWN].append(list(dict.fromkeys(name for hit in page.hits for name in (hit.id, *hit.also))))
        medians = {name: round(statistics.median(seconds) * 1000, 2) for name, seconds in took.items() if seconds}
        return Rankings(found, medians)

    def index(self, paths: Sequence[str] | None, wait_s: float) -> IndexReport:
        """Look for changes under `paths` (the papers folder by default) and wait up to `wait_s` for the indexing.

        The numbers are those of the looking so far; with very many files it goes on after the answer, and where this
        process ends before, in the next one.
        """
        started = time.monotonic()
        self.generations.building.catalogue.another_chance()
        self.indexer.wake()
        look = self._scanner.look(*(self._place(path) for path in paths or ()))
        looked = look.wait(max(wait_s, LOOK_S))
        self.generations.building.store.count()  # where no store answers, that is said now and not after `wait_s`
        if looked:
            self.indexer.wait_idle(max(0.0, started + wait_s - time.monotonic()))
        catalogue = self.generations.building.catalogue
        waiting = catalogue.waiting()
        problems = self._problems()
        return IndexReport(
            state="indexing" if waiting or not looked else "done",
            **vars(look.found),
            waiting=waiting,
            passages=self.generations.building.store.count(),
            failed=problems[:SHOWN_PROBLEMS],
            failed_total=len(problems),
            seconds=round(time.monotonic() - started, 3),
        )

    def _place(self, path: str) -> str:
        place = self.workspace.confine(path)
        relative = self.workspace.relative(place)
        if place.exists():
            return relative
        known = self.generations.building.catalogue.files()
        if not any(key == relative or key.startswith(f"{relative}/") for key in known):
            raise NotFound(
                f"there is no file or folder {path[:200]!r} in the workspace",
                valid="a path inside the workspace, for example papers/",
            )
        return relative

    def _scan(self, found: Found | None = None, stopping: threading.Event | None = None) -> Scan:
        building, indexer = self.generations.building, self.indexer
        given = (self.workspace, building.catalogue, building.store.relabel, indexer.library)
        return Scan(*given, found=found, wake=indexer.wake, stopping=stopping)

    def _problems(self) -> list[Problem]:
        entries = self.generations.building.catalogue.entries(["failed"])
        return [Problem(entry.source, entry.reason) for entry in entries]

    def status(self) -> MemoryStatus:
        catalogue = self.generations.building.catalogue
        counts = catalogue.counts()
        problems = self._problems()
        waiting = catalogue.waiting()
        rebuilding = self.generations.serving is not None
        loading = not self._loaded.is_set()
        busy = waiting or self._scanner.busy
        ready = "starting" if loading else "rebuilding" if rebuilding else "indexing" if busy else "ready"
        passages, unreachable = 0, ""
        try:
            passages = self.generations.building.store.count()
        except Unavailable as error:
            unreachable = error.problem
        there = {kind: sum(n for state, n in states.items() if state != "failed") for kind, states in counts.items()}
        return MemoryStatus(
            state=ready,
            model=self.model,
            embedder=self._embedder.engine if self._embedder else "",
            documents={kind: n for kind, n in there.items() if n},
            passages=passages,
            waiting=waiting,
            failed=problems[:SHOWN_PROBLEMS],
            failed_total=len(problems),
            partial="; ".join(part for part in (unreachable, self._partial()) if part),
            current=self.indexer.current,
            worker=os.getpid(),
            memory_bytes=_memory(),
        )

    def close(self, timeout_s: float = 3.0) -> bool:
        """Finish the batch in hand and close the index; False when that took too long and it stays open."""
        deadline = time.monotonic() + timeout_s
        self._closing.set()
        self._settling.set()
        self._scanner.stop()
        stopped = self.indexer.stop(timeout_s)
        if not self._scanner.wait_stopped(max(0.0, deadline - time.monotonic())) or not stopped:
            return False
        if self._loaded.is_set():  # a loader that is not done by now may take long, and touches nothing here
            self._loading.join(max(0.0, deadline - time.monotonic()))
        self.generations.close()
        self._open.close()
        return True


def _fingerprinted(entry: Entry) -> Entry:
    """With a hash over everything its passages are made from, and before all files in the order of indexing."""
    details = {name: value for name, value in entry.details.items() if value}
    given = [entry.kind, entry.title, entry.source, entry.date, entry.tags, details, entry.body]
    fingerprint = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()
    return replace(entry, details=details, hash=fingerprint, priority=1)


def _memory() -> int | None:
    """Resident memory of this process in bytes (its peak where the system tells only that)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
