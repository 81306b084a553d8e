"""Campaigns through the tools, the command line and the real service."""

from __future__ import annotations

import json
import time

import pytest
from mcp import Client
from tests_support import TINY, kill_service, processes_of

from lab_mcp import connection
from training.config import default_recipe_toml
from workspace.layout import Workspace

pytestmark = pytest.mark.anyio
SPACE = '\n[search_space]\n"optimizer.head_lr" = { low = 0.0001, high = 0.02, log = true }\n'


async def ask(client: Client, tool: str, **arguments) -> dict:
    answer = await client.call_tool(tool, arguments)
    assert not answer.is_error, answer.content[0].text
    return answer.structured_content


async def refused(client: Client, tool: str, **arguments) -> str:
    answer = await client.call_tool(tool, arguments)
    assert answer.is_error, answer.structured_content
    return answer.content[0].text


def recipe(lab: Workspace, **more) -> None:
    """A recipe so small that a run takes seconds, and where a campaign may look."""
    text = default_recipe_toml(TINY | {"budget.kind": "steps", "budget.amount": 6} | more)
    (lab.recipe_dir / "recipe.toml").write_text(text.partition("[search_space]")[0] + SPACE)


async def test_a_campaign_through_the_tools(lab: Workspace, connect) -> None:
    recipe(lab)
    async with connect(conversation="chat") as client:
        assert "needs a budget" in await refused(client, "run_campaign", action="start", smallest_effect=0.01)
        assert "smallest_effect" in await refused(client, "run_campaign", action="start", hours=1)
        told = await refused(client, "run_campaign", action="start", hours=1, smallest_effect=0.01, proposer="llm")
        assert "nothing leaves the premises" in told
        assert "stop which campaign?" in await refused(client, "run_campaign", action="stop")
        assert "no campaign 'camp-0007'" in await refused(client, "run_campaign", campaign_id="camp-0007")
        started = await ask(
            client, "run_campaign", action="start", goal="see it work", proposer="assistant", experiments=1,
            smallest_effect=0.01,
        )  # fmt: skip
        campaign = started["campaigns"][0]["campaign_id"]
        assert campaign in started["next"] and "propose_and_run_experiment" in started["next"]
        claim = {"statement": "A lower head_lr of 0.001 lowers val_bpb", "change": {"optimizer.head_lr": 0.001},
                 "metric": "val_bpb", "direction": "lower", "smallest_effect": 0.01}  # fmt: skip
        proposed = await ask(client, "propose_and_run_experiment", campaign_id=campaign, **claim)
        listed = await ask(client, "list_experiments", campaign_id=campaign)
        assert [e["experiment_id"] for e in listed["experiments"]] == [proposed["experiment_id"]]
        assert "used up" in await refused(client, "propose_and_run_experiment", campaign_id=campaign, **claim)
        overview = await ask(client, "lab_overview")
        assert [c["campaign_id"] for c in overview["campaigns"]] == [campaign]
        stopped = await ask(client, "run_campaign", action="stop", campaign_id=campaign, reason="seen")
        assert stopped["campaigns"][0]["why"] == "stopped: seen"


def test_a_campaign_on_the_command_line(lab: Workspace, command) -> None:
    recipe(lab)
    answer = command("campaign", "start", "nothing yet", "--experiments", "1", "--proposer", "assistant")
    assert answer.returncode == 0 and "camp-0001 running: nothing yet" in answer.stdout, answer.stderr
    assert "paused (lunch)" in command("campaign", "pause", "camp-0001", "--reason", "lunch").stdout
    assert "used: 0 of 2 experiments" in command("campaign", "extend", "camp-0001", "--experiments", "1").stdout
    assert "camp-0001 running" in command("campaign", "resume", "camp-0001").stdout
    assert json.loads(command("campaign", "show", "camp-0001", "--json").stdout)["campaigns"][0]["state"] == "running"
    assert "camp-0001" in command("campaign", "list").stdout
    assert "is audited when it has ended" in command("audit", "camp-0001").stderr
    assert "ended" in command("campaign", "stop", "camp-0001").stdout
    assert "nothing was kept, so nothing was audited" in command("audit", "camp-0001").stdout
    wrong = command("campaign", "start", "for ever")
    assert wrong.returncode == 2 and "needs a budget" in wrong.stderr and "Traceback" not in wrong.stderr


@pytest.mark.slow
def test_a_night_without_anybody_survives_kills_of_service_and_keeper(lab: Workspace, command) -> None:
    """Nobody is connected; supervisors wake the service. Two experiments, one row each."""
    recipe(lab, **{"budget.amount": 60})
    assert command("campaign", "start", "--experiments", "2", "--smallest-effect", "0.01").returncode == 0
    deadline, kills = time.monotonic() + 900, 0
    record = lab.experiments_dir / "campaigns" / "camp-0001" / "campaign.json"
    while time.monotonic() < deadline and json.loads(record.read_text())["state"] != "ended":
        time.sleep(3)
        jobs = [p for p in processes_of(lab.root) if "training.train" in " ".join(p.cmdline())]
        if jobs and kills < 6:
            kill_service(lab, keeper=True)
            kills += 1
            waited = time.monotonic() + 120
            while connection.live_endpoint(lab) is None and time.monotonic() < waited:
                time.sleep(0.5)
            assert connection.live_endpoint(lab) is not None, "the end of a run wakes the service"
    assert json.loads(record.read_text())["state"] == "ended" and kills >= 3
    rows = lab.results_file.read_text().splitlines()[1:]
    shown = json.loads(command("campaign", "show", "camp-0001", "--json").stdout)["campaigns"][0]
    assert len(rows) == 2 == sum(shown["counts"].values())
