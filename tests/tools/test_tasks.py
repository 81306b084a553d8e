"""Tasks: a client of the newer era that offers them gets a run or an experiment as a task with the same id."""

from __future__ import annotations

import sys
import time
from typing import Any, Literal

import anyio
import anyio.to_thread
import pytest
from mcp import Client
from mcp.client.extension import ClaimContext, ClientExtension, ResultClaim
from mcp.shared.exceptions import MCPError
from mcp.types import CallToolResult, Request, RequestParams, Result

from lab_mcp import compose
from tools.lab import Lab
from tools.server import build_server
from tools.tasks import IDENTIFIER
from workspace.layout import Workspace

pytestmark = pytest.mark.anyio
SCRIPT = {"script": "job.py"}
EXPERIMENT = {
    "statement": "Halving optimizer.matrix_lr lowers val_bpb because the loss oscillates late",
    "change": {"optimizer.matrix_lr": 0.02},
    "metric": "val_bpb",
    "direction": "lower",
    "smallest_effect": 0.01,
}


class Begun(Result):
    """The acknowledgement of a call that became a task."""

    result_type: Literal["task"] = "task"
    task_id: str
    status: str
    status_message: str
    poll_interval_ms: int


class State(Result):
    task_id: str
    status: str
    status_message: str
    result: dict[str, Any] | None = None


class TaskParams(RequestParams):
    task_id: str


async def ask(session: Any, method: str, task_id: str, answer: type[Result] = State) -> Any:
    request = Request[TaskParams, str](method=method, params=TaskParams(task_id=task_id))
    return await session.send_request(request, answer)


class Offer(ClientExtension):
    """Takes tasks; the tests call with `allow_claimed` and see the acknowledgement itself."""

    identifier = IDENTIFIER

    async def resolve(self, begun: Begun, context: ClaimContext) -> CallToolResult:
        raise AssertionError("nobody asked for the end")

    def claims(self) -> list[ResultClaim[Any]]:
        return [ResultClaim(result_type="task", model=Begun, resolve=self.resolve)]


async def begin(client: Client, tool: str, arguments: dict[str, Any]) -> Begun:
    begun = await client.session.call_tool(tool, arguments, allow_claimed=True)
    assert isinstance(begun, Begun)
    return begun


@pytest.fixture
def job(opened: Lab) -> Lab:
    (opened.workspace.root / "job.py").write_text("print('hello from the job')\n")
    return opened


async def until_ended(lab: Lab, run_id: str) -> None:
    deadline = time.monotonic() + 60
    while not lab.runs.get(run_id).ended:
        assert time.monotonic() < deadline
        await anyio.to_thread.run_sync(lab.runs.tick)
        await anyio.sleep(0.05)


async def test_a_run_is_a_task_until_its_result(job: Lab) -> None:
    async with Client(build_server(compose.all_tools(), job), extensions=[Offer()]) as client:
        begun = await begin(client, "start_training", SCRIPT)
        assert (begun.task_id, begun.status) == ("run-0001", "working")
        assert begun.status_message.startswith("run-0001 ")
        state = await ask(client.session, "tasks/get", begun.task_id)
        assert state.status == "working" and state.result is None
        await until_ended(job, begun.task_id)
        state = await ask(client.session, "tasks/get", begun.task_id)
        assert state.status == "completed"
        content = state.result["structuredContent"]
        assert (content["run_id"], content["state"], content["exit_code"]) == ("run-0001", "succeeded", 0)
        shown = compose.all_tools()["start_training"].result.model_validate(content)
        assert "tail_log" in shown.next


async def test_a_failed_run_is_a_completed_task_that_says_so(job: Lab) -> None:
    (job.workspace.root / "job.py").write_text("raise SystemExit(3)\n")
    async with Client(build_server(compose.all_tools(), job), extensions=[Offer()]) as client:
        begun = await begin(client, "start_training", SCRIPT)
        await until_ended(job, begun.task_id)
        state = await ask(client.session, "tasks/get", begun.task_id)
        assert state.status == "completed" and state.status_message.startswith("run-0001 failed")
        assert state.result["structuredContent"]["exit_code"] == 3


async def test_an_explicit_cancel_stops_it_and_only_once(job: Lab) -> None:
    (job.workspace.root / "job.py").write_text("import time\ntime.sleep(600)\n")
    async with Client(build_server(compose.all_tools(), job), extensions=[Offer()]) as client:
        begun = await begin(client, "start_training", SCRIPT)
        while job.runs.get(begun.task_id).state != "running":
            await anyio.to_thread.run_sync(job.runs.tick)
            await anyio.sleep(0.05)
        await ask(client.session, "tasks/cancel", begun.task_id, Result)
        await until_ended(job, begun.task_id)
        assert (await ask(client.session, "tasks/get", begun.task_id)).status == "cancelled"
        await ask(client.session, "tasks/cancel", begun.task_id, Result)
        assert job.runs.get(begun.task_id).state == "cancelled"


async def test_an_experiment_is_a_task_too(opened: Lab) -> None:
    async with Client(build_server(compose.all_tools(), opened), extensions=[Offer()]) as client:
        begun = await begin(client, "propose_and_run_experiment", EXPERIMENT)
        assert (begun.task_id, begun.status) == ("exp-0001", "working")
        await ask(client.session, "tasks/cancel", "exp-0001", Result)
        while opened.experiments.get("exp-0001").open:
            await anyio.to_thread.run_sync(opened.experiments.tick)
        state = await ask(client.session, "tasks/get", "exp-0001")
        assert state.status == "cancelled"


async def test_a_campaign_is_a_task_from_its_start_to_its_end(opened: Lab) -> None:
    start = {"action": "start", "goal": "lower val_bpb", "smallest_effect": 0.01, "experiments": 3}
    async with Client(build_server(compose.all_tools(), opened), extensions=[Offer()]) as client:
        begun = await begin(client, "run_campaign", start)
        assert (begun.task_id, begun.status) == ("camp-0001", "working")
        looked = await client.call_tool("run_campaign", {"campaign_id": "camp-0001"})
        assert looked.structured_content["campaigns"][0]["campaign_id"] == "camp-0001", "a look begins no task"
        await ask(client.session, "tasks/cancel", "camp-0001", Result)
        state = await ask(client.session, "tasks/get", "camp-0001")
        assert state.status == "cancelled" and "stopped: cancelled by the client" in state.status_message


async def test_a_campaign_whose_budget_is_used_up_is_a_completed_task(opened: Lab) -> None:
    start = {"action": "start", "goal": "lower val_bpb", "smallest_effect": 0.01, "hours": 1e-9}
    async with Client(build_server(compose.all_tools(), opened), extensions=[Offer()]) as client:
        await begin(client, "run_campaign", start)
        while opened.campaigns.busy():
            await anyio.to_thread.run_sync(opened.campaigns.tick)
            await anyio.to_thread.run_sync(opened.campaigns.tick_audits)
        state = await ask(client.session, "tasks/get", "camp-0001")
        assert state.status == "completed" and "budget of 1e-09 hours is used up" in state.status_message
        assert state.result["structuredContent"]["campaigns"][0]["state"] == "ended"


async def test_the_task_outlives_the_server_that_began_it(job: Lab) -> None:
    async with Client(build_server(compose.all_tools(), job), extensions=[Offer()]) as client:
        begun = await begin(client, "start_training", SCRIPT)
    async with Client(build_server(compose.all_tools(), job), extensions=[Offer()]) as client:
        assert (await ask(client.session, "tasks/get", begun.task_id)).status == "working"


async def test_what_is_no_task_is_refused(job: Lab) -> None:
    async with Client(build_server(compose.all_tools(), job), extensions=[Offer()]) as client:
        for wrong in ("run-0099", "exp-0001", "camp-0001", "nonsense", "../run-0001"):
            for method in ("tasks/get", "tasks/cancel", "tasks/update"):
                with pytest.raises(MCPError) as failure:
                    await ask(client.session, method, wrong)
                assert failure.value.code == -32602


async def test_others_get_the_plain_result(job: Lab) -> None:
    for number, mode in enumerate(("auto", "legacy"), 1):
        async with Client(build_server(compose.all_tools(), job), mode=mode) as client:
            result = await client.call_tool("start_training", SCRIPT)
            assert result.structured_content["run_id"] == f"run-000{number}"
            with pytest.raises(MCPError) as failure:
                await ask(client.session, "tasks/get", "run-0001")
            assert failure.value.code in (-32021, -32601)


async def test_a_refused_call_is_no_task(job: Lab) -> None:
    async with Client(build_server(compose.all_tools(), job), extensions=[Offer()]) as client:
        result = await client.call_tool("start_training", {"script": "missing.py"})
        assert result.is_error and "missing.py" in result.content[0].text


async def test_through_bridge_and_service(lab: Workspace, connect) -> None:
    (lab.root / "job.py").write_text("print('hello')\n")
    async with connect("2026-07-28", extensions=[Offer()]) as client:
        with anyio.fail_after(60):
            begun = await begin(client, "start_training", SCRIPT | {"name": sys.platform})
            while (state := await ask(client.session, "tasks/get", begun.task_id)).status == "working":
                await anyio.sleep(0.1)
            assert state.result["structuredContent"]["state"] == "succeeded"
