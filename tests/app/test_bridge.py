"""The bridge: a real MCP client over stdio, in both protocol eras, while services are killed under it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from mcp.shared.exceptions import MCPError
from mcp.types import ElicitRequestParams, ElicitResult, Request, RequestParams, Result
from tests_support import kill_service, processes_of, service_pid

from lab_mcp import greeting, pipes
from lab_mcp.bridge import Bridge
from lab_mcp.link import Link
from workspace.layout import Workspace

pytestmark = pytest.mark.anyio
ERAS = ["legacy", "auto"]
TOOL_NAMES = ["gpu_status", "service_status", "start_training", "list_runs", "wait_for_run", "stop_run", "tail_log"]


@pytest.mark.parametrize("era", ERAS)
async def test_a_conversation(connect, era: str) -> None:
    async with connect(era) as client:
        assert client.protocol_version == {"legacy": "2025-11-25", "auto": "2026-07-28"}[era]
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert names[: len(TOOL_NAMES)] == TOOL_NAMES
        answer = await client.call_tool("gpu_status", {})
        assert not answer.is_error
        assert answer.structured_content["backend"] in ("cpu", "cuda", "rocm", "mps", "hpu")
        assert json.loads(answer.content[0].text) == answer.structured_content


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("keeper", [False, True], ids=["service", "service and keeper"])
async def test_the_service_is_killed_between_two_calls(lab: Workspace, connect, era: str, keeper: bool) -> None:
    async with connect(era) as client:
        await client.call_tool("gpu_status", {})
        before = service_pid(lab)
        kill_service(lab, keeper=keeper)
        answer = await client.call_tool("gpu_status", {})
        assert not answer.is_error
        assert service_pid(lab) != before


@pytest.mark.parametrize("era", ERAS)
async def test_the_service_is_killed_during_a_call(lab: Workspace, connect, era: str) -> None:
    script = lab.root / "sleep.py"
    script.write_text("import time\ntime.sleep(4)\n")
    async with connect(era) as client:
        started = await client.call_tool("start_training", {"script": "sleep.py"})
        run_id = started.structured_content["run_id"]
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                answers = []

                async def wait() -> None:
                    answers.append(await client.call_tool("wait_for_run", {"run_id": run_id, "timeout_s": 30}))

                group.start_soon(wait)
                await anyio.sleep(1)
                kill_service(lab, keeper=True)
        assert answers[0].structured_content["state"] == "succeeded"


@pytest.mark.parametrize("era", ERAS)
async def test_nothing_starts_twice_when_the_service_dies_while_starting_it(lab: Workspace, connect, era: str) -> None:
    (lab.root / "quick.py").write_text("print('once')\n")
    moments = random.Random(7)
    async with connect(era) as client:
        for number in range(1, 5):
            await client.call_tool("gpu_status", {})
            with anyio.fail_after(60):
                async with anyio.create_task_group() as group:
                    answers = []

                    async def start(number: int = number, answers: list = answers) -> None:
                        arguments = {"script": "quick.py", "name": f"number {number}"}
                        answers.append(await client.call_tool("start_training", arguments))

                    group.start_soon(start)
                    await anyio.sleep(moments.uniform(0.0, 0.08))
                    kill_service(lab)
            assert not answers[0].is_error, answers[0].content
            listed = await client.call_tool("list_runs", {})
            assert listed.structured_content["total"] == number
        for run in listed.structured_content["runs"]:
            ended = await client.call_tool("wait_for_run", {"run_id": run["run_id"], "timeout_s": 30})
            assert ended.structured_content["state"] == "succeeded"
            assert (lab.run_dir(run["run_id"]) / "train.log").read_text().count("once") == 1


async def test_a_question_is_asked_again_when_the_service_dies_before_the_answer(lab: Workspace, connect) -> None:
    lab.settings_file.write_text("[runs]\nask_above_hours = 0.5\n")
    (lab.root / "quick.py").write_text("print('once')\n")
    withdrawn: list[int] = []
    asked: list[int] = []

    async def user(context: object, question: ElicitRequestParams) -> ElicitResult:
        asked.append(len(asked))
        if len(asked) == 1:
            kill_service(lab, keeper=True)
            try:
                await anyio.sleep_forever()
            finally:
                withdrawn.append(1)
        return ElicitResult(action="accept", content={"go_ahead": True})

    with anyio.fail_after(120):
        async with connect("legacy", elicitation_callback=user) as client:
            answer = await client.call_tool("start_training", {"script": "quick.py"})
            assert answer.structured_content["run_id"] == "run-0001"
            assert (len(asked), withdrawn) == (2, [1]), "the form of the dead service is gone"
            assert (await client.call_tool("list_runs", {})).structured_content["total"] == 1


@pytest.mark.slow
async def test_what_the_user_agreed_to_is_not_asked_again_when_the_service_dies_on_it(lab: Workspace, connect) -> None:
    lab.settings_file.write_text("[runs]\nask_above_hours = 0.5\n")
    (lab.root / "quick.py").write_text("print('once')\n")
    moments = random.Random(8)
    asked: list[str] = []

    async def user(context: object, question: ElicitRequestParams) -> ElicitResult:
        asked.append(question.message)
        return ElicitResult(action="accept", content={"go_ahead": True})

    async def kill_once_agreed(number: int) -> None:
        while not lab.database_file.exists() or agreements(lab) < number:
            await anyio.sleep(0.001)
        await anyio.sleep(moments.uniform(0.0, 0.06))
        kill_service(lab)

    async with connect("legacy", elicitation_callback=user) as client:
        for number in range(1, 7):
            await client.call_tool("gpu_status", {})
            with anyio.fail_after(120):
                async with anyio.create_task_group() as group:
                    group.start_soon(kill_once_agreed, number)
                    arguments = {"script": "quick.py", "name": f"number {number}"}
                    answer = await client.call_tool("start_training", arguments)
            assert not answer.is_error, answer.content
            assert len(asked) == number
        assert (await client.call_tool("list_runs", {})).structured_content["total"] == 6


def agreements(lab: Workspace) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{lab.database_file}?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT count(*) FROM agreements").fetchone()[0])


async def test_progress_reaches_the_client(lab: Workspace, connect) -> None:
    (lab.root / "sleep.py").write_text("import time\ntime.sleep(2.5)\n")
    seen: list[str] = []

    async def on_progress(done: float, total: float | None, message: str | None) -> None:
        seen.append(message or "")

    async with connect() as client:
        run_id = (await client.call_tool("start_training", {"script": "sleep.py"})).structured_content["run_id"]
        await client.call_tool("wait_for_run", {"run_id": run_id, "timeout_s": 30}, progress_callback=on_progress)
    assert seen and run_id in seen[0]


async def test_several_conversations_and_the_command_line_at_once(lab: Workspace, connect, command) -> None:
    (lab.root / "quick.py").write_text("print('hello')\n")
    async with connect("legacy") as one, connect("auto") as two, anyio.create_task_group() as group:

        async def start(client, number: int) -> None:
            for _ in range(3):
                answer = await client.call_tool("start_training", {"script": "quick.py", "name": f"from {number}"})
                assert not answer.is_error, answer.content

        group.start_soon(start, one, 1)
        group.start_soon(start, two, 2)
        for _ in range(3):
            told = await anyio.to_thread.run_sync(lambda: command("train", "--script", "quick.py"))
            assert told.returncode == 0, told.stderr
    listed = json.loads(command("runs", "--json").stdout)
    assert listed["total"] == 9
    assert len({run["run_id"] for run in listed["runs"]}) == 9


def test_the_bridge_ends_with_its_input_and_leaves_only_service_and_keeper(lab: Workspace) -> None:
    bridge = subprocess.Popen(
        [sys.executable, "-P", "-m", "lab_mcp", "mcp"],
        env={**os.environ, "LAB_WORKSPACE": str(lab.root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert bridge.stdin is not None and bridge.stdout is not None
    initialize = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    bridge.stdin.write(json.dumps(initialize).encode() + b"\n")
    bridge.stdin.flush()
    assert json.loads(bridge.stdout.readline())["result"]["serverInfo"]["name"] == "lab-mcp"
    bridge.stdin.close()
    assert bridge.wait(timeout=10) == 0
    bridge.stdout.close()
    kinds = {part for p in processes_of(lab.root) for part in p.cmdline() if part.startswith("lab_mcp.")}
    assert kinds == {"lab_mcp.service", "lab_mcp.keeper"}


async def test_an_unknown_method_is_answered_as_one(lab: Workspace, connect) -> None:
    async with connect() as client:
        with anyio.fail_after(30), pytest.raises(MCPError) as failure:
            await client.session.send_request(
                Request[RequestParams, str](method="no/such", params=RequestParams()), Result
            )
        assert failure.value.code == -32601


async def test_rubbish_on_standard_input_is_answered(lab: Workspace) -> None:
    version = '{"id": 1, "method": "ping", "params": {"_meta": {"io.modelcontextprotocol/protocolVersion": %s}}}\n'
    lines = b'not json\n[1, 2]\n{"id": [1], "method": "ping"}\n{"id": 1, "method": "ping", "params": {"_meta": [1]}}\n'
    lines += b'{"method": "notifications/cancelled", "params": {"requestId": [1]}}\n' + b"[" * 100_000 + b"\n"
    lines += (version % '"a\\nb"' + version % "3" + '{"id": 1, "method": "pi\\r\\nX-Header: ng"}\n').encode()
    done = await anyio.run_process(
        [sys.executable, "-P", "-m", "lab_mcp", "mcp", "--workspace", str(lab.root)], input=lines, check=False
    )
    assert done.returncode == 0
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["error"]["code"] for answer in answers] == [-32700, *[-32600] * 4, -32700, *[-32600] * 3]
    assert [answer["id"] for answer in answers] == [None] * 3 + [1] + [None] * 2 + [1] * 3


async def test_outside_a_workspace_every_tool_says_how_to_make_one(tmp_path: Path) -> None:
    from mcp import Client, StdioServerParameters
    from mcp.client.stdio import stdio_client

    server = StdioServerParameters(
        command=sys.executable, args=["-P", "-m", "lab_mcp", "mcp"], env=dict(os.environ), cwd=str(tmp_path)
    )
    async with Client(stdio_client(server)) as client:
        answer = await client.call_tool("gpu_status", {})
        assert answer.is_error
        assert "lab-mcp init" in answer.content[0].text


DISCOVER = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "server/discover",
    "params": {
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        }
    },
}


class _Slow(Bridge):
    """A bridge whose service does not come up, or comes up and does not answer, before it may."""

    slow: str = ""
    may_go_on: anyio.Event

    async def _reconnect(self, before: Link | None, *, passive: bool, forgotten: bool = False) -> None:
        if self.slow == "start":
            await self.may_go_on.wait()
        await super()._reconnect(before, passive=passive, forgotten=forgotten)

    async def _post(self, link: Link | None, message: dict[str, Any], body: bytes, key: str) -> None:
        if self.slow == "answer" and link is not None:
            await self.may_go_on.wait()
        await super()._post(link, message, body, key)


async def test_a_service_that_is_slow_at_first_does_not_cost_the_newer_protocol(
    lab: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab_mcp.bridge.PATIENCE_S", 0.2)

    async def answers(*messages: dict[str, Any], slow: str = "") -> list[dict[str, Any]]:
        ours, theirs = os.pipe()
        bridge = _Slow(lab, theirs)
        bridge.slow, bridge.may_go_on = slow, anyio.Event()
        found = []
        async with anyio.create_task_group() as bridge.group:
            for message in messages:
                await bridge._receive(json.dumps(message).encode())
                async for line in pipes.lines(ours):
                    found.append(json.loads(line))
                    bridge.may_go_on.set()
                    break
            bridge.group.cancel_scope.cancel()
        await bridge._goodbye()
        os.close(ours), os.close(theirs)
        return found

    with anyio.fail_after(120):
        (first,) = await answers(DISCOVER)
        for slow in ("start", "answer"):
            early, listed = await answers(DISCOVER, {**DISCOVER, "id": 2, "method": "tools/list"}, slow=slow)
            assert early == first
            assert listed["id"] == 2 and listed["result"]["tools"]


def test_a_bridge_knows_how_long_its_client_has_waited() -> None:
    since = time.time() - psutil.Process().create_time()
    assert greeting.waited_s() == pytest.approx(since, abs=3) or not Path("/proc/self/stat").exists()
