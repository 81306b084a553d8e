"""Does bfloat16 pay on this CPU? Asked of the instruction set first and then of a stopwatch, once per machine.

Without bfloat16 units the products are emulated, and a backward pass can be hundreds of times slower than in float32.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import torch

from training.hardware.cpu import model_name
from workspace import durable

SIZE = 512
PAYS_ABOVE = 1.3  # bfloat16 must be this much faster to be worth its lost precision


def bfloat16_pays(cache_dir: Path | None = None) -> tuple[bool, str]:
    """Whether to train in bfloat16 on this CPU, and why; the measurement is kept in `cache_dir`."""
    units = _bfloat16_units()
    if units is None:
        return False, "this CPU has no bfloat16 units (AMX, AVX-512 BF16 or Arm BF16)"
    file = None if cache_dir is None else cache_dir / f"cpu-bfloat16-{_machine()}.json"
    known: Any = durable.read_json(file) if file is not None else None
    if known is None:
        known = {"float32_s": _seconds(torch.float32), "bfloat16_s": _seconds(torch.bfloat16)}
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            durable.write_json(file, known)
    ratio = known["float32_s"] / known["bfloat16_s"]
    return ratio >= PAYS_ABOVE, f"measured: bfloat16 is {ratio:.2f} times as fast as float32 ({units})"


def _bfloat16_units() -> str | None:
    checks = {
        "AMX": getattr(torch.cpu, "_is_amx_tile_supported", None),
        "AVX-512 BF16": getattr(torch.cpu, "_is_avx512_bf16_supported", None),
    }
    for name, check in checks.items():
        if check is not None and check():
            return name
    return "Arm BF16" if torch.cpu.get_capabilities().get("bf16") else None


def _machine() -> str:
    what = f"{torch.__version__} {torch.get_num_threads()} {torch.backends.cpu.get_cpu_capability()}"
    return hashlib.sha256(f"{what} {model_name()}".encode()).hexdigest()[:16]


def _seconds(dtype: torch.dtype) -> float:
    """Best of three: forward and backward of a product of SIZE x SIZE matrices."""
    a = torch.randn(SIZE, SIZE, dtype=dtype, requires_grad=True)
    b = torch.randn(SIZE, SIZE, dtype=dtype, requires_grad=True)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        torch.autograd.backward((a @ b).sum())
        best = min(best, time.perf_counter() - started)
    return best
