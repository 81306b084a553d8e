"""Steps that are tried again: what is missing is waited for, longer each time; errors of the lab's own are counted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from workspace.errors import Refused, Unavailable

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 120.0  # between tries, while a model or something else is away
LONGEST_SILENCE_S = 3600.0  # for which a server's wish to be left alone is heeded at a stretch
FAILURES = 5  # in a row, through an error of the lab's own, after which it is held
log = logging.getLogger(__name__)


class NotYet(Exception):
    """The step cannot be made now and costs nothing to ask for: it is asked for again with the next tick."""


class Tries:
    """By name of what is moved on. `hold(name, why)`: stop trying, only a person can mend it."""

    def __init__(self, hold: Callable[[str, str], None]) -> None:
        self._hold = hold
        self._failures: dict[str, int] = {}
        self._pauses: dict[str, tuple[float, float]] = {}  # name -> monotonic time of the next try, last pause
        self._waits_for: dict[str, str] = {}  # name -> what is missing, in words

    def step(self, name: str, do: Callable[[], bool]) -> bool:
        """One try; False when nothing moved."""
        if time.monotonic() < self._pauses.get(name, (0.0, 0.0))[0]:
            return False
        try:
            moved = do()
        except NotYet as error:
            self._waits_for[name] = str(error)
            return False
        except Unavailable as error:
            pause = min(2 * self._pauses.get(name, (0.0, FIRST_PAUSE_S / 2))[1], LONGEST_PAUSE_S)
            asked_for = min(error.wait_s or 0.0, LONGEST_SILENCE_S)
            self._pauses[name] = (time.monotonic() + max(pause, asked_for), pause)
            self._waits_for[name] = str(error)
            log.info("%s waits: %s", name, error)
            return False
        except Refused as error:  # of the lab's settings or the search space: only a person can mend it
            self._hold(name, str(error))
            return True
        except Exception as error:  # the lab's own mistake must not end the night at once
            count = self._failures[name] = self._failures.get(name, 0) + 1
            log.exception("%s failed (%d of %d)", name, count, FAILURES)
            if count >= FAILURES:
                self._hold(name, f"the lab failed ({type(error).__name__}: {str(error)[:200]})")
            return False
        self.forget(name)
        return moved

    def forget(self, name: str) -> None:
        """Try again at once, as if for the first time."""
        self._failures.pop(name, None)
        self._pauses.pop(name, None)
        self._waits_for.pop(name, None)

    def waits_for(self, name: str) -> str | None:
        return self._waits_for.get(name)
