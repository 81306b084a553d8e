"""An alert, and the file in a run's folder that holds each one once. Standard library only."""

from __future__ import annotations

import fcntl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.runs.progress import alerts as read_alerts
from training.runs.progress import shown
from training.runs.screen import clean
from workspace import clock, durable
from workspace.secrets import mask

FILE, LOCK = "alerts.jsonl", ".alerts"
MOST = 100  # of one run: no rule may fill a disk
EVIDENCE_LINES = 8
EVIDENCE_CHARACTERS = 300  # of a line

SUGGESTIONS = {
    "nan": "lower the learning rates, add a warm-up, clip gradients at 1.0, or train in bfloat16 instead of float16",
    "loss_flat": "try learning rates 3 times higher and lower; check that the optimizer reaches the weights and that "
    "targets belong to inputs; if it has learnt all it can, end it",
    "loss_rising": "lower the learning rates or clip gradients, and go on from the last good checkpoint",
    "overfitting": "end it and keep the best checkpoint; more data, more dropout or weight decay, or a smaller model",
    "throughput_falling": "look for other load on the machine, a full disk cache, a heat limit (gpu_status), or "
    "batches that grow",
    "memory_growing": "look for tensors kept over steps: sum losses with .item() or .detach(), bound caches and lists",
    "utilisation_low": "raise the batch size, feed data with more workers, compile, or log and evaluate less often",
    "imbalance": "check that every device gets its share: the launcher's process count, the sampler's shards, a "
    "process that waits for the slowest",
    "stalled": "look at the end of the log and at what the process waits for (py-spy dump --pid ...); stop it if "
    "nothing moves",
    "thermal": "improve cooling or lower the power limit; figures of speed measured meanwhile do not count",
    "device_lost": "stop the run, reset the GPU or reboot, and look at `dmesg` and at power and cables; other runs are "
    "kept from the device",
    "compile_fell_back": "install what is missing, or set compile = 'off' so that runs stay comparable",
    "disk_filling": "free space: `lab-mcp clean` shows what old runs hold; keep fewer checkpoints",
    "log": "print less, or raise runs.log_gigabytes in lab.toml",
    "oom": "halve the rows of a batch and accumulate gradients, shorten the context, or take a smaller model",
    "signal": "find who sent it: the system's out-of-memory killer (dmesg), an administrator, a batch system",
    "import_error": "install the missing package in the interpreter the run uses, or mend the import",
    "data": "check that the file is there, the path relative to the script, and what the run may read",
    "credential": "renew the credential (for example `huggingface-cli login`) or take data that needs none, then start "
    "it again",
}  # fmt: skip


@dataclass(frozen=True)
class Alert:
    """`rule` is the class of the alert; `device` tells apart alerts of one rule on several devices."""

    rule: str
    text: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    evidence: tuple[str, ...] = ()
    suggestion: str | None = None  # default: the rule's own
    device: str | None = None

    def as_json(self, severity: str) -> dict[str, Any]:
        lines = [mask(clean(line))[:EVIDENCE_CHARACTERS] for line in self.evidence[-EVIDENCE_LINES:]]
        record = {
            "time": clock.now(),
            "class": self.rule,
            "severity": severity,
            "text": mask(clean(self.text))[:600],
            "numbers": {name: shown(value) for name, value in self.numbers.items()},
            "evidence": lines,
            "suggestion": self.suggestion or SUGGESTIONS.get(self.rule),
            "device": self.device,
        }
        return {name: value for name, value in record.items() if value not in (None, [], {})}


def write_once(folder: Path, alert: Alert, severity: str) -> bool:
    """Append the alert durably unless one of its rule and device is there, or the rule is off; whether it was.

    Raises OSError when it cannot be written.
    """
    if severity == "off" or not folder.is_dir():
        return False
    return append_once(folder, alert.as_json(severity), ("class", "device"))


def append_once(folder: Path, record: Mapping[str, Any], same: Sequence[str]) -> bool:
    """Append a record to the run's alerts unless one with `same` fields is there, whoever else is looking, too.

    Supervisor, service and one that is just taking over may all find the same thing. Raises OSError.
    """
    with (folder / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = read_alerts(folder, MOST)
        wanted = [record.get(name) for name in same]
        if len(known) >= MOST or any([alert.get(name) for name in same] == wanted for alert in known):
            return False
        durable.append_jsonl(folder / FILE, record, sync=True)
    return True
