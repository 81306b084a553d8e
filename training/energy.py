"""Energy by the machine's own counters: NVIDIA's of the device in use, else the processors' (RAPL); often neither."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import torch

from training.hardware.backend import Backend
from training.watch.lab_watch import energy_joules

RAPL = "the processors' counters (RAPL)"


class Meter:
    """Joules since the meter was made; `joules()` is None where nothing can be read."""

    def __init__(self, backend: Backend) -> None:
        self._read, self.source = _counter(backend)
        self._before = self._read()
        self._told = (0.0, time.monotonic())

    def since_last(self, tokens_per_s: float) -> dict[str, float]:
        """Mean power in watts since the last call, and joules a token; nothing where no counter moves."""
        joules, now = self.joules(), time.monotonic()
        before, at = self._told
        if joules is None or joules <= before:
            return {}
        self._told = (joules, now)
        watts = (joules - before) / (now - at)
        return {"power_w": round(watts, 2), "joules_per_token": watts / tokens_per_s}

    def joules(self) -> float | None:
        now = self._read()
        return None if now is None or self._before is None or now < self._before else now - self._before


def _counter(backend: Backend) -> tuple[Callable[[], float | None], str]:
    if backend.kind == "cuda":
        nvml: Any = importlib.import_module("pynvml")
        try:
            nvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(backend.device).uuid}"
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except nvml.NVMLError:  # no driver library, no such counter on this card
            return energy_joules, RAPL
        return lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000.0, "the device's counter"
    return energy_joules, RAPL
