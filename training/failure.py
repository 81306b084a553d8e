"""Why a training run ended early: its exit code and what summary.json says."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from training.corpus import DataProblem
from training.job import ALERTS, SUMMARY, Job
from training.report import say
from training.runs.outcome import CONFIGURATION, DATA, NAN, OOM, PREEMPTED, UNCAUGHT_EXCEPTION
from training.size import memory_advice
from workspace import clock, durable
from workspace.errors import LabError


class NotANumber(Exception):
    """A loss is NaN or infinite."""


class Preempted(Exception):
    """A signal asked the run to end."""


class RecipeProblem(LabError):
    """The recipe's code fails; `kind` is "import" when it cannot be imported, else "exit". Exit code 13."""

    def __init__(self, problem: str, *, kind: str = "exit", valid: str | None = None, fix: str | None = None) -> None:
        super().__init__(problem, valid=valid, fix=fix)
        self.kind = kind


class Told(Exception):
    """The failure of another process, as it told it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.text)
        self.failure = failure


@dataclass(frozen=True)
class Failure:
    """`shown` is the exception the log ends with."""

    code: int
    state: str  # as in the run's record: failed, preempted
    kind: str | None  # the run's failure class
    text: str
    shown: BaseException | None = None

    def summary(self) -> dict[str, Any]:
        return {"state": self.state, "class": self.kind, "error": self.text, "exit_code": self.code}


def classify(error: BaseException, job: Job | None) -> Failure:
    """What `error` means for the run. `job` is None when it could not even be read."""
    text = str(error) or type(error).__name__
    if isinstance(error, Told):
        return replace(error.failure, shown=error)
    if isinstance(error, Preempted):
        return Failure(PREEMPTED, "preempted", None, text, error)
    if isinstance(error, NotANumber):
        return Failure(NAN, "failed", "nan", text, error)
    if isinstance(error, DataProblem):
        return Failure(DATA, "failed", "data", text, error)
    if isinstance(error, RecipeProblem):
        return Failure(CONFIGURATION, "failed", error.kind, text, error.__cause__ or error)
    if isinstance(error, LabError):
        return Failure(CONFIGURATION, "failed", "exit", text, error)
    if is_out_of_memory(error):
        return Failure(OOM, "failed", "oom", _memory_advice(text.splitlines()[0], job), error)
    return Failure(UNCAUGHT_EXCEPTION, "failed", "exit", f"{type(error).__name__}: {text}", error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch, numpy or Python say that memory ran out."""
    torch = sys.modules.get("torch")  # a process without it cannot have run out of a device's memory
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    # the CPU allocator and drivers have no exception class of their own
    words = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _memory_advice(text: str, job: Job | None) -> str:
    if job is None:
        return text
    from training.hardware.backend import choose

    backend = choose()
    return f"{text} {memory_advice(job.config, backend.kind, backend.memory_total_bytes)}"


def record(folder: Path, error: BaseException, job: Job | None) -> int:
    """Write down why the run ended and return the exit code; the log ends with the exception itself."""
    ended = classify(error, job)
    if ended.code == PREEMPTED:
        say(f"ended: {ended.text}")
    else:
        traceback.print_exception(ended.shown, limit=-3, chain=False, file=sys.stdout)
        sys.stdout.flush()
    if folder.is_dir():
        if ended.kind in ("nan", "oom"):
            alert = {"time": clock.now(), "class": ended.kind, "severity": "stop", "text": ended.text[:600]}
            durable.append_jsonl(folder / ALERTS, alert, sync=True)
        if not (folder / SUMMARY).exists():  # of several processes the first to fail knows why
            durable.write_json(folder / SUMMARY, ended.summary())
    return ended.code
