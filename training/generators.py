"""The random number generators a step may draw from: the CPU's, and that of the device in use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def take(device: torch.device) -> dict[str, Tensor]:
    """Where they are now, by kind of device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = _module(device).get_rng_state()
    return states


def put(states: dict[str, Tensor], device: torch.device) -> None:
    """Put them where `take` found them; what was taken on a device of another kind says nothing here."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        _module(device).set_rng_state(states[device.type])


def _module(device: torch.device) -> Any:
    return torch.get_device_module(device)
