"""What a configuration asks of the machine beside the lab's own packages. No torch."""

from __future__ import annotations

import importlib.util

from training import trackers
from training.config import TrainingConfig
from workspace.errors import Refused, Unavailable


def check(config: TrainingConfig, backend: str) -> None:
    """Raises `Unavailable` without a package that is needed, `Refused` where a setting cannot do anything."""
    trackers.check(config.tracker)
    check_packages(config)
    if config.parallel.kind != "none" and backend in ("mps", "hpu"):
        device = "an Apple GPU" if backend == "mps" else "a Gaudi accelerator"
        raise Refused(
            f"parallel.kind = {config.parallel.kind!r} does not work on {device}",
            valid="NVIDIA and AMD accelerators, and CPUs",
            fix='parallel.kind = "none"',
        )
    if config.optimizer.offload and backend in ("cpu", "mps"):
        memory = "a CPU trains in the machine's memory" if backend == "cpu" else "an Apple GPU shares it"
        raise Refused(
            f"optimizer.offload keeps the optimizer's moments in the machine's memory: {memory} already",
            fix="optimizer.offload = false",
        )


def check_packages(config: TrainingConfig) -> None:
    """Raises `Unavailable` without a package that a step needs."""
    if config.optimizer.state_bits == 8 and importlib.util.find_spec("torchao") is None:
        raise Unavailable("optimizer.state_bits = 8 needs the package torchao", fix="pip install 'lab-mcp[adam8]'")
