"""Asking before much compute is spent: both eras, every answer, and clients that cannot ask."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import pytest
from mcp import Client
from mcp.types import ElicitRequestParams, ElicitResult

from lab_mcp import compose
from tools.consent import question
from tools.lab import Lab
from tools.server import build_server
from workspace import durable, settings
from workspace.errors import Refused

pytestmark = pytest.mark.anyio
ERAS = ["legacy", "auto"]
LONG = {"overrides": {"budget.kind": "seconds", "budget.amount": 7200}}
EXPERIMENT = {
    "statement": "Halving optimizer.matrix_lr lowers val_bpb because the loss oscillates late",
    "change": {"optimizer.matrix_lr": 0.02},
    "metric": "val_bpb",
    "direction": "lower",
    "smallest_effect": 0.01,
    "budget_kind": "seconds",
}


class User:
    """Answers a form; remembers what was asked."""

    def __init__(self, action: str, content: dict[str, Any] | None = None) -> None:
        self.answer = ElicitResult(action=action, content=content)
        self.asked: list[str] = []

    async def __call__(self, context: object, params: ElicitRequestParams) -> ElicitResult:
        self.asked.append(params.message)
        return self.answer


@pytest.fixture
def careful(opened: Lab) -> Lab:
    """A lab whose user wants to be asked above one hour."""
    file = opened.workspace.settings_file
    file.write_text("[runs]\nask_above_hours = 1\n")
    opened.settings = settings.load(file)
    return opened


async def call(lab: Lab, era: str, user: User | None, tool: str, arguments: dict[str, Any]) -> Any:
    async with Client(build_server(compose.all_tools(), lab), mode=era, elicitation_callback=user) as client:
        return await client.call_tool(tool, arguments)


@pytest.mark.parametrize("era", ERAS)
async def test_a_yes_starts_the_run(careful: Lab, era: str) -> None:
    user = User("accept", {"go_ahead": True})
    result = await call(careful, era, user, "start_training", LONG)
    assert not result.is_error and result.structured_content["run_id"] == "run-0001"
    assert user.asked == ["start_training may use the machine for 2 hours (you are asked above 1 hours). Go ahead?"]


async def test_a_run_that_goes_on_is_asked_about_by_the_budget_it_takes_over(careful: Lab) -> None:
    folder = careful.workspace.run_dir("run-0001")
    folder.mkdir(parents=True)
    durable.write_json(folder / "config.json", {"budget": {"kind": "seconds", "amount": 7200.0}})
    tool = compose.all_tools()["start_training"]
    assert "for 2 hours" in str(question(careful, "start_training", tool.check({"resume": "run-0001"})))
    more = tool.check({"resume": "run-0001", "overrides": {"budget.amount": 14400}})
    assert "for 4 hours" in str(question(careful, "start_training", more))
    assert question(careful, "start_training", tool.check({"resume": "run-0002"})) is None, "it will be refused"


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize(
    ("user", "told"),
    [
        (User("decline"), "the user said no"),
        (User("cancel"), "did not answer"),
        (User("accept", {"go_ahead": False}), "the user said no"),
        (User("accept"), "the user said no"),
        (None, "cannot ask"),
    ],
)
async def test_anything_else_starts_nothing_and_says_what_would(
    careful: Lab, era: str, user: User | None, told: str
) -> None:
    result = await call(careful, era, user, "start_training", LONG)
    assert result.is_error and told in result.content[0].text and "ask_above_hours" in result.content[0].text
    assert careful.runs.list() == []


@pytest.mark.parametrize("era", ERAS)
async def test_short_work_and_reading_are_not_asked_about(careful: Lab, era: str) -> None:
    user = User("decline")
    short = {"overrides": {"budget.kind": "seconds", "budget.amount": 60}}
    assert not (await call(careful, era, user, "start_training", short)).is_error
    assert not (await call(careful, era, user, "list_runs", {})).is_error
    assert user.asked == []


async def test_a_call_that_is_refused_anyway_is_not_asked_about(careful: Lab) -> None:
    user = User("accept", {"go_ahead": True})
    wrong = await call(careful, "auto", user, "start_training", {"overrides": {"budget.amount": -1}})
    assert wrong.is_error and user.asked == []


async def test_scripts_and_several_devices_count_by_their_limit(careful: Lab) -> None:
    (careful.workspace.root / "job.py").write_text("print(1)\n")
    user = User("decline")
    await call(careful, "auto", user, "start_training", {"script": "job.py"})
    await call(careful, "auto", user, "start_training", {"script": "job.py", "time_limit_hours": 0.5})
    await call(careful, "auto", user, "start_training", {"script": "job.py", "time_limit_hours": 0.5, "gpu_count": 4})
    assert [asked.split("for ")[1].split(" hours")[0] for asked in user.asked] == ["24", "2"]


async def test_an_experiment_counts_every_run_it_may_need(careful: Lab) -> None:
    user = User("decline")
    assert not (
        await call(careful, "auto", user, "propose_and_run_experiment", EXPERIMENT | {"budget_amount": 60})
    ).is_error
    refused = await call(careful, "auto", user, "propose_and_run_experiment", EXPERIMENT | {"budget_amount": 1800})
    assert refused.is_error and len(user.asked) == 1


@pytest.mark.parametrize(
    ("budget", "hours"),
    [({"hours": 8}, "for 8 hours"), ({"hours": 8, "gpu_hours": 2}, "for 2 hours"), ({"money": 5}, "without a limit")],
)
async def test_a_campaign_counts_its_smallest_limit(careful: Lab, budget: dict[str, float], hours: str) -> None:
    user = User("decline")
    start = {"action": "start", "goal": "lower val_bpb", "smallest_effect": 0.01, **budget}
    assert (await call(careful, "auto", user, "run_campaign", start)).is_error
    assert len(user.asked) == 1 and hours in user.asked[0]
    assert not (await call(careful, "auto", user, "run_campaign", {})).is_error
    assert careful.campaigns.ledger.ids() == []


async def test_a_campaign_was_agreed_to_with_its_experiments(careful: Lab) -> None:
    recipe = careful.workspace.recipe_dir / "recipe.toml"
    recipe.write_text('[budget]\nkind = "seconds"\namount = 600\n')
    user = User("accept", {"go_ahead": True})
    start = {"action": "start", "goal": "lower val_bpb", "smallest_effect": 0.01, "hours": 0.5, "proposer": "assistant"}
    campaign = (await call(careful, "auto", user, "run_campaign", start)).structured_content["campaigns"][0]
    assert len(user.asked) == 1, "one experiment alone takes longer than the half hour it is given"
    mine = {name: value for name, value in EXPERIMENT.items() if name != "budget_kind"}
    mine |= {"campaign_id": campaign["campaign_id"]}
    no = User("decline")
    assert not (await call(careful, "auto", no, "propose_and_run_experiment", mine)).is_error
    assert no.asked == []
    larger = mine | {"budget_amount": 7200, "statement": "Twice the matrix_lr lowers val_bpb as warm-up is short"}
    assert (await call(careful, "auto", no, "propose_and_run_experiment", larger)).is_error
    assert len(no.asked) == 1, "a longer run than the recipe's is no part of it"


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "cost", "change": {"budget.amount": 7200}},
        {"patch": "--- a/recipe/recipe.toml\n+++ b/recipe/recipe.toml\n@@ -0,0 +1,2 @@\n+[budget]\n+amount = 7200\n"},
    ],
)
async def test_a_longer_run_cannot_hide_in_the_change(careful: Lab, change: dict[str, Any]) -> None:
    user = User("decline")
    await call(careful, "auto", user, "propose_and_run_experiment", EXPERIMENT | {"budget_amount": 60} | change)
    assert len(user.asked) == 1


@pytest.mark.parametrize("era", ERAS)
async def test_a_call_that_was_carried_out_is_not_asked_about_again(careful: Lab, era: str) -> None:
    again = LONG | {"idempotency_key": "the night run"}
    await call(careful, era, User("accept", {"go_ahead": True}), "start_training", again)
    no = User("decline")
    result = await call(careful, era, no, "start_training", again)
    assert result.structured_content["run_id"] == "run-0001" and no.asked == []


@pytest.mark.parametrize("era", ERAS)
async def test_a_yes_outlives_a_service_that_died_before_it_acted(
    careful: Lab, era: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise RuntimeError("killed here")

    again = LONG | {"idempotency_key": "the night run"}
    with monkeypatch.context() as killed:
        killed.setattr(careful.runs, "start", die)
        died = await call(careful, era, User("accept", {"go_ahead": True}), "start_training", again)
    assert died.is_error and careful.runs.list() == []
    no = User("decline")
    other = {"overrides": {"budget.kind": "seconds", "budget.amount": 10_000}, "idempotency_key": "the night run"}
    assert (await call(careful, era, no, "start_training", other)).is_error
    assert len(no.asked) == 1, "the yes was to another call"
    result = await call(careful, era, no, "start_training", again)
    assert result.structured_content["run_id"] == "run-0001" and len(no.asked) == 1


@pytest.mark.parametrize("era", ERAS)
async def test_a_short_call_under_way_lends_its_key_to_no_longer_one(
    careful: Lab, era: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, may_end = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> None:
        under_way.set()
        may_end.wait(60)
        raise Refused("the repository does not answer", fix="try again")

    key = {"idempotency_key": "the night run"}
    short = {"overrides": {"budget.kind": "seconds", "budget.amount": 60}} | key
    no, yes = User("decline"), User("accept", {"go_ahead": True})
    with monkeypatch.context() as held, anyio.fail_after(30):
        held.setattr(careful.runs, "start", slow)
        async with anyio.create_task_group() as group:
            group.start_soon(call, careful, era, None, "start_training", short)
            await anyio.to_thread.run_sync(under_way.wait)
            try:
                with anyio.fail_after(10):
                    declined = await call(careful, era, no, "start_training", LONG | key)
                    agreed = await call(careful, era, yes, "start_training", LONG | key)
            finally:
                may_end.set()
    assert declined.is_error and len(no.asked) == 1
    assert agreed.is_error and "used for a different call" in agreed.content[0].text
    assert careful.runs.list() == []


async def test_nobody_is_asked_unless_the_user_wants_it(opened: Lab) -> None:
    user = User("decline")
    assert not (await call(opened, "auto", user, "start_training", LONG)).is_error
    assert user.asked == []
