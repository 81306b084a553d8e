"""The lab's memory as the service sees it: starts the worker process, asks it, starts it again when it died.

Light to import; the index and the embedding model live in the worker only. Every call is synchronous, thread-safe
and bounded in time. A worker that died comes back with the next call, and by itself when documents wait for it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, TimeoutError
from pathlib import Path
from typing import IO, Any

from rag import protocol, query
from rag.index.inspect import work_waits
from rag.records import Hit, IndexReport, Listing, MemoryStatus, Opening, Rankings, SearchPage
from workspace import interpreter
from workspace.errors import LabError, Refused, Unavailable
from workspace.layout import Workspace
from workspace.settings import Settings

__all__ = ["Hit", "IndexReport", "Listing", "Memory", "MemoryStatus", "SearchPage"]

START_S = 60.0  # an index of a large lab, or a model through torch, takes its time to open
ANSWER_S = 30.0
HANGS_S = 25.0  # a worker that said nothing to anybody for so long, and left a call unanswered, is ended
ATTEMPTS = 3
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # before a worker that died is started again without being asked
HEALTHY_S = 60.0  # a worker that lived this long resets the pause
LOG_LIMIT = 4 << 20  # bytes
MOST_LISTED = 200
LONGEST_TEXT = 4_000_000  # characters of one added text
log = logging.getLogger(__name__)


class _Died(Exception):
    """The worker ended before it answered."""


class _Worker:
    """One worker process and the calls it has not answered yet."""

    def __init__(self, workspace: Workspace, settings: Settings, died: Callable[[], None]) -> None:
        self.opened = False  # it has the index; `died` is called when it ends after that without being told to
        self._died = died
        self._ending = False
        self._guard = threading.Lock()
        self._sending = threading.Lock()
        self._pending: dict[int, Future[Any]] = {}
        self._last = 0
        self._dead = False
        self._heard = time.monotonic()  # when it last said anything
        environment = interpreter.service_environment()
        if not settings.network.hub:
            environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        workspace.lab_dir.mkdir(parents=True, exist_ok=True)
        with _log_file(workspace.lab_dir / "memory.log").open("ab") as errors:
            self.process = subprocess.Popen(
                interpreter.python_command("rag.worker", str(workspace.root)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                cwd=workspace.lab_dir,
                start_new_session=True,  # a Ctrl-C for the service is not for the worker; it ends with its stdin
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._input: IO[bytes] = self.process.stdin
        self._output: IO[bytes] = self.process.stdout
        threading.Thread(target=self._receive, name="memory-answers", daemon=True).start()

    @property
    def alive(self) -> bool:
        return not self._dead and self.process.poll() is None

    def call(self, name: str, given: Mapping[str, Any], timeout_s: float) -> Any:
        """Raises `_Died` when the worker ended first, `LabError` when it refused, `Unavailable` when it was slow."""
        future: Future[Any] = Future()
        with self._guard:
            if self._dead:
                raise _Died
            self._last += 1
            number = self._last
            self._pending[number] = future
        try:
            self._send({"id": number, "call": name, "with": dict(given)}, timeout_s)
            return future.result(timeout_s)
        except TimeoutError:
            raise self._slow(timeout_s) from None
        finally:
            with self._guard:
                self._pending.pop(number, None)

    def _send(self, message: dict[str, Any], timeout_s: float) -> None:
        """Raises `TimeoutError` where the messages before this one are not taken."""
        if not self._sending.acquire(timeout=timeout_s):
            raise TimeoutError
        try:
            protocol.write(self._input, message)
        except (OSError, ValueError) as error:  # ValueError: the pipe was closed meanwhile
            raise _Died from error
        finally:
            self._sending.release()

    def _slow(self, timeout_s: float) -> Unavailable:
        """One that answers nobody hangs, over a document perhaps: it is ended, and what comes back counts that as an
        attempt at what was in hand."""
        silent_s = time.monotonic() - self._heard
        if silent_s < max(timeout_s, HANGS_S):
            fix = "try again in a moment; see .lab/memory.log"
            return Unavailable(f"memory has not answered within {timeout_s:.0f} s", fix=fix)
        log.warning("the memory worker has said nothing for %.0f s: it is ended", silent_s)
        self.process.kill()
        return Unavailable(
            f"memory has not answered anybody for {silent_s:.0f} s and is started again",
            fix="try again in a moment; `rag_index` lists a document it cannot read; see .lab/memory.log",
        )

    def _receive(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while (message := protocol.read(self._output)) is not None:
                self._heard = time.monotonic()
                with self._guard:
                    future = self._pending.get(message["id"])
                if future is None:
                    continue
                if "error" in message:
                    future.set_exception(protocol.unpack_error(message["error"]))
                else:
                    future.set_result(message["answer"])
        with self._guard:
            self._dead = True
            waiting = [future for future in self._pending.values() if not future.done()]
        for future in waiting:
            future.set_exception(_Died())
        self.process.wait()
        if self.opened and not self._ending:
            self._died()

    def end(self, timeout_s: float) -> None:
        """Close its stdin and wait for it to close the index; kill it after `timeout_s`."""
        self._ending = True
        if not self._sending.acquire(timeout=timeout_s):  # a message is stuck: it takes no more
            self.process.kill()
            self._sending.acquire()
        with contextlib.suppress(OSError):
            self._input.close()
        self._sending.release()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Memory:
    """Papers, notes, sessions, experiments and runs, found again by meaning and by words.

    Every method raises `LabError`: `Refused` for a request that makes no sense, `NotFound` for a path or id that is
    not there, `Unavailable` when the worker cannot be started or does not answer in time.
    """

    def __init__(self, workspace: Workspace, settings: Settings) -> None:
        self.workspace = workspace
        self.settings = settings
        self._worker: _Worker | None = None
        self._guard = threading.Lock()
        self._started = False
        self._closing = threading.Event()
        self._died = threading.Event()  # a worker ended that was not told to, or there is to be none any more

    def start(self) -> None:
        """Start the worker in the background, so that the first search finds it ready, and see to it that it comes
        back while documents wait. Once begun, it is not begun again."""
        with self._guard:
            if self._started:
                return
            self._started = True
        threading.Thread(target=self._look_after, name="memory-keeper", daemon=True).start()

    def _look_after(self) -> None:
        """Start the worker again when it died with work left, each time later. A document that kills it is given up
        after some attempts (`rag.indexer`); a death with nothing to do (for lack of main memory, say) is left at
        that until somebody asks."""
        pause, came_up = FIRST_PAUSE_S, self._came_up()
        while True:
            if came_up:
                since = time.monotonic()
                self._died.wait()
                pause = FIRST_PAUSE_S if time.monotonic() - since > HEALTHY_S else pause
            self._died.clear()
            if self._closing.wait(pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE_S)
            came_up = self.worker_pid is not None or not work_waits(self.workspace.index_dir) or self._came_up()

    def _came_up(self) -> bool:
        """Start the worker where there is none; False when it died at that. One that refuses to start is not tried
        again: the first real call will tell the same."""
        try:
            self._running()
        except (_Died, OSError) as error:  # OSError: no process can be made this moment
            log.warning("the memory worker ended while it started%s", f" ({error})" if str(error) else "")
            return False
        except LabError as error:
            log.warning("memory could not be started: %s", error)
        return True

    def close(self, timeout_s: float = 8.0) -> None:
        """End the worker; the index is closed properly. Calls after this are refused."""
        with self._guard:
            self._closing.set()
            worker, self._worker = self._worker, None
        self._died.set()
        if worker is not None:
            worker.end(timeout_s)

    def index(self, paths: Sequence[str] | None = None, *, wait_s: float = 30.0) -> IndexReport:
        """Take in what is new, changed, moved or deleted under `paths` (relative to the workspace; default `papers/`).

        Returns when everything is indexed, or after `wait_s` seconds with the state `indexing`: it goes on alone.
        """
        given = {"paths": None if paths is None else [str(path) for path in paths], "wait_s": wait_s}
        return IndexReport.from_json(self._ask("index", given, ANSWER_S + wait_s))

    def add(
        self,
        kind: str,
        id: str,
        title: str,
        text: str,
        date: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> bool:
        """Add or replace the document `id`; durable on return, found within about a second.

        `text` is Markdown. `metadata` may hold `source` (what a hit names; default the id), `tags` (a list),
        `authors`, `arxiv`, `campaign` (an id), `metrics` (name: number). False when exactly this was there already.
        """
        query.check_kind(kind)
        if not id.strip() or len(id) > 200:
            raise Refused("id is empty or longer than 200 characters")
        if len(text) > LONGEST_TEXT:
            raise Refused(f"the text has {len(text):,} characters", valid=f"at most {LONGEST_TEXT:,}")
        extra = dict(metadata or {})
        tags = extra.get("tags") or []
        details: dict[str, Any] = {
            name: str(extra[name]) for name in ("authors", "arxiv", "campaign") if extra.get(name)
        }
        if extra.get("metrics"):
            details["metrics"] = {query.metric_name(name): float(value) for name, value in extra["metrics"].items()}
        given = {
            "id": id.strip(),
            "kind": kind,
            "title": " ".join(title.split())[:300] or id,
            "source": str(extra.get("source") or id),
            "date": date,
            "tags": sorted({str(tag).strip().lower() for tag in tags if str(tag).strip()}),
            "details": details,
            "body": text,
        }
        return bool(self._ask("add", given))

    def remove(self, id: str) -> bool:
        """Remove a document; False when there is none with this id. A file's document comes back with `index`."""
        return bool(self._ask("remove", {"id": id}))

    def search(
        self,
        text: str,
        kinds: Sequence[str] | None = None,
        limit: int = 8,
        since: str | None = None,
        until: str | None = None,
        tags: Sequence[str] | None = None,
        cursor: str | None = None,
        variants: Sequence[str] | None = None,
        where: Sequence[str] | None = None,
        whole: bool = False,
    ) -> SearchPage:
        """The passages that answer `text`, best first; `kinds`, `since`, `until` (both included), `tags` narrow it.

        `variants` are other wordings of the same question. `where` are conditions such as `campaign=camp-0001` or
        `val_bpb<1.2`, which all must hold. With `whole` hits carry their whole passage.
        """
        asked = query.check(text, kinds, limit, since, until, tags, cursor, variants, where, whole)
        return SearchPage.from_json(self._ask("search", asked.as_json()))

    def documents(
        self, kinds: Sequence[str] | None = None, text: str = "", after: str = "", limit: int = 50
    ) -> Listing:
        """What is in memory: documents with `text` in id, title, source or tags, a page after the id `after`."""
        for kind in kinds or ():
            query.check_kind(kind)
        if not 1 <= limit <= MOST_LISTED:
            raise Refused(f"limit = {limit} is not allowed", valid=f"1 to {MOST_LISTED}")
        given = {"kinds": list(kinds or ()), "text": text, "after": after, "limit": limit}
        return Listing.from_json(self._ask("documents", given))

    def opening(self, document: str, passages: int = 10) -> Opening:
        """How a document begins, in its first passages. Raises `NotFound`."""
        return Opening.from_json(self._ask("opening", {"document": document, "passages": passages}))

    def reindex(self, ids: Sequence[str] | None = None) -> int:
        """Read and embed these documents again, or all of them; how many there are. It goes on in the background."""
        return int(self._ask("reindex", {"ids": None if ids is None else list(ids)}))

    def rankings(self, texts: Sequence[str]) -> Rankings:
        """The documents each way of ranking finds for each text, best first; for evaluation."""
        return Rankings.from_json(self._ask("rankings", {"texts": list(texts)}, ANSWER_S + len(texts)))

    def status(self) -> MemoryStatus:
        return MemoryStatus.from_json(self._ask("status", {}))

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id, None while there is none. Starts nothing."""
        worker = self._worker
        return worker.process.pid if worker is not None and worker.alive else None

    def _ask(self, name: str, given: Mapping[str, Any], timeout_s: float = ANSWER_S) -> Any:
        """Every call may be repeated without harm, so it is when the worker died under it."""
        for attempt in range(ATTEMPTS):
            try:
                return self._running().call(name, given, timeout_s)
            except _Died:
                log.warning("the memory worker ended during %s (attempt %d)", name, attempt + 1)
                time.sleep(0.2 * attempt)
        raise Unavailable("the memory worker ends again and again", fix="see .lab/memory.log, run `lab-mcp doctor`")

    def _running(self) -> _Worker:
        with self._guard:
            if self._closing.is_set():
                raise Unavailable("memory is closed: the service is ending")
            if self._worker is not None and self._worker.alive:
                return self._worker
            if self._worker is not None:
                self._worker.end(0.0)
            worker = _Worker(self.workspace, self.settings, self._died.set)
            try:
                rag = self.settings.rag
                worker.call("open", rag.model_dump(mode="json"), START_S)
            except BaseException:
                worker.end(0.0)
                raise
            self._worker = worker
            worker.opened = True
            if not worker.alive:  # it ended in between
                self._died.set()
            return worker


def _log_file(path: Path) -> Path:
    """The worker's log, with the one before it kept when it has grown large."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LOG_LIMIT:
            os.replace(path, path.with_suffix(".log.1"))  # noqa: PTH105
    return path
