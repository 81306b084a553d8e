"""A user's script gets what `runs.environment` names of its starter's environment; nobody else does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs_support import Bench

from lab_mcp.connection import _passed
from training.runs.environment import job_environment
from training.runs.records import RunRequest
from workspace import secrets
from workspace.interpreter import PASSED_VARIABLES, passed_variables, service_environment
from workspace.layout import Workspace

SECRET = "hf_" + "a1B2" * 8
SHAPELESS = "correct horse battery staple"
PRINTS = """
import json, os
print(json.dumps({n: v for n, v in os.environ.items() if n in ("HF_TOKEN", "MY_DATA", "OTHER", "LAB_ANYTHING")}))
"""


@pytest.fixture
def starter(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HF_TOKEN": SECRET, "MY_DATA": "/data", "OTHER": "x", "LAB_ANYTHING": "y"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def shapeless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A secret no pattern knows, in the environment of whoever starts the service."""
    monkeypatch.setenv("WANDB_API_KEY", SHAPELESS)
    secrets._own.cache_clear()
    yield
    secrets._own.cache_clear()


def test_patterns_choose_and_ours_never_pass() -> None:
    here = {"HF_TOKEN": "1", "WANDB_API_KEY": "2", "OTHER": "3", "LAB_TOKEN": "4", "PYTHONPATH": "5", "PATH": "6"}
    assert passed_variables(PASSED_VARIABLES, here) == {"HF_TOKEN": "1", "WANDB_API_KEY": "2"}
    assert passed_variables(["*"], here) == {"HF_TOKEN": "1", "WANDB_API_KEY": "2", "OTHER": "3"}
    assert passed_variables([], here) == {}
    assert service_environment(here) == {"LAB_TOKEN": "4", "PATH": "6"}


def test_a_job_gets_what_its_run_names() -> None:
    here = {"PATH": "/bin", "HF_TOKEN": "1", "OTHER": "2", "LAB_X": "3"}
    assert job_environment(here, ["HF_TOKEN", "LAB_X"], {"LAB_RUN_DIR": "r"}) == {
        "PATH": "/bin", "HF_TOKEN": "1", "LAB_RUN_DIR": "r",
    }  # fmt: skip


@pytest.mark.usefixtures("starter")
def test_a_script_gets_it_and_no_file_has_it(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(environment=["HF_*", "MY_DATA", "LAB_*"])
    run_id = bench.start(PRINTS)
    assert bench.end(run_id).state == "succeeded"
    assert json.loads(bench.text(run_id)) == {"HF_TOKEN": SECRET, "MY_DATA": "/data"}
    for path in bench.workspace.root.rglob("*"):
        if path.is_file() and path.name != "train.log":
            assert SECRET.encode() not in path.read_bytes(), path
    assert json.loads((bench.folder(run_id) / "run.json").read_text())["passed"] == ["HF_TOKEN", "MY_DATA"]
    assert SECRET not in "".join(bench.runs.tail(run_id).lines)


@pytest.mark.usefixtures("shapeless")
def test_a_secret_without_a_shape_is_masked_where_it_is_known(bench: Bench) -> None:
    run_id = bench.start(f"print('using {SHAPELESS} now'); raise ValueError('{SHAPELESS}')")
    record = bench.end(run_id)
    assert SHAPELESS not in str(record.reason) and "ValueError: ***" in str(record.reason)
    assert "using *** now" in bench.runs.tail(run_id).lines


@pytest.mark.usefixtures("starter")
def test_the_trainer_gets_none_of_it(make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench(environment=["*"])
    script = bench.workspace.root / bench.write(PRINTS)
    import sys

    monkeypatch.setattr("training.runs.prepare.python_command", lambda *_: [sys.executable, str(script)])
    run_id = bench.runs.start(RunRequest(overrides={"model.depth": 2})).id
    bench.end(run_id)
    assert json.loads(bench.text(run_id).splitlines()[0]) == {}


def test_the_keeper_is_given_what_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path)
    assert _passed(workspace) == list(PASSED_VARIABLES)
    workspace.settings_file.write_text('[runs]\nenvironment = ["MY_*"]\n')
    assert _passed(workspace) == ["MY_*"]
    workspace.settings_file.write_text("[runs\n")
    assert _passed(workspace) == list(PASSED_VARIABLES)
    monkeypatch.setenv("LAB_RUNS__ENVIRONMENT", '["A"]')
    assert _passed(workspace) == ["A"]
