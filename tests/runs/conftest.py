"""A workspace with a `Runs`, real supervisors and jobs, all ended afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs_support import Bench, end_everything

from training.runs.manager import Runs
from workspace.database import Database
from workspace.layout import Workspace
from workspace.outbox import Outbox
from workspace.settings import Settings


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """`make_bench(name, devices=..., max_concurrent=...)`: further workspaces on the same machine."""
    made: list[Bench] = []

    def make(name: str = "Labor ü 1", *, devices: Any = list, **run_settings: Any) -> Bench:
        workspace = Workspace((tmp_path / name).resolve())
        workspace.root.mkdir()
        workspace.settings_file.touch()
        workspace.create_folders()
        settings = Settings.model_validate({"runs": {"grace_seconds": 1.0, **run_settings}})
        database = Database(workspace.database_file)
        bench = Bench(workspace, database, Runs(workspace, settings, database, Outbox(database), devices=devices))
        made.append(bench)
        return bench

    yield make
    for bench in made:
        end_everything(bench.workspace)
        bench.database.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()
