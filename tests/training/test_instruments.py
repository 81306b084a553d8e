"""Mirrors, profiles and energy: what is seen of a run besides its own files."""

from __future__ import annotations

import importlib.util
import json
import signal
from pathlib import Path

import pytest
from training_support import metrics, run_folder, small, workspace_with_text

from training import data, trackers, worker
from training.config import TrainingConfig
from training.trackers import Tracker
from training.watch.lab_watch import energy_joules
from workspace.errors import Unavailable
from workspace.layout import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return workspace_with_text(tmp_path)


def train_here(workspace: Workspace, config: TrainingConfig) -> Path:
    folder = run_folder(workspace, config)
    prepared = data.prepare(config.data, workspace)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert worker.main([str(folder), "--data", str(prepared.folder)]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    return folder


def test_tensorboard_shows_what_the_run_wrote(workspace: Workspace) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train_here(workspace, small(tracker="tensorboard"))
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("loss")}
    written = {record["step"]: record["loss"] for record in metrics(folder) if "loss" in record}
    assert shown == pytest.approx(written)
    assert len(events.Scalars("val_bpb")) == 1


def test_wandb_offline(workspace: Workspace) -> None:
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("wandb is not installed")
    folder = train_here(workspace, small(tracker="wandb"))
    (run,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    assert run.stat().st_size > 0


def test_a_missing_package_is_refused_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match=r"pip install 'lab-mcp\[track\]'"):
        trackers.check("trackio")
    trackers.check("none")


def test_a_mirror_that_fails_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def __init__(self, folder: Path, config: object) -> None: ...

        def log(self, numbers: dict[str, float], step: int) -> None:
            raise RuntimeError("the server is gone")

        def close(self) -> None: ...

    monkeypatch.setattr(trackers, "check", lambda name: None)
    monkeypatch.setattr(trackers, "_Trackio", Broken)
    tracker = Tracker("trackio", tmp_path, {})
    for step in (1, 2):
        tracker.log({"step": step, "loss": 1.0})
    assert capsys.readouterr().out.count("the server is gone") == 1


def test_a_profile_of_some_steps(workspace: Workspace) -> None:
    folder = train_here(workspace, small(profile__steps=2))
    trace = json.loads((folder / "profile" / "trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert "aten::mm" in names


def test_energy_by_the_processors_counters(tmp_path: Path) -> None:
    for package, micro_joules in ((0, 3_000_000), (1, 500_000)):
        zone = tmp_path / f"intel-rapl:{package}"
        zone.mkdir()
        (zone / "energy_uj").write_text(f"{micro_joules}\n")
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of package 0: it would be counted twice
    assert energy_joules(str(tmp_path)) == 3.5
    assert energy_joules(str(tmp_path / "nothing")) is None
