"""Wall-clock time as text: UTC, ISO 8601, millisecond precision. Standard library only."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> str:
    """The present moment, e.g. `2026-11-21T04:48:00.123Z`."""
    return stamp(datetime.now(UTC))


def stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def from_epoch(seconds: float) -> str:
    return stamp(datetime.fromtimestamp(seconds, UTC))


def parse(text: str) -> datetime:
    return datetime.fromisoformat(text)


def seconds_between(start: str, end: str) -> float:
    """Seconds from `start` to `end`, both as `now()` writes them."""
    return (parse(end) - parse(start)).total_seconds()
