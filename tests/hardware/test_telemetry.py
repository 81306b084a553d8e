"""The sampler: the last reading at hand, a bounded history, and what happens when the hardware does not answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from training import telemetry
from training.hardware import devices
from training.hardware.status import Device, HardwareStatus
from training.telemetry import Sampler
from workspace import clock
from workspace.database import Database
from workspace.errors import NotFound, Refused
from workspace.layout import Workspace
from workspace.settings import HardwareSettings, Settings


class FakeMachine(devices.Machine):
    """A machine of this CPU and one GPU, whose clock and readings the test sets."""

    def __init__(self) -> None:
        super().__init__()
        self.moment = 1_700_000_000.0
        self.utilization: float | None = 50.0
        self.reads = 0
        self.hold: threading.Event | None = None
        self.error: Exception | None = None

    def snapshot(self, settings: HardwareSettings) -> HardwareStatus:
        self.reads += 1
        if self.hold is not None:
            self.hold.wait(30)
        if self.error is not None:
            raise self.error
        gpu = Device(
            id="cuda:0", backend="cuda", index=0, uuid="GPU-1", name="NVIDIA H200",
            utilization_percent=self.utilization, memory_used_bytes=1000, throttle_reasons=["power cap"],
        )  # fmt: skip
        return HardwareStatus(
            time=clock.from_epoch(self.moment), backend="cpu", backend_reason="test", devices=[gpu], cpu=self.cpu.read()
        )


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def sampler(tmp_path: Path, machine: FakeMachine) -> Iterator[Sampler]:
    workspace = Workspace(tmp_path)
    workspace.create_folders()
    sampler = Sampler(workspace, Settings(hardware=HardwareSettings(sample_seconds=0.5)), machine=machine)
    yield sampler
    if machine.hold is not None:
        machine.hold.set()
    sampler.stop()


def count(sampler: Sampler, table: str) -> int:
    row = sampler._database.one(f"SELECT count(*) AS n FROM {table}")
    assert row is not None
    return int(row["n"])


def test_latest_does_not_touch_the_hardware(sampler: Sampler, machine: FakeMachine) -> None:
    sampler.sample()
    reads = machine.reads
    for _ in range(1000):
        sampler.latest()
    assert machine.reads == reads


def test_the_thread_samples_and_ends(sampler: Sampler, machine: FakeMachine) -> None:
    sampler.start()
    sampler.start()  # a second start is no second thread
    assert sum(t.name == "hardware sampler" for t in threading.enumerate()) == 1
    deadline = time.monotonic() + 20
    while machine.reads < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert machine.reads >= 3
    sampler.stop()
    assert not any(t.name == "hardware sampler" for t in threading.enumerate())


def test_history_is_downsampled_with_extremes(sampler: Sampler, machine: FakeMachine) -> None:
    start = int(time.time()) - 600.0  # recent: answered from the fine samples
    for i in range(300):
        machine.moment = start + 2 * i
        machine.utilization = 10.0 if i == 150 else 90.0
        sampler.sample()
    points = sampler.history("cuda:0", since=start, until=start + 600, points=10)
    assert len(points) == 10 and sum(p.samples for p in points) == 300
    assert [p.utilization_percent for p in points].count(90.0) == 9
    dip = points[5]
    assert dip.utilization_least == 10.0 and dip.utilization_most == 90.0
    assert dip.utilization_percent == pytest.approx((29 * 90 + 10) / 30, abs=0.01)
    assert dip.memory_used_bytes == 1000 and dip.throttled == 1.0 and dip.temperature_c is None
    assert sampler.history("GPU-1", since=start, until=start + 600, points=10) == points


def test_unknown_values_stay_unknown_in_means(sampler: Sampler, machine: FakeMachine) -> None:
    start = int(time.time()) - 100.0
    for i in range(10):
        machine.moment, machine.utilization = start + i, None if i % 2 else 80.0
        sampler.sample()
    (point,) = sampler.history("cuda:0", since=start, until=start + 100, points=1)
    assert point.utilization_percent == 80.0 and point.samples == 10  # an unknown is not a zero


def test_old_history_comes_from_minutes_and_fine_samples_are_dropped(sampler: Sampler, machine: FakeMachine) -> None:
    start = machine.moment  # years ago: only the coarse table answers for it
    assert start % 60 != 0
    for i in range(0, 3 * 3600, 30):
        machine.moment, machine.utilization = start + i, float(i % 60)
        sampler.sample()
    assert count(sampler, "fine") == 2 * 360
    minutes = sampler.history("cuda:0", since=start, until=start + 3 * 3600, points=180)
    assert len(minutes) >= 178 and {p.utilization_percent for p in minutes} == {15.0}
    assert minutes[5].utilization_least == 0 and minutes[5].utilization_most == 30
    hours = sampler.history("cuda:0", since=start, until=start + 3 * 3600, points=3)
    assert len(hours) == 3 and sum(p.samples for p in hours) == pytest.approx(360, abs=4)
    machine.moment = start + telemetry.FINE_KEPT_S + 3 * 3600 + 700
    sampler.sample()
    assert count(sampler, "fine") == 2 and count(sampler, "coarse") >= 2 * 178
    machine.moment = start + telemetry.COARSE_KEPT_S + 4 * 3600
    sampler.sample()
    assert count(sampler, "coarse") <= 2  # the minute of the sample before


def test_rows_are_bounded_whatever_the_clock_says(
    sampler: Sampler, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "MOST_ROWS", {"fine": 100, "coarse": 20})
    monkeypatch.setattr(telemetry, "BOUND_S", 0.0)
    for _ in range(400):
        machine.moment += 10
        sampler.sample()
    assert count(sampler, "fine") <= 102 and count(sampler, "coarse") <= 22
    newest = sampler.history("GPU-1", since=machine.moment - 300, until=machine.moment + 1, points=10)
    assert newest  # the newest are the ones kept


def test_a_clock_set_back_does_not_stop_the_minutes(sampler: Sampler, machine: FakeMachine) -> None:
    machine.moment += 10 * 86400
    for _ in range(5):
        machine.moment += 61
        sampler.sample()
    machine.moment -= 9 * 86400
    sampler._rolled_up_at = 0.0
    back = machine.moment
    for _ in range(5):
        machine.moment += 61
        sampler.sample()
        sampler._rolled_up_at = 0.0
    assert len(sampler.history("GPU-1", since=back, until=back + 400, points=10)) >= 3


def test_history_survives_a_restart(tmp_path: Path, machine: FakeMachine) -> None:
    workspace = Workspace(tmp_path)
    workspace.create_folders()
    for _ in range(2):
        sampler = Sampler(workspace, Settings(), machine=machine)
        machine.moment = time.time() - 1
        sampler.sample()
        sampler.stop()
    sampler = Sampler(workspace, Settings(), machine=machine)
    assert sampler.history("GPU-1")[-1].memory_used_bytes == 1000
    sampler.stop()


def test_bad_questions_are_refused(sampler: Sampler) -> None:
    sampler.sample()
    with pytest.raises(NotFound, match="GPU-1"):
        sampler.history("GPU-2")
    with pytest.raises(Refused):
        sampler.history("cpu", points=0)
    with pytest.raises(Refused):
        sampler.history("cpu", since=time.time() + 100)


def test_a_driver_that_hangs_does_not_hold_up_latest(
    sampler: Sampler, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler.sample()
    machine.hold = threading.Event()
    sampler.start()
    monkeypatch.setattr(telemetry, "STALE_S", 0.0)
    sampler._latest = (time.monotonic() - 100, sampler.latest())
    assert any("100 s old" in note for note in sampler.latest().notes)


def test_a_refused_backend_is_told_to_whoever_asks_and_heals(sampler: Sampler, machine: FakeMachine) -> None:
    machine.error = Refused("hardware.backend = 'cuda' is not to be had")
    sampler.start()
    deadline = time.monotonic() + 20
    while sampler._problem is None and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(Refused, match="not to be had"):
        sampler.latest()
    machine.error = None
    while sampler._problem is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sampler.latest().devices


def test_the_thread_outlives_whatever_a_binding_throws(
    sampler: Sampler, machine: FakeMachine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.error = RuntimeError("from inside a driver's binding")
    sampler.start()
    deadline = time.monotonic() + 20
    while machine.reads < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert machine.reads >= 2 and "could not be read" in caplog.text


def test_telemetry_does_not_fsync_every_sample(sampler: Sampler) -> None:
    assert sampler._database.one("PRAGMA synchronous")[0] == 1  # type: ignore[index]
    assert isinstance(sampler._database, Database)
