"""Twenty runs as they really look, ten healthy ones full of traps and ten in trouble, and the alerts they call for."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from training.runs.outcome import End, Stop

Record = dict[str, Any]
TRACEBACK = 'Traceback (most recent call last):\n  File "/home/u/train.py", line 61, in <module>\n    main()\n'
TRACEBACK += '  File "/home/u/train.py", line 40, in main\n    {line}\n{error}\n'


ENDED_WELL = End(0)


@dataclass(frozen=True)
class Case:
    """After the last of `metrics` nothing comes for `silent_s`; `stop` is what the lab itself asked for."""

    name: str
    alerts: set[str]
    log: str = "Step 1 | Loss: 5.1\n"
    metrics: Callable[[], Iterator[Record]] = lambda: iter(())
    end: End | None = ENDED_WELL  # None: it is still running
    stop: Stop | None = None
    silent_s: float = 1.0
    memory_kill: bool = False


def course(
    steps: int = 800,
    *,
    loss: Callable[[float], float] = lambda part: 2.0 + 3.0 * (1 + 60 * part) ** -0.5,
    noise: float = 0.02,
    rate: Callable[[float], float] = lambda part: 1.0,
    speed: Callable[[float], float] = lambda part: 1.0,
    memory: Callable[[float], float] = lambda part: 1.0,
    validation: Callable[[float], float] | None = None,
    pause: Callable[[int], float] = lambda step: 0.0,
    until: float = 1.0,
) -> Callable[[], Iterator[Record]]:
    """Records of a run whose quantities are functions of the part of the budget that is spent; `until` cuts it off."""

    def made() -> Iterator[Record]:
        draw = random.Random(steps)
        after = 0.0
        for step in range(1, int(steps * until) + 1):
            part = step / steps
            after += 1.0 + pause(step)
            yield {
                "after": after,
                "step": step,
                "elapsed_s": float(step),
                "loss": loss(part) * (1 + draw.gauss(0, noise)),
                "lr": 3e-4 * rate(part),
                "grad_norm": abs(draw.gauss(1, 0.3)),
                "tokens_per_s": 52_000 * speed(part) * draw.gauss(1, 0.05),
                "memory_bytes": int(9e9 * memory(part) * draw.gauss(1, 0.002)),
                "progress": part,
            }
            if validation and step % (steps // 10) == 0:
                yield {"after": after, "step": step, "val_kind": "quick", "val_bpb": validation(part)}

    return made


def with_nan(records: Callable[[], Iterator[Record]], step: int) -> Callable[[], Iterator[Record]]:
    return lambda: (r | {"loss": math.nan} if r["step"] >= step else r for r in records())


def failing(error: str, line: str = "train(loader)") -> str:
    return "epoch 0 of 3\nloading weights\n" + TRACEBACK.format(line=line, error=error)


HEALTHY = [
    Case(
        "words that mean nothing",
        set(),
        "Killed 3 stale workers of an earlier run\nnan values in column 7 are filled with 0\nloss scale: inf -> 65536\n"
        "CUDA out of memory handler installed\nError: none so far\nNo such file or directory: optional.yaml (ignored)\n"
        "ImportError is what you would see without flash-attn; going on without\nToken expired? no\nerror rate 0.031\n",
        course(),
    ),
    Case("a noisy loss that falls slowly", set(), metrics=course(noise=0.09)),
    Case(
        "a warm-up in which the loss rises first",
        set(),
        metrics=course(
            loss=lambda part: 5.0 + 4 * part if part < 0.05 else 2.2 + 3.0 * (1 + 60 * (part - 0.05)) ** -0.5,
            rate=lambda part: min(1.0, part / 0.05),
        ),
    ),
    Case(
        "long evaluations between the steps",
        set(),
        metrics=course(pause=lambda step: 150.0 if step % 100 == 0 else 0.0, validation=lambda part: 1.4 - 0.2 * part),
    ),
    Case(
        "a plateau at the end of a decayed schedule",
        set(),
        metrics=course(
            loss=lambda part: 2.0 + 3.0 * math.exp(-9 * min(part, 0.6)),
            rate=lambda part: max(0.0, 1 - part / 0.7),
            noise=0.004,
        ),
    ),
    Case(
        "a traceback in the middle that was caught",
        set(),
        "epoch 0\n" + TRACEBACK.format(line="download()", error="ConnectionError: 401 Client Error: Unauthorized")
        + "retrying from the mirror\n" + "".join(f"step {n} loss {3 - n / 100:.3f}\n" for n in range(40)) + "done\n",
        course(),
    ),
    Case(
        "spikes that come back",
        set(),
        metrics=course(loss=lambda part: (2.0 + 3.0 * (1 + 60 * part) ** -0.5) * (1.8 if 0.40 < part < 0.42 else 1.0)),
    ),
    Case(
        "restarts of the schedule, a slow minute, memory that settles",
        set(),
        metrics=course(
            loss=lambda part: (2.0 + 3.0 * (1 + 60 * part) ** -0.5) * (1 + 0.03 * (1 - (4 * part) % 1)),
            rate=lambda part: 1 - (4 * part) % 1,
            speed=lambda part: 0.3 if 0.5 < part < 0.57 else 1.0,
            memory=lambda part: 1 + 0.8 * (1 - math.exp(-12 * part)),
        ),
    ),
    Case(
        "a script whose exit handler fails after its work is done",
        set(),
        "wrote model.pt\nException ignored in: <module 'threading'>\n"
        + TRACEBACK.format(line="flush()", error="ImportError: sys.meta_path is None, Python is likely shutting down"),
    ),
    Case(
        "stopped by the user",
        set(),
        "step 400\nKilled\n" + TRACEBACK.format(line="step()", error="KeyboardInterrupt"),
        course(until=0.4),
        End(signal="SIGTERM"),
        Stop("cancelled", "asked by the user", "2026-01-01T00:00:00.000Z"),
    ),
]  # fmt: skip

TROUBLED = [
    Case("a loss that is not a number", {"nan"}, metrics=with_nan(course(), 300)),
    Case(
        "out of memory on the device",
        {"oom"},
        failing(
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
            "15.70 GiB of which 1.12 GiB is free.",
            "loss.backward()",
        ),
        course(until=0.05),
        End(1),
    ),
    Case("killed by the kernel", {"signal"}, "step 17\n", course(until=0.1), End(signal="SIGKILL")),
    Case("a missing module", {"import_error"}, failing("ModuleNotFoundError: No module named 'flash'"), end=End(1)),
    Case(
        "missing data",
        {"data"},
        failing("FileNotFoundError: [Errno 2] No such file or directory: 'data/train.bin'"),
        end=End(1),
    ),
    Case(
        "a credential that has expired",
        {"credential"},
        failing(
            "requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url: "
            "https://user:hunter22@hub.example.org/api/models"
        ),
        end=End(1),
    ),
    Case(
        "a loss that does not fall",
        {"loss_flat"},
        metrics=course(loss=lambda part: 5.54, until=0.5),
        end=None,
    ),
    Case(
        "a divergence that stays a number",
        {"loss_rising"},
        metrics=course(
            loss=lambda part: 2.0 + 3.0 * (1 + 60 * part) ** -0.5 + max(0.0, 9 * (part - 0.4)), until=0.7
        ),
        end=None,
    ),
    Case(
        "overfitting, and a leak that makes it slow",
        {"overfitting", "memory_growing", "throughput_falling"},
        metrics=course(
            validation=lambda part: 1.2 + 0.5 * (part - 0.4) ** 2,
            memory=lambda part: 1 + 2 * part,
            speed=lambda part: 1.0 if part < 0.7 else 0.4,
        ),
        end=None,
    ),
    Case(
        "steps that no longer come",
        {"stalled"},
        metrics=course(until=0.5, pause=lambda step: 40.0 if step % 100 == 0 else 0.0),
        end=None,
        silent_s=1500.0,
    ),
]  # fmt: skip
