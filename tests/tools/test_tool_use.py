"""Every task of `tool_use_tasks` ends where it should, by calls that a reader of the errors alone would make."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import anyio.to_thread
import pytest
from tool_use_tasks import TASKS, Call, Do, Task

from lab_mcp import compose
from tools.lab import Lab
from tools.tool import Caller
from workspace.errors import LabError

pytestmark = pytest.mark.anyio
TOOLS = compose.all_tools()
LONGEST_ERROR = 1_200  # characters: an error is read, too


@pytest.fixture
def alive(opened: Lab) -> Iterator[Lab]:
    """The lab with its queue going on in the background, as in the service."""
    stopping = threading.Event()

    def go_on() -> None:
        while not stopping.wait(0.1):
            opened.runs.tick()

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    yield opened
    stopping.set()
    thread.join(timeout=30)


async def make(lab: Lab, call: Call) -> None:
    await TOOLS.call(lab, call[0], call[1], Caller("a model"))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
async def test_the_errors_lead_to_the_end(alive: Lab, task: Task) -> None:
    for name, text in (task.files or {}).items():
        (alive.workspace.root / name).write_text(text)
    for step in task.before:
        await make(alive, (step.tool, step.arguments))
    assert not await anyio.to_thread.run_sync(task.done, alive), "it must not be done before it was begun"
    for step in task.script:
        call: Call = (step.tool, step.arguments)
        if not isinstance(step, Do):
            with pytest.raises(LabError) as refusal:
                await make(alive, call)
            words = str(refusal.value)
            assert len(words) <= LONGEST_ERROR, words
            call = step.mend(words)
        await make(alive, call)
    assert await anyio.to_thread.run_sync(task.done, alive)


def test_there_are_thirty_tasks_over_every_tool_that_changes_something() -> None:
    assert len({task.name for task in TASKS}) == 30
    used = {step.tool for task in TASKS for step in task.script}
    assert {tool.name for tool in TOOLS if not tool.read_only} <= used | {"start_training"}
