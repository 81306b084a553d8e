"""`lab-mcp top`: devices, runs and alerts, live in a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lab_mcp.cli import WorkspaceOption
from lab_mcp.cli_client import call
from lab_mcp.terminal import console, sparkline
from workspace import clock
from workspace.layout import Workspace, discover

GIB = 2**30
WIDE = 110  # columns from which there is room for curves, clocks and whole names
LIVE_SHOWN, ENDED_SHOWN, CURVES, ALERTS_SHOWN = 12, 5, 4, 6
STATE_COLOURS = {
    "running": "green", "starting": "cyan", "stopping": "yellow", "queued": "blue", "succeeded": "green",
    "failed": "red", "lost": "red", "timed_out": "yellow", "preempted": "yellow", "cancelled": "bright_black",
}  # fmt: skip
SEVERITY_COLOURS = {"stop": "red", "warn": "yellow", "note": "cyan"}
FULL, EMPTY = "━", "─"


@dataclass(frozen=True)
class Frame:
    """What one picture shows: the answers of gpu_status and list_runs."""

    workspace: str
    hardware: dict[str, Any]
    live: list[dict[str, Any]]
    ended: list[dict[str, Any]]
    waiting: int = 0
    curves: dict[str, list[float]] = field(default_factory=dict)  # run -> losses
    alerts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # run, alert; newest first


def top(
    once: Annotated[bool, typer.Option("--once", help="print one picture and end")] = False,
    seconds: Annotated[float, typer.Option(min=0.5, help="between two pictures")] = 2.0,
    workspace: WorkspaceOption = None,
) -> None:
    """Devices, runs and alerts, live; Ctrl-C ends it."""
    found = discover(workspace)
    if once:
        console.print(picture(look(found), console.width))
        return
    with Live(console=console, screen=True, auto_refresh=False) as screen:
        while True:
            screen.update(picture(look(found), console.width), refresh=True)
            time.sleep(seconds)


def look(workspace: Workspace) -> Frame:
    """Ask the service. Raises `LabError` when there is none to be had."""
    live = call(workspace, "list_runs", {"state": "live", "limit": LIVE_SHOWN})
    ended = call(workspace, "list_runs", {"state": "ended", "limit": ENDED_SHOWN})
    telling = [run["run_id"] for run in live["runs"] if run["state"] in ("running", "stopping")][:CURVES]
    telling += [run["run_id"] for run in ended["runs"] if run["alert_classes"]]
    curves, alerts = {}, []
    for run in telling:
        detail = call(workspace, "list_runs", {"run_id": run})["detail"]
        curve = detail["curve"]
        if "loss" in curve["columns"]:
            column = curve["columns"].index("loss")
            curves[run] = [row[column] for row in curve["rows"] if row[column] is not None]
        alerts += [(run, alert) for alert in detail["alerts"]]
    return Frame(
        workspace=workspace.root.name,
        hardware=call(workspace, "gpu_status", {"processes": True}),
        live=live["runs"],
        ended=ended["runs"],
        waiting=max(0, live["total"] - len(live["runs"])),
        curves=curves,
        alerts=sorted(alerts, key=lambda item: item[1].get("time", ""), reverse=True),
    )


def picture(frame: Frame, width: int) -> RenderableType:
    """The frame in `width` columns."""
    wide = width >= WIDE
    parts: list[RenderableType] = [_title(frame), _devices(frame, wide=wide), Text()]
    parts.append(_runs(frame, wide=wide) if frame.live or frame.ended else Text("no runs yet", style="bright_black"))
    if frame.alerts:
        parts += [Text(), _alerts(frame, wide=wide)]
    return Group(*parts)


# -- parts -------------------------------------------------------------------------------------------------------------


def _title(frame: Frame) -> Table:
    states = [run["state"] for run in frame.live]
    running, queued = len(states) - states.count("queued"), states.count("queued") + frame.waiting
    grid = Table.grid(expand=True)
    grid.add_column()
    grid.add_column(justify="right")
    left = Text.assemble(("lab ", "bold"), (frame.workspace, "bold cyan"), f"  {running} running, {queued} waiting")
    grid.add_row(left, Text(datetime.now().strftime("%H:%M:%S"), style="bright_black"))
    return grid


def _devices(frame: Frame, *, wide: bool) -> Table:
    bar = 16 if wide else 10
    table = _table(
        "device", "name" if wide else None, "busy", "memory", ">heat", ">power", ">clock" if wide else None, "run"
    )
    for device in frame.hardware["devices"]:
        cells = [Text(device["id"], style="bold")]
        cells += [Text(device["name"], overflow="ellipsis")] if wide else []
        if not device["usable"]:
            cells += [Text("not usable", style="red"), Text(), Text(), Text()] + ([Text()] if wide else [])
            table.add_row(*cells, Text(device.get("unusable_because") or "", style="red", overflow="ellipsis"))
            continue
        cells += [
            _meter(device.get("utilization_percent"), bar),
            _memory(device.get("memory_used_bytes"), device.get("memory_total_bytes"), bar if wide else 0),
            _heat(device),
            _number(device.get("power_w"), "{:.0f} W"),
        ]
        cells += [_clock(device)] if wide else []
        table.add_row(*cells, _holder(device))
    cpu = frame.hardware["cpu"]
    cells = (
        [Text("cpu", style="bold"), Text(cpu["model"], overflow="ellipsis")] if wide else [Text("cpu", style="bold")]
    )
    memory = _memory(cpu["memory_used_bytes"], cpu["memory_total_bytes"], bar if wide else 0)
    cells += [_meter(cpu.get("utilization_percent"), bar), memory, Text(), Text()] + ([Text()] if wide else [])
    table.add_row(*cells, _on_cpu(frame))
    return table


def _runs(frame: Frame, *, wide: bool) -> Table:
    table = _table(
        "run", "state", "name", "progress", ">loss", "curve" if wide else None, ">val_bpb", ">tok/s" if wide else None,
        ">left" if wide else None, "",
    )  # fmt: skip
    for run in [*frame.live, *frame.ended]:
        now = run.get("progress") or run.get("result") or {}
        losses = frame.curves.get(run["run_id"], [])
        cells = [
            Text(run["run_id"], style="bold"),
            Text(run["state"], style=STATE_COLOURS.get(run["state"], "")),
            Text(run.get("name") or run["purpose"], overflow="ellipsis"),
            _progress(run, 14 if wide else 6),
            _number(now.get("loss", now.get("train_loss")), "{:.4f}" if wide else "{:.3f}"),
        ]
        cells += [Text(sparkline(losses) if len(losses) > 1 else "", style="cyan")] if wide else []
        cells += [_number(now.get("val_bpb"), "{:.4f}")]
        cells += [_number(now.get("tokens_per_s"), "{:,.0f}"), _left(run)] if wide else []
        table.add_row(*cells, _remark(run))
    return table


def _alerts(frame: Frame, *, wide: bool) -> Panel:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column()
    for run, alert in frame.alerts[:ALERTS_SHOWN]:
        colour = SEVERITY_COLOURS.get(str(alert.get("severity")), "")
        text = Text(str(alert.get("text", "")))
        if wide and alert.get("suggestion"):
            text.append(f"\n{alert['suggestion']}", style="bright_black")
        grid.add_row(Text(run, style="bold"), Text(str(alert.get("class")), style=colour), text)
    more = len(frame.alerts) - ALERTS_SHOWN
    title = f"alerts ({more} more not shown)" if more > 0 else "alerts"
    return Panel(grid, title=title, title_align="left", border_style="yellow", padding=(0, 1))


# -- cells -------------------------------------------------------------------------------------------------------------


def _table(*columns: str | None) -> Table:
    """Columns by name; `>` before it: to the right; None is left out."""
    table = Table(box=None, padding=(0, 1), pad_edge=False, expand=True, header_style="bright_black")
    wanted = [column for column in columns if column is not None]
    for column in wanted:
        last = column == wanted[-1]
        flexible = last or column == "name"
        table.add_column(
            column.lstrip(">"),
            justify="right" if column.startswith(">") else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=(3 if last else 2) if flexible else None,
        )
    return table


def _meter(percent: float | None, width: int) -> Text:
    if percent is None:
        return Text("?", style="bright_black")
    colour = "green" if percent >= 70 else "yellow" if percent >= 30 else "bright_black"
    return _bar(percent / 100, width, colour).append(f" {percent:3.0f}%")


def _bar(part: float, width: int, colour: str) -> Text:
    full = round(max(0.0, min(1.0, part)) * width)
    return Text(FULL * full, style=colour).append(EMPTY * (width - full), style="bright_black")


def _memory(used: float | None, total: float | None, width: int) -> Text:
    if used is None or not total:
        return Text("?", style="bright_black")
    part = used / total
    colour = "red" if part > 0.95 else "yellow" if part > 0.85 else "cyan"
    numbers = f"{used / GIB:.1f}/{total / GIB:.0f} GiB"
    if not width:
        return Text(numbers, style="" if part <= 0.85 else colour)
    return _bar(part, width, colour).append(f" {numbers}", style="default")


def _heat(device: dict[str, Any]) -> Text:
    celsius, limit = device.get("temperature_c"), device.get("temperature_slowdown_c")
    if celsius is None:
        return Text("?", style="bright_black")
    hot = any("thermal" in reason for reason in device.get("throttle_reasons") or [])
    near = limit is not None and celsius > limit - 8
    return Text(f"{celsius:.0f} C", style="red" if hot else "yellow" if near else "")


def _clock(device: dict[str, Any]) -> Text:
    mhz = device.get("clock_mhz")
    held = bool(device.get("throttle_reasons"))
    return Text("?" if mhz is None else f"{mhz} MHz", style="yellow" if held else "" if mhz else "bright_black")


def _holder(device: dict[str, Any]) -> Text:
    if device.get("lease"):
        return Text(device["lease"], style="green")
    processes = device.get("processes")
    if not processes:
        return Text("free" if processes == [] else "", style="bright_black")
    others = {process.get("user") or "somebody" for process in processes}
    return Text(f"used by {', '.join(sorted(others))}", style="magenta")


def _on_cpu(frame: Frame) -> Text:
    held = [run["run_id"] for run in frame.live if run["state"] != "queued" and run["devices"] in (["cpu"], [])]
    return Text(", ".join(held), style="green")


def _progress(run: dict[str, Any], width: int) -> Text:
    if run["state"] == "queued":
        return Text("waits", style="blue")
    if run.get("ended_at"):
        return Text(_ago(run["ended_at"]), style="bright_black")
    fraction = (run.get("progress") or {}).get("fraction")
    if fraction is None:
        return Text(f"{_duration(run.get('elapsed_s') or 0)} so far", style="bright_black")
    return _bar(fraction, width, "green").append(f" {100 * fraction:3.0f}%")


def _left(run: dict[str, Any]) -> Text:
    seconds = (run.get("progress") or {}).get("eta_s")
    return Text("" if seconds is None or run.get("ended_at") else _duration(seconds))


def _remark(run: dict[str, Any]) -> Text:
    if run["alert_classes"]:
        return Text("! " + ", ".join(run["alert_classes"]), style="yellow")
    if run.get("waiting_for"):
        return Text(run["waiting_for"], style="blue")
    words: Iterable[str] = (run.get("failure_class") or "", run.get("reason") or "")
    return Text(": ".join(word for word in words if word), style="bright_black")


def _number(value: float | None, form: str) -> Text:
    return Text("" if value is None else form.format(value))


def _ago(moment: str) -> str:
    return f"{_duration(max(0.0, clock.seconds_between(moment, clock.now())))} ago"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:.0f}s"
