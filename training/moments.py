"""AdamW's moments in less memory: in 8 bits (arXiv 2110.02861, by torchao), or with the machine instead of the device.

The second moment is kept as its root: eight bits then reach down to where the first moment is lost, too, and no step
divides by a root that was rounded to nothing.
"""

from __future__ import annotations

import importlib
import math
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256  # values that share one scale, as in the paper's and torchao's optimizers at most
SMALLEST = 4096  # fewer values are kept as they are: nothing would be gained


def are_small(group: dict[str, Any]) -> bool:
    """Whether a parameter group asks for either; a recipe's own group need not say."""
    return group.get("state_bits", 32) == 8 or bool(group.get("offload"))


def read(state: dict[str, Any], name: str, like: Tensor) -> Tensor:
    """A moment as float32 on the device of `like`; zeros before the first step."""
    if f"{name}_codes" in state:
        codes, scale = state[f"{name}_codes"].to(like.device), state[f"{name}_scale"].to(like.device)
        library = _library()
        values = library.dequant_with_qmap(codes, _map(name, like.device), scale)
        return cast(Tensor, values.view(-1)[: like.numel()].view_as(like))
    return cast(Tensor, state[name].to(like.device)) if name in state else torch.zeros_like(like)


def write(state: dict[str, Any], name: str, value: Tensor, group: dict[str, Any]) -> None:
    """Keep a moment as the group wants it."""
    kept = {name: value}
    if group.get("state_bits", 32) == 8 and value.numel() >= SMALLEST:
        library = _library()
        padded = F.pad(value.reshape(-1), (0, -value.numel() % BLOCK))
        scaled, scale = library.scale_tensor(padded, BLOCK)
        codes = library.quantize_8bit_with_qmap(scaled, _map(name, value.device))
        kept = {f"{name}_codes": codes, f"{name}_scale": scale}
    for key, tensor in kept.items():
        state[key] = tensor.to("cpu") if group.get("offload") else tensor


def restored(state: dict[str, Any], like: Tensor, group: dict[str, Any]) -> dict[str, Any]:
    """State of a checkpoint for the parameter `like`, where `write` would have put it and in the same dtypes."""
    place = torch.device("cpu") if group.get("offload") else like.device
    return {key: value if key == "step" else value.to(place) for key, value in state.items()}


def step(p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """AdamW's step for one parameter with its moments in less memory; `state["step"]` is counted already."""
    assert p.grad is not None
    beta1, beta2 = group["betas"]
    count = state["step"].item()
    first = read(state, "first", p).lerp(p.grad, 1 - beta1)
    second = read(state, "root", p).square().mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
    root = second.sqrt_()
    write(state, "first", first, group)
    write(state, "root", root, group)
    if "root_codes" in state and beta1**2 < beta2:
        # what holds of exact moments (Cauchy-Schwarz) is made to hold of rounded ones; with other betas nothing does
        root = torch.maximum(root, first.abs() * ((1 - beta2) * (1 - beta1**2 / beta2)) ** 0.5 / (1 - beta1))
    root = root.div(math.sqrt(1 - beta2**count)).add_(group["eps"])
    p.addcdiv_(first, root, value=-group["lr"] / (1 - beta1**count))


def _library() -> Any:
    return importlib.import_module("torchao.optim.quant_utils")


@cache
def _map(name: str, device: torch.device) -> Tensor:
    """The 256 values a code stands for; a root has no sign."""
    return torch.tensor(_library().create_dynamic_map(signed=name == "first"), device=device)
