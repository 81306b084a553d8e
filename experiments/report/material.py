"""What a report is written from: records, and the summaries of the runs that show how they were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from experiments.campaign import CampaignRecord, Spent
from experiments.error_budget import charge, confirmed
from experiments.record import ExperimentRecord


class Material(BaseModel):
    """`records`: every experiment in question, oldest first, with steps and scores. Times are ISO 8601 UTC."""

    model_config = ConfigDict(frozen=True)

    what: str = Field(description="what was asked for: a campaign's id, a range of sessions, all")
    lab: str = Field(description="the name of the workspace's folder")
    version: str
    at: str
    records: list[ExperimentRecord]
    campaign: CampaignRecord | None = None
    spent: Spent | None = None
    summaries: dict[str, dict[str, Any]] = Field({}, description="by run: of the first and last runs of each kind")
    openings: list[dict[str, Any]] = Field([], description="of the audit text, in this workspace")
    error_budget: float | None = Field(None, description="chance of any false keep in a campaign, or in a week")

    @property
    def ended(self) -> list[ExperimentRecord]:
        return [record for record in self.records if record.verdict is not None and record.state in ("record", "done")]

    @property
    def kept(self) -> list[ExperimentRecord]:
        return [record for record in self.ended if record.verdict == "keep"]

    @property
    def measured(self) -> list[ExperimentRecord]:
        return [record for record in self.ended if record.numbers is not None]

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(record.hypothesis.metric for record in self.records))

    def looks(self, record: ExperimentRecord) -> int:
        return sum(step.name.startswith("look ") for step in record.steps)

    def spent_error(self) -> float:
        """Of the error budget, by `experiments.error_budget.charge`."""
        return sum(
            charge(
                record.rule.alpha,
                ended=True,
                confirmed=confirmed(record.numbers.method if record.numbers else None),
                kept=record.verdict == "keep",
            )
            for record in self.ended
        )


def on_pairs(record: ExperimentRecord) -> bool:
    """Does its verdict rest on pairs of fresh runs?"""
    return record.numbers is not None and record.numbers.method == "pairs"


def telling_runs(records: Sequence[ExperimentRecord]) -> list[str]:
    """The runs whose summaries show how everything was measured: the first and last of each machine and yardstick."""
    first: dict[tuple[str, str | None], str] = {}
    last: dict[tuple[str, str | None], str] = {}
    best: list[str] = []
    for record in records:
        for score in record.scores:
            kind = score.machine, record.yardstick
            first.setdefault(kind, score.run)
            last[kind] = score.run
        if record.is_best:
            best = [score.run for score in record.scored("candidate").values()][-1:]
    return list(dict.fromkeys([*best, *first.values(), *last.values()]))


def values(summaries: Mapping[str, Mapping[str, Any]], path: str) -> list[Any]:
    """The different values at a dotted path, in the order in which they are met."""
    found: list[Any] = []
    for summary in summaries.values():
        node: Any = summary
        for part in path.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        if node is not None and node not in found:
            found.append(node)
    return found
