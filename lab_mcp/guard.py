"""The outermost layer of the service: no route is reached without the token, from the right host and origin."""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from lab_mcp.doors import Doors

_HOST = re.compile(rb":\d{1,5}$")
LOOPBACK = frozenset(["127.0.0.1", "localhost", "[::1]"])


class Guard:
    """ASGI middleware. 401 without the token, 421 for a foreign Host (DNS rebinding), 403 for a foreign Origin.

    A browser has no token: it comes in through `doors` with a link that works once, and may look (GET) from then on.
    """

    def __init__(self, app: ASGIApp, token: str, names: Collection[str], doors: Doors) -> None:
        self.app = app
        self.token = token.encode()
        self.names = {name.lower().encode() for name in names}
        self.doors = doors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send)
            return
        status, text = refusal
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        body = json.dumps({"error": text}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        hosts = headers.get(b"host", [])
        # by any port: a tunnel's is its own, and it is the name that a rebinding attack cannot choose
        if len(hosts) != 1 or not self._is_ours(_HOST.sub(b"", hosts[0].lower())):
            return 421, "this host name is not served here"
        for origin in headers.get(b"origin", []):
            if _place(origin) != hosts[0].lower():
                return 403, "requests from this origin are not allowed"
        given = headers.get(b"authorization", [])
        if len(given) == 1 and hmac.compare_digest(given[0], b"Bearer " + self.token):
            return None
        if scope["type"] == "http" and not given and self.doors.open_to(scope, headers.get(b"cookie", [])):
            return None
        return 401, "the workspace's token is missing or wrong; it is in .lab/service.json"

    def _is_ours(self, host: bytes) -> bool:
        """Is it one of our names, or what a certificate's *.lab.example stands for?"""
        label, dot, rest = host.partition(b".")
        return host in self.names or bool(label and dot and b"*." + rest in self.names)


def _place(origin: bytes) -> bytes:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # no address at all
        return b""
