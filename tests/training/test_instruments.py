"""Mirrors, profiles and energy: what is seen of a run besides its own files."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from training_support import metrics, needs, run_folder, small, workspace_with_text

from training import data, trackers, worker
from training.config import TrainingConfig
from training.energy import Meter
from training.hardware.backend import choose
from training.trackers import Tracker
from training.watch.lab_watch import Energy
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
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train_here(workspace, small(tracker="tensorboard"))
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("loss")}
    written = {record["step"]: record["loss"] for record in metrics(folder) if "loss" in record}
    assert shown == pytest.approx(written)
    assert len(events.Scalars("val_bpb")) == 1


def test_wandb_offline(workspace: Workspace) -> None:
    needs("wandb")
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


def zone(root: Path, folder: str, name: str, micro_joules: int, most: int = 10_000_000) -> None:
    (root / folder).mkdir(exist_ok=True)
    for file, text in (("name", name), ("energy_uj", micro_joules), ("max_energy_range_uj", most)):
        (root / folder / file).write_text(f"{text}\n")


def test_energy_by_the_processors_counters(tmp_path: Path) -> None:
    """Each processor once, though there are counters of its parts, of the whole machine, and by another interface."""
    others = {"intel-rapl:0:0": "core", "intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0", "intel-rapl": "x"}
    for folder, name in {"intel-rapl:0": "package-0", "intel-rapl:1": "package-1", **others}.items():
        zone(tmp_path, folder, name, 1_000_000)
    energy = Energy(str(tmp_path))
    assert energy.joules() == 0
    for folder, name in others.items():
        zone(tmp_path, folder, name, 9_000_000)
    zone(tmp_path, "intel-rapl:0", "package-0", 3_000_000)
    zone(tmp_path, "intel-rapl:1", "package-1", 1_500_000)
    assert energy.joules() == 2.5
    zone(tmp_path, "intel-rapl:0", "package-0", 500_000)  # the counter has begun anew
    assert energy.joules() == 2.5 + 7.5
    assert Energy(str(tmp_path / "nothing")).joules() is None
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert energy.joules() is None and Energy(str(tmp_path)).joules() is None


def test_energy_is_divided_by_the_tokens_it_was_spent_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by those of the attempt that a run goes on from."""
    used = [100.0]
    monkeypatch.setattr("training.energy.Energy", lambda: SimpleNamespace(joules=lambda: used[0]))
    meter = Meter(choose("cpu"))
    used[0] = 150.0  # compiling, warm-up
    meter.start(1_000_000)
    assert meter.summary() is None and meter.since_last() == {}
    for joules, tokens in ((160.0, 1_000_100), (190.0, 1_000_200)):
        used[0] = joules
        meter.note(meter.joules(), tokens)
        told = meter.since_last()
        assert told["joules_per_token"] == pytest.approx((joules - (150.0 if tokens == 1_000_100 else 160.0)) / 100)
    assert meter.since_last() == {}, "nothing has been used since"
    found = meter.summary()
    assert found is not None and (found["joules"], found["joules_per_token"]) == (40.0, 0.2)
    meter.note(float("nan"), 1_000_300)
    assert meter.summary() == found
