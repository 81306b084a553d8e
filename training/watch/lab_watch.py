# mypy: ignore-errors
# ruff: noqa: PTH112, PTH118, PTH123, PTH208, UP017, UP031, BLE001
"""The lab's instruments for a training loop of your own. One file, no dependencies, any Python from 3.8.

    import lab_watch
    ...
    lab_watch.step(loss=loss, tokens=batch_tokens, lr=lr)     # once a step

Under the lab (start_training) this writes metrics.jsonl into the run's folder: progress, curves and alerts then work as
for the lab's own trainer. Anywhere else it does nothing. It never raises and never prints more than one warning.

Numbers may be tensors: they are read only when a line is due (four a second), so a device need not be waited for each
step. `tokens` are those of this step; `val_bpb`, `val_loss` and other names you choose are written as they are.
"""

import json
import os
import sys
import threading
import time
from datetime import datetime, timezone

EVERY_S = 0.25
RAPL = "/sys/class/powercap"


class _Watch:
    """Lines for one run's folder, from the first process that makes steps."""

    def __init__(self, folder):
        self.file = os.path.join(folder, "metrics.jsonl")
        self.lock = threading.Lock()
        self.pid = os.getpid()
        self.steps = 0
        self.tokens = 0
        self.broken = False
        self.started = self.written_at = time.monotonic()
        self.reported = (0, 0, self.started)  # steps, tokens, moment of the last line
        self.joules = energy_joules()

    def step(self, step=None, tokens=None, **numbers):
        if self.broken or not self._is_ours():
            return
        now = time.monotonic()
        with self.lock:
            first = self.steps == 0
            self.steps = self.steps + 1 if step is None else int(step)
            if tokens:
                self.tokens += int(tokens)
            validates = any(name.startswith("val_") for name in numbers)
            if not (first or validates or now - self.written_at >= EVERY_S):
                return
            self.written_at = now
            try:
                self._write(now, numbers)
            except Exception as error:  # the loop that is watched matters more than the watching
                self.broken = True
                print("lab_watch: no more metrics: %s" % error, file=sys.stderr)

    def _is_ours(self):
        """Whether this process makes the steps: a fork made later (a loader's worker) does not."""
        pid = os.getpid()
        if pid == self.pid:
            return True
        if self.steps:
            return False
        self.pid, self.lock = pid, threading.Lock()
        return True

    def _write(self, now, numbers):
        steps, tokens, moment = self.reported
        self.reported = (self.steps, self.tokens, now)
        record = {
            "step": self.steps,
            "time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z",
            "elapsed_s": round(now - self.started, 3),
        }
        for name, value in numbers.items():
            number = _number(value)
            if number is not None:
                record[name] = number
        if self.tokens:
            record["tokens"] = self.tokens
        if now > moment and self.steps > steps:
            record["steps_per_s"] = round((self.steps - steps) / (now - moment), 4)
            if self.tokens > tokens:
                record["tokens_per_s"] = round((self.tokens - tokens) / (now - moment), 1)
        record["memory_bytes"] = memory_bytes()
        if self.joules is not None:
            joules = energy_joules()
            if joules is not None and joules >= self.joules:
                record["joules"] = round(joules - self.joules, 1)
        _append(self.file, {name: value for name, value in record.items() if value is not None})


def _number(value):
    """A float, of a tensor or an array of one value too (NaN stays, to be seen); None for anything else."""
    if value is None or isinstance(value, (str, bytes)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _append(path, record):
    """One line, with one write; a line another writer was killed in is closed first."""
    line = (json.dumps(record) + "\n").encode("utf-8")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def memory_bytes():
    """Memory the job holds: torch's on an accelerator, if the script uses one, else what is resident."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is not None and cuda.is_available() and cuda.is_initialized():
        return int(cuda.memory_allocated())
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def energy_joules(root=RAPL):
    """Energy the processors have used since some moment, by their counters (RAPL); None where they cannot be read."""
    total, found = 0.0, False
    try:
        zones = [name for name in os.listdir(root) if name.count(":") == 1]
        for zone in zones:
            with open(os.path.join(root, zone, "energy_uj")) as file:
                total += int(file.read()) / 1e6
                found = True
    except (OSError, ValueError):
        return None
    return total if found else None


def _nothing(step=None, tokens=None, **numbers):
    """Outside the lab, and in all but the first process of several: nothing."""


_folder = os.environ.get("LAB_RUN_DIR")
_first = os.environ.get("RANK", "0") == "0" and os.environ.get("LOCAL_RANK", "0") == "0"
step = _Watch(_folder).step if _folder and _first and os.path.isdir(_folder) else _nothing
