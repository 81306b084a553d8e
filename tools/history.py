"""What the devices did over a stretch of the past, from the telemetry, with the runs of that time."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import Field

from tools.lab import Lab
from tools.tool import Result
from training.telemetry import Point
from workspace import clock
from workspace.errors import NotFound, Refused

ROWS = 24  # of all devices' tables together
FEWEST_ROWS = 6  # of one
RUNS = 12
GIB = 2**30
COLUMNS = ("time", "busy %", "least %", "most %", "memory GiB", "C", "W", "held down %")
UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0}
EXAMPLES = '"90m", "8h", "2d" ago, or a time such as "2026-11-20T22:00" (local unless it names a zone)'


class DeviceHistory(Result):
    device: str
    summary: str = Field(description="one line for people")
    rows: list[list[Any]] = Field(description="means of equal stretches; see `columns`")


class History(Result):
    since: str
    until: str
    columns: list[str] = list(COLUMNS)
    devices: list[DeviceHistory]
    runs: list[str] = Field(description="what ran in that time")


def moment(text: str, now: float) -> float:
    """Epoch seconds of a time, or of so long before `now`. Raises `Refused`."""
    ago = re.fullmatch(r"(\d+(?:\.\d+)?) ?([mhd])", text)
    if ago:
        return now - float(ago[1]) * UNITS[ago[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise Refused(f"{text[:40]!r} is no moment", valid=EXAMPLES) from None


def history(lab: Lab, since: str, until: str | None) -> History:
    """Raises `Refused` for moments that make no sense."""
    now = time.time()
    begin, end = moment(since, now), moment(until, now) if until else now
    names = {device.id: device.name for device in lab.hardware.latest().devices} | {"cpu": "CPU"}
    points = max(FEWEST_ROWS, ROWS // len(names))
    told = []
    for device, name in names.items():
        try:
            found = lab.hardware.history(device, begin, points, end)
        except NotFound:  # a device the telemetry has never seen
            continue
        told.append(DeviceHistory(device=device, summary=_summary(name, found), rows=[_row(point) for point in found]))
    span = clock.from_epoch(begin), clock.from_epoch(end)
    return History(since=span[0], until=span[1], devices=told, runs=_runs(lab, *span))


def _row(point: Point) -> list[Any]:
    numbers = [
        point.utilization_percent,
        point.utilization_least,
        point.utilization_most,
        None if point.memory_used_bytes is None else point.memory_used_bytes / GIB,
        point.temperature_c,
        point.power_w,
        None if point.throttled is None else 100 * point.throttled,
    ]
    return [point.time[:16] + "Z", *(None if number is None else round(number, 1) for number in numbers)]


def _summary(name: str, points: Sequence[Point]) -> str:
    if not points:
        return f"{name}: nothing was recorded in that time"
    total = sum(point.samples for point in points)
    parts = []
    busy = [(p.utilization_percent, p.samples) for p in points if p.utilization_percent is not None]
    if busy:
        mean = sum(value * samples for value, samples in busy) / sum(samples for _, samples in busy)
        highest = max(p.utilization_most or 0 for p in points)
        parts.append(f"busy {mean:.0f} % on average, {highest:.0f} % at most")
    memory = [p.memory_most_bytes for p in points if p.memory_most_bytes is not None]
    if memory:
        parts.append(f"memory up to {max(memory) / GIB:.1f} GiB")
    warmest = [p.temperature_c for p in points if p.temperature_c is not None]
    if warmest:
        parts.append(f"{max(warmest):.0f} C in its warmest stretch")
    held = sum((p.throttled or 0) * p.samples for p in points) / total
    if held >= 0.005:
        parts.append(f"its clock held down {held:.0%} of the time")
    return f"{name}: {', '.join(parts) or 'it tells nothing of itself'}"


def _runs(lab: Lab, since: str, until: str) -> list[str]:
    found = []
    for run in lab.runs.list(limit=1000):
        if run.started_at is None or run.started_at > until or (run.ended_at is not None and run.ended_at < since):
            continue
        end = run.ended_at[:16] + "Z" if run.ended_at else "now"
        where = ", ".join(run.devices) or "cpu"
        found.append(f"{run.id} {run.name} ({where}) {run.started_at[:16]}Z to {end}: {run.state}")
    more = [f"and {len(found) - RUNS} more"] if len(found) > RUNS else []
    return found[:RUNS] + more
