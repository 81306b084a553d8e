"""AMD, Gaudi and Apple through stand-ins that print (and fail) the way the vendors' tools do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from training.hardware import amd, apple, gaudi

Tool = Callable[[str, str], Path]

MI300X = {
    "card0": {
        "Unique ID": "0x5e5a1b2c3d4e5f60",
        "Temperature (Sensor junction) (C)": "45.0",
        "Temperature (Sensor memory) (C)": "38.0",
        "Max Graphics Package Power (W)": "750.0",
        "Current Socket Graphics Package Power (W)": "159.0",
        "GPU use (%)": "7",
        "VRAM Total Memory (B)": "205822885888",
        "VRAM Total Used Memory (B)": "299687936",
        "sclk clock speed:": "(132Mhz)",
        "mclk clock speed:": "(900Mhz)",
        "Card Series": "AMD Instinct MI300X OAM",
        "GFX Version": "gfx942",
    },
    "card1": {
        "Unique ID": "N/A",
        "Temperature (Sensor edge) (C)": "39.0",
        "Temperature (Sensor junction) (C)": "N/A",
        "Average Graphics Package Power (W)": "17.0",
        "GPU use (%)": "N/A",
        "VRAM Total Memory (B)": "17095983104",
        "VRAM Total Used Memory (B)": "9518669824",
        "Card series": "Radeon RX 9060 XT",
    },
    "system": {"Driver version": "6.10.5"},
}
ROCM_SCRIPT = """case "$*" in
*--showpids*) echo '{pids}' ;;
*) echo 'WARNING: AMD GPU device(s) is/are in a low-power state. Check power control/runtime_status'
   echo ''
   echo '{cards}' ;;
esac
"""
GAUDI = """\
index, uuid, name, driver_version, memory.total [MiB], memory.used [MiB], utilization.aip [%], temperature.aip [C], power.draw [W]
0, 01P0-HL2080A0-15-TNBS51-12-01-03, HL-225, 1.22.1-97ce0d2, 98304 MiB, 768 MiB, 78 %, 42 C, 285 W
1, 01P0-HL2080A0-15-TNBS51-12-01-04, HL-225, 1.22.1-97ce0d2, 98304 MiB, N/A, N/A, 45 C, 310 W
"""  # noqa: E501


def path_with(folder: Path) -> dict[str, str]:
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_rocm_smi(reader: Callable[..., Any], tool: Tool) -> None:
    folder = tool("rocm-smi", ROCM_SCRIPT.format(cards=json.dumps(MI300X), pids="{}"))
    status = reader(**path_with(folder)).status()
    first, second = status["devices"]
    assert first["name"] == "AMD Instinct MI300X OAM" and first["uuid"] == "amd-0x5e5a1b2c3d4e5f60"
    assert (first["memory_total_bytes"], first["memory_used_bytes"]) == (205822885888, 299687936)
    assert (first["temperature_c"], first["power_w"], first["power_limit_w"]) == (45.0, 159.0, 750.0)
    assert (first["clock_mhz"], first["memory_clock_mhz"], first["utilization_percent"]) == (132, 900, 7.0)
    assert second["temperature_c"] == 39.0  # no junction sensor: the edge
    assert second["utilization_percent"] is None and second["power_limit_w"] is None  # N/A is not 0
    assert second["name"] == "Radeon RX 9060 XT" and second["uuid"] == "amd-index-1"
    assert status["versions"]["amd_driver"] == "6.10.5"


def test_rocm_processes_of_a_single_card() -> None:
    card = {"card0": MI300X["card0"]}
    pids = json.dumps({"system": {f"PID{os.getpid()}": "python3, 1, 1139888128, 0, unknown"}})
    device = amd.parse(json.dumps(card), pids).devices[0]
    assert device.processes and device.processes[0].memory_bytes == 1139888128
    assert device.processes[0].user == psutil.Process().username()
    assert amd.parse(json.dumps(card), "WARNING: No JSON data to report\n").devices[0].processes == []
    assert amd.parse(json.dumps(card), "").devices[0].processes is None


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo 'ERROR: ROCm SMI: driver not initialized (amdgpu not found in modules)' >&2; exit 2",
            "amdgpu not found",
        ),
        ("echo 'cat: /sys/module/amdgpu/initstate: No such file or directory'", "no JSON"),
        ("kill -SEGV $$", "failed"),
    ],
    ids=["no driver", "no JSON", "crash"],
)
def test_rocm_smi_that_fails_is_a_note(reader: Callable[..., Any], tool: Tool, script: str, words: str) -> None:
    status = reader(**path_with(tool("rocm-smi", script + "\n"))).status()
    assert status["devices"] == [] and status["backend"] == "cpu"
    assert any("rocm-smi" in note and words in note for note in status["notes"])


def test_amdsmi_without_rocm_raises_keyerror_and_rocm_smi_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tool: Tool
) -> None:
    (tmp_path / "amdsmi.py").write_text("import os\nos.environ['libamd_smi.so']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(
        "PATH", path_with(tool("rocm-smi", ROCM_SCRIPT.format(cards=json.dumps(MI300X), pids="{}")))["PATH"]
    )
    assert [d.index for d in amd.AmdProbe().read().devices] == [0, 1]


class FakeAmdsmi:
    """The part of amdsmi 7 that is used, for one MI300X whose power cap is not readable."""

    class AmdSmiException(Exception):
        pass

    class AmdSmiClkType:
        GFX = 0

    class AmdSmiTemperatureType:
        HOTSPOT = 1

    class AmdSmiTemperatureMetric:
        CURRENT = 0

    def amdsmi_get_processor_handles(self) -> list[str]:
        return ["handle"]

    def amdsmi_get_gpu_asic_info(self, handle: str) -> dict[str, str]:
        return {"market_name": "AMD Instinct MI300X", "asic_serial": "0xABC", "target_graphics_version": "gfx942"}

    def amdsmi_get_gpu_vram_usage(self, handle: str) -> dict[str, int]:
        return {"vram_total": 196288, "vram_used": 285}

    def amdsmi_get_power_info(self, handle: str) -> dict[str, Any]:
        return {"current_socket_power": 158, "average_socket_power": "N/A"}

    def amdsmi_get_power_cap_info(self, handle: str) -> dict[str, int]:
        raise self.AmdSmiException("Error code:\n\t2 | AMDSMI_STATUS_NOT_SUPPORTED")

    def amdsmi_get_clock_info(self, handle: str, kind: int) -> dict[str, int]:
        return {"clk": 132, "max_clk": 2100}

    def amdsmi_get_gpu_activity(self, handle: str) -> dict[str, Any]:
        return {"gfx_activity": 12, "mm_activity": "N/A"}

    def amdsmi_get_temp_metric(self, handle: str, sensor: int, metric: int) -> int:
        return 45

    def amdsmi_get_gpu_process_list(self, handle: str) -> list[dict[str, Any]]:
        return [{"name": "N/A", "pid": os.getpid(), "mem": 0, "memory_usage": {"vram_mem": 4096}}]

    def amdsmi_get_gpu_device_uuid(self, handle: str) -> str:
        return "f4ff74a1-0000-1000-80e0-000000000000"


def test_amdsmi() -> None:
    device = amd.by_amdsmi(FakeAmdsmi()).devices[0]
    assert device.uuid.startswith("f4ff74a1") and device.capability == "gfx942"
    assert device.memory_total_bytes == 196288 * 2**20 and device.memory_used_bytes == 285 * 2**20
    assert (device.power_w, device.clock_mhz, device.clock_max_mhz, device.temperature_c) == (158, 132, 2100, 45)
    assert device.power_limit_w is None
    assert any("power limit" in note and "NOT_SUPPORTED" in note for note in device.notes)
    assert device.processes and device.processes[0].memory_bytes == 4096


def test_gaudi(reader: Callable[..., Any], tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "answer").write_text(GAUDI)
    status = reader(**path_with(tool("hl-smi", f"cat '{tmp_path}/answer'\n"))).status()
    first, second = status["devices"]
    assert first["id"] == "hpu:0" and first["name"] == "HL-225" and first["uuid"].startswith("01P0-HL2080A0")
    assert first["memory_total_bytes"] == 98304 * 2**20 and first["memory_used_bytes"] == 768 * 2**20
    assert (first["utilization_percent"], first["temperature_c"], first["power_w"]) == (78, 42, 285)
    assert second["memory_used_bytes"] is None and second["utilization_percent"] is None
    assert first["processes"] is None and any("without root" in note for note in first["notes"])
    assert status["versions"]["gaudi_driver"].startswith("1.22.1")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'habanalabs driver is not loaded or no AIPs available, aborting...' >&2; exit 1", "not loaded"),
        ("echo 'Unknown field: memory.totl'", "not the table"),
    ],
)
def test_hl_smi_that_fails_is_a_note(reader: Callable[..., Any], tool: Tool, script: str, words: str) -> None:
    status = reader(**path_with(tool("hl-smi", script + "\n"))).status()
    assert status["devices"] == [] and any(words in note for note in status["notes"])


def test_a_tool_that_hangs_does_not(monkeypatch: pytest.MonkeyPatch, tool: Tool) -> None:
    from training.hardware import command

    monkeypatch.setattr(command, "TIMEOUT_S", 0.2)
    monkeypatch.setenv("PATH", path_with(tool("hl-smi", "exec sleep 30\n"))["PATH"])
    assert any("did not answer" in note for note in gaudi.GaudiProbe().read().notes)


def test_the_tool_is_not_started_again_for_every_reading(
    monkeypatch: pytest.MonkeyPatch, tool: Tool, tmp_path: Path
) -> None:
    (tmp_path / "answer").write_text(GAUDI)
    script = f"echo x >> '{tmp_path}/calls'; cat '{tmp_path}/answer'\n"
    monkeypatch.setenv("PATH", path_with(tool("hl-smi", script))["PATH"])
    probe = gaudi.GaudiProbe()
    for _ in range(5):
        assert len(probe.read().devices) == 2
    assert (tmp_path / "calls").read_text() == "x\n"


PROFILE = {
    "SPDisplaysDataType": [
        {
            "_name": "Apple M4 Max",
            "sppci_model": "Apple M4 Max",
            "sppci_cores": "40",
            "spdisplays_vendor": "sppci_vendor_Apple",
        }
    ]
}
IOREG = (
    '      "PerformanceStatistics" = {"In use system memory (driver)"=0,"Alloc system memory"=52967440384,'
    '"Tiler Utilization %"=10,"Device Utilization %"=16,"In use system memory"=2363801600}\n'
)


def test_apple(monkeypatch: pytest.MonkeyPatch, tool: Tool) -> None:
    tool("system_profiler", f"echo '{json.dumps(PROFILE)}'\n")
    tool("sysctl", "echo 0B1C2D3E-0000\n")
    folder = tool("ioreg", f"cat <<'END'\n{IOREG}END\n")
    monkeypatch.setenv("PATH", path_with(folder)["PATH"])
    monkeypatch.setattr(apple.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(apple.platform, "machine", lambda: "arm64")
    device = apple.AppleProbe().read().devices[0]
    assert device.name == "Apple M4 Max (40 GPU cores)" and device.uuid == "apple-0B1C2D3E-0000"
    assert device.unified and device.memory_total_bytes == psutil.virtual_memory().total
    assert device.utilization_percent == 16 and device.memory_used_bytes == 2363801600  # not the driver's own 0
    assert device.temperature_c is None and device.power_w is None and device.notes


def test_apple_without_statistics_is_unknown_not_zero() -> None:
    card = apple.identity(json.dumps(PROFILE), "x")
    device = apple.live(card, "")
    assert device.utilization_percent is None and device.memory_used_bytes is None


def test_apple_is_not_asked_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apple.platform, "system", lambda: "Linux")
    assert apple.AppleProbe().read().devices == []
