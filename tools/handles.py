"""Long work and its handle: what `start_training` and its like leave behind, found again by the id they returned.

Nothing is kept here: a run's or an experiment's own record says how it stands. Nothing here knows a transport.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from experiments.record import ExperimentRecord
from tools import campaigns, experiments, runs
from tools.lab import Lab
from tools.tool import Result
from training.runs.records import RunRecord
from workspace import clock

WorkState = Literal["working", "completed", "failed", "cancelled"]


@dataclass(frozen=True)
class Work:
    """How long work stands. `answer` is what the tool that began it would answer now."""

    id: str
    state: WorkState
    message: str  # one line for people
    created_at: str
    updated_at: str
    answer: Result


@dataclass(frozen=True)
class Handle:
    """One kind of long work. `look` and `cancel` raise `NotFound` naming the closest id."""

    begun: Callable[[Mapping[str, Any], Mapping[str, Any]], str | None]  # (arguments, result) -> id, if one was begun
    prefix: str  # of every such id
    look: Callable[[Any, str], Work]
    cancel: Callable[[Any, str], object]


def _run(lab: Lab, run_id: str) -> Work:
    record = lab.runs.get(run_id)
    state: WorkState = "working" if not record.ended else "completed"
    if record.state == "cancelled":
        state = "cancelled"
    return Work(
        id=record.id,
        state=state,
        message=runs.progress_line(record),
        created_at=record.created_at,
        updated_at=record.ended_at or clock.now(),
        answer=_run_answer(record),
    )


def _run_answer(record: RunRecord) -> Result:
    following = "list_runs(run_id={0!r}) for the curve and all settings; tail_log(run_id={0!r}) for its output"
    return runs.StartTrainingResult(**runs.view(record).model_dump(), next=following.format(record.id))


def _experiment(lab: Lab, experiment_id: str) -> Work:
    record = lab.experiments.get(experiment_id)
    state: WorkState = "working" if record.open else "completed"
    if record.cancelled_by and not record.open:
        state = "cancelled"
    return Work(
        id=record.id,
        state=state,
        message=_experiment_line(record),
        created_at=record.created_at,
        updated_at=record.ended_at or clock.now(),
        answer=experiments.ProposeResult(
            **experiments.view(record).model_dump(),
            next=f"list_experiments(experiment_id={record.id!r}) for the report; tell the user the sentence as it is",
        ),
    )


def _experiment_line(record: ExperimentRecord) -> str:
    if record.sentence:
        return f"{record.id}: {record.sentence}"
    return f"{record.id} {record.state}, {experiments.scored(record)}"


def _campaign(lab: Lab, campaign_id: str) -> Work:
    found = lab.campaigns.look(campaign_id)
    tried = sum(found.counts.values())
    record = lab.campaigns.get(campaign_id)
    audited = record.audit is None or record.audit.state != "due"
    state: WorkState = "completed" if found.state == "ended" and audited else "working"
    if found.state == "ended" and record.stopped_by:
        state = "cancelled"
    how = f"{found.state} ({found.why})" if found.why else found.state
    return Work(
        id=found.campaign_id,
        state=state,
        message=f"{found.campaign_id} {how}, {tried} experiments judged, best {found.best or 'none yet'}",
        created_at=found.created_at,
        updated_at=found.ended_at or clock.now(),
        answer=campaigns.RunCampaignResult(
            campaigns=[found], next=f"list_experiments(campaign_id={found.campaign_id!r}) shows its experiments"
        ),
    )


def _started_campaign(arguments: Mapping[str, Any], result: Mapping[str, Any]) -> str | None:
    return str(result["campaigns"][0]["campaign_id"]) if arguments.get("action") == "start" else None


HANDLES: Mapping[str, Handle] = {  # by the tool that begins the work
    "start_training": Handle(
        begun=lambda arguments, result: result["run_id"],
        prefix="run-",
        look=_run,
        cancel=lambda lab, run_id: lab.runs.stop(run_id, "cancelled by the client", by="client"),
    ),
    "propose_and_run_experiment": Handle(
        begun=lambda arguments, result: result["experiment_id"],
        prefix="exp-",
        look=_experiment,
        cancel=lambda lab, experiment_id: lab.experiments.cancel(experiment_id, by="client"),
    ),
    "run_campaign": Handle(
        begun=_started_campaign,
        prefix="camp-",
        look=_campaign,
        cancel=lambda lab, campaign_id: lab.campaigns.stop(campaign_id, "cancelled by the client", by="client"),
    ),
}
