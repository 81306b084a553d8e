"""Keeping house: clean (remove what old runs hold), pin and unpin (keep a run whatever is cleaned)."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from lab_mcp import connection
from lab_mcp.cli import WorkspaceOption
from lab_mcp.cli_client import conversation
from lab_mcp.cli_runs import JsonOption
from lab_mcp.terminal import console, size
from workspace.layout import Workspace, discover

KEPT_SHOWN = 12


class What(StrEnum):
    checkpoints = "checkpoints"
    logs = "logs"
    folders = "folders"


def register(app: typer.Typer) -> None:
    for command in (clean, pin, unpin):
        app.command()(command)


def clean(
    what: Annotated[What, typer.Argument(help="what to remove of old runs")] = What.checkpoints,
    older_than: Annotated[float, typer.Option(min=0, help="days since a run ended")] = 14,
    keep_latest: Annotated[int, typer.Option(min=0, help="runs that stay, however old")] = 10,
    down_to: Annotated[
        float | None, typer.Option(min=0, help="GB all runs may hold: the oldest first, any age")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do it; without, only tell what would go")] = False,
    as_json: JsonOption = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Free space. Live, pinned, promoted, best and latest runs stay, and what an open experiment needs."""
    rules = {"what": what, "older_than_days": older_than, "keep_latest": keep_latest, "down_to_gb": down_to, "act": yes}
    plan = _ask(discover(workspace), "POST", "/api/clean", rules)
    if as_json:
        print(json.dumps(plan, indent=1))
        return
    if plan["removals"]:
        table = Table(box=None)
        for column in ("run", "name", "ended", what.value):
            table.add_column(column, justify="right" if column == what.value else "left")
        for removal in plan["removals"]:
            table.add_row(removal["run"], escape(removal["name"]), removal["ended_at"][:10], size(removal["bytes"]))
        console.print(table)
    for run, why in list(plan["kept"].items())[:KEPT_SHOWN]:
        console.print(f"{run} stays: {escape(why)}")
    if len(plan["kept"]) > KEPT_SHOWN:
        console.print(f"and {len(plan['kept']) - KEPT_SHOWN} more stay")
    freed, held = size(plan["freed_bytes"]), size(plan["held_bytes"])
    if not plan["removals"]:
        console.print(f"nothing to remove: no run that may go holds {what.value}; all runs hold {held}")
    elif plan["done"]:
        console.print(f"{freed} of {held} freed")
    else:
        console.print(f"{freed} of {held} would be freed; nothing was removed. To do it: the same with --yes")


def pin(run: Annotated[str, typer.Argument(help="run id")], workspace: WorkspaceOption = None) -> None:
    """Keep a run whatever is cleaned."""
    _ask(discover(workspace), "POST", f"/api/runs/{run}/pin")
    console.print(f"{escape(run)} is pinned")


def unpin(run: Annotated[str, typer.Argument(help="run id")], workspace: WorkspaceOption = None) -> None:
    """Let a run be cleaned like any other."""
    _ask(discover(workspace), "DELETE", f"/api/runs/{run}/pin")
    console.print(f"{escape(run)} is no longer pinned")


def _ask(workspace: Workspace, method: str, path: str, body: Any = None) -> Any:
    endpoint = connection.ensure_service(workspace)
    return connection.request(endpoint, method, path, body, headers={"Lab-Conversation": conversation()}, timeout=600.0)
