"""The bridge in the test's own process, on a real service, while connections and sessions break under it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from lab_mcp import pipes
from lab_mcp.bridge import Bridge
from lab_mcp.channel import Broken
from lab_mcp.link import Link
from lab_mcp.messages import Message
from workspace.layout import Workspace

pytestmark = pytest.mark.anyio
INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"elicitation": {}},
    "clientInfo": {"name": "test", "version": "1"},
}
YES = {"action": "accept", "content": {"go_ahead": True}}


class Client:
    def __init__(self, bridge: Bridge, output: int) -> None:
        self.bridge = bridge
        self.coming = pipes.lines(output)

    async def say(self, **message: Any) -> None:
        await self.bridge._receive(json.dumps({"jsonrpc": "2.0", **message}).encode())

    async def call(self, number: int, tool: str, **arguments: Any) -> None:
        await self.say(id=number, method="tools/call", params={"name": tool, "arguments": arguments})

    async def hear(self) -> Message:
        """The next message, but for what is told to everybody: that a list has changed."""
        while (message := json.loads(await anext(self.coming))).get("method", "").endswith("_changed"):
            pass
        return message

    async def runs(self) -> int:
        await self.call(900, "list_runs")
        answer = await self.hear()
        assert answer["id"] == 900
        return answer["result"]["structuredContent"]["total"]


@contextlib.asynccontextmanager
async def talking(lab: Workspace) -> AsyncIterator[Client]:
    """A conversation of the older era has begun; the user wants to be asked before much is spent."""
    lab.settings_file.write_text("[runs]\nask_above_hours = 0.5\n")
    (lab.root / "quick.py").write_text("print('once')\n")
    ours, theirs = os.pipe()
    bridge = Bridge(lab, theirs)
    client = Client(bridge, ours)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as bridge.group:
            await client.say(id=0, method="initialize", params=INITIALIZE)
            assert (await client.hear())["result"]["serverInfo"]["name"] == "lab-mcp"
            await client.say(method="notifications/initialized")
            yield client
            bridge.group.cancel_scope.cancel()
        await bridge._goodbye()
    os.close(ours), os.close(theirs)


async def asked(client: Client) -> Message:
    await client.call(1, "start_training", script="quick.py")
    question = await client.hear()
    assert question["method"] == "elicitation/create"
    return question


async def test_a_cancellation_right_behind_its_request_is_not_lost(lab: Workspace) -> None:
    async with talking(lab) as client:
        await client.call(1, "start_training", script="quick.py", time_limit_hours=0.1)
        await client.say(method="notifications/cancelled", params={"requestId": 1})
        await client.call(2, "gpu_status")
        assert (await client.hear())["id"] == 2
        assert await client.runs() == 0, "it was never sent"


async def test_a_question_outlives_a_broken_connection_to_a_service_that_lives(lab: Workspace) -> None:
    async with talking(lab) as client:
        question, link = await asked(client), client.bridge.link
        await client.bridge._reconnect(link, passive=False)
        assert client.bridge.link is link
        await client.say(id=question["id"], result=YES)
        started = await client.hear()
        assert (started["id"], started["result"]["structuredContent"]["run_id"]) == (1, "run-0001")


async def test_a_yes_is_sent_again_when_its_connection_breaks(lab: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    post, broken = Link.post, []

    @contextlib.asynccontextmanager
    async def breaking(link: Link, message: Message, body: bytes, key: str) -> AsyncIterator[Any]:
        if "result" in message and not broken:
            broken.append(message)
            raise Broken("the service closed the connection")
        async with post(link, message, body, key) as answer:
            yield answer

    monkeypatch.setattr(Link, "post", breaking)
    async with talking(lab) as client:
        question = await asked(client)
        await client.say(id=question["id"], result=YES)
        assert (await client.hear())["result"]["structuredContent"]["run_id"] == "run-0001"
        assert len(broken) == 1
        await client.say(id=question["id"], result=YES)
        assert await client.runs() == 1


async def test_a_session_that_was_forgotten_is_replaced_as_a_whole(
    lab: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with talking(lab) as client:
        question, link = await asked(client), client.bridge.link
        with monkeypatch.context() as held:
            resuming = anyio.Event()

            async def hold(*_: object) -> None:
                resuming.set()
                await anyio.sleep_forever()

            held.setattr(Link, "resume", hold)
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: client.bridge._reconnect(link, passive=False, forgotten=True))
                await resuming.wait()
                assert client.bridge.link is link, "nobody sees a link that is not whole"
                group.cancel_scope.cancel()
        assert client.bridge.link is link, "the user cancelled the request that was reconnecting"
        await client.bridge._reconnect(link, passive=False, forgotten=True)
        new = client.bridge.link
        assert new.number == link.number + 1 and new.session not in (None, link.session)
        withdrawn = await client.hear()
        assert withdrawn["params"]["requestId"] == question["id"]
        await client.call(2, "start_training", script="quick.py")
        second = await client.hear()
        assert second["method"] == "elicitation/create" and second["id"] != question["id"]
        await client.say(id=question["id"], result=YES)
        await client.say(id=second["id"], result={"action": "decline"})
        assert (await client.hear())["result"]["isError"]
        assert await client.runs() == 0, "a yes to the first question is no answer to the second"
