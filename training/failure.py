"""Why a training run ended early: its exit code and what summary.json says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.job import Job
from training.runs.outcome import CONFIGURATION, DATA, NAN, OOM, PREEMPTED, UNCAUGHT_EXCEPTION
from training.size import largest_rows, predict_memory
from workspace.errors import LabError


@dataclass(frozen=True)
class Failure:
    """`shown` is the exception the log ends with."""

    code: int
    state: str  # as in the run's record: failed, preempted
    kind: str | None  # the run's failure class
    text: str
    shown: BaseException

    def summary(self) -> dict[str, Any]:
        return {"state": self.state, "class": self.kind, "error": self.text}


def classify(error: BaseException, job: Job | None) -> Failure:
    """What `error` means for the run. `job` is None when it could not even be read."""
    from training.corpus import DataProblem
    from training.recipe_code import RecipeProblem
    from training.trainer import NotANumber, Preempted

    text = str(error) or type(error).__name__
    if isinstance(error, Preempted):
        return Failure(PREEMPTED, "preempted", None, "SIGTERM; the checkpoint is written", error)
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
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # the CPU allocator and drivers have no exception class of their own
    words = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _memory_advice(text: str, job: Job | None) -> str:
    if job is None:
        return text
    from training.hardware.backend import choose

    backend = choose()
    estimate = predict_memory(job.config, backend.kind)
    rows = largest_rows(job.config, int(0.9 * (backend.memory_total_bytes or 0)), backend.kind)
    advice = f"{text} The estimate for this configuration is {estimate.total / 1e9:.1f} GB"
    if backend.memory_total_bytes:
        advice += f" of {backend.memory_total_bytes / 1e9:.1f} GB"
    if rows is not None and rows < job.config.batch.rows:
        return advice + f". Next: batch.rows = {rows}."
    if job.config.batch.rows > 1:
        return advice + f". Next: a smaller batch.rows than {job.config.batch.rows}."
    return advice + ". Next: a smaller model or context."
