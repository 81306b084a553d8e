"""The score a campaign reports: the mean of its best recipe's runs on the audit text, opened once, when it has ended.

Every decision of a campaign is made on the validation text, and the best of many flatters itself there. The runs are
those of the best experiment's pairs, made after it had passed its first look. What has been scored is stored run by
run: a kill opens the text again for the run it interrupted only, and an extended campaign for a new best only.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from experiments.record import ExperimentRecord, Frozen
from experiments.words import count
from workspace import clock
from workspace.errors import LabError, Unavailable
from workspace.layout import Workspace

METRICS = ("val_bpb", "val_loss")  # what the audit measures
TRIES = 5  # while the process that scores cannot be had or dies
UNDER_WAY = "under way"
TIMEOUT_S = 4 * 3600.0  # for one run
Score = Callable[[Workspace, str, str], dict[str, Any]]  # (workspace, run, by whom) -> the opening's record


class FinalAudit(Frozen):
    """`due`: to be made; `none`: there is nothing to audit. `scores` by run, also of an earlier end's best."""

    state: Literal["due", "done", "none", "failed"] = "due"
    experiment: str | None = None
    metric: str = "val_bpb"
    runs: list[str] = []
    scores: dict[str, float] = {}
    openings: dict[str, str] = Field({}, description="by run, the id of the opening that gave its score")
    chosen_by: float | None = Field(None, description="the mean of the same runs on the text it was chosen by")
    text: str | None = Field(None, description="names the audit text the scores are on")
    opened_before: int = Field(0, description="openings of that text that gave none of the scores reported")
    tries: int = 0
    why: str = ""
    at: str | None = None

    @property
    def values(self) -> list[float]:
        return [self.scores[run] for run in self.runs if run in self.scores]

    @property
    def left(self) -> list[str]:
        """The runs that are still to be scored."""
        return [run for run in self.runs if run not in self.scores]

    def sentence(self) -> str:
        if self.state == "due":
            return UNDER_WAY
        if self.state != "done":
            return self.why
        values = self.values
        spread = f", SD {statistics.stdev(values):.2g}" if len(values) > 1 else ""
        mean = statistics.fmean(values)
        before = f"; the text had been opened {count(self.opened_before, 'time')} before: .lab/audits.jsonl"
        return (
            f"on the audit text, which no decision has seen, {self.experiment} has {self.metric} {mean:.6g} "
            f"(mean of {count(len(values), 'run')}{spread}; {self.chosen_by:.6g} on the text it was chosen by)"
            f"{before if self.opened_before else ''}"
        )


def anew(earlier: FinalAudit | None) -> FinalAudit:
    """An audit that is due; what an earlier one scored is not scored again."""
    if earlier is None:
        return FinalAudit()
    return FinalAudit(scores=earlier.scores, openings=earlier.openings, text=earlier.text)


def seen(after: FinalAudit, audit: FinalAudit) -> dict[str, Any]:
    """What a step that came too late adds to the audit that is due by now: its scores."""
    scores, openings = {**audit.scores, **after.scores}, {**audit.openings, **after.openings}
    return {"state": "due", "scores": scores, "openings": openings, "text": after.text or audit.text}


def score(workspace: Workspace, run: str, by: str) -> dict[str, Any]:
    """By the trainer's own process. Raises `LabError` where the run cannot be audited."""
    from training.sealed.audit import audit

    return audit(workspace, run, by=by, timeout_s=TIMEOUT_S)


def step(due: FinalAudit, best: ExperimentRecord | None, workspace: Workspace, by: str, score: Score) -> FinalAudit:
    """The next step of an audit that is due: choose what is scored, score one run, or put the scores together.

    Raises `Unavailable` when it cannot be made now.
    """
    now = clock.now()
    if due.experiment is None:
        return _chosen(due, best, now)
    if not due.left:
        return due.model_copy(update={"state": "done", "at": now, "opened_before": _opened_before(due, workspace)})
    run = due.left[0]
    try:
        found = score(workspace, run, by)
    except LabError as error:
        if isinstance(error, Unavailable) and due.tries + 1 < TRIES:
            raise
        why = f"the best could not be scored on the audit text: {error.problem}"
        return due.model_copy(update={"state": "failed", "why": why, "at": now})
    scores, openings = {**due.scores, run: float(found[due.metric])}, {**due.openings, run: found["id"]}
    return due.model_copy(update={"scores": scores, "openings": openings, "text": found["data"], "tries": 0})


def _opened_before(due: FinalAudit, workspace: Workspace) -> int:
    """Openings of the text that gave none of the scores reported: of other runs, of the same ones by other code, or
    broken off. Who asked is not told apart: a score somebody else's opening gave is reported from there."""
    from training.sealed.audit import openings

    own = {due.openings.get(run) for run in due.runs}
    return sum(opening["data"] == due.text and opening["id"] not in own for opening in openings(workspace))


def _chosen(due: FinalAudit, best: ExperimentRecord | None, now: str) -> FinalAudit:
    if best is None:
        return due.model_copy(update={"state": "none", "why": "nothing was kept, so nothing was audited", "at": now})
    metric = best.hypothesis.metric
    if metric not in METRICS:
        why = f"{best.id} was chosen by {metric}, which is not measured on the audit text"
        return due.model_copy(update={"state": "none", "why": why, "at": now})
    scores = best.decisive()
    mean = statistics.fmean(each.values[metric] for each in scores)
    runs = [each.run for each in scores]
    return due.model_copy(update={"experiment": best.id, "metric": metric, "runs": runs, "chosen_by": mean})
