"""The gate: may the full runs start after this test run? If not, why, and what to change."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workspace import durable
from workspace.secrets import mask

MIN_LOSSES = 12  # with fewer points a loss is not called flat
SMALLEST_FALL = 0.01  # nats: a loss that falls by less over a test run has not learnt anything
LOW_MFU = 0.10
LOG_BYTES = 4096
LOG_LINES = 12

ADVICE = {
    "oom": "halve batch.rows (the same mathematics in less memory), or take a smaller model.width, model.depth or "
    "data.context",
    "nan": "lower the learning rates (optimizer.*_lr), add schedule.warmup, or set optimizer.grad_clip = 1.0",
    "import": "the recipe's own code does not load: mend the file named in the log and propose again",
    "data": "the corpus cannot be read as the recipe describes it: check data.corpus, data.files and data.vocab_size",
    "stalled": "the run stopped making progress: look for other load on the device, then propose again",
    "signal": "the process was killed from outside, often for memory: free some, or halve batch.rows",
    "exit": "read the end of the log for the cause",
    "timed_out": "it needed longer than its limit: take a smaller budget or model, or set runs.time_limit_hours",
    "loss_flat": "the learning rates may be far too low or too high, or the optimizer does not reach the weights",
    "no_metric": "let the recipe report the metric, or name one that it reports",
}


@dataclass(frozen=True)
class Gate:
    """The answer. `finding` is `healthy`, `low_utilisation` or a class of failure."""

    passed: bool
    finding: str
    sentence: str
    advice: str | None = None


def failure(finding: str, where: str, detail: str | None = None) -> Gate:
    """A run that failed, with what to change. `where`: "test run run-0004"."""
    words = {
        "oom": "ran out of memory",
        "nan": "produced numbers that are not finite",
        "import": "could not load the recipe's code",
        "data": "could not read its data",
        "stalled": "stopped making progress",
        "signal": "was killed",
        "timed_out": "ran into its time limit",
    }.get(finding, "ended with an error")
    text = f"Crash: {where} {words}" + (f" ({detail.rstrip('.')})" if detail else "") + "."
    return Gate(False, finding, text, ADVICE.get(finding, ADVICE["exit"]))


def assess(where: str, summary: dict[str, Any], losses: Sequence[float], metric: str) -> Gate:
    """The gate after a test run that ended well. `losses` in the order of steps, in nats."""
    if any(not math.isfinite(loss) for loss in losses):
        return failure("nan", where)
    if numeric(summary).get(metric) is None:
        reported = ", ".join(sorted(name for name in numeric(summary) if "." not in name)) or "no numbers"
        return Gate(False, "no_metric", f"Invalid: {where} did not report {metric}; it reported {reported}.",
                    ADVICE["no_metric"])  # fmt: skip
    if len(losses) >= MIN_LOSSES:
        part = max(3, len(losses) // 4)
        fall = _mean(losses[:part]) - _mean(losses[-part:])
        if fall < SMALLEST_FALL:
            text = f"Crash: the loss did not fall in {where} (by {fall:.4f} nats from its first to its last quarter)."
            return Gate(False, "loss_flat", text, ADVICE["loss_flat"])
    mfu = numeric(summary).get("mfu")
    if mfu is not None and mfu < LOW_MFU:
        advice = "raise batch.rows, or data.context, so that the device has more to do at once"
        return Gate(True, "low_utilisation", f"{where} used {mfu:.1%} of the device's arithmetic.", advice)
    return Gate(True, "healthy", f"{where} was healthy.")


def numeric(summary: dict[str, Any] | None) -> dict[str, float]:
    """The finite numbers of a summary, `parameters.total` for nested ones; true and false are not numbers."""
    found: dict[str, float] = {}
    for key, value in (summary or {}).items():
        items = [(f"{key}.{k}", v) for k, v in value.items()] if isinstance(value, dict) else [(key, value)]
        for name, item in items:
            if isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item):
                found[name] = float(item)
    return found


def read_losses(folder: Path) -> list[float]:
    """The losses of a run's metrics.jsonl, in order; what is not a number is NaN."""
    losses = []
    for line in durable.read_jsonl(folder / "metrics.jsonl"):
        if isinstance(line, dict) and "loss" in line:
            loss = line["loss"]
            losses.append(float(loss) if isinstance(loss, int | float) else math.nan)
    return losses


def log_end(folder: Path) -> str:
    """The last lines of a run's log, at most 4 KB, without control characters and credentials."""
    try:
        with durable.open_regular(folder / "train.log") as file:
            file.seek(max(0, file.seek(0, 2) - LOG_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:  # there is none, or it is no file
        return ""
    lines = ["".join(c for c in line if c.isprintable()) for line in text.splitlines()]
    return mask("\n".join([line for line in lines if line.strip()][-LOG_LINES:]))


def as_code(text: str) -> str:
    """`text` as a Markdown code block: the advice it stands in is shown in reports and notes."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
