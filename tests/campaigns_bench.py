"""A workspace in which campaigns run without training, on a made-up landscape of scores."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from experiments_bench import Bench, Bomb, Killed
from scripted_runs import NOISE, Script

from experiments.campaign import Budget, CampaignRecord
from experiments.campaign_ledger import CampaignLedger
from experiments.campaigns import Campaigns
from experiments.ports import Fingerprint
from experiments.proposers.optuna_search import OptunaProposer
from training.config import TrainingConfig
from training.runs.records import RunRequest

EXPERIMENTS = 4  # of a campaign that is killed
RECIPE = """\
[optimizer]
matrix_lr = 0.004  # ten times too low
[search_space]
"optimizer.matrix_lr" = { low = 0.001, high = 0.4, log = true }
"optimizer.weight_decay" = { low = 0.0, high = 0.5 }
"model.depth" = { choices = [2, 4, 6] }
"""


def score(config: TrainingConfig) -> float:
    """Best at matrix_lr 0.04 (0.05 a factor of ten squared); depth and decay do little."""
    distance = math.log10(config.optimizer.matrix_lr / 0.04)
    return 1.0 + 0.05 * distance**2 + 0.001 * abs(config.model.depth - 4)


def landscape(request: RunRequest, key: str) -> dict[str, Any]:
    config = request.config
    assert isinstance(config, TrainingConfig)
    # noise by the run's place in the campaign: a number that a kill burns moves the seeds of what follows
    draw = random.Random(f"{config.model_copy(update={'seed': 0}).model_dump_json()} {key.partition('/')[2]}")
    summary = {"val_bpb": score(config) + draw.gauss(0, NOISE), "training_seconds": 6.0, "peak_memory_bytes": 2**30}
    return {"state": "succeeded", "summary": summary, "losses": [5 - 0.1 * i for i in range(20)]}


def fingerprint(config: TrainingConfig, recipe_dir: Path) -> Fingerprint:
    settings = json.dumps(config.model_dump(mode="json", exclude={"seed"}), sort_keys=True)
    return Fingerprint(structural=hashlib.sha256(settings.encode()).hexdigest(), behavioural="")


class CampaignBench(Bench):
    """`again()` is a new service on the same workspace."""

    def __init__(self, root: Path, script: Script = landscape, proposers: Any = None, **options: Any) -> None:
        self.killed = 0
        self.openings: list[tuple[str, str]] = []
        self.proposers = proposers or {
            "optuna": lambda record: OptunaProposer(record.settings.get("sampler", "tpe")),
        }
        super().__init__(root, script, recipe=RECIPE, **({"fingerprint": fingerprint} | options))

    def again(self) -> Any:
        super().again()
        self.campaigns = Campaigns(
            self.workspace, self.database, self.outbox, self.lab, self.proposers, score=self.opened
        )
        return self.lab

    def opened(self, workspace: Any, run: str, by: str) -> dict[str, Any]:
        """The audit text scores every run a little worse than the text it was chosen by."""
        self.openings.append((run, by))
        score = self.runs.records[run].summary["val_bpb"] + 0.01
        return {"id": f"opening-{len(self.openings)}", "run": run, "data": "text", "val_bpb": score}

    def start(self, experiments: int = 5, **options: Any) -> CampaignRecord:
        goal = options.pop("goal", "find a better learning rate")
        return self.campaigns.start(goal, Budget(experiments=experiments), **options)

    def step(self) -> None:
        self.campaigns.tick()
        self.campaigns.tick_audits()
        self.lab.tick()
        self.runs.step()

    def run_out(self, limit: int = 2000) -> None:
        """Go on until no campaign runs and nothing is under way."""
        for _ in range(limit):
            self.step()
            if not self.campaigns.ledger.list("running") and not self.campaigns.busy() and not self.lab.busy():
                return
        raise AssertionError(f"not finished: {[(c.id, c.state) for c in self.campaigns.ledger.list()]}")


class CampaignBomb(Bomb):
    """Counts what a campaign does to the world, too."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int) -> None:
        super().__init__(patch, at)
        for owner, name in [
            (CampaignLedger, "create"), (CampaignLedger, "step"), (CampaignLedger, "ask"), (CampaignLedger, "settle"),
            (CampaignLedger, "audited"), (CampaignBench, "opened"), (OptunaProposer, "propose"),
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
        "campaign": (view.state, view.why, view.counts, view.spent.runs, re.sub(r"exp-\d+", "exp", view.audit or "")),
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
                bench.killed += 1
                bench.database.close()
                bench.again()


def kills(root: Path, rounds: int, seed: int) -> int:
    """`rounds` campaigns of the same kind, each killed once or several times, all like the twin; how many kills."""
    twin, effects = run_killed_at(root / "twin", [])
    expected = outcome(twin)
    assert expected["campaign"][0] == "ended" and len(expected["changes"]) == EXPERIMENTS
    draw, done = random.Random(seed), 0
    for number in range(rounds):
        moments = [draw.randint(1, effects // 2)] + [draw.randint(1, effects // 3) for _ in range(draw.randint(0, 3))]
        bench, _ = run_killed_at(root / f"killed-{number}", moments)
        assert outcome(bench) == expected, (seed, number, moments)
        bench.database.close()
        done += bench.killed
        shutil.rmtree(bench.workspace.root)
    return done
