"""Runs whose course is written in a script: what the experiments see of `training.runs`, without training."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from experiments.ports import Fingerprint
from training.config import TrainingConfig, value_of
from training.runs.records import RunRecord, RunRequest
from workspace import clock, durable

NOISE = 0.002


def noise(config: TrainingConfig, *, size: float = NOISE) -> float:
    """The same for the same settings and seed."""
    digest = hashlib.sha256(config.model_dump_json().encode()).digest()
    return random.Random(digest).gauss(0, size)


def score(config: TrainingConfig) -> float:
    """A made-up truth: a matrix_lr below 0.04 is better by 0.05, a deeper model is worse, softcap does nothing."""
    gain = 0.05 if config.optimizer.matrix_lr < 0.04 else 0.0
    gain += 0.0015 if config.schedule.warmdown > 0.5 else 0.0
    return 1.0 - gain + 0.03 * max(0, config.model.depth - 4) + noise(config)


Script = Callable[[RunRequest, str], dict[str, Any]]


def healthy(request: RunRequest, key: str) -> dict[str, Any]:
    config = request.config
    assert isinstance(config, TrainingConfig)
    seconds = config.budget.amount * 0.1
    summary = {"val_bpb": score(config), "training_seconds": seconds, "peak_memory_bytes": 2**30, "depth": True}
    return {"state": "succeeded", "summary": summary, "losses": [5 - 0.1 * i for i in range(20)]}


class ScriptedRuns:
    """Survives the experiments object, as real runs survive the service. `step()` lets every live run end."""

    def __init__(self, root: Path, script: Script = healthy) -> None:
        self.root = root
        self.script = script
        self.records: dict[str, RunRecord] = {}
        self.requests: dict[str, RunRequest] = {}
        self.keys: dict[str, str] = {}
        self.order: list[str] = []  # keys as started

    def start(self, request: RunRequest, key: str | None = None) -> RunRecord:
        assert key is not None
        if key not in self.keys:
            run = f"run-{len(self.records) + 1:04d}"
            self.keys[key], self.requests[run] = run, request
            self.order.append(key)
            (self.root / "runs" / run).mkdir(parents=True)
            self.records[run] = RunRecord(
                id=run, state="queued", kind="recipe", name=request.name, purpose=request.purpose,
                experiment=request.experiment, created_at=clock.now(), folder=f"runs/{run}",
            )  # fmt: skip
        return self.records[self.keys[key]]

    def get(self, run_id: str, /) -> RunRecord:
        return self.records[run_id]

    def list(
        self, states: Collection[str] | None = None, experiment: str | None = None, limit: int = 20
    ) -> list[RunRecord]:
        found = [r for r in self.records.values() if experiment in (None, r.experiment)]
        return [r for r in reversed(found) if states is None or r.state in states][:limit]

    def stop(self, run_id: str, /, reason: str = "", by: str = "user") -> RunRecord:
        return self._end(run_id, {"state": "cancelled", "reason": f"{reason} ({by})"})

    def step(self, limit: int | None = None) -> None:
        """Let live runs end, the oldest first."""
        live = [run for run, record in self.records.items() if not record.ended]
        for run in live[:limit]:
            key = next(k for k, r in self.keys.items() if r == run)
            self._end(run, self.script(self.requests[run], key))

    def _end(self, run: str, course: dict[str, Any]) -> RunRecord:
        folder = self.root / "runs" / run
        for step, loss in enumerate(course.get("losses", [])):
            durable.append_jsonl(folder / "metrics.jsonl", {"step": step, "loss": loss})
        if course.get("log"):
            (folder / "train.log").write_text(course["log"])
        changes = {key: value for key, value in course.items() if key not in ("losses", "log")}
        self.records[run] = self.records[run].model_copy(update={"elapsed_s": 2.0, "ended_at": clock.now(), **changes})
        return self.records[run]


def fingerprint(config: TrainingConfig, recipe_dir: Path) -> Fingerprint:
    """As if the recipe did not read `model.softcap`."""
    settings = {key: str(value_of(config, key)) for key in ("optimizer.matrix_lr", "model.depth", "schedule.warmdown")}
    code = sorted(f.read_text() for f in recipe_dir.glob("*.py"))
    return Fingerprint(structural=str((settings, config.batch, config.budget, code)), behavioural="")
