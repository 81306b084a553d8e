"""Alerts say what is wrong, once, and nothing about what is well."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from alert_logs import HEALTHY, TROUBLED, Case
from healthy_curves import healthy

from training.hardware.status import LOST, Cpu, Device, HardwareStatus
from training.runs import outcome, place
from training.runs.alerts.alert import SUGGESTIONS, Alert, write_once
from training.runs.alerts.curve import Curve
from training.runs.alerts.ending import record_end
from training.runs.alerts.machine import DeviceRules, DiskRule
from training.runs.alerts.watch import Watch
from training.runs.outcome import Evidence
from training.runs.progress import alerts, progress
from training.runs.records import RunRecord
from workspace import clock, durable
from workspace.errors import NotFound
from workspace.layout import Workspace
from workspace.settings import AlertSettings, Settings

GIB = 2**30
ROOT = Path(__file__).parent.parent.parent
CPU = Cpu(
    model="test", architecture="x86_64", physical_cores=1, logical_cores=2, usable_cores=2,
    memory_total_bytes=64 * GIB, memory_available_bytes=32 * GIB, memory_used_bytes=32 * GIB,
)  # fmt: skip


class Machine:
    """Stands in for the sampler: a machine without accelerators."""

    def latest(self) -> HardwareStatus:
        return HardwareStatus(time=clock.now(), backend="cpu", backend_reason="test", devices=[], cpu=CPU)

    def history(self, device: str = "cpu", since: float | None = None, points: int = 60) -> list[Any]:
        raise NotFound("no such device")


class OneRun:
    """Stands in for the manager: one running run, and what it was asked to stop for."""

    def __init__(self) -> None:
        self.running, self.is_away = True, False
        self.stopped: list[tuple[str, str]] = []

    def away(self) -> bool:
        return self.is_away

    def watched(self) -> list[RunRecord]:
        return [record()] if self.running else []

    def stop(self, run_id: str, reason: str = "", by: str = "user", rule: str | None = None) -> RunRecord:
        assert by == f"alerts.{rule} in lab.toml"
        self.stopped.append((reason, by))
        return record()


def record() -> RunRecord:
    return RunRecord(
        id="run-0001", state="running", kind="script", name="train.py", purpose="run", created_at=clock.now(),
        started_at=clock.now(), devices=["cpu"], folder="runs/run-0001",
    )  # fmt: skip


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    found = Workspace(tmp_path)
    found.create_folders()
    found.run_dir("run-0001").mkdir()
    place.mark(found.runs_dir)
    return found


class Hands:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def watch(workspace: Workspace, runs: OneRun, clock: Any = time.time, **policies: str) -> Watch:
    return Watch(workspace, Settings.model_validate({"alerts": policies}), runs, Machine(), clock)


def play(workspace: Workspace, case: Case) -> list[dict[str, Any]]:
    """Let the run of `case` happen, watched as the service does; its alerts."""
    folder, runs = workspace.run_dir("run-0001"), OneRun()
    hands = Hands()
    began = hands.now
    watching = watch(workspace, runs, hands)
    (folder / "train.log").write_text(case.log)
    for entry in case.metrics():
        due = began + entry.pop("after")
        while hands.now < due - 20:
            hands.now += 20
            watching.round()
        hands.now = due
        line = json.dumps({"time": clock.from_epoch(due)} | entry) + "\n"
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(line[:-7])
            file.flush()
            if entry["step"] % 10 == 0:
                watching.round()  # sees a line torn in the middle
            file.write(line[-7:])
    silent_until = hands.now + case.silent_s
    while hands.now < silent_until:
        hands.now += min(20, case.silent_s)
        watching.round()
    runs.running = False
    if case.end is not None:
        exception = outcome.last_exception(folder / "train.log")
        seen = Evidence("script", memory_kill=case.memory_kill, exception=exception)
        record_end(folder, outcome.decide(case.end, case.stop, seen), AlertSettings().model_dump())
    return alerts(folder)


@pytest.mark.parametrize("case", [*HEALTHY, *TROUBLED], ids=lambda case: case.name)
def test_exactly_the_alerts_a_run_calls_for(workspace: Workspace, case: Case) -> None:
    found = play(workspace, case)
    assert {alert["class"] for alert in found} == case.alerts
    assert len(found) == len(case.alerts)
    for alert in found:
        assert alert["severity"] in ("warn", "stop") and alert["evidence"] and alert["suggestion"], alert
        assert alert["numbers"] or case.end is not None
    assert "hunter22" not in json.dumps(found)


def test_the_evidence_of_an_end_is_the_traceback(workspace: Workspace) -> None:
    (alert,) = play(workspace, next(case for case in TROUBLED if case.alerts == {"oom"}))
    assert alert["evidence"][0].strip().startswith('File "/home/u/train.py", line 61')
    assert alert["evidence"][-1].startswith("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")
    assert alert["numbers"]["step"] == 40 and alert["numbers"]["exit_code"] == 1


def test_false_alarms_on_four_hundred_healthy_runs() -> None:
    """Measured: 1 of 2,000 (seeds 0 to 1999), with 95 % certainty below 0.24 %. Here a part of them, as a bound."""
    alarms = [(seed, name) for seed in range(400) if (name := _alarms(seed))]
    assert len(alarms) <= 2, alarms


@pytest.mark.slow
def test_false_alarms_on_a_thousand_healthy_runs() -> None:
    alarms = [(seed, name) for seed in range(1000) if (name := _alarms(seed))]
    print(f"{len(alarms)} of 1,000 healthy runs raised an alert: {alarms}")
    assert len(alarms) <= 5


def _alarms(seed: int) -> set[str]:
    curve, found = Curve(80 * 10**9), set()
    for entry, at in healthy(seed):
        found |= {alert.rule for alert in curve.add(entry, at)}
        if (alert := curve.stalled(at + 60, 0.0)) is not None:
            found.add(alert.rule)
    return found


def test_memory_and_time_of_the_rules_do_not_grow_with_the_run() -> None:
    curve = Curve()
    for step in range(20_000):
        list(curve.add({"step": step, "elapsed_s": step / 4, "loss": 3 + 1 / (1 + step), "lr": 1e-3}, step / 4))
    assert curve.losses.count == 20_000
    assert len(curve.losses.values()) <= curve.losses.capacity
    assert max(len(curve.recent), len(curve.speeds), len(curve.intervals)) <= 2048


def test_an_alert_is_written_once_whoever_finds_it_again(workspace: Workspace) -> None:
    case = next(case for case in TROUBLED if case.alerts == {"nan"})
    assert len(play(workspace, case)) == 1
    for _ in range(2):  # services that start anew and read everything again
        watch(workspace, OneRun()).round()
    assert len(alerts(workspace.run_dir("run-0001"))) == 1
    folder = workspace.run_dir("run-0001")
    assert not write_once(folder, Alert("nan", "again"), "warn")
    assert write_once(folder, Alert("thermal", "hot", device="cuda:0"), "warn")
    assert write_once(folder, Alert("thermal", "hot", device="cuda:1"), "warn")


def test_a_rule_that_stops_stops_the_run_also_after_a_kill(workspace: Workspace) -> None:
    folder = workspace.run_dir("run-0001")
    lines = [json.dumps({"step": n, "loss": float("nan") if n == 5 else 2.0}) + "\n" for n in range(6)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    runs = OneRun()
    watch(workspace, runs, nan="stop").round()
    assert [reason for reason, _ in runs.stopped] == ["nan: loss is nan at step 5"]
    assert alerts(folder)[0]["severity"] == "stop"
    again = OneRun()  # killed between writing and stopping
    watch(workspace, again, nan="stop").round()
    assert len(again.stopped) == 1
    lenient = OneRun()  # the policy was changed since
    watch(workspace, lenient, nan="warn").round()
    assert lenient.stopped == []


def test_a_rule_that_is_off_says_nothing(workspace: Workspace) -> None:
    (workspace.run_dir("run-0001") / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n')
    runs = OneRun()
    watch(workspace, runs, nan="off").round()
    assert alerts(workspace.run_dir("run-0001")) == [] and runs.stopped == []


def test_a_fifo_in_place_of_the_metrics_holds_up_nothing(workspace: Workspace) -> None:
    folder = workspace.run_dir("run-0001")
    os.mkfifo(folder / "metrics.jsonl")
    (folder / "summary.json").symlink_to("metrics.jsonl")
    rounds = threading.Thread(target=watch(workspace, OneRun(), Hands()).round, daemon=True)
    rounds.start()
    rounds.join(30)
    assert not rounds.is_alive(), "it waits for a writer"
    assert place.read(folder / "summary.json") == {} and progress(folder, None, None) is None
    assert alerts(folder) == []


def test_metrics_written_anew_are_read_anew(workspace: Workspace) -> None:
    """A resumed run drops the records after its checkpoint."""
    metrics = workspace.run_dir("run-0001") / "metrics.jsonl"
    metrics.write_text("".join(f'{{"step": {n}, "loss": 2.0}}\n' for n in range(50)))
    watching = watch(workspace, OneRun())
    watching.round()
    durable.write_text(metrics, '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n')
    watching.round()
    assert [alert["numbers"]["step"] for alert in alerts(workspace.run_dir("run-0001"))] == [2]


def test_runs_that_are_away_have_no_alerts_and_are_not_stopped(workspace: Workspace, tmp_path: Path) -> None:
    """Not mounted for an hour: no step is missing, no disk is full; what was there before is not forgotten."""
    hands, runs = Hands(), OneRun()
    watching = watch(workspace, runs, hands, stalled="stop", nan="stop")
    metrics = workspace.run_dir("run-0001") / "metrics.jsonl"
    times = [clock.from_epoch(hands.now + n) for n in range(40)]
    metrics.write_text("".join(json.dumps({"step": n, "loss": 2.0, "time": at}) + "\n" for n, at in enumerate(times)))
    hands.now += 40
    watching.round()
    workspace.runs_dir.rename(tmp_path / "away")
    workspace.create_folders()
    runs.is_away = True
    for _ in range(180):
        hands.now += 20
        watching.round()
    shutil.rmtree(workspace.runs_dir)
    (tmp_path / "away").rename(workspace.runs_dir)
    runs.is_away = False
    watching.round()
    assert runs.stopped == [] and alerts(workspace.run_dir("run-0001")) == []
    for _ in range(20):
        hands.now += 20
        watching.round()
    assert [alert["class"] for alert in alerts(workspace.run_dir("run-0001"))] == ["stalled"], "now it is missing"


# -- devices and disk --------------------------------------------------------------------------------------------------


def gpu(index: int, **values: Any) -> Device:
    return Device(id=f"cuda:{index}", backend="cuda", index=index, uuid=f"GPU-{index}", name="Test GPU", **values)


def test_one_device_works_and_another_does_not() -> None:
    busy = {"GPU-0": 99.0, "GPU-1": 10.0}
    rules = DeviceRules(lambda uuid, seconds: (busy[uuid], 0.9))
    devices = [gpu(0), gpu(1)]
    assert list(rules.check(devices, age_s=60)) == []  # it has just begun
    (alert,) = rules.check(devices, age_s=1000)
    assert alert.rule == "imbalance" and alert.numbers == {"cuda:0 percent": 99.0, "cuda:1 percent": 10.0}
    assert alert.evidence[0] == "telemetry.db: cuda:0 busy 99.0 %, mean of 120 s" and len(alert.evidence) == 2
    busy["GPU-1"] = 80.0
    assert list(rules.check(devices, age_s=1000)) == []


def test_a_device_that_is_hardly_used() -> None:
    seen: dict[str, tuple[float, float] | None] = {"GPU-0": (41.0, 0.95)}
    rules = DeviceRules(lambda uuid, seconds: seen[uuid])
    assert list(rules.check([gpu(0)], age_s=300)) == []
    (alert,) = rules.check([gpu(0)], age_s=500)
    assert (alert.rule, alert.text) == ("utilisation_low", "used by 41 % over 5 minutes (cuda:0 41 %)")
    for unknown in ((41.0, 0.2), None):  # hardly sampled, or not at all: nothing can be said
        seen["GPU-0"] = unknown
        assert list(rules.check([gpu(0)], age_s=500)) == []


def test_heat_that_lasts() -> None:
    rules = DeviceRules(lambda uuid, seconds: None)
    hot = gpu(0, temperature_c=91.0, temperature_slowdown_c=90.0, throttle_reasons=["thermal, hardware"])
    capped = gpu(0, throttle_reasons=["power cap"])
    for device in (hot, hot, capped, hot, hot):  # never three readings in a row
        assert list(rules.check([device], age_s=10)) == []
    (alert,) = rules.check([hot], age_s=10)
    assert alert.rule == "thermal" and alert.device == "cuda:0" and "at 91 C" in alert.text


def test_a_device_that_fell_off_the_bus() -> None:
    """Of all that keeps a device from new runs, this alone is the trouble of one that runs on it."""
    rules = DeviceRules(lambda uuid, seconds: None)
    excluded = gpu(0, usable=False, unusable_because="excluded by the setting hardware.exclude_devices")
    assert list(rules.check([excluded], age_s=1000)) == []
    (alert,) = rules.check([gpu(0), gpu(1, usable=False, unusable_because=LOST)], age_s=10)
    assert (alert.rule, alert.device) == ("device_lost", "cuda:1") and alert.evidence and "Xid" in alert.text


def test_a_disk_that_fills() -> None:
    rule = DiskRule()
    assert all(rule.check(t, 200 * GIB - t * 10**6) is None for t in range(0, 600, 30))  # slowly: days are left
    rule = DiskRule()
    told = [rule.check(t, 50 * GIB - t * 10**8) for t in range(0, 300, 30)]
    first = next(alert for alert in told if alert)
    assert first.numbers["bytes_per_s"] == 10**8 and first.numbers["full_in_s"] < 600
    rule = DiskRule()
    sawtooth = [50 * GIB - (t % 90) * 10**8 for t in range(0, 600, 30)]  # checkpoints come and go
    assert not any(rule.check(30.0 * n, free) for n, free in enumerate(sawtooth))
    assert DiskRule().check(0, GIB // 2) is not None


class Several(OneRun):
    """As many running runs as there are folders, until they are stopped."""

    def __init__(self, workspace: Workspace) -> None:
        super().__init__()
        self.workspace = workspace
        self.ended: set[str] = set()

    def watched(self) -> list[RunRecord]:
        names = sorted(path.name for path in self.workspace.runs_dir.glob("run-*"))
        return [record().model_copy(update={"id": name}) for name in names if name not in self.ended]

    def stop(self, run_id: str, reason: str = "", by: str = "user", rule: str | None = None) -> RunRecord:
        self.ended.add(run_id)
        return super().stop(run_id, reason, by, rule)


def test_a_full_disk_stops_the_run_that_fills_it_and_no_other(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at a time, and one that writes nothing never: to end it would help nobody."""
    free, now = 50 * GIB, 0.0
    monkeypatch.setattr("training.runs.alerts.watch.shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr("training.runs.alerts.watch.time.monotonic", lambda: now)
    for name in ("run-0002", "run-0003"):
        workspace.run_dir(name).mkdir()
    runs = Several(workspace)
    watching = watch(workspace, runs, disk_filling="stop")
    severities: dict[str, list[str]] = {}
    for step in range(24):
        now += 30.0
        if "run-0002" not in runs.ended:
            (workspace.run_dir("run-0002") / f"step-{step}").write_bytes(b"x" * 2**20)
        if step == 12:
            (workspace.run_dir("run-0001") / "checkpoint").write_bytes(b"x" * 3 * 2**20)
        free = 50 * GIB - step * 3 * GIB if step < 16 else GIB // 2
        watching.round()
        if step == 11:
            assert runs.ended == {"run-0002"}, "the one that wrote most"
            severities = {name: _severities(workspace, name) for name in ("run-0001", "run-0002", "run-0003")}
    assert severities == {"run-0001": ["warn"], "run-0002": ["stop"], "run-0003": ["warn"]}
    assert runs.ended == {"run-0001", "run-0002"}, "when that did not help, the next; never one that writes nothing"
    assert "wrote most" in runs.stopped[0][0] and len(runs.stopped) == 2
    lenient = Several(workspace)
    watch(workspace, lenient).round()
    assert lenient.stopped == []


def _severities(workspace: Workspace, run_id: str) -> list[str]:
    found = alerts(workspace.run_dir(run_id))
    assert all(alert["class"] == "disk_filling" and alert["evidence"] for alert in found)
    return [alert["severity"] for alert in found]


def test_a_stop_does_not_wait_for_a_disk_that_takes_no_alert(workspace: Workspace) -> None:
    runs = OneRun()
    watching = watch(workspace, runs, nan="stop")
    folder = workspace.run_dir("run-0001")
    (folder / "alerts.jsonl").mkdir()
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps({"step": step, "loss": float("nan")}) + "\n" for step in range(20))
    watching.round()
    assert [by for _, by in runs.stopped] == ["alerts.nan in lab.toml"]


def test_many_long_alerts_are_still_written_once(workspace: Workspace) -> None:
    folder = workspace.run_dir("run-0001")
    for _ in range(2):
        for number in range(60):
            evidence = tuple("x" * 280 for _ in range(8))
            write_once(folder, Alert("thermal", "hot" * 100, evidence=evidence, device=f"cuda:{number}"), "warn")
    assert (folder / "alerts.jsonl").stat().st_size > 2 * 64 * 1024
    assert [alert["device"] for alert in alerts(folder)] == [f"cuda:{number}" for number in range(60)]


def test_two_services_at_once_write_an_alert_once(workspace: Workspace) -> None:
    """One that ends and the one that takes over, or the supervisor beside them."""
    folder = workspace.run_dir("run-0001")
    code = (
        "import sys; from pathlib import Path; from training.runs.alerts.alert import Alert, write_once\n"
        "sys.stdin.read()\n"
        "for n in range(40): write_once(Path(sys.argv[1]), Alert('thermal', 'hot', device=str(n)), 'warn')"
    )
    command = [sys.executable, "-P", "-s", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}", str(folder)]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(3)]
    for writer in writers:
        assert writer.stdin
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert sorted(int(alert["device"]) for alert in alerts(folder)) == list(range(40))


def test_every_rule_can_be_set_and_has_a_suggestion() -> None:
    assert set(AlertSettings.model_fields) == set(SUGGESTIONS)
