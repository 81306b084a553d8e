"""Does bfloat16 pay on this CPU? Asked of the instruction set first and then of the canary, once per machine.

Without bfloat16 units the products are emulated, and a backward pass can be hundreds of times slower than in float32.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from training.canary import product_gflops
from training.hardware.cpu import model_name
from workspace import clock, durable

PAYS_ABOVE = 1.3  # bfloat16 must be this much faster to be worth its lost precision
ROUNDS, MEASURED_S = 4, 0.2  # of each format, in turn: what else the machine does slows one round, seldom all


def bfloat16_pays(cache_dir: Path | None = None) -> tuple[bool, str]:
    """Whether to train in bfloat16 on this CPU, and why; the first measurement is kept in `cache_dir` and stays."""
    units = _bfloat16_units()
    if units is None:
        return False, "this CPU has no bfloat16 units (AMX, AVX-512 BF16 or Arm BF16)"
    file = None if cache_dir is None else cache_dir / f"cpu-bfloat16-{_machine()}.json"
    known: Any = durable.read_json(file) if file is not None else None
    if known is None:
        rounds = [{name: _gflops(name) for name in ("float32", "bfloat16")} for _ in range(ROUNDS)]
        known = {name: max(one[name] for one in rounds) for name in rounds[0]}
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            durable.write_json(file, {"cpu": model_name(), "measured_at": clock.now()} | known)
    ratio = known["bfloat16"] / known["float32"]
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
    what = f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()} {model_name()}"
    return hashlib.sha256(what.encode()).hexdigest()[:16]


def _gflops(dtype: str) -> float:
    """10^9 operations a second of a product with its backward pass; 0 when there is none."""
    return product_gflops(torch.device("cpu"), dtype, MEASURED_S) or 0.0
