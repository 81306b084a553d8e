"""The question a proposer is asked: what is known when the next experiment of a campaign is to be proposed."""

from __future__ import annotations

from experiments.campaign import Attempt, CampaignRecord, Proposal
from experiments.campaign_ledger import CampaignLedger
from experiments.lab import Experiments
from experiments.proposers.port import Question
from workspace.layout import Workspace

LOOK_BACK = 12  # experiments, and proposals, looked at
LONGEST_PROGRAM = 8000  # characters of program.md a model is given


def question(
    record: CampaignRecord, proposal: Proposal, ledger: CampaignLedger, experiments: Experiments, money: float
) -> Question:
    """As of the moment it was asked first: a restart asks the very same. `money`: what the campaign has used."""
    parent, base, space = experiments.starting_point()
    history = [
        r.model_copy(update={"state": "done" if "" < (r.ended_at or "") <= proposal.asked_at else "ready"})
        for r in experiments.ledger.of_campaign(record.id)
        if r.created_at <= proposal.asked_at
    ]
    refused = [p for p in ledger.proposals(record.id, last=LOOK_BACK) if p.state == "refused"]
    stagnation = next((s for s in reversed(record.steps) if s.name == "stagnation"), None)
    kept = max((r.ended_at or "" for r in history if r.verdict == "keep"), default="")
    return Question(
        campaign=record,
        number=proposal.number,
        seed=(record.seed * 1_000_003 + proposal.number) % 2**32,
        parent=parent,
        base=base,
        search_space=space,
        history=history,
        refused=refused[-3:],
        attempts=proposal.attempts,
        program=_program(experiments.workspace),
        passages=experiments.passages,
        stagnant=stagnation.data["since_keep"] if stagnation is not None and stagnation.at > kept else 0,
        money_left=None if record.budget.money is None else record.budget.money - money,
        answers_cost=ledger.money(record.id),
        dearest=ledger.dearest(record.id),
        note=lambda attempt: _note(ledger, proposal, attempt),
    )


def _note(ledger: CampaignLedger, proposal: Proposal, attempt: Attempt | None) -> None:
    ledger.attempt(proposal, attempt)


def _program(workspace: Workspace) -> str:
    try:
        return workspace.program_file.read_text(encoding="utf-8")[:LONGEST_PROGRAM]
    except (OSError, UnicodeDecodeError):
        return ""  # it is optional
