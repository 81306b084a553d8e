"""A workspace in which campaigns run without training, on a made-up landscape of scores."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

from experiments_bench import Bench
from scripted_runs import NOISE, Script

from experiments.campaign import Budget, CampaignRecord
from experiments.campaigns import Campaigns
from experiments.ports import Fingerprint
from experiments.proposers.optuna_search import OptunaProposer
from training.config import TrainingConfig
from training.runs.records import RunRequest

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
        self.proposers = proposers or {
            "optuna": lambda record: OptunaProposer(record.settings.get("sampler", "tpe")),
        }
        super().__init__(root, script, recipe=RECIPE, **({"fingerprint": fingerprint} | options))

    def again(self) -> Any:
        super().again()
        self.campaigns = Campaigns(self.workspace, self.database, self.outbox, self.lab, self.proposers)
        return self.lab

    def start(self, experiments: int = 5, **options: Any) -> CampaignRecord:
        return self.campaigns.start("find a better learning rate", Budget(experiments=experiments), **options)

    def step(self) -> None:
        self.campaigns.tick()
        self.lab.tick()
        self.runs.step()

    def run_out(self, limit: int = 2000) -> None:
        """Go on until no campaign runs and nothing is under way."""
        for _ in range(limit):
            self.step()
            if not self.campaigns.ledger.list("running") and not self.lab.busy():
                return
        raise AssertionError(f"not finished: {[(c.id, c.state) for c in self.campaigns.ledger.list()]}")
