"""Three conversations at once, over a thousand calls: every answer is right, goes to who asked, and nothing is lost."""

from __future__ import annotations

import random
from typing import Any

import anyio
import pytest
from mcp import Client
from tests_support import service_pid

from workspace.layout import Workspace

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
CALLS = 340  # of each conversation
RUNS = 3  # each starts so many, spread over its calls
NAMES = ["ada", "blaise", "carl"]
READING: list[tuple[str, dict[str, Any]]] = [
    ("gpu_status", {}),
    ("list_runs", {}),
    ("lab_overview", {}),
    ("list_experiments", {}),
    ("run_campaign", {}),
    ("rag_search", {"query": "learning rate"}),
]


async def talk(client: Client, name: str) -> dict[str, list[str]]:
    """One conversation; the runs and the page of the notebook it was told of."""
    choose = random.Random(name)
    runs: list[str] = []
    pages: list[str] = []
    for number in range(CALLS):
        if number % (CALLS // RUNS) == 5:
            answer = await said(client, "start_training", {"name": f"{name} {number}", "script": "job.py"})
            assert answer["name"] == f"{name} {number}"
            runs.append(answer["run_id"])
        elif number % 4 == 0:
            note = {"section": "Results", "text": f"{name} notes {number}."}
            pages.append((await said(client, "write_session_note", note))["session_id"])
        elif number % 4 == 1 and runs:
            run = choose.choice(runs)
            assert (await said(client, "list_runs", {"run_id": run}))["runs"][0]["run_id"] == run
        else:
            await said(client, *choose.choice(READING))
    return {"runs": runs, "pages": pages}


async def said(client: Client, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    with anyio.fail_after(60):
        result = await client.call_tool(tool, arguments)
    assert not result.is_error, f"{tool}({arguments}): {result.content[0].text}"
    return result.structured_content


async def test_three_conversations_do_not_disturb_each_other(lab: Workspace, connect) -> None:
    (lab.root / "job.py").write_text("print('hello')\n")
    told: dict[str, dict[str, list[str]]] = {}

    async def converse(name: str, mode: str) -> None:
        async with connect(mode, conversation=name) as client:
            told[name] = await talk(client, name)

    async with connect() as looker:
        await looker.call_tool("service_status", {})
        pid = service_pid(lab)
        async with anyio.create_task_group() as group:
            for name, mode in zip(NAMES, ["auto", "legacy", "auto"], strict=True):
                group.start_soon(converse, name, mode)
        assert service_pid(lab) == pid, "it was not restarted meanwhile"
        runs = [run for one in told.values() for run in one["runs"]]
        assert len(set(runs)) == len(NAMES) * RUNS, "each start made one run of its own"
        for run in runs:
            assert (await said(looker, "wait_for_run", {"run_id": run}))["state"] == "succeeded"
        assert (await said(looker, "list_runs", {}))["total"] == len(runs)
    pages = {name: set(one["pages"]) for name, one in told.items()}
    assert all(len(page) == 1 for page in pages.values()) and len(set.union(*pages.values())) == len(NAMES)
    for name, (page,) in pages.items():
        text = next(lab.sessions_dir.glob(f"{page}*.md")).read_text()
        for number in range(0, CALLS, 4):  # a line of its own; title and journal quote it
            assert text.count(f"\n{name} notes {number}.\n") == 1
        assert not any(f"{other} notes" in text for other in NAMES if other != name)
    assert "Traceback" not in lab.service_log.read_text()
