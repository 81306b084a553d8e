"""One HTTP request to somewhere outside: bounded in time and size, tried again politely, errors that name the host.

Whether it may be made at all is the caller's question (`[network]` in lab.toml); nothing here is called otherwise.
"""

from __future__ import annotations

import email.utils
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from workspace.errors import LabError, Refused, Unavailable

if TYPE_CHECKING:
    import httpx2

SAFE = frozenset(["GET", "HEAD"])  # may be sent twice
HALFWAY = frozenset([502, 504])  # from somebody in between: the server behind it may have answered
AGAIN = frozenset([408, 425, 429, 500, 502, 503, 504, 529])  # statuses that may pass by themselves
ATTEMPTS = 4
FIRST_WAIT_S = 1.0  # doubled with each attempt
PATIENCE_S = 60.0  # a server that asks for more is told of instead of waited for
SIZE_LIMIT = 256 << 20  # bytes
LOOPBACK = frozenset(["localhost", "127.0.0.1", "::1"])


@dataclass(frozen=True)
class Response:
    """What came back; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Raises ValueError when the body is not JSON."""
        return json.loads(self.body)


class _Passing(Exception):
    """A failure that may pass: `wait_s` is what the server asks for, None when it says nothing."""

    def __init__(self, what: str, wait_s: float | None = None) -> None:
        super().__init__(what)
        self.wait_s = wait_s


def host_of(url: str) -> str:
    """The host a URL names. Raises `Refused` for one that is no http(s) URL; the text shows no user or password."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        host, parts = "", urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise Refused("the URL of a server cannot be read", valid="http://host:port/path or https://host/path")
    return host


def is_loopback(url: str) -> bool:
    """Whether a URL names this very machine: what is sent there does not leave the premises."""
    return host_of(url) in LOOPBACK


def request(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: Any = None,
    timeout_s: float = 60.0,
    limit: int = SIZE_LIMIT,
    attempts: int = ATTEMPTS,
    patience_s: float = PATIENCE_S,
    follow: bool = False,
    before: Callable[[], None] = lambda: None,
) -> Response:
    """The response to one request, `body` being sent as JSON.

    `follow` redirects only with no key in the headers: they would go wherever the server says.

    Tried `attempts` times when the network or the server fails in a way that may pass, with growing pauses or as long
    as the server's Retry-After says; `before` is called ahead of each attempt. A broken-off body counts as a failure.
    What is not a GET is sent once only: a failure after that is `Unavailable` and `may_have_worked`, unless the server
    itself said that it did nothing.
    Every other status is the caller's to judge. Raises `Unavailable`, or `Refused` for more than `limit` bytes.
    """
    host = host_of(url)
    failure = _Passing("it was not asked")
    for attempt in range(1, attempts + 1):
        before()
        try:
            return _once(method, url, headers or {}, body, timeout_s, limit, follow)
        except _Passing as error:
            failure = error
        if attempt < attempts:
            wait_s = FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
            if failure.wait_s is not None and failure.wait_s > patience_s:
                busy = Unavailable(f"{host} asks to be left alone for {failure.wait_s:.0f} s", fix="try again then")
                busy.wait_s = failure.wait_s
                raise busy
            time.sleep(wait_s if failure.wait_s is None else failure.wait_s)
    raise Unavailable(f"{host} cannot be reached: {failure}", fix="check the network and the server, then try again")


def _once(
    method: str, url: str, headers: Mapping[str, str], body: Any, timeout_s: float, limit: int, follow: bool
) -> Response:
    import httpx2

    deadline = time.monotonic() + timeout_s
    try:
        with (
            httpx2.Client(timeout=timeout_s, trust_env=not is_loopback(url), follow_redirects=follow) as client,
            client.stream(method, url, headers=dict(headers), json=body) as response,
        ):
            if response.status_code in HALFWAY and method not in SAFE:
                raise _late(url, f"it answered {response.status_code}")
            if response.status_code in AGAIN:
                raise _Passing(f"it answered {response.status_code}", _retry_after(response))
            content = bytearray()
            for piece in response.iter_bytes():
                content += piece
                if len(content) > limit:
                    large = Refused(f"{host_of(url)} sends more than {limit >> 20} MB")
                    large.may_have_worked = method not in SAFE
                    raise large
                if time.monotonic() > deadline:
                    text = f"the answer took longer than {timeout_s:.0f} s"
                    raise _Passing(text) if method in SAFE else _late(url, text)
            found = {name.lower(): value for name, value in response.headers.items()}
            return Response(response.status_code, found, bytes(content))
    except httpx2.TimeoutException as error:
        text = f"no answer within {timeout_s:.0f} s"
        if method in SAFE or isinstance(error, httpx2.ConnectTimeout):
            raise _Passing(text) from error
        raise _late(url, text) from error  # it may still be working on it
    except httpx2.TransportError as error:
        if method in SAFE or isinstance(error, (httpx2.ConnectError, httpx2.ProxyError, httpx2.UnsupportedProtocol)):
            raise _Passing(_words(error)) from error
        raise _late(url, _words(error)) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        odd = LabError(f"{host_of(url)} cannot be asked: {_words(error)}")
        odd.may_have_worked = method not in SAFE and not isinstance(error, httpx2.InvalidURL)
        raise odd from error


def _late(url: str, text: str) -> Unavailable:
    late = Unavailable(f"{host_of(url)}: {text}")
    late.may_have_worked = True
    return late


def _words(error: Exception) -> str:
    return f"{type(error).__name__} {error}".strip()[:200]


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds a server asks to wait: a number, or a date."""
    value = response.headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time()) if value else None
    except ValueError:
        return None
