"""Which proposers this lab has, by name, as its settings allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from experiments.campaign import CampaignRecord
from experiments.proposers.asking import Asking, Pace
from experiments.proposers.claude_code import ClaudeCodeProposer
from experiments.proposers.hybrid import HybridProposer
from experiments.proposers.model import ModelProposer
from experiments.proposers.optuna_search import OptunaProposer
from experiments.proposers.port import Proposer
from workspace.layout import Workspace
from workspace.settings import Settings

Maker = Callable[[CampaignRecord], Proposer]


def proposers(workspace: Workspace, settings: Settings) -> Mapping[str, Maker]:
    """A maker for every proposer but the assistant, who proposes through the tools."""
    pace = Pace(settings.proposer.requests_per_minute)

    def optuna(campaign: CampaignRecord) -> Proposer:
        return OptunaProposer(campaign.settings.get("sampler", "tpe"))

    def llm(campaign: CampaignRecord) -> Proposer:
        return ModelProposer(Asking(settings.proposer, pace))

    def hybrid(campaign: CampaignRecord) -> Proposer:
        return HybridProposer(optuna(campaign), ModelProposer(Asking(settings.proposer, pace, numbers_elsewhere=True)))

    def claude_code(campaign: CampaignRecord) -> Proposer:
        return ClaudeCodeProposer(workspace, Asking(settings.proposer, pace))

    return {"optuna": optuna, "llm": llm, "hybrid": hybrid, "claude-code": claude_code}
