"""Which proposers this lab has, by name, as its settings allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from experiments.campaign import CampaignRecord
from experiments.proposers.optuna_search import OptunaProposer
from experiments.proposers.port import Proposer
from workspace.layout import Workspace
from workspace.settings import Settings

Maker = Callable[[CampaignRecord], Proposer]


def proposers(workspace: Workspace, settings: Settings) -> Mapping[str, Maker]:
    """A maker for every proposer but the assistant, who proposes through the tools."""

    def optuna(campaign: CampaignRecord) -> Proposer:
        return OptunaProposer(campaign.settings.get("sampler", "tpe"))

    return {"optuna": optuna}
