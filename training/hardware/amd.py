"""AMD devices: by `amdsmi` when ROCm brought it, else by `rocm-smi --json`."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training.hardware.command import ToolFailed, ask, number, whole
from training.hardware.people import describe
from training.hardware.status import Device, DeviceProcess, Reading

ROCM_SMI = (
    "--showproductname", "--showuniqueid", "--showuse", "--showmeminfo", "vram", "--showtemp", "--showpower",
    "--showmaxpower", "--showclocks", "--showdriverversion", "--json",
)  # fmt: skip
# rocm-smi is a Python program: a third of a second of processor time per call
MINIMUM_INTERVAL_S = {"amdsmi": 0.0, "rocm-smi": 60.0}
UNKNOWN = "unknown: slow-down temperature, throttle reasons (the tool does not tell these)"


class AmdProbe:
    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._module: Any = None
        self._looked = False
        self._last = Reading()
        self._read_at: float | None = None

    def read(self) -> Reading:
        with self._guard:
            if not self._looked:
                self._module, self._looked = load_amdsmi(), True
            interval = MINIMUM_INTERVAL_S["amdsmi" if self._module else "rocm-smi"]
            if self._read_at is None or time.monotonic() - self._read_at >= interval:
                self._last = by_amdsmi(self._module) if self._module else by_rocm_smi()
                self._read_at = time.monotonic()
            return self._last

    def close(self) -> None:
        with self._guard:
            self._read_at = None
            self._looked = False
            if self._module is not None:
                self._module.amdsmi_shut_down()
                self._module = None


def load_amdsmi() -> Any:
    """The amdsmi module, ready to be asked, or None. Its import raises KeyError, not ImportError, without ROCm."""
    share = Path("/opt/rocm/share/amd_smi")
    if share.is_dir() and str(share) not in sys.path:
        sys.path.append(str(share))
    try:
        import amdsmi

        amdsmi.amdsmi_init()
    except Exception:  # noqa: BLE001  KeyError, OSError, AmdSmiLibraryException (no driver): all mean "ask rocm-smi"
        return None
    return amdsmi


def by_amdsmi(amdsmi: Any) -> Reading:
    try:
        handles = amdsmi.amdsmi_get_processor_handles()
    except amdsmi.AmdSmiException as error:
        return Reading(notes=[f"AMD: devices cannot be listed ({_short(error)})"])
    return Reading(devices=[_amdsmi_device(amdsmi, handle, index) for index, handle in enumerate(handles)])


def _amdsmi_device(amdsmi: Any, handle: Any, index: int) -> Device:
    failed: dict[str, list[str]] = {}

    def answer(what: str, question: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return question(handle, *arguments)
        except amdsmi.AmdSmiException as error:
            failed.setdefault(_short(error), []).append(what)
            return None

    def part(values: Any, *keys: str) -> float | None:
        for key in keys:
            if isinstance(values, dict) and (found := number(values.get(key))) is not None:
                return found
        return None

    asic = answer("name", amdsmi.amdsmi_get_gpu_asic_info) or {}
    memory = answer("memory", amdsmi.amdsmi_get_gpu_vram_usage)
    power = answer("power", amdsmi.amdsmi_get_power_info)
    cap = answer("power limit", amdsmi.amdsmi_get_power_cap_info)
    clock = answer("clock", amdsmi.amdsmi_get_clock_info, amdsmi.AmdSmiClkType.GFX)
    activity = answer("utilisation", amdsmi.amdsmi_get_gpu_activity)
    heat, current = amdsmi.AmdSmiTemperatureType.HOTSPOT, amdsmi.AmdSmiTemperatureMetric.CURRENT
    temperature = answer("temperature", amdsmi.amdsmi_get_temp_metric, heat, current)
    listed = answer("processes", amdsmi.amdsmi_get_gpu_process_list)
    total, used = part(memory, "vram_total"), part(memory, "vram_used")  # MiB
    limit = part(cap, "power_cap")
    notes = [f"unknown: {', '.join(what)} ({reason})" for reason, what in failed.items()]
    uuid = answer("uuid", amdsmi.amdsmi_get_gpu_device_uuid)
    return Device(
        id=f"rocm:{index}",
        backend="rocm",
        index=index,
        uuid=str(uuid or f"amd-{asic.get('asic_serial', index)}"),
        name=str(asic.get("market_name") or "AMD GPU"),
        capability=asic.get("target_graphics_version") and str(asic["target_graphics_version"]),
        utilization_percent=part(activity, "gfx_activity"),
        memory_total_bytes=None if total is None else round(total * 2**20),
        memory_used_bytes=None if used is None else round(used * 2**20),
        memory_free_bytes=None if total is None or used is None else round((total - used) * 2**20),
        temperature_c=number(temperature),
        power_w=part(power, "current_socket_power", "average_socket_power"),
        power_limit_w=None if limit is None else limit / 1e6 if limit > 1e5 else limit,  # microwatts in newer versions
        clock_mhz=whole(part(clock, "clk", "cur_clk")),
        clock_max_mhz=whole(part(clock, "max_clk")),
        processes=None if listed is None else [_amdsmi_process(p) for p in listed],
        notes=notes,
    )


def _amdsmi_process(entry: dict[str, Any]) -> DeviceProcess:
    usage = entry.get("memory_usage") or {}
    return describe(int(entry["pid"]), whole(usage.get("vram_mem", entry.get("mem"))), name=entry.get("name"))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def by_rocm_smi() -> Reading:
    try:
        text = ask("rocm-smi", *ROCM_SMI)
        pids = ask("rocm-smi", "--showpids", "--json") if text else None
    except ToolFailed as failure:
        return Reading(notes=[f"AMD: {failure}"])
    if text is None:
        return Reading()
    return parse(text, pids or "")


def parse(text: str, pids: str = "") -> Reading:
    """The devices in the JSON of rocm-smi. Its keys differ between versions, so several spellings are tried."""
    cards = _json_object(text)
    if cards is None:
        return Reading(notes=[f"AMD: rocm-smi gave no JSON ({' '.join(text.split())[:120] or 'nothing'})"])
    processes = _rocm_processes(pids)
    devices: list[Device] = []
    for key in sorted(cards, key=lambda k: number(k.removeprefix("card")) or 0):
        if re.fullmatch(r"card\d+", key):
            devices.append(_rocm_device(int(key.removeprefix("card")), cards[key]))
    if len(devices) == 1 and processes is not None:
        devices = [devices[0].model_copy(update={"processes": processes})]
    versions = {}
    if driver := (cards.get("system") or {}).get("Driver version"):
        versions["amd_driver"] = str(driver)
    return Reading(devices=devices, versions=versions)


def _json_object(text: str) -> dict[str, Any] | None:
    """The JSON object in what rocm-smi printed: warnings may stand before it."""
    start = text.find("{")
    if start < 0:
        return None
    with contextlib.suppress(ValueError):
        value, _ = json.JSONDecoder().raw_decode(text[start:])
        if isinstance(value, dict):
            return value
    return None


def _rocm_device(index: int, card: dict[str, Any]) -> Device:
    def value(*keys: str) -> Any:
        lowered = {k.lower(): v for k, v in card.items()}
        found = (lowered[k.lower()] for k in keys if k.lower() in lowered)
        return next((v for v in found if str(v).strip().upper() not in ("", "N/A")), None)

    total, used = whole(value("VRAM Total Memory (B)")), whole(value("VRAM Total Used Memory (B)"))
    unique = value("Unique ID")
    return Device(
        id=f"rocm:{index}",
        backend="rocm",
        index=index,
        uuid=f"amd-{unique}" if unique else f"amd-index-{index}",
        name=str(value("Card Series", "Card Model", "Device Name") or "AMD GPU"),
        capability=value("GFX Version"),
        utilization_percent=number(value("GPU use (%)")),
        memory_total_bytes=total,
        memory_used_bytes=used,
        memory_free_bytes=None if total is None or used is None else total - used,
        temperature_c=number(value("Temperature (Sensor junction) (C)", "Temperature (Sensor edge) (C)")),
        power_w=number(value("Current Socket Graphics Package Power (W)", "Average Graphics Package Power (W)")),
        power_limit_w=number(value("Max Graphics Package Power (W)")),
        clock_mhz=whole(value("sclk clock speed:")),
        memory_clock_mhz=whole(value("mclk clock speed:")),
        notes=[UNKNOWN],
    )


def _rocm_processes(text: str) -> list[DeviceProcess] | None:
    """`{"system": {"PID4242": "python3, 1, 1139888128, 0, unknown"}}`; with no process there is no JSON at all."""
    if not text.strip():
        return None
    found = _json_object(text)
    if found is None:
        return []
    processes = []
    for key, entry in (found.get("system") or {}).items():
        match = re.fullmatch(r"(?:PID)?(\d+)", key)
        fields = [f.strip() for f in str(entry).split(",")]
        if match and len(fields) >= 3:
            processes.append(describe(int(match.group(1)), whole(fields[2]), name=fields[0]))
    return processes
