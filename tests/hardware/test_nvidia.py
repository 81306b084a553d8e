"""NVIDIA by NVML: the real nvidia-ml-py against a stand-in driver library in a child process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from nvml_machines import RTX

H200 = """
driver=580.65.06
cuda=13000
count=1
0.name=NVIDIA H200
0.uuid=GPU-33333333-aaaa-bbbb-cccc-000000000003
0.capability=9.0
0.memory=150754820096 48535150182
0.utilization=88
0.temperature=62
0.slowdown=95
0.power=612345
0.power_limit=700000
0.clock=1830
0.clock_max=1980
0.memory_clock=3201
0.throttle=0x0
0.processes=4194305:-1
"""
GB10 = """
driver=580.173.02
cuda=13000
count=1
0.name=NVIDIA GB10
0.uuid=GPU-44444444-aaaa-bbbb-cccc-000000000004
0.capability=12.1
0.memory={memory}
0.utilization=40
0.temperature=55
0.power=38000
0.clock=2400
0.processes=4194305:21474836480 4194306:1073741824
"""


@pytest.fixture
def machine(tmp_path: Path, compile_nvml: Callable[..., Path], reader: Callable[..., Any]) -> Callable[..., Any]:
    """Starts a reader on a machine described by a scenario; returns it and the function that changes the scenario."""
    scenario = tmp_path / "scenario"

    def start(text: str, settings: str = "", flags: tuple[str, ...] = (), **environment: str) -> Any:
        scenario.write_text(text)
        library = compile_nvml(*flags)
        environment = {
            "LD_LIBRARY_PATH": str(library),
            "FAKE_NVML": str(scenario),
            "PATH": "/usr/bin:/bin",
            **environment,
        }
        return reader(settings, **environment), scenario.write_text

    return start


def test_two_rtx_4080(machine: Callable[..., Any]) -> None:
    child, _ = machine(RTX.format(pid=os.getpid()))
    status = child.status()
    first, second = status["devices"]
    assert [d["id"] for d in status["devices"]] == ["cuda:0", "cuda:1"]
    assert first["uuid"].startswith("GPU-1111") and first["name"] == "NVIDIA GeForce RTX 4080"
    assert first["utilization_percent"] == 97 and second["utilization_percent"] == 0  # a true 0 stays 0
    assert (first["memory_total_bytes"], first["memory_used_bytes"]) == (17171480576, 3221225472)
    assert first["memory_free_bytes"] == 17171480576 - 3221225472 and not first["unified"]
    assert (first["temperature_c"], first["temperature_slowdown_c"]) == (81, 90)
    assert (first["power_w"], first["power_limit_w"]) == (301.5, 320.0)
    assert (first["clock_mhz"], first["clock_max_mhz"], first["memory_clock_mhz"]) == (2505, 3105, 11201)
    assert first["throttle_reasons"] == ["power cap", "thermal, software"]
    assert second["throttle_reasons"] == []  # idle is no throttling
    assert status["versions"]["nvidia_driver"] == "570.86.15" and status["versions"]["cuda_driver"] == "12.8"
    assert first["notes"] == [] and second["processes"] == []


def test_processes_are_named_as_far_as_they_can_be_seen(machine: Callable[..., Any]) -> None:
    child, _ = machine(RTX.format(pid=os.getpid()))
    ours, foreign, drawing = child.status()["devices"][0]["processes"]
    me = psutil.Process()
    assert ours == {
        "pid": me.pid,
        "name": me.name(),
        "user": me.username(),
        "memory_bytes": 3000000000,
        "graphics": False,
        "owner": "not ours",
    }
    assert foreign["pid"] == 4194305 and foreign["name"] is None and foreign["user"] is None  # above every pid_max
    assert drawing["graphics"] and drawing["memory_bytes"] == 50000000


def test_processes_of_runs_and_of_the_lab_are_known(machine: Callable[..., Any], tmp_path: Path) -> None:
    """A run's by its environment, what it started with another environment by its ancestors."""
    run = {
        "PATH": "/usr/bin:/bin",
        "LAB_RUN_TREE": "run-0007:abc",
        "LAB_RUN_DIR": str(tmp_path / "mylab/runs/run-0007"),
    }
    with subprocess.Popen(
        ["sh", "-c", "env -i sleep 600 & echo $!; wait"], env=run, stdout=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout
        below = int(job.stdout.readline())
        child, change = machine(RTX.format(pid=1))
        change(RTX.format(pid=job.pid) + f"0.processes={job.pid}:9 {below}:8 {child.process.pid}:7 {os.getpid()}:6\n")
        owners = [p["owner"] for p in child.status()["devices"][0]["processes"] if not p["graphics"]]
        psutil.Process(below).kill()
    assert owners == ["run-0007 of workspace mylab", "run-0007 of workspace mylab", "lab", "not ours"]


def test_h200_with_a_process_whose_memory_is_hidden(machine: Callable[..., Any]) -> None:
    child, _ = machine(H200)
    device = child.status()["devices"][0]
    assert device["name"] == "NVIDIA H200" and device["capability"] == "9.0"
    assert device["memory_used_bytes"] == 48535150182
    assert device["processes"][0]["memory_bytes"] is None


@pytest.mark.parametrize("memory", ["!3", "16777216 0"], ids=["not supported", "wrong numbers from another driver"])
def test_gb10_has_the_systems_memory(machine: Callable[..., Any], memory: str) -> None:
    child, _ = machine(GB10.format(memory=memory))
    device = child.status()["devices"][0]
    system = psutil.virtual_memory()
    assert device["unified"] is True
    assert device["memory_total_bytes"] == system.total
    assert device["memory_used_bytes"] == 21474836480 + 1073741824  # what its processes hold
    assert 0 < device["memory_free_bytes"] <= system.total
    # what the device does not tell is unknown, not 0, and it is said
    assert device["power_limit_w"] is None and device["memory_clock_mhz"] is None
    assert device["temperature_slowdown_c"] is None and device["temperature_c"] == 55
    assert device["throttle_reasons"] is None  # not known, which is not "none"
    assert any("power limit" in note and "Not Supported" in note for note in device["notes"])


def test_a_memory_question_that_fails_otherwise_stays_unknown(machine: Callable[..., Any]) -> None:
    child, _ = machine(H200 + "0.memory=!999\n")
    device = child.status()["devices"][0]
    assert device["memory_total_bytes"] is device["memory_used_bytes"] is device["memory_free_bytes"] is None
    assert device["unified"] is False
    assert any("memory" in note and "Unknown Error" in note for note in device["notes"])
    assert device["utilization_percent"] == 88


def test_a_partitioned_card_is_not_taken_for_unified_memory(machine: Callable[..., Any]) -> None:
    child, _ = machine(H200 + "0.memory=!3\n0.mig=1\n")
    device = child.status()["devices"][0]
    assert device["unified"] is False and device["memory_total_bytes"] is None


def test_driver_mismatch_is_named(machine: Callable[..., Any]) -> None:
    child, _ = machine("init=18\n")
    status = child.status()
    assert status["devices"] == [] and status["backend"] == "cpu"
    assert any("differ in version" in note and "reboot" in note for note in status["notes"])


def test_no_permission(machine: Callable[..., Any]) -> None:
    child, _ = machine("init=4\n")
    assert any("no permission" in note for note in child.status()["notes"])


def test_no_permission_for_one_card_and_for_processes(machine: Callable[..., Any]) -> None:
    child, _ = machine(RTX.format(pid=1) + "0.open=!4\n1.processes=!4\n")
    status = child.status()
    assert [d["index"] for d in status["devices"]] == [1]  # numbers stay as the vendor's tool shows them
    assert any("GPU 0" in note and "Permission" in note for note in status["notes"])
    assert status["devices"][0]["processes"] is None
    assert any("processes" in note for note in status["devices"][0]["notes"])


def test_unified_memory_without_permission_for_processes_is_unknown_not_zero(machine: Callable[..., Any]) -> None:
    child, _ = machine(GB10.format(memory="!3") + "0.processes=!4\n")
    device = child.status()["devices"][0]
    assert device["memory_used_bytes"] is None and device["memory_total_bytes"] == psutil.virtual_memory().total


def test_a_card_falls_off_the_bus_between_two_readings(machine: Callable[..., Any]) -> None:
    text = RTX.format(pid=1)
    child, change = machine(text)
    assert [d["usable"] for d in child.status()["devices"]] == [True, True]
    change(text + "1.lost=1\n")
    healthy, lost = child.status()["devices"]
    assert healthy["usable"] and healthy["utilization_percent"] == 97
    assert lost["uuid"].startswith("GPU-2222") and not lost["usable"]  # still known by name
    assert "fell off the bus" in lost["unusable_because"]
    assert (
        lost["utilization_percent"] is lost["memory_used_bytes"] is lost["temperature_c"] is lost["processes"] is None
    )
    change(text)
    assert [d["usable"] for d in child.status()["devices"]] == [True, True]


def test_an_old_driver_answers_the_second_version_of_the_process_question(machine: Callable[..., Any]) -> None:
    child, _ = machine(H200 + "0.processes=4194305:1000\n", flags=("-DOLD_DRIVER",))
    assert child.status()["devices"][0]["processes"][0]["memory_bytes"] == 1000


@pytest.mark.parametrize("entry", ["0", '"0"', '"cuda:0"', '"GPU-11111111"'])
def test_excluded_and_hidden_devices_are_seen_but_not_used(machine: Callable[..., Any], entry: str) -> None:
    child, _ = machine(RTX.format(pid=1), f"[hardware]\nexclude_devices = [{entry}]\n", CUDA_VISIBLE_DEVICES="GPU-1111")
    first, second = child.status()["devices"]
    assert "exclude_devices" in first["unusable_because"] and not first["trains"]
    assert "CUDA_VISIBLE_DEVICES" in second["unusable_because"]


def test_an_override_that_cannot_be_met_is_refused_with_what_was_found(machine: Callable[..., Any]) -> None:
    child, _ = machine(H200, LAB_BACKEND="rocm")
    refused = child.answer()["refused"]
    assert "rocm" in refused and "NVIDIA H200" in refused and "torch" in refused
    child, _ = machine(H200, LAB_BACKEND="cpu")
    assert child.status()["backend"] == "cpu"


def test_no_driver_at_all_is_no_problem(reader: Callable[..., Any], tmp_path: Path) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has an NVIDIA driver")
    status = reader(PATH="/usr/bin:/bin").status()
    assert status["devices"] == [] and status["notes"] == [] and status["backend"] == "cpu"
