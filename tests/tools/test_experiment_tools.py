"""The tools about experiments and campaigns: what they refuse, and what they say they leave out."""

from __future__ import annotations

import pytest
from made_up_night import night

from lab_mcp import compose
from tools.lab import Lab
from tools.tool import Caller
from workspace.errors import Refused

pytestmark = pytest.mark.anyio


async def test_amounts_out_of_range_are_refused_not_a_mistake_of_the_labs(opened: Lab) -> None:
    start = {"action": "start", "goal": "g", "smallest_effect": 0.01, "proposer": "assistant"}
    with pytest.raises(Refused, match=r"a budget of 10000 hours is not possible.*above 0 and at most 8,784"):
        await compose.all_tools().call(opened, "run_campaign", start | {"hours": 10_000}, Caller("me", key="k1"))
    await compose.all_tools().call(opened, "run_campaign", start | {"hours": 8_784}, Caller("me", key="k2"))
    extend = {"action": "extend", "campaign_id": "camp-0001", "hours": 1}
    with pytest.raises(Refused, match="a budget of 8785 hours is not possible"):
        await compose.all_tools().call(opened, "run_campaign", extend, Caller("me", key="k3"))


async def test_the_leaderboard_says_what_it_leaves_out(opened: Lab) -> None:
    records = [record for record in night(80, share_of_gains=0.5) if record.verdict == "keep"]
    records[0] = records[0].model_copy(update={"yardstick": "x" * 64})
    opened.experiments.ledger.restore(records)
    answer = await compose.all_tools().call(opened, "list_experiments", {"best": True, "limit": 3}, Caller("me"))
    assert len(answer["experiments"]) == 3
    assert "1 kept experiment measured with another budget, text or evaluation" in answer["next"]
