"""The tool `run_campaign`: experiments one after another, without anybody there."""

from __future__ import annotations

from typing import Any, Literal

import anyio.to_thread
from pydantic import Field

from experiments.campaign import Budget
from experiments.campaign_view import CampaignView
from tools import bounds
from tools.lab import Lab
from tools.tool import Arguments, Caller, Result, Tool
from workspace.errors import Refused

LISTED = 10
BUDGET = tuple(Budget.model_fields)


class RunCampaignArguments(Arguments):
    action: Literal["status", "start", "pause", "resume", "stop", "extend"] = "status"
    campaign_id: str | None = Field(None, max_length=40)
    goal: str | None = Field(None, max_length=600, description="start: what for")
    metric: str = Field("val_bpb", max_length=80)
    direction: Literal["lower", "higher"] = "lower"
    smallest_effect: float | None = Field(None, gt=0, description="start: worth having")
    experiments: int | None = Field(None, gt=0, description="budget: one kind or several; extend: so much more")
    runs: int | None = Field(None, gt=0)
    hours: float | None = Field(None, gt=0)
    gpu_hours: float | None = Field(None, gt=0)
    money: float | None = Field(None, gt=0)
    proposer: Literal["optuna", "cmaes", "llm", "claude-code", "hybrid", "assistant"] = Field(
        "optuna", description="assistant: you, by propose_and_run_experiment"
    )
    reason: str | None = Field(None, max_length=300)
    idempotency_key: str | None = Field(None, min_length=4, max_length=100)


class RunCampaignResult(Result):
    campaigns: list[CampaignView]
    next: str | None = None


async def run_campaign(lab: Lab, arguments: RunCampaignArguments, caller: Caller) -> RunCampaignResult:
    return await anyio.to_thread.run_sync(lambda: _act(lab, arguments, caller))


def _act(lab: Lab, arguments: RunCampaignArguments, caller: Caller) -> RunCampaignResult:
    campaigns, action = lab.campaigns, arguments.action
    budget = Budget.of({name: getattr(arguments, name) for name in BUDGET})
    if action == "start":
        record = _start(lab, arguments, budget, caller)
        following = f"it goes on by itself; run_campaign(campaign_id={record!r}) tells how far it is"
        if arguments.proposer == "assistant":
            following = f"propose_and_run_experiment(campaign_id={record!r}, ...), again and again"
        return RunCampaignResult(campaigns=[campaigns.look(record)], next=following)
    if arguments.campaign_id is None:
        if action != "status":
            raise Refused(f"{action} which campaign?", valid=", ".join(campaigns.ledger.ids()[-5:]) or "none yet")
        found = bounds.first(campaigns.list(LISTED), bounds.RESULT_CHARACTERS - 200)
        return RunCampaignResult(campaigns=found, next=None if found else "run_campaign(action='start', ...)")
    name, why = arguments.campaign_id, arguments.reason
    if action == "pause":
        campaigns.pause(name, why or "asked to")
    elif action == "resume":
        campaigns.resume(name)
    elif action == "stop":
        campaigns.stop(name, why or "asked to", by=caller.conversation)
    elif action == "extend":
        campaigns.extend(name, budget)
    return RunCampaignResult(
        campaigns=[campaigns.look(name)], next=f"list_experiments(campaign_id={name!r}) shows its experiments"
    )


def _start(lab: Lab, arguments: RunCampaignArguments, budget: Budget, caller: Caller) -> str:
    if arguments.smallest_effect is None:
        raise Refused(
            "a campaign needs smallest_effect: without it any noise would do", fix="for val_bpb, 0.005 is usual"
        )
    numbers = arguments.proposer in ("optuna", "cmaes", "hybrid")
    settings = {"sampler": "cmaes" if arguments.proposer == "cmaes" else "tpe"} if numbers else {}
    return lab.campaigns.start(
        arguments.goal or "",
        budget,
        metric=arguments.metric,
        direction=arguments.direction,
        smallest_effect=arguments.smallest_effect,
        proposer="optuna" if arguments.proposer == "cmaes" else arguments.proposer,
        settings=settings,
        conversation=caller.conversation,
        key=caller.key,
    ).id


TOOLS: list[Tool[Any, Any]] = [
    Tool(
        name="run_campaign",
        title="Campaign",
        description=(
            "Experiments one after another within a budget, with nobody there ('improve this overnight'): a proposer "
            "changes the recipe, each change is judged as propose_and_run_experiment does, what is kept is the next "
            "parent. For one idea of the user's use that tool. Ask the user for the budget first. Next: "
            "list_experiments(campaign_id)."
        ),
        arguments=RunCampaignArguments,
        result=RunCampaignResult,
        run=run_campaign,
        example={"action": "start", "goal": "lower val_bpb overnight", "smallest_effect": 0.005, "hours": 8},
        read_only=False,
        only_looks=lambda arguments: arguments.action == "status",
    ),
]
