"""What is asked of a run, and what is known of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

Kind = Literal["recipe", "script"]
Purpose = Literal["run", "test", "candidate", "control", "replicate"]
State = Literal[
    "queued", "starting", "running", "stopping",
    "succeeded", "failed", "cancelled", "timed_out", "preempted", "lost",
]  # fmt: skip
FailureClass = Literal["oom", "nan", "signal", "exit", "import", "data", "stalled"]
LIVE: tuple[State, ...] = ("queued", "starting", "running", "stopping")
ENDED: tuple[State, ...] = ("succeeded", "failed", "cancelled", "timed_out", "preempted", "lost")
INTERRUPTED: tuple[State, ...] = ("preempted", "timed_out", "cancelled")  # could go on, with a checkpoint
# 0 first, 9 last: the short ones an experiment waits for, then what a person asked for, then a campaign's
PRIORITY: dict[Purpose, int] = {"test": 3, "run": 5, "candidate": 7, "control": 7, "replicate": 7}
# the end of the reason of a lost run that somebody gave up
GIVEN_UP = "its folder is not there, so how it ended is not known"


class RunRequest(BaseModel):
    """A run to be started. `config` (a resolved `TrainingConfig`) wins over `recipe_dir` and `overrides`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "recipe"
    name: str | None = Field(None, description="for people; None = named after the recipe or script")
    purpose: Purpose = "run"
    priority: int | None = Field(
        None, ge=0, le=9, description="in the queue: 0 first, 9 last, the older of two equals first; None = by purpose"
    )
    experiment: str | None = None
    session: str | None = None
    # recipe
    overrides: dict[str, Any] = {}
    config: SerializeAsAny[BaseModel] | None = None
    recipe_dir: Path | None = Field(None, description="default: the workspace's recipe/")
    resume: str | None = Field(
        None, description="id of an ended run whose newest checkpoint to go on from; its configuration is the default"
    )
    # script
    script: str | None = Field(None, description="path within the workspace, or within `repo`")
    args: tuple[str, ...] = ()
    repo: str | None = Field(None, description="git URL or path; cloned apart from the user's tree")
    branch: str | None = Field(None, description="branch, tag or commit of `repo`; default: its default branch")
    python: str | None = Field(None, description="interpreter for the script")
    # resources
    gpu_count: int | None = Field(None, description="None = one if there is one; 0 = CPU")
    gpu_memory_min_gb: float | None = Field(None, description="memory of each device, in 10^9 bytes")
    time_limit_hours: float | None = None
    prefer_resource: str | None = Field(None, description="cpu, gpu, or a part of a device's name")


class RunRecord(BaseModel):
    """A run as it is known now. Times are ISO 8601 UTC, durations seconds."""

    model_config = ConfigDict(frozen=True)

    id: str
    state: State
    failure_class: FailureClass | None = None
    kind: Kind
    name: str
    purpose: Purpose
    priority: int = Field(5, description="0 first, 9 last in the queue")
    experiment: str | None = None
    session: str | None = None
    created_at: str
    started_at: str | None = None
    ended_at: str | None = None
    elapsed_s: float | None = None
    exit_code: int | None = None
    signal: str | None = None
    reason: str | None = None
    devices: list[str] = Field([], description="ids of the devices it holds, e.g. cuda:0, or cpu")
    waiting_for: str | None = Field(None, description="why a queued run waits, its position, what would free it")
    queue_position: int | None = Field(None, description="of a queued run: 1 = the next to start")
    freed_by: str | None = Field(None, description="what has to happen before a queued run can start")
    progress: dict[str, Any] | None = Field(
        None, description="of a live run: step, fraction (of the budget, 0 to 1), loss, val_bpb, tokens_per_s, eta_s"
    )
    summary: dict[str, Any] | None = Field(None, description="the trainer's summary.json, once the run has ended")
    source: dict[str, Any] | None = Field(None, description="repo, branch and commit of a script run")
    folder: str = Field(description="the run folder, relative to the workspace")

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def given_up(self) -> bool:
        """Lost, because somebody said that it will not come back: to them it was cancelled."""
        return self.state == "lost" and (self.reason or "").endswith(GIVEN_UP)
