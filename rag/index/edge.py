"""The store in this process: a shard of Qdrant's engine, optimised beside while it answers.

`optimize()` builds the vector index and drops deleted points. It holds Python's lock for seconds, so it happens on a
copy, in a process of its own (`rag.index.optimizer`). Passages written meanwhile are copied over from the shard in use,
then `current.json` names the new one and searches move to it. Until that file is replaced the old shard is complete; a
kill at any moment costs no more than the copy.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.index import optimizer
from rag.index.shard import Shard
from rag.index.store import Narrowing, Passage
from rag.index.words import Words, words
from workspace import durable
from workspace.errors import Unavailable

if TYPE_CHECKING:
    from rag.embedding.embedder import Vectors

CURRENT = "current.json"
OPTIMIZE_AT = 10_000  # new points since the last time; below, a search of all of them takes a millisecond or two
DELETED_AT, DELETED_SHARE = 2_000, 0.3  # deleted points at which the rest is packed again
RETRY_S = 600.0  # after an optimisation that failed
FEW, MOST_ROUNDS = 20, 6  # documents copied while writers wait; rounds of copying while they do not
READERS_WAIT_S = 60.0
log = logging.getLogger(__name__)


class EdgeStore:
    """Passages in a shard under `folder`, made when it is not there. Raises `Unavailable` when it cannot be opened.

    `made` is called when there was none. `optimize_at` is a number of points.
    """

    def __init__(
        self,
        folder: Path,
        dimension: int,
        made: Callable[[], None] = lambda: None,
        *,
        encoder: Words | None = None,
        optimize_at: int = OPTIMIZE_AT,
    ) -> None:
        self.folder = folder
        self._dimension = dimension
        self._words = encoder or words()
        self._optimize_at = optimize_at
        self._writing = threading.RLock()
        self._guard = threading.Condition()  # of `readers` of every shard, and of `_current`
        self._touched: set[str] | None = None  # documents written since the copy was made
        self._closing = threading.Event()
        self._work: threading.Thread | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._failed_at = float("-inf")
        folder.mkdir(parents=True, exist_ok=True)
        self._about: dict[str, Any] = durable.read_json(folder / CURRENT) or {}
        name = self._about.get("shard", "shard-0001")
        new = not (folder / name / "segments").is_dir()
        if new:
            made()  # first: told in vain is harmless, not told would lose documents
        self._current = Shard(folder / name, dimension, self._words)
        if new:
            self._about = {"shard": name, "points": 0, "dense": 0}
            durable.write_json(folder / CURRENT, self._about)
        for path in self._shards():
            if path != self._current.folder:
                shutil.rmtree(path, ignore_errors=True)

    def _shards(self) -> list[Path]:
        return [path for path in self.folder.glob("shard-*") if path.is_dir()]

    def upsert(self, passages: Sequence[Passage], vectors: Vectors) -> None:
        with self._writes({passage.document for passage in passages}) as shard:
            shard.upsert(passages, vectors)

    def delete(self, document: str, from_number: int = 0) -> None:
        with self._writes({document}) as shard:
            shard.delete(document, from_number)

    def relabel(self, document: str, source: str) -> None:
        with self._writes({document}) as shard:
            shard.relabel(document, source)

    @contextlib.contextmanager
    def _writes(self, documents: set[str]) -> Iterator[Shard]:
        with self._writing:
            if self._touched is not None:
                self._touched |= documents
            yield self._current

    @contextlib.contextmanager
    def _reads(self) -> Iterator[Shard]:
        with self._guard:
            shard = self._current
            shard.readers += 1
        try:
            yield shard
        finally:
            with self._guard:
                shard.readers -= 1
                self._guard.notify_all()

    def dense(self, vector: Sequence[float], limit: int, narrowing: Narrowing) -> list[tuple[str, float]]:
        with self._reads() as shard:
            return shard.dense(vector, limit, narrowing)

    def words(self, query: str, limit: int, narrowing: Narrowing) -> list[tuple[str, float]]:
        with self._reads() as shard:
            return shard.words(query, limit, narrowing)

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        with self._reads() as shard:
            return shard.passages(ids)

    def vectors(self, ids: Sequence[str]) -> dict[str, list[float]]:
        with self._reads() as shard:
            return shard.vectors(ids)

    def tokens(self, text: str) -> Sequence[int]:
        """The ids of the words of `text` as BM25 counts them: stemmed, without stop words."""
        return self._words.tokens(text)

    def count(self) -> int:
        with self._reads() as shard:
            return shard.count()

    def flush(self) -> None:
        with self._writes(set()) as shard:
            shard.flush()

    def close(self) -> None:
        self._closing.set()
        child = self._child
        if child is not None:
            child.kill()
        if self._work is not None:
            self._work.join()
        self._current.close()

    def maintain(self) -> None:
        """Begin an optimisation in the background when enough has gathered. Returns at once."""
        if self.optimizing or self._closing.is_set() or time.monotonic() - self._failed_at < RETRY_S:
            return
        with self._reads() as shard:
            if not self._is_due(shard):
                return
        self._work = threading.Thread(target=self._optimize, name="optimizer", daemon=True)
        self._work.start()

    @property
    def optimizing(self) -> bool:
        return self._work is not None and self._work.is_alive()

    def _is_due(self, shard: Shard) -> bool:
        """Counted in points written, deleted ones included, which the engine keeps until it optimises."""
        size = shard.size()
        written = size.indexed - int(self._about["dense"])
        deleted = written - size.points
        before = int(self._about["points"])
        if written - before > max(self._optimize_at, before):
            return True
        return deleted > max(DELETED_AT, DELETED_SHARE * size.points)

    def _optimize(self) -> None:
        numbers = [int(found[0]) for path in self._shards() if (found := re.findall(r"\d+$", path.name))]
        target = self.folder / f"shard-{max(numbers) + 1:04d}"
        started = time.monotonic()
        try:
            with self._writing:
                self._current.flush()
                self._touched = set()
                shutil.copytree(self._current.folder, target)
            self._wait_for(optimizer.start(target))
            if not self._closing.is_set():
                self._take_into_use(target)
                log.info("optimised %d points in %.1f s", self._about["points"], time.monotonic() - started)
        except Exception:  # the shard in use is whole; memory goes on with it
            log.exception("the index could not be optimised")
            self._failed_at = time.monotonic()
        finally:
            with self._writing:
                self._touched = None
            if target != self._current.folder:
                shutil.rmtree(target, ignore_errors=True)

    def _wait_for(self, child: subprocess.Popen[bytes]) -> None:
        self._child = child
        try:
            if self._closing.is_set():
                child.kill()
            code = child.wait(optimizer.LONGEST_S)
        finally:
            child.kill()
            child.wait()
            self._child = None
        if code != 0 and not self._closing.is_set():
            raise Unavailable(f"the optimising process ended with {code}")

    def _take_into_use(self, target: Path) -> None:
        new = Shard(target, self._dimension, self._words)
        try:
            size = new.size()
            names: set[str] = set()
            for _ in range(MOST_ROUNDS):  # a fast writer could go on for ever
                names = self._take_touched()
                if len(names) <= FEW:
                    break
                while names:
                    name = names.pop()
                    if self._closing.is_set():
                        raise Unavailable("memory is closing")
                    new.copy_document(name, self._current)
            with self._writing:
                for name in names | self._take_touched():
                    new.copy_document(name, self._current)
                new.flush()
                about = {"shard": target.name, "points": size.points, "dense": size.indexed - size.points}
                self._point_at(about)
                with self._guard:
                    old, self._current = self._current, new
        except BaseException:
            if self._current is not new:
                new.close()
            raise
        with self._guard:
            unused = self._guard.wait_for(lambda: old.readers == 0, READERS_WAIT_S)
        if unused:
            old.close()
            shutil.rmtree(old.folder, ignore_errors=True)

    def _point_at(self, about: dict[str, Any]) -> None:
        try:
            durable.write_json(self.folder / CURRENT, about)
        except OSError:  # perhaps after the file was replaced: what it says is what the next start believes
            if durable.read_json(self.folder / CURRENT) != about:
                raise
        self._about = about

    def _take_touched(self) -> set[str]:
        with self._writing:
            taken, self._touched = self._touched or set(), set()
            return taken
