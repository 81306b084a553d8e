"""`lab-mcp mcp`: what Claude Code starts. Carries MCP between stdio and the workspace's service.

One bridge per conversation, both protocol eras (the first message decides). When the service dies, the bridge brings
it back, replays `initialize` (older era), and sends again what was unanswered; every request has a key, by which the
service recognises a call it has already carried out. The bridge ends when its standard input does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import uuid
from typing import TYPE_CHECKING, Any

from lab_mcp import connection, greeting, messages
from lab_mcp.messages import Message
from lab_mcp.questions import Questions
from workspace.errors import LabError
from workspace.layout import Workspace, discover

if TYPE_CHECKING:  # what they need is imported while the service is already starting
    from lab_mcp.channel import Answer, Channel

ATTEMPTS = 6  # to have one request answered, each with a service brought back in between
PASSIVE_POLL_S = 0.5
PATIENCE_S = 1.5  # with a service that is starting; Claude Code has twice as much
LISTEN = "subscriptions/listen"
PATH = "/mcp"
NAMED_METHODS = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"} | dict.fromkeys(
    ("tasks/get", "tasks/cancel", "tasks/update"), "taskId"
)


class Lost(Exception):
    """The service went away, or forgot us, before it answered."""


class Bridge:
    def __init__(self, workspace: Workspace, output: int) -> None:
        import anyio

        self.workspace = workspace
        self.output = output
        named = os.environ.get("CLAUDE_CODE_SESSION_ID", "")
        self.conversation = named if named and messages.plain(named) else f"bridge-{uuid.uuid4().hex[:12]}"
        self.key_prefix = uuid.uuid4().hex
        self.sent = 0
        self.endpoint: connection.Endpoint | None = None
        self.channel: Channel | None = None  # to that endpoint
        self.generation = 0  # raised with each service we connect to
        self.session: str | None = None  # older era: what the service calls our session
        self.initialize: Message | None = None  # older era: to be replayed
        self.protocol: str | None = None
        self.scopes: dict[Any, Any] = {}  # request id -> cancel scope of its exchange
        self.questions = Questions()
        self.reconnecting = anyio.Lock()
        self.writing = anyio.Lock()

    async def run(self) -> None:
        """Pump until standard input ends."""
        import anyio

        from lab_mcp import pipes

        async with anyio.create_task_group() as group:
            self.group = group
            async for line in pipes.lines(sys.stdin.fileno()):
                if line.strip():
                    await self._receive(line)
            group.cancel_scope.cancel()
        await self._goodbye()

    async def _receive(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            await self._write({"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "not valid JSON"}})
            return
        if not messages.well_formed(message):
            await self._write(messages.error(None, "one JSON-RPC message a line, please", code=-32600))
            return
        self.sent += 1
        key = f"{self.key_prefix}:{self.sent}"
        if "method" in message and "id" in message:
            self.group.start_soon(self._request, message, key)
        else:  # in order and before anything that follows: `initialized` must not be overtaken
            await self._notify(message, key)

    async def _request(self, message: Message, key: str) -> None:
        import anyio

        version = messages.modern(message)
        if version is not None and message["method"] == greeting.DISCOVER and self.channel is None:
            self.group.start_soon(self._greet, message["id"], version)
        with anyio.CancelScope() as scope:
            self.scopes[message["id"]] = scope
            try:
                await self._exchange(message, key)
            finally:
                if self.scopes.get(message["id"]) is scope:
                    del self.scopes[message["id"]]

    async def _greet(self, request_id: Any, version: str) -> None:
        """Answer `server/discover` from memory when the service takes too long to start."""
        import anyio

        await anyio.sleep(PATIENCE_S)
        scope = self.scopes.get(request_id)
        if scope is None or self.channel is not None:  # it was answered, or is about to be
            return
        known = greeting.recall(self.workspace, version)
        if known is not None:
            scope.cancel()
            await self._write({"jsonrpc": "2.0", "id": request_id, "result": known})

    async def _exchange(self, message: Message, key: str) -> None:
        """Have one request answered, whatever happens to the service meanwhile."""
        passive = message["method"] == LISTEN  # a mere listener does not bring a service back
        attempt = 0
        while True:
            generation = self.generation
            try:
                await self._post(message, key)
                return
            except Lost:
                attempt += 1
                try:
                    if attempt > ATTEMPTS and not passive:
                        raise LabError(
                            "the lab's service keeps dying on this request", fix="look at .lab/service.log"
                        ) from None
                    await self._reconnect(generation, passive=passive)
                except LabError as error:
                    await self._write(messages.refusal(message, str(error)))
                    return

    async def _notify(self, message: Message, key: str) -> None:
        if message.get("method") == "notifications/cancelled":
            scope = self.scopes.get((message.get("params") or {}).get("requestId"))
            if scope is not None:
                scope.cancel()  # closes the response stream, which is how the newer era cancels
        if "method" not in message:
            known = self.questions.answered(message, self.generation)
            if known is None:
                return
            message = known
        try:
            await self._post(message, key)
        except Lost:
            return  # nobody waits for an answer; the next request brings the service back
        if message.get("method") == "notifications/initialized":
            self.group.start_soon(self._listen)

    async def _post(self, message: Message, key: str) -> None:
        """Send one message and write out everything that comes back. Raises `Lost` when its answer did not come."""
        from lab_mcp.channel import Broken

        if self.channel is None:
            raise Lost
        request_id = message.get("id") if "method" in message else None
        answered = request_id is None
        generation = self.generation
        try:
            async with self.channel.request(
                "POST", PATH, self._headers(message, key), json.dumps(message).encode()
            ) as answer:
                if self._lost(answer.status, message):
                    raise Lost
                if answer.streams:
                    async for data in answer.events():
                        incoming = json.loads(data)
                        if message.get("method") == LISTEN and "result" in incoming:
                            raise Lost  # the service ends; the client's subscription goes on with the next one
                        answered = answered or messages.answers(incoming, request_id)
                        self._remember(message, incoming, answer)
                        await self._pass_on(incoming, data, generation)
                else:
                    body = await answer.body()
                    if body and not answered:
                        incoming = json.loads(body)
                        answered = True
                        self._remember(message, incoming, answer)
                        if incoming.get("id") == request_id:
                            await self._pass_on(incoming, body, generation)
                        else:  # of an error about a request that could not be read
                            await self._write({**incoming, "id": request_id})
        except (Broken, ValueError) as error:
            if not answered:
                raise Lost from error
        if not answered:
            raise Lost

    def _lost(self, status: int, message: Message) -> bool:
        """Does this status say that another service, or none that knows our session, is there?"""
        if status == 404:
            return not messages.modern(
                message
            )  # the newer era has no sessions: there it is the status of an unknown method
        forgotten = self.session is None and self.initialize is not None and message.get("method") != "initialize"
        return status in (401, 421) or (status == 400 and forgotten)

    def _headers(self, message: Message, key: str) -> dict[str, str]:
        assert self.endpoint is not None
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

    def _remember(self, message: Message, incoming: Message, answer: Answer) -> None:
        """The handshake: the older era's for a restarted service, the newer one's for the next cold start."""
        version = messages.modern(message)
        if version is not None and message.get("method") == greeting.DISCOVER and "result" in incoming:
            try:
                greeting.keep(self.workspace, version, incoming["result"])
            except OSError as error:  # a full or read-only disk; the next bridge waits for its service, that is all
                print(f"lab-mcp bridge: {error}", file=sys.stderr)
        if message.get("method") == "initialize" and "result" in incoming:
            self.initialize = message
            self.protocol = incoming["result"]["protocolVersion"]
            self.session = answer.headers.get("mcp-session-id")

    async def _reconnect(self, generation: int, *, passive: bool) -> None:
        """Connect to a live service, unless another request did meanwhile; a passive caller waits for one to appear."""
        import anyio
        import anyio.to_thread

        from lab_mcp.channel import Channel

        while passive and generation == self.generation:
            if await anyio.to_thread.run_sync(connection.live_endpoint, self.workspace) is not None:
                break
            await anyio.sleep(PASSIVE_POLL_S)
        async with self.reconnecting:
            if self.generation != generation:
                return
            self.endpoint = await anyio.to_thread.run_sync(connection.ensure_service, self.workspace)
            if self.channel is not None:
                await self.channel.close()
            self.channel = Channel(self.endpoint.port)
            if self.initialize is not None:
                await self._replay(self.channel, self.initialize)
            self.generation += 1
            for withdrawal in self.questions.withdrawn(self.generation):
                await self._write(withdrawal)

    async def _replay(self, channel: Channel, initialize: Message) -> None:
        from lab_mcp.channel import Broken

        self.session = None
        handshake: list[Message] = [
            {**initialize, "id": f"replay-{self.generation}"},
            {"jsonrpc": "2.0", "method": "notifications/initialized"},
        ]
        try:
            for message in handshake:
                answer, _ = await channel.post_json(PATH, self._headers(message, "replay"), message)
                if answer.status >= 400:
                    raise LabError(f"the restarted service answered {answer.status} to initialize")
                self.session = answer.headers.get("mcp-session-id", self.session)
        except Broken:
            return  # died again; the request that brought us here notices and comes back

    async def _listen(self) -> None:
        """Older era: what the service sends unasked (list changes) comes on a stream of its own."""
        import anyio

        from lab_mcp.channel import Broken

        while True:
            generation = self.generation
            try:
                headers = {**self._headers({}, "listen"), "Accept": "text/event-stream"}
                if self.channel is None:
                    raise Broken("no service yet")
                async with self.channel.request("GET", PATH, headers) as answer:
                    if answer.status == 405:
                        return
                    if answer.status == 200:
                        async for data in answer.events():
                            await self._pass_on(json.loads(data), data, generation)
            except Broken:
                pass  # it died; the next one is waited for below
            if generation == self.generation:
                await anyio.sleep(PASSIVE_POLL_S)
                try:
                    await self._reconnect(generation, passive=True)
                except LabError as error:
                    print(f"lab-mcp bridge: {error}", file=sys.stderr)

    async def _goodbye(self) -> None:
        """Tell the service that this session of the older era is over; the newer one has none."""
        import anyio

        from lab_mcp.channel import Broken

        if self.channel is None:
            return
        if self.session is not None:
            with anyio.move_on_after(1), contextlib.suppress(Broken):
                async with self.channel.request("DELETE", PATH, self._headers({}, "goodbye")):
                    pass
        await self.channel.close()

    async def _pass_on(self, incoming: Message, raw: bytes, generation: int) -> None:
        """To the client, as it came from the service wherever nothing needs changing."""
        shown = self.questions.asked(incoming, generation)
        await self._write(shown if shown is not incoming or b"\n" in raw else raw)

    async def _write(self, message: Message | bytes) -> None:
        import anyio

        from lab_mcp import pipes

        if not isinstance(message, bytes):
            message = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()
        async with self.writing:
            with anyio.CancelScope(shield=True):  # half a line would spoil everything after it
                try:
                    await pipes.write(self.output, message + b"\n")
                except BrokenPipeError:  # the client has gone
                    self.group.cancel_scope.cancel()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="lab-mcp mcp", description="MCP over stdio, for Claude Code.")
    parser.add_argument("--workspace", help="the workspace folder (default: LAB_WORKSPACE, CLAUDE_PROJECT_DIR, here)")
    options = parser.parse_args(arguments)
    try:
        workspace = discover(options.workspace)
    except LabError as error:
        print(f"lab-mcp: {error}", file=sys.stderr)
        return _serve_without_lab()
    # The service starts while this process is still importing what it needs itself.
    starter = threading.Thread(target=_start_early, args=(workspace,), daemon=True)
    starter.start()
    output = os.dup(1)
    os.dup2(2, 1)  # a stray print goes to stderr, never into the protocol
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, lambda *_: os._exit(0))
    import anyio

    anyio.run(Bridge(workspace, output).run)
    return 0


def _start_early(workspace: Workspace) -> None:
    try:
        connection.ensure_service(workspace)
    except (LabError, OSError) as error:
        print(f"lab-mcp: {error}", file=sys.stderr)  # told again, as an answer, to the first request


def _serve_without_lab() -> int:
    """Outside a workspace every tool answers with the `lab-mcp init` to run."""
    import anyio
    from mcp.server.stdio import stdio_server

    from lab_mcp import compose
    from tools.server import build_server

    async def run() -> None:
        server = build_server(compose.all_tools(), None)
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())

    anyio.run(run)
    return 0
