"""What the experiments need of runs, memory, notebook and hardware: no more than is named here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from training.config import TrainingConfig
from training.runs.records import RunRecord, RunRequest
from workspace.errors import LabError


class RunsPort(Protocol):
    """`training.runs.manager.Runs`."""

    def start(self, request: RunRequest, key: str | None = None) -> RunRecord: ...

    def get(self, run_id: str, /) -> RunRecord: ...

    def stop(self, run_id: str, /, reason: str = "", by: str = "user") -> RunRecord: ...

    def list(
        self, states: Collection[str] | None = None, experiment: str | None = None, limit: int = 20
    ) -> Sequence[RunRecord]: ...


class MemoryPort(Protocol):
    """`rag.client.Memory`."""

    def search(self, text: str, /, kinds: Sequence[str] | None = None, limit: int = 8) -> Any: ...


class NotebookPort(Protocol):
    """`sessions.notebook.Notebook`."""

    def event(
        self,
        conversation: str | None,
        text: str,
        links: Mapping[str, Any] | None = None,
        key: str | None = None,
        *,
        section: str = "Results",
        facts: Mapping[str, Any] | None = None,
        session: str | None = None,
    ) -> Any: ...


@dataclass(frozen=True)
class Fingerprint:
    """What a recipe really builds and does. Equal ones train the same thing."""

    structural: str  # shapes, arithmetic per token, optimizer groups, sampled schedule, order of data
    behavioural: str  # losses and gradient norms of some seeded steps


class RecipeFailure(LabError):
    """The recipe's code or settings cannot be built or stepped; `kind` is a run's failure class."""

    def __init__(self, problem: str, *, kind: str = "exit", fix: str | None = None) -> None:
        super().__init__(problem, fix=fix)
        self.kind = kind


class Fingerprinter(Protocol):
    """Takes the fingerprint of a configuration with a recipe's code. Raises `RecipeFailure`, or `Unavailable`."""

    def __call__(self, config: TrainingConfig, recipe_dir: Path) -> Fingerprint: ...


@dataclass(frozen=True)
class Device:
    """The device the trainer will run on: its backend and the memory it has in all. `names`: of all it might be."""

    backend: str
    memory_bytes: int | None
    names: tuple[str, ...] = ()
