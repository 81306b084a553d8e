"""The canary: about two seconds of plain arithmetic and copying before a run, on the device it will train on.

It shows a throttled or shared machine, and is a ceiling for MFU where no data sheet gives one (every CPU). It is sent
ahead of the model and outside the budget's clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from training.budget import planned_tokens
from training.size import flops_per_token

if TYPE_CHECKING:
    from training.config import TrainingConfig

FILE = "canary.json"
DTYPES = ("float32", "bfloat16")
FULL_S, SHORTEST_S = 2.0, 0.2
FULL_FROM_S = 20.0  # a run expected to be shorter than this gets a shorter canary
MODEST_FLOPS = 2e10  # operations a second of a modest machine, to tell how long a budget in other units may take
SMALLEST, LARGEST_CPU, LARGEST_ACCELERATOR = 256, 1024, 8192  # rows and columns of the matrices
COPIED_BYTES = 64 * 2**20  # beyond most caches, and little against what a run needs anyway
REPEATS = 3  # at least


@dataclass(frozen=True)
class Canary:
    """What the machine gave: 10^9 operations a second by number format, 10^9 bytes a second copied (read and written).

    A format the device cannot multiply in is absent.
    """

    matmul_gflops: dict[str, float]
    bandwidth_gb_s: float
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def peak_flops(self, dtype: str) -> float | None:
        """Operations a second measured for `dtype`, None when it was not."""
        rate = self.matmul_gflops.get(dtype)
        return None if rate is None else rate * 1e9


def measure(device: torch.device, seconds: float = FULL_S, synchronize: Callable[[], None] = lambda: None) -> Canary:
    """Products for 40 % of `seconds` in each format, copying for the rest."""
    started = time.perf_counter()
    rates = {name: product_gflops(device, name, 0.4 * seconds, synchronize) for name in DTYPES}
    bandwidth = _copied_gb_s(device, 0.2 * seconds, synchronize)
    known = {name: round(rate, 2) for name, rate in rates.items() if rate is not None}
    return Canary(known, round(bandwidth, 2), round(time.perf_counter() - started, 3))


def length_s(config: TrainingConfig) -> float:
    """How long a canary suits a run: `FULL_S`, less before a short one."""
    flops = flops_per_token(config)
    tokens = planned_tokens(config, flops)
    expected = config.budget.amount if tokens is None else tokens * flops / MODEST_FLOPS
    return max(SHORTEST_S, FULL_S * min(1.0, expected / FULL_FROM_S))


def product_gflops(
    device: torch.device, dtype: str, seconds: float, synchronize: Callable[[], None] = lambda: None
) -> float | None:
    """10^9 operations a second of a matrix product together with the two products of its backward pass.

    The matrices grow as long as three repeats fit in `seconds`; the median repeat counts. None when the device has no
    such product.
    """
    size, largest = SMALLEST, LARGEST_CPU if device.type == "cpu" else LARGEST_ACCELERATOR
    kind = getattr(torch, dtype)
    ends = time.perf_counter() + seconds

    def once(x: torch.Tensor, w: torch.Tensor) -> float:
        synchronize()
        started = time.perf_counter()
        y = x @ w
        torch.mm(y, w.t())
        torch.mm(x.t(), y)
        synchronize()
        return time.perf_counter() - started

    while True:
        try:
            x = torch.randn(size, size, device=device).to(kind)
            w = torch.randn(size, size, device=device).to(kind)
            once(x, w)  # the first makes kernels and buffers
        except (RuntimeError, TypeError):
            return None
        took = once(x, w)
        left = ends - time.perf_counter()
        if size < largest and (1 + REPEATS) * 8 * took < left:
            size *= 2
            continue
        times = [took]
        while len(times) < REPEATS or time.perf_counter() < ends:
            times.append(once(x, w))
        return 6 * size**3 / statistics.median(times) / 1e9


def _copied_gb_s(device: torch.device, seconds: float, synchronize: Callable[[], None]) -> float:
    size = COPIED_BYTES if device.type == "cpu" else 4 * COPIED_BYTES
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while len(times) < REPEATS or time.perf_counter() < ends:
        synchronize()
        started = time.perf_counter()
        target.copy_(source)
        synchronize()
        times.append(time.perf_counter() - started)
    return 2 * size / statistics.median(times) / 1e9
