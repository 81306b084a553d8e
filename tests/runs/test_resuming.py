"""A new run that goes on from one that has ended: what it takes over, and what is refused before it starts."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest
from runs_support import Bench
from training_support import SMALL, workspace_with_text

from training.checkpoint_folder import all_in
from training.runs.records import RunRequest
from workspace import durable
from workspace.errors import LabError

STEPS = 100_000


def stopped(bench: Bench) -> str:
    """A run of the real trainer, stopped behind its first steps."""
    overrides = {"budget.amount": STEPS, "evaluation.quick_count": 0, "schedule.warmdown": 0.0}
    run_id = bench.runs.start(RunRequest(overrides=SMALL | overrides, name="long one")).id
    bench.printed(run_id, "Step 1 ")
    bench.runs.stop(run_id)
    assert bench.end(run_id).state == "cancelled"
    return run_id


@pytest.fixture
def bench(make_bench: Any) -> Bench:
    made: Bench = make_bench(grace_seconds=60.0)
    shutil.rmtree(made.workspace.root / "text", ignore_errors=True)
    workspace_with_text(made.workspace.root)
    (made.workspace.root / "recipe").mkdir(exist_ok=True)
    return made


def test_a_run_goes_on_from_another_with_its_recipe_and_its_clock(bench: Bench) -> None:
    recipe = bench.workspace.root / "recipe"
    (recipe / "model.py").write_text("from training.model import build_model\n")
    first = stopped(bench)
    (recipe / "model.py").write_text("raise RuntimeError('another recipe by now')\n")
    reached = durable.read_json(all_in(bench.folder(first) / "checkpoints")[-1] / "state.json")["step"]
    live = bench.runs.start(RunRequest(resume=first, overrides={"budget.amount": reached + 3}))
    assert durable.read_json(bench.folder(live.id) / "run.json")["resume_from"] == f"runs/{first}"
    ended = bench.end(live.id)
    assert ended.state == "succeeded", bench.text(live.id)
    assert ended.name == "long one" and ended.summary is not None and ended.summary["steps"] == reached + 3
    assert f"resumed from step-{reached:08d}" in bench.text(live.id)
    config = durable.read_json(bench.folder(live.id) / "config.json")
    before = durable.read_json(bench.folder(first) / "config.json")
    assert config["budget"].pop("amount") == reached + 3 and before["budget"].pop("amount") == STEPS
    assert config == before
    with pytest.raises(LabError, match=f"{live.id} has succeeded: its budget of {reached + 3} steps is spent"):
        bench.runs.start(RunRequest(resume=live.id))


def test_what_cannot_go_on_is_refused_and_changes_nothing(bench: Bench) -> None:
    script = bench.start("print(1)")
    assert bench.end(script).state == "succeeded"
    first = stopped(bench)
    (checkpoint,) = all_in(bench.folder(first) / "checkpoints")[-1:]
    folders = sorted(bench.workspace.runs_dir.glob("run-*"))

    def refused(told: str, **request: Any) -> None:
        with pytest.raises(LabError, match=told):
            bench.runs.start(RunRequest(**{"resume": first, **request}))
        assert sorted(bench.workspace.runs_dir.glob("run-*")) == folders

    refused("no run 'run-0404'", resume="run-0404")
    refused("is not a run of the built-in trainer", resume=script)
    refused("resume belongs to the built-in trainer", kind="script", script="job.py")
    refused("has its configuration and recipe", recipe_dir=bench.workspace.recipe_dir)
    refused(r"\[model\] differs", overrides={"model.depth": 3})
    refused(r"\[seed\] differs", overrides={"seed": 7})
    refused("there is no setting", overrides={"budget.amuont": 7})
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "model.safetensors").write_bytes(b"short")
    refused(f"truncated: 5 bytes of {state['files']['model.safetensors']}")
    shutil.rmtree(checkpoint.parent)
    refused(f"{first} has no checkpoint")


def test_a_run_that_lives_is_left_alone(bench: Bench) -> None:
    run_id = bench.start("import time; time.sleep(600)")
    with pytest.raises(LabError, match=f"{run_id} has not ended"):
        bench.runs.start(RunRequest(resume=run_id))
