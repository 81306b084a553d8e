"""Looking for changes among the files, in a thread of its own: ten thousand new files take longer than a call may.

What is to be looked at stands in the catalogue until the look has ended: a kill or an end before that only delays it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path

from rag.index.catalogue import Catalogue
from rag.scan import Found, Scan
from workspace.errors import LabError, Refused, Unavailable

CLOSING = "memory is closing; the looking goes on at its next start"
log = logging.getLogger(__name__)


class Look:
    """One pass over some places. `found` grows while it goes on."""

    def __init__(self) -> None:
        self.found = Found()
        self.done: Future[None]

    def wait(self, timeout_s: float) -> bool:
        """True when it is over; raises what ended it."""
        try:
            error = self.done.exception(timeout_s)
        except NotYet:  # of the waiting; one that ended the look is returned
            return False
        except CancelledError:
            raise Unavailable(CLOSING) from None
        if error is not None:
            raise error
        return True


class Scanner:
    """One look after the other. `make` gives the `Scan` for the next, which writes its numbers into the `Found`.

    Places are relative to the workspace; none stand for the papers folder.
    """

    def __init__(self, make: Callable[[Found, threading.Event], Scan], catalogue: Catalogue) -> None:
        self._make = make
        self._catalogue = catalogue
        self._guard = threading.Condition()
        self._waiting: dict[tuple[str, ...], Look] = {}
        self._looking = False
        self._errors: dict[tuple[str, ...], str] = {}
        self._stopping = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scanner")

    @property
    def busy(self) -> bool:
        """Whether a look goes on or waits for its turn."""
        with self._guard:
            return self._looking or bool(self._waiting)

    @property
    def error(self) -> str:
        """What ended the last look at some places; empty where every last one came to its end."""
        with self._guard:
            return "; ".join(self._errors.values())

    def look(self, *places: str) -> Look:
        """A look at `places` that begins after this call: what was there before it is seen, by this process or the
        next."""
        self._catalogue.look_asked(places)
        with self._guard:
            if self._stopping.is_set():
                raise Unavailable(CLOSING)
            look = self._waiting.get(places)
            if look is None:
                look = self._waiting[places] = Look()
                look.done = self._thread.submit(self._run, places, look)
            return look

    def resume(self) -> None:
        """Look again at what a process before this one did not come to the end of."""
        for places in self._catalogue.looks():
            self.look(*places)

    def _run(self, places: tuple[str, ...], look: Look) -> None:
        with self._guard:
            if self._stopping.is_set():
                raise Unavailable(CLOSING)
            del self._waiting[places]
            self._looking = True
        error = ""
        try:
            self._look(places, look)
        except Exception as raised:
            error = str(raised) if isinstance(raised, LabError) else f"{type(raised).__name__}: {raised}"
            if self._stopping.is_set():
                log.info("looking for changes was ended: %s", error)
            else:
                log.exception("looking for changes failed")
            raise
        finally:
            with self._guard:
                self._errors.pop(places, None)
                if error:
                    self._errors[places] = error[:300]
                self._looking = False
                self._guard.notify_all()

    def _look(self, places: tuple[str, ...], look: Look) -> None:
        number = self._catalogue.looks().get(places, 0)  # asked again from now on, it stays asked
        scan = self._make(look.found, self._stopping)
        scan.shelf()
        try:
            scan.paths(_paths(scan, places))
        except Refused:  # it would be so each time
            self._catalogue.looked(places, number)
            raise
        self._catalogue.looked(places, number)

    def stop(self) -> None:
        """End the look in hand at its next file, and begin no other."""
        with self._guard:
            self._stopping.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def wait_stopped(self, timeout_s: float) -> bool:
        """After `stop`: False when the look in hand takes longer, as one does whose disk does not answer."""
        with self._guard:
            return self._guard.wait_for(lambda: not self._looking, timeout_s)


def _paths(scan: Scan, places: tuple[str, ...]) -> list[Path]:
    return [scan.workspace.confine(place) for place in places] or [scan.workspace.papers_dir]
