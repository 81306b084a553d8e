"""Simulated metrics of healthy runs, as wild as real ones: for counting false alarms."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

BEGAN = 1_700_000_000.0


def healthy(seed: int) -> Iterator[tuple[dict[str, Any], float]]:
    """Records of one run's metrics.jsonl and the moment (epoch s) each is written.

    The loss falls by a power law under noise that may hang together, with spikes, any usual schedule, restarts of it,
    a warm-up, evaluations that pause the steps, speed and memory that flutter and settle.
    """
    draw = random.Random(seed)
    steps = draw.choice([120, 300, 700, 1500])
    start, floor, power = draw.uniform(4, 11), draw.uniform(1.0, 3.5), draw.uniform(0.3, 0.8)
    scale = steps * draw.uniform(0.003, 0.05)
    spread, memory_of_noise = draw.uniform(0.002, 0.08), draw.choice([0.0, 0.0, 0.5, 0.9, 0.98])
    schedule = draw.choice(["constant", "cosine", "warm-down", "linear", "restarts", "unknown"])
    warm_up, spikes = draw.choice([0.0, 0.02, 0.1]), draw.choice([0.0, 0.0, 0.002, 0.01])
    speed, flutter, memory = draw.uniform(1e3, 1e6), draw.uniform(0.01, 0.2), draw.uniform(1e9, 5e10)
    seconds, budget = draw.choice([0.1, 0.25, 2.0, 20.0]), draw.random() < 0.8
    noise, now = 0.0, BEGAN
    for step in range(1, steps + 1):
        part = step / steps
        rate = _rate(schedule, part) * (min(1.0, part / warm_up) if warm_up else 1.0)
        loss = floor + (start - floor) * (1 + step / scale) ** -power
        loss *= 1 + (0.03 * rate if schedule == "restarts" else 0.0)
        quiet = loss
        noise = memory_of_noise * noise + math.sqrt(1 - memory_of_noise**2) * draw.gauss(0, spread)
        loss *= (1 + noise) * (draw.uniform(1.3, 4.0) if draw.random() < spikes else 1.0)
        now += seconds
        record = {
            "step": step,
            "elapsed_s": step * seconds,
            "loss": loss,
            "tokens_per_s": speed * max(0.2, draw.gauss(1, flutter)) * (0.4 if draw.random() < 0.03 else 1.0),
            "memory_bytes": int(memory * (1 + 0.3 * (1 - math.exp(-10 * part)) + draw.gauss(0, 0.01))),
        }
        yield (
            record | ({"lr": 3e-4 * rate} if schedule != "unknown" else {}) | ({"progress": part} if budget else {}),
            now,
        )
        if step % max(1, steps // 10) == 0:
            now += draw.uniform(0, 40)
            yield {"step": step, "val_kind": "quick", "val_loss": quiet * draw.gauss(1.03, 0.003)}, now


def _rate(schedule: str, part: float) -> float:
    """The learning rate as a fraction of its peak."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * part))
    if schedule == "warm-down":
        return min(1.0, (1 - part) / 0.3)
    if schedule == "linear":
        return 1 - part
    if schedule == "restarts":
        return 0.5 * (1 + math.cos(math.pi * ((4 * part) % 1)))
    return 1.0
