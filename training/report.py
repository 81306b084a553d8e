"""What a run says while it trains: lines in the log, records in metrics.jsonl. No torch here."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from workspace import clock, durable

STEP_SECONDS = 0.25  # steps are reported at most this often
MEMORY_SECONDS = 10.0
GIGA = 1e9


_speaks = True


def be_silent() -> None:
    """For all but the first of several training processes: no lines, no metrics."""
    global _speaks
    _speaks = False


def say(text: str) -> None:
    """A line of the log, there at once: the log is a file, which Python would buffer."""
    if _speaks:
        print(text, flush=True)


class Reporter:
    """Reports steps, at most every STEP_SECONDS."""

    def __init__(self, metrics: Path, *, device_label: str, memory_word: str, memory_total: int | None) -> None:
        self._file = metrics
        self._label, self._word, self._total = device_label, memory_word, memory_total
        self._step_at = -math.inf
        self._memory_at = -math.inf

    def is_due(self) -> bool:
        """Whether the coming step will be reported."""
        return time.monotonic() - self._step_at >= STEP_SECONDS

    def step(self, record: dict[str, Any], *, progress: float, eta_s: float | None) -> None:
        """`record` as metrics.jsonl holds it; None values are left out."""
        self._step_at = time.monotonic()
        append(self._file, record)
        eta = "?" if eta_s is None else f"{eta_s:.0f}s"
        say(
            f"Step {record['step']} | Loss: {record['loss']:.4f} | lr: {record['lr']:.3g} | "
            f"tok/s: {record['tokens_per_s']:,.0f} | {100 * progress:.1f}% | eta {eta}"
        )
        if self._step_at - self._memory_at >= MEMORY_SECONDS:
            self._memory_at = self._step_at
            self.memory(record["memory_bytes"])

    def memory(self, used: int) -> None:
        if self._total:
            percent = 100 * used / self._total
            total = f"{self._total / GIGA:.1f}GB {self._word} ({percent:.1f}% utilization)"
            say(f"{self._label}: {used / GIGA:.1f}GB / {total}")


def append(metrics: Path, record: dict[str, Any]) -> None:
    """One record of metrics.jsonl; None values are left out."""
    if not _speaks:
        return
    known = {key: value for key, value in record.items() if value is not None}
    durable.append_jsonl(metrics, {"time": clock.now()} | known)


def evaluated(metrics: Path, step: int, elapsed_s: float, result: dict[str, float | None], *, full: bool) -> None:
    """A quick evaluation's figure is on less text than the final one's: `val_kind` tells them apart."""
    kind = "full" if full else "quick"
    append(metrics, {"step": step, "elapsed_s": round(elapsed_s, 3), "val_kind": kind} | result)
    say(f"Eval {step} | val_bpb: {result['val_bpb']:.4f} | val_loss: {result['val_loss']:.4f} | {kind}")


def drop_after(metrics: Path, step: int) -> None:
    """Forget the records after `step`: a resumed run makes those steps again."""
    kept = [record for record in durable.read_jsonl(metrics) if record["step"] <= step]
    lines = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in kept)
    durable.write_text(metrics, lines)


def summary_block(summary: dict[str, Any]) -> str:
    """The block that ends a log: `key: value`, one a line, behind `---` (the keys of karpathy/autoresearch)."""
    mfu = summary["mfu"]
    values = {
        "val_bpb": f"{summary['val_bpb']:.6f}",
        "training_seconds": f"{summary['training_seconds']:.1f}",
        "total_seconds": f"{summary['total_seconds']:.1f}",
        "peak_vram_mb": f"{summary['peak_memory_bytes'] / 2**20:.1f}",
        "mfu_percent": "unknown" if mfu is None else f"{100 * mfu:.2f}",
        "total_tokens_M": f"{summary['tokens'] / 1e6:.2f}",
        "num_steps": str(summary["steps"]),
        "num_params_M": f"{summary['parameters']['total'] / 1e6:.2f}",
        "depth": str(summary["depth"]),
    }
    return "---\n" + "\n".join(f"{key + ':':<18}{value}" for key, value in values.items())
