"""The choice of a backend, the CPU with its container limits, and what torch was built for."""

from __future__ import annotations

import os
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path

import psutil
import pytest

from training.hardware import cpu, devices, torch_build
from training.hardware.status import BackendName, Device
from training.hardware.torch_build import TorchBuild
from workspace.errors import Refused
from workspace.settings import HardwareSettings

ALL = TorchBuild(version="2.13.0", cuda="13.0", hip="7.0", gaudi=True)
CPU_ONLY = TorchBuild(version="2.13.0+cpu")


def device(backend: BackendName, index: int = 0, **values: object) -> Device:
    return Device(
        id=f"{backend}:{index}", backend=backend, index=index, uuid=f"{backend}-uuid-{index}", name="x"
    ).model_copy(update=values)


def test_order_is_hpu_rocm_cuda_mps_cpu() -> None:
    found = [device("mps"), device("cuda"), device("rocm"), device("hpu")]
    for expected in ("hpu", "rocm", "cuda", "mps"):
        assert devices.choose("auto", found, ALL, [])[0] == expected
        found.pop()
    assert devices.choose("auto", [], ALL, [])[0] == "cpu"


def test_a_gpu_that_torch_cannot_use_is_passed_over_with_a_note() -> None:
    notes: list[str] = []
    backend, reason = devices.choose("auto", [device("cuda")], CPU_ONLY, notes)
    assert backend == "cpu" and "no GPU support" in reason
    assert any("cuda device is here" in note and "2.13.0+cpu" in note for note in notes)


def test_a_lost_or_excluded_device_is_not_chosen() -> None:
    found = [device("cuda", usable=False, unusable_because="fell off the bus"), device("mps")]
    assert devices.choose("auto", found, ALL, [])[0] == "mps"


@pytest.mark.parametrize(
    ("wanted", "found", "build", "words"),
    [
        ("cuda", [], ALL, ["there is no device of this kind", "Valid: auto, cpu"]),
        ("cuda", [device("cuda")], CPU_ONLY, ["cannot use it", "2.13.0+cpu"]),
        ("hpu", [device("cuda")], ALL, ["cuda:0", "auto, cpu, cuda"]),
        ("cuda", [device("cuda", usable=False, unusable_because="fell off the bus")], ALL, ["fell off the bus"]),
    ],
)
def test_an_impossible_override_is_refused(
    wanted: str, found: list[Device], build: TorchBuild, words: list[str]
) -> None:
    with pytest.raises(Refused) as refusal:
        devices.choose(wanted, found, build, [])
    for word in words:
        assert word in str(refusal.value)


def test_override_chooses_against_the_order() -> None:
    assert devices.choose("mps", [device("cuda"), device("mps")], ALL, [])[0] == "mps"
    assert devices.choose("cpu", [device("cuda")], ALL, [])[0] == "cpu"


@pytest.mark.parametrize("entry", ["1", "cuda:1", "cuda-uuid-1"])
def test_exclude_devices_by_index_id_or_uuid(entry: str) -> None:
    settings = HardwareSettings(exclude_devices=[entry])
    assert devices._permit(device("cuda", 0), settings).usable
    assert not devices._permit(device("cuda", 1), settings).usable


@pytest.mark.parametrize(("visible", "usable"), [("0,1", True), ("0", False), ("", False), ("cuda-uuid", True)])
def test_visible_devices(monkeypatch: pytest.MonkeyPatch, visible: str, usable: bool) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices._permit(device("cuda", 1), HardwareSettings()).usable is usable


def test_snapshot_of_this_machine_is_fresh_and_detect_is_kept() -> None:
    settings = HardwareSettings(backend="cpu")
    first, second = devices.snapshot(settings), devices.snapshot(settings)
    assert first.time <= second.time and first.cpu.logical_cores == os.cpu_count()
    assert devices.detect(settings) is devices.detect(settings)


def test_lab_backend_is_honoured_without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_BACKEND", "cpu")
    assert "asked for" in devices.snapshot().backend_reason
    monkeypatch.setenv("LAB_BACKEND", "gpu")
    with pytest.raises(Refused, match="LAB_BACKEND"):
        devices.snapshot()


# -- CPU --------------------------------------------------------------------------------------------------------------


def test_cpu_agrees_with_the_system() -> None:
    probe = cpu.CpuProbe()
    first = probe.read()
    assert first.model and first.memory_total_bytes == psutil.virtual_memory().total
    assert first.utilization_percent is None  # nothing to compare with yet: unknown, not 0
    deadline = time.monotonic() + 10
    while (busy := probe.read().utilization_percent) is None and time.monotonic() < deadline:
        sum(range(10_000))
    assert busy is not None and 0 < busy <= 100
    assert 0 < first.usable_cores <= first.logical_cores


def cgroup(root: Path, membership: str, **files: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_container_limits_of_cgroup_v2_hold_from_any_level(tmp_path: Path) -> None:
    root = cgroup(
        tmp_path, "0::/pod/app\n",
        pod__cpu_dot_max="150000 100000\n", pod__app__cpu_dot_max="max 100000\n",
        pod__memory_dot_max="8589934592\n", pod__memory_dot_current="3000\n",
        pod__memory_dot_stat="anon 1\ninactive_file 1000\n",
        pod__app__memory_dot_max="max\n",
    )  # fmt: skip
    assert cpu.container_limits(root) == (1.5, 8589934592, 2000)


def test_container_limits_inside_a_namespace_are_at_the_mount(tmp_path: Path) -> None:
    root = cgroup(
        tmp_path, "0::/\n", cpu_dot_max="200000 100000\n", memory_dot_max="4294967296\n", memory_dot_current="5\n"
    )
    assert cpu.container_limits(root) == (2.0, 4294967296, 5)


def test_container_limits_of_cgroup_v1(tmp_path: Path) -> None:
    root = cgroup(
        tmp_path, "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n",
        **{
            "cpu,cpuacct__docker__abc__cpu_dot_cfs_quota_us": "50000\n",
            "cpu,cpuacct__docker__abc__cpu_dot_cfs_period_us": "100000\n",
            "memory__docker__abc__memory_dot_limit_in_bytes": "1073741824\n",
            "memory__docker__abc__memory_dot_usage_in_bytes": "1000\n",
            "memory__memory_dot_limit_in_bytes": "9223372036854771712\n",
        },
    )  # fmt: skip
    assert cpu.container_limits(root) == (0.5, 1073741824, 1000)


def test_no_cgroup_no_limits(tmp_path: Path) -> None:
    assert cpu.container_limits(tmp_path) == (None, None, None)


def test_a_memory_limit_bounds_what_is_available(tmp_path: Path) -> None:
    root = cgroup(tmp_path, "0::/\n", memory_dot_max="1000000\n", memory_dot_current="400000\n")
    read = cpu.CpuProbe(root).read()
    assert read.memory_limit_bytes == 1000000 and read.memory_available_bytes == 600000
    assert read.memory_total_bytes == psutil.virtual_memory().total


# -- torch ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cuda", "hip", "drives"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip = None\n", None, None, ["mps", "cpu"]),
        ("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\n", "13.0", None, ["cuda", "mps", "cpu"]),
        ("__version__ = '2.9.0+rocm6.4'\ncuda = None\nhip = '6.4.43482'\n", None, "6.4.43482", ["rocm", "mps", "cpu"]),
    ],
)  # fmt: skip
def test_torch_build_is_read_from_its_version_file(
    tmp_path: Path, text: str, cuda: str | None, hip: str | None, drives: list[str]
) -> None:
    (tmp_path / "version.py").write_text(text)
    build = torch_build.read(tmp_path / "version.py")
    assert (build.cuda, build.hip) == (cuda, hip)
    assert [name for name in ("hpu", "rocm", "cuda", "mps", "cpu") if build.drives(name)] == drives  # type: ignore[arg-type]


def test_the_installed_torch_is_found_without_importing_it() -> None:
    before = "torch" in sys.modules
    build = torch_build.installed()
    assert (build.version is None) == (PathFinder.find_spec("torch") is None)
    assert ("torch" in sys.modules) == before
