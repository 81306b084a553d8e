"""How a browser gets in: a link that works once and for minutes, exchanged for a cookie that scripts cannot read.

The workspace's token never leaves service.json for this: a link in a browser's history opens nothing any more. Links
and cookies live in the service's memory, as hashes; a restarted service knows none of them.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Sequence
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.types import Scope

ENTER = "/enter"
LINK_S = 600.0
COOKIE_S = 12 * 3600.0
MOST_LINKS = 20  # unused ones; the oldest makes room
LOOKING = frozenset(["GET", "HEAD"])
VIEWS = ("/", "/view/")  # what a cookie opens: pages, never the tools


class Doors:
    def __init__(self, name: str) -> None:
        self.cookie = f"lab-{name}"  # browsers do not keep the cookies of two ports apart
        self._links: dict[str, float] = {}  # hash -> monotonic second at which it ends
        self._cookies: dict[str, float] = {}
        self._lock = threading.Lock()

    def link(self) -> str:
        """A path that lets one browser in, once, within ten minutes."""
        code = secrets.token_urlsafe(24)
        with self._lock:
            _forget(self._links)
            while len(self._links) >= MOST_LINKS:
                del self._links[next(iter(self._links))]
            self._links[_hash(code)] = time.monotonic() + LINK_S
        return f"{ENTER}?code={code}"

    def enter(self, code: str) -> str | None:
        """The value of the cookie for who has a valid link, which is used up by that."""
        with self._lock:
            ends = self._links.pop(_hash(code), 0.0)
            if ends < time.monotonic():
                return None
            value = secrets.token_urlsafe(32)
            _forget(self._cookies)
            self._cookies[_hash(value)] = time.monotonic() + COOKIE_S
        return value

    def open_to(self, scope: Scope, cookies: Sequence[bytes]) -> bool:
        """May this request look? The way in itself may be tried by anyone."""
        path: str = scope["path"]
        method: str = scope["method"]
        if method not in LOOKING:
            return False
        if path == ENTER:  # not HEAD, with which a chat or a mail program tries a link and would use it up
            return method == "GET"
        if path != VIEWS[0] and not path.startswith(VIEWS[1]):
            return False
        with self._lock:
            return any(
                self._cookies.get(_hash(value), 0.0) > time.monotonic() for value in _values(cookies, self.cookie)
            )


def code_of(query: bytes) -> str:
    """The code in the query of a link, or ''."""
    return parse_qs(query.decode("latin-1")).get("code", [""])[0]


def _values(cookies: Sequence[bytes], name: str) -> list[str]:
    found = []
    for header in cookies:
        try:
            cookie = SimpleCookie(header.decode("latin-1"))
        except CookieError:  # somebody else's malformed cookie for this host
            continue
        if name in cookie:
            found.append(cookie[name].value)
    return found


def _forget(known: dict[str, float]) -> None:
    """Drop what has ended."""
    for value in [value for value, ends in known.items() if ends < time.monotonic()]:
        del known[value]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
