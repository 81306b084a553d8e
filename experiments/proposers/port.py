"""What a proposer is asked and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from experiments.campaign import Attempt, CampaignRecord, Proposal
from experiments.record import ExperimentRecord
from training.config import TrainingConfig
from workspace.errors import LabError


class Exhausted(LabError):
    """There is nothing left to propose: the campaign ends."""


class Malformed(LabError):
    """A model's answer cannot be used, not even the second one."""


@dataclass
class Question:
    """What is known when the next experiment is to be proposed. The same question, the same seed: the same answer."""

    campaign: CampaignRecord
    number: int  # of the proposal, from 1
    seed: int
    parent: TrainingConfig  # what the change will be applied to
    base: str  # the user's recipe it goes back to
    search_space: Mapping[str, Any]  # [search_space] of recipe.toml
    history: Sequence[ExperimentRecord]  # the campaign's experiments, oldest first, without scores
    refused: Sequence[Proposal] = ()  # the last proposals the lab refused, oldest first
    attempts: Sequence[Attempt] = ()  # what was put to a model for this proposal before a restart
    program: str = ""  # program.md
    passages: Callable[[str], Sequence[Mapping[str, str]]] = lambda query: ()  # id, kind, title, quote
    stagnant: int = 0  # experiments measured since the last keep, when that is worth a word
    money_left: float | None = None
    answers_cost: float = 0.0  # money the models' answers have cost this campaign
    dearest: float = 0.0  # the most that one of them has cost
    spent_now: float = 0.0  # and those to this very question
    # stores an intent to ask (`open`) or what came of it, at once; None: the last intent came to nothing
    note: Callable[[Attempt | None], None] = field(default=lambda attempt: None)


@dataclass(frozen=True)
class Answer:
    """A hypothesis without what the campaign decides (metric, direction, smallest effect)."""

    proposer: str  # e.g. optuna/tpe
    claim: dict[str, Any]


class Proposer(Protocol):
    def check(self, question: Question) -> None:
        """Can it work here at all? Raises `Refused` with what is missing; asks nobody."""

    def propose(self, question: Question) -> Answer:
        """Raises `Unavailable` when it cannot be asked now (it waits); `Exhausted`, `Malformed`, `Refused`."""
