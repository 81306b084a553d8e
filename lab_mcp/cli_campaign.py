"""`lab-mcp campaign ...`: start, list, show, pause, resume, stop and extend campaigns."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.table import Table

from experiments.final_audit import UNDER_WAY
from lab_mcp import connection
from lab_mcp.cli import WorkspaceOption
from lab_mcp.cli_client import call
from lab_mcp.terminal import console
from workspace.layout import Workspace, discover

POLL_S = 1.0
campaign_app = typer.Typer(help="Experiments one after another within a budget.", no_args_is_help=True)
Id = Annotated[str, typer.Argument(help="campaign id, e.g. camp-0001")]
Experiments = Annotated[int | None, typer.Option(min=1, help="budget in experiments")]
Runs = Annotated[int | None, typer.Option(min=1, help="budget in training runs")]
Hours = Annotated[float | None, typer.Option(help="budget in hours of the clock")]
GpuHours = Annotated[float | None, typer.Option("--gpu-hours", help="budget in hours of devices")]
Money = Annotated[float | None, typer.Option(help="budget in money, by the prices in lab.toml")]
Reason = Annotated[str | None, typer.Option(help="kept with the campaign")]
JsonOption = Annotated[bool, typer.Option("--json", help="print the tool's answer as JSON")]


def register(app: typer.Typer) -> None:
    app.add_typer(campaign_app, name="campaign")
    app.command()(amend)


def amend(
    experiment: Annotated[str, typer.Argument(help="experiment id, e.g. exp-0012")],
    statement: Annotated[str, typer.Argument(help="the hypothesis in other words")],
    why: Annotated[str, typer.Option(help="why it is worded anew; kept")],
    workspace: WorkspaceOption = None,
) -> None:
    """Word a hypothesis anew: a further version beside the frozen one, which alone is judged."""
    endpoint = connection.ensure_service(discover(workspace))
    body = {"changes": {"statement": statement}, "why": why}
    path = f"/api/experiments/{quote(experiment, safe='')}/hypothesis"
    made = connection.request(endpoint, "POST", path, body)
    console.print(f"{made['experiment_id']}: version {made['versions']}")


@campaign_app.command()
def start(
    goal: Annotated[str, typer.Argument(help="what it is for, in words")] = "",
    metric: Annotated[str, typer.Option(help="a number of the run's summary")] = "val_bpb",
    direction: Annotated[str, typer.Option(help="lower or higher")] = "lower",
    smallest_effect: Annotated[float, typer.Option(help="smallest improvement worth having")] = 0.005,
    experiments: Experiments = None,
    runs: Runs = None,
    hours: Hours = None,
    gpu_hours: GpuHours = None,
    money: Money = None,
    proposer: Annotated[str, typer.Option(help="optuna, cmaes, llm, claude-code, hybrid or assistant")] = "optuna",
    workspace: WorkspaceOption = None,
) -> None:
    """Begin a campaign and return at once."""
    budget = _budget(experiments, runs, hours, gpu_hours, money)
    wish = {"goal": goal or None, "metric": metric, "direction": direction}
    _do(workspace, "start", {**wish, **budget, "smallest_effect": smallest_effect, "proposer": proposer})


@campaign_app.command("list")
def list_campaigns(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Campaigns, newest first."""
    answer = call(discover(workspace), "run_campaign", {"action": "status"})
    if as_json:
        print(json.dumps(answer, indent=1))
        return
    table = Table(box=None)
    for column in ("campaign", "state", "goal", "proposer", "used", "best"):
        table.add_column(column)
    for item in answer["campaigns"]:
        used = _used(item)
        table.add_row(
            item["campaign_id"], item["state"], escape(item["goal"]), item["proposer"], used, item.get("best") or ""
        )
    console.print(table)


@campaign_app.command()
def show(campaign: Id, workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """One campaign: what it has used and found."""
    answer = call(discover(workspace), "run_campaign", {"action": "status", "campaign_id": campaign})
    if as_json:
        print(json.dumps(answer, indent=1))
    else:
        _print(answer["campaigns"][0])


@campaign_app.command()
def pause(campaign: Id, reason: Reason = None, workspace: WorkspaceOption = None) -> None:
    """Begin no further experiment; the one under way is finished."""
    _do(workspace, "pause", {"campaign_id": campaign, "reason": reason})


@campaign_app.command()
def resume(campaign: Id, workspace: WorkspaceOption = None) -> None:
    """Go on with a paused campaign."""
    _do(workspace, "resume", {"campaign_id": campaign})


@campaign_app.command()
def stop(campaign: Id, reason: Reason = None, workspace: WorkspaceOption = None) -> None:
    """End a campaign; the experiment under way is cancelled."""
    _do(workspace, "stop", {"campaign_id": campaign, "reason": reason})


@campaign_app.command()
def extend(
    campaign: Id,
    experiments: Experiments = None,
    runs: Runs = None,
    hours: Hours = None,
    gpu_hours: GpuHours = None,
    money: Money = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Give a campaign more of what limits it; one that used up its budget runs again."""
    _do(workspace, "extend", {"campaign_id": campaign, **_budget(experiments, runs, hours, gpu_hours, money)})


def audit_campaign(workspace: Workspace, campaign: str) -> None:
    """Print how an ended campaign's best does on the audit text; have it scored where that was not done."""
    endpoint = connection.ensure_service(workspace)
    connection.request(endpoint, "POST", f"/api/campaigns/{quote(campaign, safe='')}/audit")
    told = None
    while True:
        now = call(workspace, "run_campaign", {"action": "status", "campaign_id": campaign})["campaigns"][0]
        if (said := now.get("audit")) != UNDER_WAY:
            console.print(f"{campaign}: {escape(str(said))}", soft_wrap=True)
            return
        if (waits := now.get("waiting_for")) not in (None, told):
            console.print(f"{campaign} waits: {escape(str(waits))}", soft_wrap=True)
            told = waits
        time.sleep(POLL_S)


def _budget(
    experiments: int | None, runs: int | None, hours: float | None, gpu_hours: float | None, money: float | None
) -> dict[str, Any]:
    return {"experiments": experiments, "runs": runs, "hours": hours, "gpu_hours": gpu_hours, "money": money}


def _do(workspace: WorkspaceOption, action: str, arguments: dict[str, Any]) -> None:
    given = {name: value for name, value in arguments.items() if value is not None}
    answer = call(discover(workspace), "run_campaign", {"action": action, **given})
    _print(answer["campaigns"][0])


def _used(item: dict[str, Any]) -> str:
    return ", ".join(f"{item['spent'][name]:g} of {limit:g} {name}" for name, limit in item["budget"].items())


def _print(item: dict[str, Any]) -> None:
    why = f" ({escape(item['why'])})" if item.get("why") else ""
    console.print(f"{item['campaign_id']} {item['state']}{why}: {escape(item['goal'])}")
    wish = f"{item['direction']} {item['metric']} by at least {item['smallest_effect']:g}"
    console.print(f"{escape(wish)}, proposer {item['proposer']}")
    console.print(f"used: {_used(item)}")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(item["counts"].items()))
    console.print(f"experiments: {counts or 'none yet'}; under way: {', '.join(item['under_way']) or 'none'}")
    if item.get("best"):
        console.print(f"best: {item['best']}: {escape(item['best_sentence'])}")
    for name in ("audit", "waiting_for", "notice"):
        if item.get(name):
            console.print(f"{name.replace('_', ' ')}: {escape(item[name])}")
