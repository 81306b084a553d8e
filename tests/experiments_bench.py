"""A workspace in which experiments run to their end without training."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_runs import Script, ScriptedRuns, fingerprint, healthy
from users_repository import make

from experiments.lab import Experiments
from experiments.ledger import Ledger
from experiments.lineage import Lineage
from experiments.ports import Device
from experiments.record import ExperimentRecord
from sessions.notebook import Notebook
from workspace import durable
from workspace.database import Database
from workspace.layout import Workspace
from workspace.outbox import Outbox
from workspace.settings import Settings

BETTER = {
    "statement": "Halving optimizer.matrix_lr lowers val_bpb by at least 0.01",
    "change": {"optimizer.matrix_lr": 0.02},
    "direction": "lower",
    "smallest_effect": 0.01,
    "why": "the default is tuned for larger models",
    "category": "optimizer",
}
WORSE = BETTER | {"statement": "A deeper model.depth of 6 lowers val_bpb", "change": {"model.depth": 6}}
TINY = BETTER | {"statement": "A longer schedule.warmdown lowers val_bpb", "change": {"schedule.warmdown": 0.6},
                 "smallest_effect": 0.001}  # fmt: skip

RECIPE = "[optimizer]\nmatrix_lr = 0.04  # tuned\n"


class Bench:
    """A workspace with everything the experiments need; `again()` is a new service on the same workspace."""

    def __init__(self, root: Path, script: Script = healthy, *, recipe: str = RECIPE, **options: Any) -> None:
        self.workspace: Workspace = make(root, recipe=recipe)
        self.runs = ScriptedRuns(root, script)
        self.options = {"fingerprint": fingerprint, "device": lambda: Device("cpu", 8 * 10**9)} | options
        self.again()

    def again(self) -> Experiments:
        self.database = Database(self.workspace.database_file)
        self.outbox = Outbox(self.database)
        self.notebook = Notebook(self.workspace, self.database, self.outbox)
        self.lab = Experiments(
            self.workspace, Settings(), self.database, self.outbox, self.runs, self.options.get("memory"),
            self.notebook, **{k: v for k, v in self.options.items() if k != "memory"},
        )  # fmt: skip
        return self.lab

    def finish(self, limit: int = 200) -> None:
        for _ in range(limit):
            self.lab.tick()
            self.runs.step()
            if not self.lab.busy():
                return
        raise AssertionError(f"not finished: {[(r.id, r.state) for r in self.lab.ledger.open()]}")

    def conclude(self, claim: dict[str, Any], **options: Any) -> ExperimentRecord:
        proposed = self.lab.propose(claim, **options)
        self.finish()
        return self.lab.get(proposed.id)

    def rows(self) -> list[dict[str, str]]:
        text = self.workspace.results_file.read_text()
        return list(csv.DictReader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))

    def posted(self, topic: str) -> int:
        return len(self.database.query("SELECT id FROM outbox WHERE topic = ?", (topic,)))

    def notes(self, experiment: str) -> int:
        return sum(s.read_text().count(f'"{experiment}/verdict"') for s in self.workspace.journal_dir.glob("*.jsonl"))


class Killed(BaseException):
    """The process is gone: nothing after this line was done."""


class Bomb:
    """Counts every effect on the world, before and after, and kills at one of them."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int) -> None:
        self.at, self.count = at, 0
        for owner, name in [
            (durable, "write_bytes"), (Lineage, "_run"), (ScriptedRuns, "start"), (ScriptedRuns, "stop"),
            (Ledger, "advance"), (Ledger, "add_scores"), (Ledger, "insert"), (Notebook, "event"),
        ]:  # fmt: skip
            patch.setattr(owner, name, self._around(getattr(owner, name)))

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self._tick()
            answer = function(*arguments, **named)
            self._tick()
            return answer

        return counted

    def _tick(self) -> None:
        self.count += 1
        if self.count == self.at:
            raise Killed
