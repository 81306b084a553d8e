"""Configurations and workspaces small enough to train in a test."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training.config import TrainingConfig, apply
from workspace.errors import LabError
from workspace.layout import Workspace

SMALL: dict[str, Any] = {
    "model.depth": 2,
    "model.width": 32,
    "model.head_dim": 16,
    "data.corpus": "files",
    "data.files": ["text"],
    "data.vocab_size": 300,
    "data.context": 32,
    "data.validation_percent": 10.0,
    "data.audit_percent": 10.0,
    "batch.tokens": 256,
    "batch.rows": 4,
    "budget.kind": "steps",
    "budget.amount": 6,
    "evaluation.bytes": 4000,
    "evaluation.quick_bytes": 1000,
    "evaluation.quick_count": 1,
    "evaluation.sample_tokens": 4,
    "dtype": "float32",  # `auto` is what pays on the machine
}


def small(**changes: Any) -> TrainingConfig:
    """The small configuration with changes; `__` stands for the dot of a key."""
    return apply(TrainingConfig(), SMALL | {key.replace("__", "."): value for key, value in changes.items()})


def workspace_with_text(root: Path) -> Workspace:
    """A workspace whose folder `text` holds about 60 kB of regular sentences."""
    workspace = Workspace(root.resolve())
    workspace.create_folders()
    (root / "text").mkdir()
    animals = ("the cat", "a dog", "one hen", "some ox", "every bee", "no fish")
    for part in range(3):
        lines = [
            f"{animals[(part + i) % 6]} saw {animals[(i * i + part) % 6]} {i % 17} times in {1900 + i % 90}.\n"
            + ("\n" if i % 7 == 0 else "")
            for i in range(500)
        ]
        (root / "text" / f"part{part}.txt").write_text("".join(lines), encoding="utf-8")
    return workspace


def run_folder(workspace: Workspace, config: TrainingConfig, name: str = "run-0001", **run: Any) -> Path:
    folder = workspace.run_dir(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    (folder / "run.json").write_text(json.dumps({"id": name, "kind": "recipe"} | run))
    return folder


def module_command(module: str, *arguments: object) -> list[str]:
    return [sys.executable, "-P", "-s", "-m", module, *map(str, arguments)]


def needs(package: str) -> None:
    """Skip the test without an optional package; where everything is to be tested, fail."""
    if importlib.util.find_spec(package) is None:
        told = f"{package} is not installed; .ci/install-extras installs it"
        pytest.fail(told) if os.environ.get("CI") == "true" else pytest.skip(told)


def train(folder: Path, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """The real trainer on a run's folder."""
    return subprocess.run(
        module_command("training.train", folder, *arguments),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "LAB_BACKEND": "cpu"},
    )


def train_here(folder: Path, *arguments: str) -> int:
    """The training alone, in this process: saves importing torch again, and the score. It leaves SIGTERM as it was."""
    from training import data, failure, worker
    from training.job import read_job

    before = signal.getsignal(signal.SIGTERM)
    job = None
    try:
        job = read_job(folder, resume="--resume" in arguments)
        prepared = data.prepare(job.config.data, job.workspace)
        return worker.main([str(folder), "--data", str(prepared.folder), *arguments])
    except LabError as error:
        return failure.record(folder, error, job)
    finally:
        signal.signal(signal.SIGTERM, before)


def facts(folder: Path) -> dict[str, Any]:
    """What the training process told of itself."""
    found: dict[str, Any] = json.loads((folder / "training.json").read_text())
    return found


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
