"""One service as the bridge talks to it: where it is, the connections to it, in the older era the session there.

It is replaced as a whole when another service took its place, or when this one has forgotten our session.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import anyio

from lab_mcp import messages
from lab_mcp.channel import Broken, Channel
from lab_mcp.connection import Endpoint
from lab_mcp.messages import Message
from workspace.errors import LabError

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from lab_mcp.channel import Answer

PATH = "/mcp"
NAMED_METHODS = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"} | dict.fromkeys(
    ("tasks/get", "tasks/cancel", "tasks/update"), "taskId"
)
INITIALIZED: Message = {"jsonrpc": "2.0", "method": "notifications/initialized"}


class Link:
    def __init__(self, endpoint: Endpoint, conversation: str, number: int) -> None:
        self.endpoint = endpoint
        self.conversation = conversation
        self.number = number  # tells the bridge's links apart
        self.channel = Channel(endpoint.port)
        self.session: str | None = None  # older era: what the service calls our session
        self.protocol: str | None = None

    def post(self, message: Message, body: bytes, key: str) -> AbstractAsyncContextManager[Answer]:
        return self.channel.request("POST", PATH, self._headers(message, key), body)

    def listen(self) -> AbstractAsyncContextManager[Answer]:
        """Older era: the stream of what the service sends unasked."""
        return self.channel.request("GET", PATH, {**self._headers({}, "listen"), "Accept": "text/event-stream"})

    def opened(self, answer: Answer, protocol: str) -> None:
        """Older era: `initialize` was answered."""
        self.protocol = protocol
        self.session = answer.headers.get("mcp-session-id")

    async def resume(self, initialize: Message, protocol: str | None) -> None:
        """Older era: open a session as the client once did. Raises `Broken`; `LabError` when it is refused."""
        replay = {**initialize, "id": f"replay-{self.number}"}
        for message in (replay, INITIALIZED):
            answer, _ = await self.channel.post_json(PATH, self._headers(message, "replay"), message)
            if answer.status >= 400:
                raise LabError(f"the restarted service answered {answer.status} to initialize")
            if message is replay:
                self.opened(answer, protocol or "")

    def forgotten(self, status: int, message: Message, initialized: bool) -> bool:
        """Does this status say that another service, or none that knows our session, is there?"""
        if status == 404:  # the newer era has no sessions: there it is the status of an unknown method
            return not messages.modern(message)
        sessionless = self.session is None and initialized and message.get("method") != "initialize"
        return status in (401, 421) or (status == 400 and sessionless)

    async def goodbye(self) -> None:
        """Tell the service that this session of the older era is over; the newer one has none."""
        if self.session is not None:
            with anyio.move_on_after(1), contextlib.suppress(Broken):
                async with self.channel.request("DELETE", PATH, self._headers({}, "goodbye")):
                    pass
        await self.channel.close()

    def _headers(self, message: Message, key: str) -> dict[str, str]:
        headers = {
            "Authorization": f"Bearer {self.endpoint.token}",
            "Accept": "application/json, text/event-stream",
            "Content-Type": "application/json",
            "Lab-Conversation": self.conversation,
            "Lab-Request-Key": key,
        }
        parameters = message.get("params") or {}
        modern = messages.modern(message)
        method = message.get("method")
        if modern and method:
            headers["Mcp-Protocol-Version"] = modern
            headers["Mcp-Method"] = method
            name = parameters.get(NAMED_METHODS.get(method, ""))
            if isinstance(name, str) and name:
                headers["Mcp-Name"] = messages.header_value(name)
        elif method != "initialize":
            if self.session:
                headers["Mcp-Session-Id"] = self.session
            if self.protocol:
                headers["Mcp-Protocol-Version"] = self.protocol
        return headers
