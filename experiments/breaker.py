"""When a campaign should not simply go on: crashes of one class, proposals that come to nothing, no progress."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.campaign import CampaignRecord, Proposal
from experiments.ledger import Ledger
from experiments.record import ExperimentRecord

CRASHES = 3  # of one class in a row
BARREN = 8  # proposals in a row of which none was measured
STAGNANT = 15  # measured experiments without a keep


def same_crash(campaign: CampaignRecord, recent: Sequence[ExperimentRecord]) -> str | None:
    """Why to pause after the last experiments (oldest first), those since it was last resumed."""
    ended = [r for r in recent if not r.open and (r.ended_at or "") > _since(campaign)][-CRASHES:]
    classes = {r.failure_class for r in ended if r.verdict in ("crash", "invalid") and r.failure_class}
    if len(ended) < CRASHES or len(classes) != 1 or any(not r.failure_class for r in ended):
        return None
    if any(r.verdict not in ("crash", "invalid") for r in ended):
        return None
    names = ", ".join(r.id for r in ended)
    advice = (ended[-1].advice or "").splitlines()
    return f"{CRASHES} crashes of class {classes.pop()} in a row ({names})" + (f": {advice[0]}" if advice else "")


def barren(campaign: CampaignRecord, proposals: Sequence[Proposal], recent: Sequence[ExperimentRecord]) -> str | None:
    """Why to pause when none of the last proposals was measured: refused, repeated, without effect."""
    last = [p for p in proposals if p.asked_at > _since(campaign) and p.state in ("refused", "proposed")][-BARREN:]
    idle = {r.id: r for r in recent if not r.open and r.verdict in ("no_effect", "invalid")}
    if len(last) < BARREN or not all(p.state == "refused" or p.experiment in idle for p in last):
        return None
    why = last[-1].problem or (idle[last[-1].experiment].sentence if last[-1].experiment in idle else "")
    return f"none of the last {BARREN} proposals could be measured; the last: {why}"


def stagnant(campaign: CampaignRecord, ledger: Ledger) -> dict[str, int] | None:
    """{"measured", "since_keep"} when it is time to say that nothing was kept for long; once every `STAGNANT`."""
    measured, since_keep = ledger.since_keep(campaign.id)
    told = max((s.data["measured"] for s in campaign.steps if s.name == "stagnation"), default=0)
    if since_keep < STAGNANT or measured - told < STAGNANT:
        return None
    return {"measured": measured, "since_keep": since_keep}


def _since(campaign: CampaignRecord) -> str:
    """When it was last set going."""
    return next(s.at for s in reversed(campaign.steps) if s.name in ("started", "resumed", "extended"))
