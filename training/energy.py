"""Energy by the machine's own counters: NVIDIA's of the device in use, else the processors' (RAPL); often neither."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from training.hardware.backend import Backend
from training.watch.lab_watch import Energy

RAPL = "the processors' counters (RAPL)"


class Meter:
    """Joules since `start()`. Of several processes each counts its own device; the processors' counters are of the
    machine, so that the first process counts them for all and the others tell 0.
    """

    def __init__(self, backend: Backend, *, first: bool = True) -> None:
        self._read, self.source = _counter(backend, first)
        self.start(0)

    def start(self, tokens: int) -> None:
        """From now on; `tokens` have been trained on so far."""
        self._before = self._read()
        self._start = self._noted = self._told = (0.0, tokens, time.monotonic())

    def joules(self) -> float | None:
        """Of this process; None where nothing can be read."""
        now = self._read()
        return None if now is None or self._before is None else now - self._before

    def note(self, joules: float | None, tokens: int) -> None:
        """What all processes have used since the start, and the tokens trained on by then."""
        if joules is not None and math.isfinite(joules):
            self._noted = (joules, tokens, time.monotonic())

    def since_last(self) -> dict[str, float]:
        """Mean power in watts and joules a token since the last call; nothing where no counter moves."""
        (joules, tokens, at), told = self._noted, self._told
        if joules <= told[0] or tokens <= told[1]:
            return {}
        self._told, used = self._noted, joules - told[0]
        return {"power_w": round(used / (at - told[2]), 2), "joules_per_token": used / (tokens - told[1])}

    def summary(self) -> dict[str, Any] | None:
        """What the steps since the start took; None where no counter moves, or no step was made."""
        joules, tokens = self._noted[0], self._noted[1] - self._start[1]
        if joules <= 0 or tokens <= 0:
            return None
        return {"joules": joules, "joules_per_token": joules / tokens, "source": self.source}


def _counter(backend: Backend, first: bool) -> tuple[Callable[[], float | None], str]:
    if backend.kind == "cuda":
        nvml: Any = importlib.import_module("pynvml")
        try:
            nvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(backend.device).uuid}"
            handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except nvml.NVMLError:  # no driver library, no such counter on this card
            pass
        else:
            return lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000.0, "the device's counter"
    processors: Any = Energy  # of a file without types
    return (processors().joules if first else lambda: 0.0), RAPL
