"""How far a run is, from the files its job writes. Reads the ends of files only."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from workspace import durable

END_BYTES = 64 * 1024
ALERT_BYTES = 1024 * 1024  # more than a run's alerts can be
CURVE_BYTES = 16 * 1024 * 1024  # of metrics.jsonl read for a curve, at most: its end
SHOWN = ("step", "loss", "val_bpb", "tokens_per_s", "lr", "mfu", "memory_bytes")
CURVE_FIELDS = ("step", "elapsed_s", "loss", "val_bpb", "lr", "grad_norm", "tokens_per_s")


def progress(folder: Path, budget: dict[str, Any] | None, elapsed_s: float | None) -> dict[str, Any] | None:
    """step, fraction, loss, val_bpb, tokens_per_s, eta_s as far as they are known; None before the first metrics."""
    found: dict[str, Any] = {}
    trained_s: float | None = None
    told: float | None = None  # by the trainer: the part of a budget in tokens or FLOPs
    for number, record in enumerate(_from_end(folder / "metrics.jsonl")):
        if number == 0:
            trained_s = _number(record.get("elapsed_s"))
        told = _number(record.get("progress")) if told is None else told
        for name in SHOWN:
            if name not in found and _number(record.get(name)) is not None:
                found[name] = record[name]
        if "val_bpb" in found and "loss" in found:
            break
    if not found:
        return None
    fraction = None
    if budget and budget.get("amount"):
        done = {"steps": found.get("step"), "seconds": trained_s}.get(str(budget.get("kind")))
        fraction = told if done is None else float(done) / float(budget["amount"])
    if budget and fraction is not None:
        fraction = min(1.0, fraction)
        found["fraction"] = round(fraction, 4)
        if budget.get("kind") == "seconds":
            found["eta_s"] = round(max(0.0, float(budget["amount"]) * (1 - fraction)), 1)
        elif fraction > 0 and (trained_s or elapsed_s):
            found["eta_s"] = round(float(trained_s or elapsed_s or 0) * (1 - fraction) / fraction, 1)
    return found


def curve(folder: Path, points: int) -> list[dict[str, Any]]:
    """At most `points` records of metrics.jsonl, spread evenly, first and last among them; validations are kept."""
    if points < 1:
        return []
    records = [_short(record) for record in _forward(folder / "metrics.jsonl")]
    if len(records) <= points:
        return records
    chosen = {round(i * (len(records) - 1) / max(1, points - 1)) for i in range(points)}
    validated = [i for i, record in enumerate(records) if "val_bpb" in record]
    for position in validated[-(points // 2) :]:  # a validation takes the place of its nearest neighbour
        ordinary = [i for i in chosen if i not in validated and i not in (0, len(records) - 1)]
        if position not in chosen and ordinary:
            chosen.remove(min(ordinary, key=lambda i: abs(i - position)))
            chosen.add(position)
    return [records[i] for i in sorted(chosen)]


def alerts(folder: Path, limit: int = 100) -> list[dict[str, Any]]:
    """The newest alerts, oldest first."""
    newest = []
    for record in _from_end(folder / "alerts.jsonl", ALERT_BYTES):
        newest.append(record)
        if len(newest) == limit:
            break
    return newest[::-1]


def table(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Records as `columns` and `rows`: a third of the text. None where a record does not have a value."""
    columns = [name for name in CURVE_FIELDS if any(name in record for record in records)]
    rows = [[shown(record[name]) if name in record else None for name in columns] for record in records]
    return {"columns": columns, "rows": rows}


def shown(value: Any) -> Any:
    """A number with five significant digits, a whole one whole; what is no number in JSON as text."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return str(value)
    return int(value) if value.is_integer() and abs(value) < 1e15 else float(f"{value:.5g}")


def _short(record: dict[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in CURVE_FIELDS if _number(record.get(name)) is not None}


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _from_end(path: Path, limit: int = END_BYTES) -> Iterator[dict[str, Any]]:
    """The records within the file's last `limit` bytes, newest first; torn and foreign lines are skipped."""
    yield from reversed(list(_parse(path, limit)))


def _forward(path: Path) -> Iterator[dict[str, Any]]:
    yield from _parse(path, CURVE_BYTES)


def _parse(path: Path, limit: int) -> Iterator[dict[str, Any]]:
    try:
        with durable.open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            if size > limit:
                file.readline()
            for line in file.read(limit).split(b"\n")[:-1]:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict):
                    yield record
    except OSError:
        return
