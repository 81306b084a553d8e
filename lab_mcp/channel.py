"""How the bridge talks to the service: HTTP/1.1 over loopback connections that are kept and used again.

A general client spends more time on one call than the lab does; the protocol itself (h11) is the same.
"""

from __future__ import annotations

import contextlib
import json
import select
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio
import h11
from anyio.abc import SocketAttribute, SocketStream

CONNECT_S = 10.0
CHUNK = 65536


class Broken(Exception):
    """Nobody answers there, or the answer broke off."""


class Answer:
    """One response: its head is here, its body comes when it is asked for. Reading raises `Broken`."""

    def __init__(self, connection: _Connection, head: h11.Response) -> None:
        self._connection = connection
        self.status = head.status_code
        self.headers = {name.decode(): value.decode() for name, value in head.headers}

    @property
    def streams(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    async def body(self) -> bytes:
        return b"".join([chunk async for chunk in self._chunks()])

    async def events(self) -> AsyncIterator[bytes]:
        """The data of each server-sent event that has some."""
        rest, data = b"", []
        async for chunk in self._chunks():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in (line.removesuffix(b"\r") for line in lines):
                if line.startswith(b"data:"):
                    data.append(line[5:].removeprefix(b" "))
                elif not line and data:
                    yield b"\n".join(data)
                    data = []

    async def _chunks(self) -> AsyncIterator[bytes]:
        while not isinstance(event := await self._connection.event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise Broken("the service ended its answer early")
            yield bytes(event.data)


class Channel:
    """The connections to the service at one port. Each carries one request at a time; idle ones wait for the next."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._idle: list[_Connection] = []  # the last one used is the next; the first were idle longest
        self._closed = False

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
    ) -> AsyncIterator[Answer]:
        """Send one request; the connection is kept when its answer was read to the end. Raises `Broken`.

        It may be sent twice: a kept connection can be closed by the service just as the request goes out.
        """
        head = [*{"host": f"127.0.0.1:{self.port}", "content-length": str(len(body)), **headers}.items()]
        connection = await self._kept() or await self._fresh()
        try:
            try:
                answer = await connection.begin(method, path, head, body)
            except Broken:
                if connection.fresh or connection.heard:
                    raise
                await connection.close()
                connection = await self._fresh()
                answer = await connection.begin(method, path, head, body)
            yield Answer(connection, answer)
            if not self._closed and connection.reusable():
                self._idle.append(connection)
                while self._idle and not self._idle[0].alive():
                    await self._idle.pop(0).close()
                return
        except BaseException:
            await connection.close()
            raise
        await connection.close()

    async def post_json(self, path: str, headers: Mapping[str, str], content: Any) -> tuple[Answer, bytes]:
        async with self.request("POST", path, headers, json.dumps(content).encode()) as answer:
            return answer, await answer.body()

    async def close(self) -> None:
        """The idle connections now, those in use as soon as their answers are read."""
        self._closed = True
        while self._idle:
            await self._idle.pop().close()

    async def _kept(self) -> _Connection | None:
        while self._idle:
            if (kept := self._idle.pop()).alive():
                return kept
            await kept.close()
        return None

    async def _fresh(self) -> _Connection:
        try:
            with anyio.fail_after(CONNECT_S):
                return _Connection(await anyio.connect_tcp("127.0.0.1", self.port))
        except (OSError, TimeoutError) as error:
            raise Broken(f"nobody answers on port {self.port}") from error


class _Connection:
    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self.fresh = True  # its first request is not over
        self.heard = False  # something of the answer has come
        self._http = h11.Connection(h11.CLIENT)
        self._ready = select.poll()
        self._ready.register(stream.extra(SocketAttribute.raw_socket), select.POLLIN)

    async def begin(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> h11.Response:
        self.heard = False
        try:
            request = h11.Request(method=method, target=path, headers=headers)
            sent = [self._http.send(request), self._http.send(h11.Data(data=body)), self._http.send(h11.EndOfMessage())]
            await self._stream.send(b"".join(part for part in sent if part))
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise Broken("the service closed the connection") from error
        while not isinstance(event := await self.event(), h11.Response):
            if not isinstance(event, h11.InformationalResponse):
                raise Broken("the service closed the connection")
        return event

    async def event(self) -> Any:
        """What comes next. Raises `Broken`."""
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                try:
                    self._http.receive_data(await self._stream.receive(CHUNK))
                    self.heard = True
                except anyio.EndOfStream:
                    self._http.receive_data(b"")
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError, h11.RemoteProtocolError) as error:
            raise Broken("the service closed the connection") from error
        return event

    def reusable(self) -> bool:
        """Make it ready for the next request, unless this one is not over or was the last."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        self.fresh = False
        return True

    def alive(self) -> bool:
        """An idle connection on which there is something to read has been closed by the service."""
        return not self._ready.poll(0)

    async def close(self) -> None:
        await anyio.aclose_forcefully(self._stream)
