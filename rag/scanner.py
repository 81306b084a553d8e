"""Looking for changes among the files, in a thread of its own: ten thousand new files take longer than a call may."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path

from rag.scan import Found, Scan

log = logging.getLogger(__name__)


class Look:
    """One pass over some places. `found` grows while it goes on."""

    def __init__(self) -> None:
        self.found = Found()
        self.done: Future[None]

    def wait(self, timeout_s: float) -> bool:
        """True when it is over; raises what ended it."""
        with contextlib.suppress(NotYet):
            self.done.result(timeout_s)
            return True
        return False


class Scanner:
    """One look after the other; `make` gives the `Scan` for the next, which writes its numbers into the `Found`."""

    def __init__(self, make: Callable[[Found, threading.Event], Scan]) -> None:
        self._make = make
        self._guard = threading.Lock()
        self._waiting: dict[tuple[Path, ...], Look] = {}
        self._stopping = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scanner")

    def look(self, places: Sequence[Path]) -> Look:
        """A look at `places` that begins after this call: what was there before it is seen."""
        key = tuple(places)
        with self._guard:
            look = self._waiting.get(key)
            if look is None:
                look = self._waiting[key] = Look()
                look.done = self._thread.submit(self._run, key, look)
            return look

    def _run(self, places: tuple[Path, ...], look: Look) -> None:
        with self._guard:
            del self._waiting[places]
        try:
            scan = self._make(look.found, self._stopping)
            scan.shelf()
            scan.paths(places)
        except Exception:
            log.exception("looking for changes failed")
            raise

    def stop(self) -> None:
        self._stopping.set()
        self._thread.shutdown(cancel_futures=True)
