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
    from anyio import CancelScope

    from lab_mcp.channel import Answer
    from lab_mcp.link import Link

ATTEMPTS = 6  # to have one request answered, each with a service brought back in between
PASSIVE_POLL_S = 0.5
PATIENCE_S = 0.5  # with a service that is starting: one that lives answers far sooner
LISTEN = "subscriptions/listen"


class Lost(Exception):
    """The answer did not come: the service went away, its connection broke, or (`forgotten`) it does not know us."""

    def __init__(self, *, forgotten: bool = False) -> None:
        super().__init__()
        self.forgotten = forgotten


class Bridge:
    def __init__(self, workspace: Workspace, output: int) -> None:
        import anyio

        self.workspace = workspace
        self.output = output
        named = os.environ.get("CLAUDE_CODE_SESSION_ID", "")
        self.conversation = named if named and messages.plain(named) else f"bridge-{uuid.uuid4().hex[:12]}"
        self.key_prefix = uuid.uuid4().hex
        self.sent = 0
        self.link: Link | None = None  # to the service of now
        self.initialize: Message | None = None  # older era: to be replayed
        self.protocol: str | None = None  # older era: what was agreed on
        self.scopes: dict[Any, CancelScope] = {}  # request id -> its exchange, until it is answered
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
        import anyio

        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            await self._write(messages.error(None, "not valid JSON", code=messages.PARSE_ERROR))
            return
        if not messages.well_formed(message):
            await self._write(messages.malformed(message))
            return
        self.sent += 1
        key = f"{self.key_prefix}:{self.sent}"
        if "method" in message and "id" in message:
            # known before its task first runs: what cancels it may be the very next line
            scope = self.scopes[message["id"]] = anyio.CancelScope()
            if message["method"] == greeting.DISCOVER and messages.modern(message):
                self.group.start_soon(self._greet, message, scope, self.sent == 1)
            self.group.start_soon(self._request, message, line, key, scope)
        elif "method" in message:  # in order and before anything that follows: `initialized` must not be overtaken
            await self._notify(message, line, key)
        else:
            await self._answer(message, key)

    async def _request(self, message: Message, line: bytes, key: str, scope: CancelScope) -> None:
        with scope:
            try:
                if not scope.cancel_called:
                    await self._exchange(message, line, key)
            finally:
                if self.scopes.get(message["id"]) is scope:
                    del self.scopes[message["id"]]

    async def _greet(self, message: Message, scope: CancelScope, first: bool) -> None:
        """Answer `server/discover` from memory when the service takes too long.

        The client has been waiting for its first answer since it started this process.
        """
        import anyio

        await anyio.sleep(max(0.0, PATIENCE_S - greeting.waited_s()) if first else PATIENCE_S)
        if self.scopes.get(message["id"]) is not scope:  # it was answered, or taken back
            return
        known = greeting.recall(self.workspace, messages.modern(message) or "")
        if known is not None:
            scope.cancel()
            del self.scopes[message["id"]]
            await self._write({"jsonrpc": "2.0", "id": message["id"], "result": known})

    async def _exchange(self, message: Message, line: bytes, key: str) -> None:
        """Have one request answered, whatever happens to the service meanwhile."""
        passive = message["method"] == LISTEN  # a mere listener does not bring a service back
        attempt = 0
        while True:
            link = self.link
            try:
                await self._post(link, message, line, key)
                return
            except Lost as lost:
                attempt += 1
                try:
                    if attempt > ATTEMPTS and not passive:
                        raise LabError(
                            "the lab's service keeps dying on this request", fix="look at .lab/service.log"
                        ) from None
                    await self._reconnect(link, passive=passive, forgotten=lost.forgotten)
                except LabError as error:
                    await self._write(messages.refusal(message, str(error)))
                    return

    async def _notify(self, message: Message, line: bytes, key: str) -> None:
        if message["method"] == messages.CANCELLED:
            scope = self.scopes.get((message.get("params") or {}).get("requestId"))
            if scope is not None:
                scope.cancel()  # closes the response stream, which is how the newer era cancels
        with contextlib.suppress(Lost):  # nobody waits for an answer; the next request brings the service back
            await self._post(self.link, message, line, key)
        if message["method"] == "notifications/initialized":
            self.group.start_soon(self._listen)

    async def _answer(self, message: Message, key: str) -> None:
        """What the user said to a question, tried twice; when its service has died, the next one asks again."""
        for _ in range(2):
            link = self.link
            known = self.questions.answered(message, link.number) if link is not None else None
            if known is None:
                return
            with contextlib.suppress(Lost):
                await self._post(link, known, json.dumps(known).encode(), key)
                self.questions.settled(message)
                return

    async def _post(self, link: Link | None, message: Message, body: bytes, key: str) -> None:
        """Send one message and write out everything that comes back. Raises `Lost` when its answer did not come."""
        from lab_mcp.channel import Broken

        if link is None:
            raise Lost
        request_id = message.get("id") if "method" in message else None
        answered = False
        try:
            async with link.post(message, body, key) as answer:
                if link.forgotten(answer.status, message, self.initialize is not None):
                    raise Lost(forgotten=True)
                answered = request_id is None  # what is no request has arrived
                if answer.streams:
                    async for data in answer.events():
                        incoming = json.loads(data)
                        if message.get("method") == LISTEN and "result" in incoming:
                            raise Lost  # the service ends; the client's subscription goes on with the next one
                        answered = answered or messages.answers(incoming, request_id)
                        await self._deliver(message, incoming, data, link, answer)
                else:
                    content = await answer.body()
                    if content and not answered:
                        incoming = json.loads(content)
                        answered = True
                        if incoming.get("id") == request_id:
                            await self._deliver(message, incoming, content, link, answer)
                        else:  # of an error about a request that could not be read
                            await self._write({**incoming, "id": request_id})
        except (Broken, ValueError) as error:
            if not answered:
                raise Lost from error
        if not answered:
            raise Lost

    async def _deliver(self, message: Message, incoming: Message, raw: bytes, link: Link, answer: Answer) -> None:
        """Pass on what came back, and keep the handshake: a restarted service and the next cold start need it."""
        if message.get("method") == "initialize" and "result" in incoming:
            self.initialize = message
            self.protocol = incoming["result"]["protocolVersion"]
            link.opened(answer, self.protocol)
        if message.get("method") != greeting.DISCOVER or not messages.answers(incoming, message["id"]):
            await self._pass_on(incoming, raw, link)
        elif self.scopes.pop(message["id"], None) is not None:  # else it was answered from memory just now
            await self._pass_on(incoming, raw, link)
            await self._keep_greeting(message, incoming)

    async def _keep_greeting(self, message: Message, incoming: Message) -> None:
        import anyio
        import anyio.to_thread

        version = messages.modern(message)
        if version is None or "result" not in incoming:
            return
        try:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(greeting.keep, self.workspace, version, incoming["result"])
        except OSError as error:  # a full or read-only disk; the next bridge waits for its service, that is all
            print(f"lab-mcp bridge: {error}", file=sys.stderr)

    async def _reconnect(self, before: Link | None, *, passive: bool, forgotten: bool = False) -> None:
        """Link to a live service, unless another request did meanwhile; a passive caller waits for one to appear.

        The link stays when its service still lives and knows us: only a connection broke, and open questions stay open.
        """
        import anyio
        import anyio.to_thread

        from lab_mcp.channel import Broken
        from lab_mcp.link import Link

        while passive and self.link is before:
            if await anyio.to_thread.run_sync(connection.live_endpoint, self.workspace) is not None:
                break
            await anyio.sleep(PASSIVE_POLL_S)
        async with self.reconnecting:
            if self.link is not before:
                return
            endpoint = await anyio.to_thread.run_sync(connection.ensure_service, self.workspace)
            if before is not None and before.endpoint == endpoint and not forgotten:
                return
            link = Link(endpoint, self.conversation, before.number + 1 if before is not None else 1)
            try:
                if self.initialize is not None:
                    await link.resume(self.initialize, self.protocol)
                self.link = link  # whole: a request that is cancelled before leaves everything as it was
            except Broken:
                return  # died again; the request that brought us here notices and comes back
            finally:
                unused = before if self.link is link else link
                with anyio.CancelScope(shield=True):
                    if unused is not None:
                        await unused.channel.close()
            with anyio.CancelScope(shield=True):
                for withdrawal in self.questions.withdrawn(link.number):
                    await self._write(withdrawal)

    async def _listen(self) -> None:
        """Older era: what the service sends unasked (list changes) comes on a stream of its own."""
        import anyio

        from lab_mcp.channel import Broken

        while True:
            link, forgotten = self.link, False
            try:
                if link is None:
                    raise Broken("no service yet")
                async with link.listen() as answer:
                    if answer.status == 405:
                        return
                    forgotten = link.forgotten(answer.status, {}, initialized=True)
                    if answer.status == 200:
                        async for data in answer.events():
                            await self._pass_on(json.loads(data), data, link)
            except Broken:
                pass  # it died; the next one is waited for below
            if self.link is link:
                await anyio.sleep(PASSIVE_POLL_S)
                try:
                    await self._reconnect(link, passive=True, forgotten=forgotten)
                except LabError as error:
                    print(f"lab-mcp bridge: {error}", file=sys.stderr)

    async def _goodbye(self) -> None:
        if self.link is not None:
            await self.link.goodbye()

    async def _pass_on(self, incoming: Message, raw: bytes, link: Link) -> None:
        """To the client, as it came from the service wherever nothing needs changing."""
        if link is not self.link and "method" in incoming and "id" in incoming:
            return  # a question of a service that is no longer there: its answer would reach nobody
        shown = self.questions.asked(incoming, link.number)
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
                except ConnectionError:  # the client has gone
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
