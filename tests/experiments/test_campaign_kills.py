"""A campaign killed again and again ends like its undisturbed twin: no row lost, doubled or invented."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from campaigns_bench import CampaignBench
from experiments_bench import Bomb, Killed

from experiments.campaign_ledger import CampaignLedger
from experiments.proposers.optuna_search import OptunaProposer

EXPERIMENTS = 4


class CampaignBomb(Bomb):
    """Counts what a campaign does to the world, too."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int) -> None:
        super().__init__(patch, at)
        for owner, name in [
            (CampaignLedger, "create"), (CampaignLedger, "step"), (CampaignLedger, "ask"), (CampaignLedger, "settle"),
            (OptunaProposer, "propose"),
        ]:  # fmt: skip
            patch.setattr(owner, name, self._around(getattr(owner, name)))


def outcome(bench: CampaignBench) -> dict[str, Any]:
    """Everything that was decided; without ids, because one given out in a killed transaction is not used again."""
    records = [bench.lab.get(record.id) for record in reversed(bench.lab.list(100))]
    rows = bench.rows()
    assert len({row["experiment"] for row in rows}) == len(rows) == len(records)
    proposals = bench.campaigns.ledger.proposals("camp-0001")
    assert [p.experiment for p in proposals] == [r.id for r in records]
    assert all(bench.notes(record.id) == 1 for record in records)
    view = bench.campaigns.look("camp-0001")
    return {
        "changes": [record.hypothesis.change for record in records],
        "keys": [record.key for record in records],
        "proposals": [(p.number, p.state, p.answer and p.answer["change"]) for p in proposals],
        "verdicts": [(record.verdict, record.numbers) for record in records],
        "scores": [[(s.role, s.index, s.value) for s in sorted(r.scores, key=lambda s: (s.role, s.index))]
                   for r in records],
        "rules": [record.rule for record in records],
        "runs": len(bench.runs.keys),
        "rows": [{k: v for k, v in row.items() if k in ("val_bpb", "status", "verdict", "effect", "change")}
                 for row in rows],
        "campaign": (view.state, view.why, view.counts, view.spent.runs),
        "steps": [step.name for step in bench.campaigns.get("camp-0001").steps],
        "told": (bench.posted("campaign.changed"), bench.posted("experiment.ended")),
    }  # fmt: skip


def run_killed_at(root: Path, moments: list[int]) -> tuple[CampaignBench, int]:
    """Run a campaign to its end; killed at effect number `moments[0]`, then `moments[1]` effects later, and so on."""
    bench = CampaignBench(root)
    bench.start(EXPERIMENTS)
    left, counted = list(moments), 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            bomb = CampaignBomb(patch, left.pop(0) if left else 0)
            try:
                bench.run_out()
                return bench, counted + bomb.count
            except Killed:
                counted += bomb.count
                bench.database.close()
                bench.again()


def kills(root: Path, rounds: int, seed: int) -> None:
    """`rounds` campaigns of the same kind, each killed once or several times, all like the twin."""
    twin, effects = run_killed_at(root / "twin", [])
    expected = outcome(twin)
    assert expected["campaign"][0] == "ended" and len(expected["changes"]) == EXPERIMENTS
    draw = random.Random(seed)
    for number in range(rounds):
        moments = [draw.randint(1, effects // 2)] + [draw.randint(1, effects // 3) for _ in range(draw.randint(0, 3))]
        bench, _ = run_killed_at(root / f"killed-{number}", moments)
        assert outcome(bench) == expected, (seed, number, moments)
        bench.database.close()


def test_killed_three_times(tmp_path: Path) -> None:
    kills(tmp_path, 2, seed=1)


@pytest.mark.slow
def test_killed_at_fifteen_random_moments(tmp_path: Path) -> None:
    seed = random.SystemRandom().randint(0, 10**6)
    print(f"seed {seed}")
    kills(tmp_path, 15, seed)
