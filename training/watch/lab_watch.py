# mypy: ignore-errors
# ruff: noqa: PTH112, PTH118, PTH123, PTH208, UP017, UP031, BLE001
"""The lab's instruments for a training loop of your own. One file, no dependencies, any Python from 3.8.

    import lab_watch
    ...
    lab_watch.step(loss=loss, tokens=batch_tokens, lr=lr)     # once a step

Under the lab (start_training) this writes metrics.jsonl into the run's folder: progress, curves and alerts then work as
for the lab's own trainer. Anywhere else it does nothing. It never raises and never prints more than one warning.

Numbers may be tensors: they are read only when a line is due (four a second, and when the script ends), so a device
need not be waited for each step. `tokens` are those of this step; `val_bpb`, `val_loss` and other names you choose are
written as they are.
"""

import atexit
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
        self.broken = self.warned = False
        self.started = self.written_at = time.monotonic()
        self.reported = (0, 0, self.started)  # steps, tokens, moment of the last line
        self.pending = None  # moment and numbers of the newest step, while they are not written
        self.energy = Energy()
        atexit.register(self._last)

    def step(self, step=None, tokens=None, **numbers):
        if self.broken or not self._is_ours():
            return
        try:
            with self.lock:
                self._step(step, tokens, numbers)
        except Exception as error:  # the loop that is watched matters more than the watching
            self._break(error)

    def _step(self, step, tokens, numbers):
        now = time.monotonic()
        first = self.steps == 0
        told = None if step is None else self._whole("step", step)
        self.steps = self.steps + 1 if told is None else told
        if tokens is not None:
            self.tokens += self._whole("tokens", tokens) or 0
        validates = any(name.startswith("val_") for name in numbers)
        if first or validates or now - self.written_at >= EVERY_S:
            self._write(now, numbers)
        else:
            self.pending = now, {name: _alone(value) for name, value in numbers.items()}

    def _last(self):
        """The newest numbers of a script that ends, if no line was due for them: what it died of may be among them."""
        if self.broken or self.pending is None or os.getpid() != self.pid:
            return
        try:
            with self.lock:
                self._write(*self.pending)
        except Exception as error:
            self._break(error)

    def _break(self, error):
        self.broken = True
        self._warn("no more metrics: %s" % error)

    def _warn(self, text):
        if not self.warned:
            print("lab_watch: %s" % text, file=sys.stderr)
        self.warned = True

    def _is_ours(self):
        """Whether this process makes the steps: a fork made later (a loader's worker) does not."""
        pid = os.getpid()
        if pid == self.pid:
            return True
        if self.steps:
            return False
        self.pid, self.lock = pid, threading.Lock()
        return True

    def _number(self, name, value):
        """A float, of a tensor or an array of one value too (NaN stays, to be seen); None for anything else."""
        if value is None or isinstance(value, (str, bytes)):
            return None
        try:
            return float(value)
        except Exception as error:  # libraries have exceptions of their own for what is no number
            self._warn("%s is left out: %s" % (name, error))
            return None

    def _whole(self, name, value):
        """An int, None for what is no finite number."""
        number = self._number(name, value)
        if number is None or number != number or abs(number) == float("inf"):
            return None
        return int(number)

    def _write(self, now, numbers):
        self.written_at, self.pending = now, None
        steps, tokens, moment = self.reported
        self.reported = (self.steps, self.tokens, now)
        record = {
            "step": self.steps,
            "time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z",
            "elapsed_s": round(now - self.started, 3),
        }
        for name, value in numbers.items():
            number = self._number(name, value)
            if number is not None:
                record[name] = number
        if self.tokens:
            record["tokens"] = self.tokens
        if now > moment and self.steps > steps:
            record["steps_per_s"] = round((self.steps - steps) / (now - moment), 4)
            if self.tokens > tokens:
                record["tokens_per_s"] = round((self.tokens - tokens) / (now - moment), 1)
        record["memory_bytes"] = memory_bytes()
        joules = self.energy.joules()
        if joules is not None:
            record["joules"] = round(joules, 1)
        _append(self.file, {name: value for name, value in record.items() if value is not None})


def _alone(value):
    """A tensor without the graph that holds what made it."""
    torch = sys.modules.get("torch")
    return value.detach() if torch is not None and isinstance(value, torch.Tensor) else value


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


class Energy:
    """Joules the processors have used since this was made, by their counters (RAPL), which begin anew now and then."""

    def __init__(self, root=RAPL):
        self.total = 0
        self.zones = {}  # folder of a whole processor: microjoules when it was last read
        try:
            for name in os.listdir(root):
                folder = os.path.join(root, name)
                # beside them are parts of a processor (intel-rapl:0:0), the whole machine (psys), and processors once
                # more by another interface (intel-rapl-mmio:0)
                if name.startswith("intel-rapl:") and _line(folder, "name").startswith("package"):
                    self.zones[folder] = int(_line(folder, "energy_uj"))
        except (OSError, ValueError):
            self.zones = {}

    def joules(self):
        """None where the counters cannot be read."""
        try:
            for folder, before in self.zones.items():
                now = int(_line(folder, "energy_uj"))
                self.total += now - before
                if now < before:
                    self.total += int(_line(folder, "max_energy_range_uj"))
                self.zones[folder] = now
        except (OSError, ValueError):
            return None
        return self.total / 1e6 if self.zones else None


def _line(folder, name):
    with open(os.path.join(folder, name)) as file:
        return file.read().strip()


def _nothing(step=None, tokens=None, **numbers):
    """Outside the lab, and in all but the first process of several: nothing."""


_folder = os.environ.get("LAB_RUN_DIR")
_first = os.environ.get("RANK", "0") == "0" and os.environ.get("LOCAL_RANK", "0") == "0"
step = _Watch(_folder).step if _folder and _first and os.path.isdir(_folder) else _nothing
