"""Long work for the suites' tasks scenarios: tools and handles as the lab's own are, over jobs that only wait."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from tools.handles import Handle, Work
from tools.tool import Arguments, Caller, Result, Tool
from workspace import clock
from workspace.errors import unknown


class SlowArguments(Arguments):
    seconds: float = Field(1.0, ge=0, le=60)
    label: str = ""


class Said(Result):
    text: str
    job_id: str | None = None


@dataclass
class Job:
    id: str
    label: str
    ends: float
    created_at: str = field(default_factory=clock.now)
    cancelled: bool = False


JOBS: dict[str, Job] = {}


async def slow_compute(lab: Any, arguments: SlowArguments, caller: Caller) -> Said:
    if not arguments.seconds:
        return Said(text=f"done {arguments.label}")
    job = Job(f"job-{len(JOBS) + 1:04d}", arguments.label, time.monotonic() + arguments.seconds)
    JOBS[job.id] = job
    return Said(text=f"begun {job.label}", job_id=job.id)


def look(lab: Any, job_id: str) -> Work:
    if job_id not in JOBS:
        raise unknown("job", job_id, JOBS)
    job = JOBS[job_id]
    over = time.monotonic() >= job.ends
    return Work(
        id=job.id,
        state="cancelled" if job.cancelled else "completed" if over else "working",
        message=f"{'done' if over else 'at work on'} {job.label}",
        created_at=job.created_at,
        updated_at=clock.now(),
        answer=Said(text=f"done {job.label}"),
    )


def cancel(lab: Any, job_id: str) -> None:
    JOBS[job_id].cancelled = True


TOOLS: list[Tool[Any, Any]] = [
    Tool("slow_compute", "Slow", "takes a while", SlowArguments, Said, slow_compute, {"seconds": 1}, read_only=False),
]
HANDLES = {
    "slow_compute": Handle(
        begun=lambda arguments, result: result.get("job_id"), prefix="job-", look=look, cancel=cancel
    )
}
