"""A campaign at a glance: what it may use, has used and has found."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from experiments.campaign import Budget, CampaignRecord, Spent
from experiments.ledger import Ledger
from workspace import clock

BEGINS, RESTS = ("started", "resumed"), ("paused", "ended")


class CampaignView(BaseModel):
    model_config = ConfigDict(frozen=True)

    campaign_id: str
    state: str
    why: str | None = Field(None, description="why it is in this state")
    goal: str
    metric: str
    direction: str
    smallest_effect: float
    proposer: str
    budget: Budget
    spent: Spent
    counts: dict[str, int] = Field(description="its experiments by verdict")
    best: str | None = Field(None, description="the experiment it kept last; its recipe is the best so far")
    best_sentence: str | None = None
    audit: str | None = Field(None, description="once it has ended: its best on text no decision has seen")
    under_way: list[str] = Field([], description="experiments that have no verdict yet")
    waiting_for: str | None = None
    notice: str | None = Field(None, description="what its owner should know")
    created_at: str
    ended_at: str | None = None


def view(record: CampaignRecord, ledger: Ledger, spent: Spent, waiting_for: str | None) -> CampaignView:
    best = ledger.leader(record.id, record.metric)
    stagnation = next((s for s in reversed(record.steps) if s.name == "stagnation"), None)
    stale = stagnation is not None and (best is None or (best.ended_at or "") < stagnation.at)
    under_way = [r for r in ledger.open() if r.campaign == record.id]
    auditing = record.state == "ended" and record.audit is not None and record.audit.state == "due"
    if record.state != "running" and not auditing:
        waiting_for = None
    held = next((f"{r.id}, which waits: {r.waits_for}" for r in under_way if r.waits_for), None)
    return CampaignView(
        campaign_id=record.id,
        state=record.state,
        why=record.why or None,
        goal=record.goal,
        metric=record.metric,
        direction=record.direction,
        smallest_effect=record.smallest_effect,
        proposer=record.proposer + (f"/{record.settings['sampler']}" if "sampler" in record.settings else ""),
        budget=record.budget,
        spent=Spent(**{name: round(value, 4) for name, value in spent.model_dump().items()}),
        counts=ledger.counts(record.id),
        best=best.id if best else None,
        best_sentence=best.sentence if best else None,
        audit=record.audit.sentence() if record.audit is not None and record.state == "ended" else None,
        under_way=[r.id for r in under_way],
        waiting_for=waiting_for or held,
        notice=stagnation.why if stagnation is not None and stale and record.state != "ended" else None,
        created_at=record.created_at,
        ended_at=record.ended_at,
    )


def hours(record: CampaignRecord, now: str) -> float:
    """Hours of the clock during which it ran."""
    seconds, since, rest = 0.0, None, ""
    for step in record.steps:
        # extending one that has ended sets it going again, one that is paused stays so
        if step.name in BEGINS or (step.name == "extended" and rest == "ended"):
            since, rest = since or step.at, ""
        elif step.name in RESTS:
            seconds += clock.seconds_between(since, step.at) if since is not None else 0.0
            since, rest = None, step.name
    if since is not None and record.state == "running":
        seconds += clock.seconds_between(since, now)
    return seconds / 3600
