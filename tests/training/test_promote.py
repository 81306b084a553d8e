"""A promoted model can be used without its run, and says where it came from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from training_support import run_folder, small, train, workspace_with_text

from training import promote
from workspace.errors import LabError
from workspace.layout import Workspace


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = workspace_with_text(tmp_path_factory.mktemp("lab"))
    (workspace.root / "lab.toml").write_text("")
    recipe = workspace.run_dir("run-0001") / "recipe"
    recipe.mkdir(parents=True)
    (recipe / "model.py").write_text("from training.model import GPT\nclass Mine(GPT): ...\nbuild_model = Mine\n")
    folder = run_folder(workspace, small(), recipe_dir="runs/run-0001/recipe", experiment="exp-0001")
    done = train(folder)
    assert done.returncode == 0, done.stdout
    return workspace


def lab_mcp(workspace: Workspace, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "lab_mcp", *arguments, "--workspace", str(workspace.root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ))


def test_promote_and_use_it_without_its_run(trained: Workspace) -> None:
    told = lab_mcp(trained, "promote", "run-0001", "first")
    assert told.returncode == 0 and "models/first" in told.stdout, told.stderr
    origin = json.loads((trained.models_dir / "first" / "origin.json").read_text())
    assert (origin["run"], origin["checkpoint"], origin["experiment"]) == ("run-0001", "step-00000006", "exp-0001")
    assert origin["result"]["val_bpb"] > 0 and origin["recipe_files"]
    again = lab_mcp(trained, "promote", "run-0001", "first")
    assert again.returncode == 2 and "nothing is overwritten" in again.stderr

    shutil.copytree(trained.models_dir / "first", trained.models_dir / "moved")
    for name in ("run-0001", "moved"):
        text = lab_mcp(trained, "sample", name, "--prompt", "the cat", "--tokens", "4")
        assert text.returncode == 0 and text.stdout.startswith("the cat"), text.stderr
    assert [model["name"] for model in promote.promoted(trained)] == ["first", "moved"]
    assert all(model["bytes"] > 10_000 for model in promote.promoted(trained))


def test_audit_from_the_command_line(trained: Workspace) -> None:
    told = lab_mcp(trained, "audit", "run-0001")
    assert told.returncode == 0 and "opening 1 of" in told.stdout, told.stderr


def test_what_is_refused(trained: Workspace, tmp_path: Path) -> None:
    (trained.run_dir("run-0002")).mkdir()
    with pytest.raises(LabError, match="no checkpoint"):
        promote.promote(trained, "run-0002", "second", by="a test")
    with pytest.raises(LabError, match=r"run-000"):
        promote.promote(trained, "run-0009", "second", by="a test")
    with pytest.raises(LabError, match="no name"):
        promote.promote(trained, "run-0001", "../second", by="a test")
    assert not (trained.models_dir / "second").exists()
    assert lab_mcp(trained, "sample", "nothing").returncode == 2
