"""Command-line twins of the run tools: gpu, train, runs, tail, wait, stop."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from lab_mcp.cli import WorkspaceOption
from lab_mcp.cli_client import call
from lab_mcp.terminal import console, size
from workspace.errors import Refused
from workspace.layout import discover

GIB = 2**30
JsonOption = Annotated[bool, typer.Option("--json", help="print the tool's answer as JSON")]


def register(app: typer.Typer) -> None:
    for command in (gpu, train, runs, tail, wait, stop):
        app.command()(command)


def gpu(
    since: Annotated[
        str | None, typer.Option(help='also what they did since "8h" ago or a time, 2026-11-20T22:00')
    ] = None,
    until: Annotated[str | None, typer.Option(help="end of that time")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """GPUs, CPU, memory, what runs on them, and what they did before."""
    asked = {"processes": True, "since": since, "until": until}
    answer = call(discover(workspace), "gpu_status", {k: v for k, v in asked.items() if v is not None})
    if as_json:
        print(json.dumps(answer, indent=1))
        return
    if answer["devices"]:
        table = Table(box=None)
        for column in ("device", "name", "busy", "memory", "temperature", "power", "processes"):
            table.add_column(column)
        for device in answer["devices"]:
            table.add_row(
                device["id"],
                device["name"],
                _with(device.get("utilization_percent"), "{:.0f}%"),
                _memory(device),
                _with(device.get("temperature_c"), "{:.0f} C"),
                _with(device.get("power_w"), "{:.0f} W"),
                str(len(device["processes"])) if device.get("processes") is not None else "?",
            )
        console.print(table)
    console.print(escape(answer["summary"]))
    console.print(f"trains on {answer['backend']}: {escape(answer['backend_reason'])}")
    console.print(f"running: {', '.join(answer['running']) or 'nothing'}; waiting: {answer['waiting']}")
    for note in answer["notes"]:
        console.print(f"note: {escape(note)}")
    if answer.get("history"):
        _history(answer["history"])


def _history(history: dict[str, Any]) -> None:
    for device in history["devices"]:
        console.print(f"\n{device['device']}  {escape(device['summary'])}")
        table = Table(box=None)
        for column in history["columns"]:
            table.add_column(column, justify="left" if column == "time" else "right")
        for row in device["rows"]:
            table.add_row(*("" if value is None else str(value) for value in row))
        console.print(table)
    for run in history["runs"]:
        console.print(escape(run))


def _with(value: Any, form: str) -> str:
    return "?" if value is None else form.format(value)


def _memory(device: dict[str, Any]) -> str:
    used, total = device.get("memory_used_bytes"), device.get("memory_total_bytes")
    return f"{_with(used and used / GIB, '{:.1f}')} of {_with(total and total / GIB, '{:.1f}')} GiB"


def train(
    settings: Annotated[list[str] | None, typer.Argument(help="settings of the recipe, e.g. budget.amount=60")] = None,
    name: Annotated[str | None, typer.Option(help="a few words to recognise it by")] = None,
    resume: Annotated[str | None, typer.Option(help="go on from this run's newest checkpoint, with its recipe")] = None,
    script: Annotated[str | None, typer.Option(help="run this script instead of the built-in trainer")] = None,
    arg: Annotated[list[str] | None, typer.Option(help="argument of the script (repeat for several)")] = None,
    repo: Annotated[str | None, typer.Option(help="git URL or path to clone and run the script from")] = None,
    branch: Annotated[str | None, typer.Option(help="branch, tag or commit of the repository")] = None,
    hours: Annotated[float | None, typer.Option(help="wall-clock limit")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Start a training run and return at once."""
    overrides = dict(setting(text) for text in settings or [])
    arguments = {
        "name": name,
        "overrides": overrides or None,
        "resume": resume,
        "script": script,
        "args": arg,
        "repo": repo,
        "branch": branch,
        "time_limit_hours": hours,
    }
    answer = call(discover(workspace), "start_training", {k: v for k, v in arguments.items() if v is not None})
    waiting = f", waiting for {answer['waiting_for']}" if answer.get("waiting_for") else ""
    console.print(f"{answer['run_id']} {answer['state']}{escape(waiting)}")
    console.print(f"follow it: lab-mcp tail -f {answer['run_id']}")


def setting(text: str) -> tuple[str, Any]:
    """`budget.amount=60` as ("budget.amount", 60); what is no JSON is text."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise Refused(f"{text!r} is not a setting", valid="key=value, for example budget.amount=60")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def runs(
    run: Annotated[str | None, typer.Argument(help="one run in full")] = None,
    state: Annotated[str | None, typer.Option(help="live, ended, or one state")] = None,
    limit: Annotated[int, typer.Option(min=1, max=50)] = 20,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Runs, newest first; or one run in full."""
    arguments: dict[str, Any] = {"run_id": run} if run else {"limit": limit}
    if state:
        arguments["state"] = state
    answer = call(discover(workspace), "list_runs", arguments)
    if as_json:
        print(json.dumps(answer, indent=1))
        return
    table = Table(box=None)
    for column in ("run", "state", "name", "started", "seconds", "loss", "val_bpb", "disk", "note"):
        table.add_column(column, justify="right" if column in ("seconds", "loss", "val_bpb", "disk") else "left")
    for item in answer["runs"]:
        progress = item.get("progress") or item.get("result") or {}
        loss = progress.get("loss", progress.get("train_loss"))
        words = [f"alerts: {', '.join(item['alert_classes'])}"] if item["alert_classes"] else []
        words += ["pinned"] if item.get("pinned") else []
        words += [item.get("waiting_for") or item.get("reason") or item.get("failure_class") or ""]
        words += item.get("cleaned") or []
        table.add_row(
            item["run_id"],
            item["state"],
            escape(item.get("name") or item["purpose"]),
            (item.get("started_at") or "")[:19],
            _with(item.get("elapsed_s"), "{:.0f}"),
            "" if loss is None else f"{loss:.4f}",
            "" if progress.get("val_bpb") is None else f"{progress['val_bpb']:.4f}",
            size(item.get("disk_bytes") or 0),
            escape("; ".join(word for word in words if word)),
        )
    console.print(table)
    if answer.get("detail"):
        print(json.dumps(answer["detail"], indent=1))
    elif answer.get("more"):
        console.print(f"{answer['total']} in all")


def tail(
    run: Annotated[str, typer.Argument(help="run id")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on until the run has ended")] = False,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, max=400)] = 30,
    contains: Annotated[str | None, typer.Option(help="only lines that contain this")] = None,
    level: Annotated[str | None, typer.Option(help="error or warning: only such lines, and whole tracebacks")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """The end of a run's log."""
    found = discover(workspace)
    arguments: dict[str, Any] = {"run_id": run, "lines": lines}
    arguments |= {"contains": contains} if contains else {}
    arguments |= {"level": level} if level else {}
    while True:
        page = call(found, "tail_log", arguments)
        for line in page["lines"]:
            print(line, flush=follow)
        if page.get("cut") and not follow:
            console.print(f"({escape(page['cut'])})")
        over = page["at_end"] and page["state"] not in ("queued", "starting", "running", "stopping")
        if not follow or over:
            return
        arguments = {**arguments, "cursor": page["next_cursor"], "lines": 400}
        if page["at_end"]:
            time.sleep(0.5)


def wait(run: Annotated[str, typer.Argument(help="run id")], workspace: WorkspaceOption = None) -> None:
    """Wait until a run has ended, with a progress bar; exits with 0 only when it succeeded."""
    found = discover(workspace)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task(run, total=1.0, text="")
        while True:
            answer = call(found, "wait_for_run", {"run_id": run, "timeout_s": 2})
            progress = answer.get("progress") or {}
            loss = "" if progress.get("loss") is None else f"loss {progress['loss']:.4f}"
            bars.update(bar, completed=progress.get("fraction") or 0.0, text=f"{answer['state']} {loss}")
            if answer["ended"]:
                break
    for line in answer["last_lines"]:
        print(line)
    raise typer.Exit(0 if answer["state"] == "succeeded" else 1)


def stop(
    run: Annotated[str, typer.Argument(help="run id")],
    reason: Annotated[str, typer.Option(help="kept with the run")] = "stopped from the command line",
    workspace: WorkspaceOption = None,
) -> None:
    """Stop a run: TERM, then KILL of everything it started."""
    answer = call(discover(workspace), "stop_run", {"run_id": run, "reason": reason})
    console.print(f"{answer['run_id']} {answer['state']}")
