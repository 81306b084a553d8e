"""How a run ended, from facts: exit code, signal, what the lab itself asked for, and the files the trainer left.

Never from words somewhere in the log: only the exception that ended the log is read, and only by its exact class.
Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.runs.screen import clean
from workspace import durable
from workspace.secrets import mask

# exit codes of our own trainer
NAN, OOM, DATA, CONFIGURATION, PREEMPTED = 10, 11, 12, 13, 75
TRAINER_CLASSES = {NAN: "nan", OOM: "oom", DATA: "data"}
TRAINER_REASONS = {
    NAN: "the loss was no longer a number",
    OOM: "out of memory",
    DATA: "the corpus is unknown, empty or has changed",
    CONFIGURATION: "the configuration or the recipe's code is wrong",
}
CLASSES = ("oom", "nan", "signal", "exit", "import", "data", "stalled")
UNCAUGHT_EXCEPTION = 1  # Python's exit code
EXCEPTION_CLASSES = {
    "MemoryError": "oom",
    "torch.OutOfMemoryError": "oom",
    "torch.cuda.OutOfMemoryError": "oom",
    "numpy._core._exceptions._ArrayMemoryError": "oom",
    "numpy.core._exceptions._ArrayMemoryError": "oom",
    "cupy.cuda.memory.OutOfMemoryError": "oom",
    "ImportError": "import",
    "ModuleNotFoundError": "import",
    "FileNotFoundError": "data",
}
# how a run ends that a rule of [alerts] set to `stop` ends: what a run did wrong is a failure; disk and device are
# not its fault, it can go on from its checkpoint; any other rule ends a run that could have gone on: cancelled
ENDED_BY_RULE: dict[str, tuple[str, str | None]] = {
    "nan": ("failed", "nan"),
    "stalled": ("failed", "stalled"),
    "loss_flat": ("failed", "stalled"),
    "loss_rising": ("failed", "stalled"),
    "overfitting": ("failed", "stalled"),
    "memory_growing": ("failed", "oom"),
    "disk_filling": ("preempted", None),
    "device_lost": ("preempted", None),
}
LOG_END_BYTES = 4096
CLOCK_SLACK_S = 2.0  # file systems may round times
LINES_AFTER_EXCEPTION = 10  # what exit handlers (wandb, torch's process groups) may still print
FRAME = re.compile(r'^\s+File "[^"]*", line \d+')
EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*)(?:: (.*))?$")


@dataclass(frozen=True)
class Stop:
    """The lab itself ended the run: `state` is cancelled, timed_out, preempted (asked to end by the system), or failed
    with a class, where a rule found what is wrong with it.
    """

    state: str
    reason: str
    at: str  # when it was begun
    failure: str | None = None
    rule: str | None = None  # of [alerts]


def stop_asked_for(request: Mapping[str, Any], at: str) -> Stop:
    """What a stop.json asks for."""
    by = f" (by {request['by']})" if request.get("by") else ""
    rule = str(request["alert"]) if request.get("alert") else None
    state, failure = ENDED_BY_RULE.get(rule or "", ("cancelled", None))
    return Stop(state, f"{request.get('reason') or 'stopped'}{by}", at, failure, rule)


@dataclass(frozen=True)
class End:
    """How the job's process ended; both None when nothing that could know is left."""

    exit_code: int | None = None
    signal: str | None = None
    ended_at: str | None = None
    error: str | None = None  # why it could not be started

    @property
    def known(self) -> bool:
        return self.exit_code is not None or self.signal is not None


@dataclass(frozen=True)
class Evidence:
    """What else is known at the end of a run."""

    kind: str  # recipe or script
    summary: Mapping[str, Any] | None = None  # of our trainer, written by this run
    checkpoint: bool = False
    memory_kill: bool = False  # the kernel's counter of out-of-memory kills rose as the job died
    memory_advice: str | None = None  # the prediction that was made before the start, and what to change
    rebooted: bool = False
    exception: tuple[str, str] | None = None  # the log's last line of a traceback: class, message

    @property
    def memory_told(self) -> str:
        return f". {self.memory_advice}" if self.memory_advice else ""


def decide(end: End, stop: Stop | None, seen: Evidence) -> dict[str, Any]:
    """The fields `state`, `class`, `exit_code`, `signal`, `reason` of the final record, and the rule that ended it."""
    if stop is not None and (end.ended_at or stop.at) < stop.at:
        stop = None  # it had ended by itself
    state, failure, reason = _verdict(end, stop, seen)
    if reason:  # it may quote the log
        reason = mask(clean(reason))
    by_rule = {"alert": stop.rule} if stop and stop.rule and state != "succeeded" else {}
    record = {"state": state, "class": failure, "exit_code": end.exit_code, "signal": end.signal, "reason": reason}
    return record | by_rule


def _verdict(end: End, stop: Stop | None, seen: Evidence) -> tuple[str, str | None, str | None]:
    trainer = seen.kind == "recipe"
    if stop is not None:
        if trainer and end.exit_code == 0 and _said(seen) == "succeeded":
            return "succeeded", None, f"it was complete before it could be ended: {stop.reason}"
        if stop.state == "preempted" and not (trainer and (end.exit_code == PREEMPTED or seen.checkpoint)):
            return "cancelled", None, stop.reason
        return stop.state, stop.failure, stop.reason
    if not end.known:
        return _unknown(seen)
    if end.error:
        return "failed", "exit", end.error
    if end.signal:
        if end.signal == "SIGKILL" and seen.memory_kill:
            return "failed", "oom", f"the system ran out of memory and killed it{seen.memory_told}"
        hint = f", not by the lab; the system's out-of-memory killer does this{seen.memory_told}"
        return "failed", "signal", f"killed by {end.signal}{hint if end.signal == 'SIGKILL' else ''}"
    if end.exit_code == 0 and trainer and _said(seen) != "succeeded":
        return "failed", "exit", "it ended with exit code 0 but reported no result (summary.json)"
    if end.exit_code == 0:
        return "succeeded", None, None
    return _failed(end.exit_code or 0, trainer, seen)


def _failed(code: int, trainer: bool, seen: Evidence) -> tuple[str, str | None, str | None]:
    if trainer and code == PREEMPTED:
        return "preempted", None, str((seen.summary or {}).get("error") or "ended by a signal")
    name, message = seen.exception or ("", "")
    last = f"{name}: {message}" if message else name
    if trainer and _said(seen) == "failed":
        return _as_said(seen, code)
    if trainer and code in TRAINER_REASONS:
        guessed = exception_class(name, message) if code == CONFIGURATION else None
        return "failed", TRAINER_CLASSES.get(code) or guessed or "exit", last or TRAINER_REASONS[code]
    if code == UNCAUGHT_EXCEPTION and name:
        return "failed", exception_class(name, message) or "exit", last
    if code == 128 + 9 and seen.memory_kill:
        return "failed", "oom", f"exit code 137: the system ran out of memory and killed a part of it{seen.memory_told}"
    told = f" (by a shell's convention: a command was ended by signal {code - 128})" if 128 < code < 160 else ""
    return "failed", "exit", f"exit code {code}{told}"


def _unknown(seen: Evidence) -> tuple[str, str | None, str | None]:
    """Nobody saw the job end. A trainer's summary proves how it did, its checkpoint that it can be resumed."""
    cause = "the machine was restarted" if seen.rebooted else "job and supervisor were killed together"
    if seen.kind == "recipe":
        if _said(seen) == "succeeded":
            return "succeeded", None, f"{cause}, after the trainer had written its summary"
        if _said(seen) == "failed":
            return _as_said(seen, None)
    if seen.kind == "recipe" and seen.checkpoint:
        return "preempted", None, f"{cause}; its last checkpoint is there"
    if not seen.rebooted:
        cause = "its supervisor was killed and the job's end was not seen"
    return "lost", None, f"{cause}; how the job ended is not known"


def _said(seen: Evidence) -> str | None:
    """The state the trainer's summary tells."""
    return None if seen.summary is None else str(seen.summary.get("state"))


def _as_said(seen: Evidence, code: int | None) -> tuple[str, str | None, str | None]:
    """The failure the trainer itself recorded."""
    said = seen.summary or {}
    failure = said.get("class") if said.get("class") in CLASSES else TRAINER_CLASSES.get(code or 0, "exit")
    return "failed", failure, str(said.get("error") or TRAINER_REASONS.get(code or 0, f"exit code {code}"))[:1000]


def exception_class(name: str, message: str) -> str | None:
    """The failure class of an uncaught exception, None when it says no more than that it failed."""
    if name == "RuntimeError" and message.startswith(("CUDA out of memory", "CUDA error: out of memory")):
        return "oom"  # torch before 2.0, and CUDA calls outside torch's allocator
    return EXCEPTION_CLASSES.get(name)


def last_exception(log: Path) -> tuple[str, str] | None:
    """Class and message of the traceback a log ends with, None when it does not end with one."""
    lines = last_traceback(log)
    match = EXCEPTION.match(lines[-1]) if lines else None
    return (match.group(1), (match.group(2) or "").strip()[:300]) if match else None


def last_traceback(log: Path) -> list[str]:
    """The traceback a log ends with, from its first frame within reach to the exception; [] when there is none."""
    try:
        with durable.open_regular(log) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - LOG_END_BYTES))
            lines = file.read(LOG_END_BYTES).decode("utf-8", "replace").rstrip().splitlines()
    except OSError:
        return []
    frames = [number for number, line in enumerate(lines) if FRAME.match(line)]
    for number in range(frames[-1] + 1 if frames else len(lines), len(lines)):
        if EXCEPTION.match(lines[number]):
            return [] if len(lines) - number - 1 > LINES_AFTER_EXCEPTION else lines[frames[0] : number + 1]
    return []


def trainer_summary(folder: Path, started: float) -> dict[str, Any] | None:
    """The trainer's summary.json, if it is whole and was written after `started` (epoch seconds)."""
    file = folder / "summary.json"
    try:
        if file.stat().st_mtime < started - CLOCK_SLACK_S:
            return None
        summary = durable.read_json(file)
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def has_checkpoint(folder: Path) -> bool:
    """Whether the run folder holds a checkpoint; a half-written one has a temporary name."""
    try:
        names = [path.name for path in (folder / "checkpoints").iterdir()]
    except OSError:
        return False
    return any(not name.startswith(".") and not name.endswith((".tmp", ".partial")) for name in names)


def memory_kills() -> int:
    """Out-of-memory kills counted so far: by this process's own cgroup and by the kernel (0 where it does not tell)."""
    files = [Path("/proc/vmstat")]
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        groups = []
    files += [Path(f"/sys/fs/cgroup{line[3:]}/memory.events") for line in groups if line.startswith("0::")]
    total = 0
    for file in files:
        try:
            lines = file.read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return total
