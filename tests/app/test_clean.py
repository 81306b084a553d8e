"""`lab-mcp clean`, `pin` and `unpin` through the real service, beside an experiment that is under way."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from lab_mcp import compose
from lab_mcp.rest_runs import needed
from tools.lab import Lab
from training.runs.records import RunRequest
from workspace.layout import Workspace

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def with_checkpoints(lab: Workspace) -> list[str]:
    """Three runs that ended long ago, with checkpoints; no service is running."""
    parts = compose.build_lab(lab, {"pid": 0, "url": "", "started_at": "", "version": "0"})
    (lab.root / "idle.py").write_text("")
    runs = []
    for _ in range(3):
        request = RunRequest(kind="script", script="idle.py", prefer_resource="cpu")
        runs.append(parts.runs.start(request).id)
        parts.runs.stop(runs[-1])
    for run in runs:
        while not parts.runs.get(run).ended:
            parts.runs.tick()
        folder = lab.run_dir(run) / "checkpoints" / "step-00000001"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x" * 500_000)
    with parts.database.transaction() as tx:
        tx.execute("UPDATE runs SET ended_at = '2026-01-01T00:00:00.000Z', state = 'succeeded'")
    compose.stop(parts)
    return runs


def has_checkpoints(lab: Workspace, runs: list[str]) -> list[bool]:
    return [(lab.run_dir(run) / "checkpoints").exists() for run in runs]


def test_clean_tells_then_does_and_pins_hold(lab: Workspace, with_checkpoints: list[str], command: Command) -> None:
    first, second, third = with_checkpoints
    assert command("pin", first).stdout == f"{first} is pinned\n"
    told = command("clean", "--keep-latest", "1")
    assert told.returncode == 0, told.stderr
    assert second in told.stdout and f"{first} stays: pinned" in told.stdout
    assert f"{third} stays: one of the latest 1" in told.stdout and "nothing was removed" in told.stdout
    assert has_checkpoints(lab, with_checkpoints) == [True, True, True]

    plan: dict[str, Any] = json.loads(command("clean", "--keep-latest", "1", "--yes", "--json").stdout)
    assert plan["done"] and [removal["run"] for removal in plan["removals"]] == [second]
    assert has_checkpoints(lab, with_checkpoints) == [True, False, True]
    listed = command("runs").stdout
    assert "pinned" in listed and "checkpoints (0.00 GB) removed" in listed
    assert command("unpin", first).returncode == 0
    command("clean", "--keep-latest", "1", "--yes")
    assert has_checkpoints(lab, with_checkpoints) == [False, False, True]


def test_refusals_are_words(lab: Workspace, command: Command) -> None:
    answer = command("pin", "run-0099")
    assert answer.returncode == 2 and "run-0099" in answer.stderr and "Traceback" not in answer.stderr
    assert command("clean", "everything").returncode == 2


def test_what_an_open_experiment_needs(lab: Workspace) -> None:
    parts: Lab = compose.build_lab(lab, {"pid": 0, "url": "", "started_at": "", "version": "0"})
    try:
        (lab.root / "idle.py").write_text("")
        claim = {
            "statement": "A tenth of the rate lowers val_bpb, because steps are steadier",
            "change": {"optimizer.matrix_lr": 0.004},
            "metric": "val_bpb",
            "direction": "lower",
            "smallest_effect": 0.01,
            "why": "the loss of the first run jumped up and down from step to step",
            "category": "optimizer",
        }
        experiment = parts.experiments.propose(claim).id
        request = RunRequest(kind="script", script="idle.py", experiment=experiment, prefer_resource="cpu")
        run = parts.runs.start(request).id
        other = parts.runs.start(RunRequest(kind="script", script="idle.py", prefer_resource="cpu")).id
        assert needed(parts) == {run: f"{experiment} is open"} and other not in needed(parts)
        parts.experiments.cancel(experiment)
    finally:
        for live in parts.runs.list(limit=10):
            parts.runs.stop(live.id)
        compose.stop(parts)
