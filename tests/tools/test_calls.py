"""A call that changes something happens once, and what happened is never told as a failure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from lab_mcp import compose
from tools.calls import Calls
from tools.lab import Lab
from tools.tool import Caller
from workspace.database import Database
from workspace.errors import Refused

pytestmark = pytest.mark.anyio


class Page:
    """A journal in memory, that may be broken."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.broken = False

    def journal(
        self, conversation: str, tool: str, arguments: dict[str, Any], outcome: str, key: str | None = None
    ) -> object:
        if self.broken:
            raise OSError(28, "No space left on device")
        self.lines.append(f"{tool} {outcome}")
        return None


class Effect:
    def __init__(self) -> None:
        self.count = 0

    async def __call__(self) -> dict[str, Any]:
        self.count += 1
        await anyio.sleep(0.05)
        return {"run_id": f"run-{self.count:04d}"}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "lab.db")
    yield opened
    opened.close()


async def test_the_same_key_at_once_and_after_a_restart_acts_once(database: Database) -> None:
    page, effect = Page(), Effect()
    calls, answers = Calls(database, page), []
    async with anyio.create_task_group() as group:
        for _ in range(5):

            async def ask() -> None:
                answers.append(await calls.once("t", {"a": 1}, Caller("c", "k"), effect))

            group.start_soon(ask)
    answers.append(await Calls(database, page).once("t", {"a": 1}, Caller("other", "k"), effect))
    assert answers == [{"run_id": "run-0001"}] * 6
    assert (effect.count, page.lines) == (1, ["t run-0001"])


async def test_a_key_of_the_users_is_remembered_for_ever_and_for_one_call_only(database: Database) -> None:
    effect = Effect()
    for key in ("given:sweep", "bridge:7"):
        await Calls(database, None).once("t", {"a": 1}, Caller("c", key), effect)
    with database.transaction() as tx:
        tx.execute("UPDATE calls SET at = '2001-01-01T00:00:00.000Z'")
    calls = Calls(database, None)
    with pytest.raises(Refused, match="used for a different call"):
        await calls.once("t", {"a": 2}, Caller("c", "given:sweep"), effect)
    await calls.once("t", {"a": 1}, Caller("c", "given:sweep"), effect)
    assert effect.count == 2
    assert [row["key"] for row in database.query("SELECT key FROM calls")] == ["given:sweep"]


async def test_what_was_done_is_answered_though_the_journal_cannot_be_written(database: Database) -> None:
    page, effect = Page(), Effect()
    page.broken = True
    calls = Calls(database, page)
    assert await calls.once("t", {}, Caller("c", "k"), effect) == {"run_id": "run-0001"}
    assert await calls.once("t", {}, Caller("c", "k"), effect) == {"run_id": "run-0001"}
    assert effect.count == 1


async def test_what_was_done_is_written_down_though_the_caller_has_gone(database: Database) -> None:
    page, effect = Page(), Effect()
    calls = Calls(database, page)
    with anyio.move_on_after(0.01) as gone:
        await calls.once("t", {}, Caller("c", "k"), effect)
    assert gone.cancel_called
    assert page.lines == ["t run-0001"]
    assert await calls.once("t", {}, Caller("c", "k"), effect) == {"run_id": "run-0001"}
    assert effect.count == 1


async def test_a_look_at_campaigns_is_not_written_down(opened: Lab) -> None:
    answer = await compose.all_tools().call(opened, "run_campaign", {"action": "status"}, Caller("me", key="k1"))
    assert answer["campaigns"] == [] and opened.notebook.list(limit=1) == []
    start = {"action": "start", "goal": "g", "smallest_effect": 0.01, "experiments": 1, "proposer": "assistant"}
    await compose.all_tools().call(opened, "run_campaign", start, Caller("me", key="k2"))
    assert len(opened.notebook.list(limit=2)) == 1
