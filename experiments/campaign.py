"""What is known of a campaign: experiments one after another towards one goal, within a budget.

Plain, frozen records, as they lie in the ledger and in experiments/campaigns/camp-0003/. Times are ISO 8601 UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from experiments.final_audit import FinalAudit
from experiments.hypothesis import Direction
from experiments.record import Frozen
from workspace.errors import Refused, closest

State = Literal["running", "paused", "ended"]
ProposerName = Literal["optuna", "llm", "claude-code", "hybrid", "assistant"]
PROPOSERS: tuple[ProposerName, ...] = ("optuna", "llm", "claude-code", "hybrid", "assistant")
SAMPLERS = ("tpe", "cmaes")


def proposer_named(name: str) -> ProposerName:
    """Raises `Refused` naming the closest."""
    for known in PROPOSERS:
        if name == known:
            return known
    near = closest(name, PROPOSERS) or PROPOSERS
    raise Refused(f"there is no proposer {name[:40]!r}", valid=", ".join(near))


class Budget(BaseModel):
    """How much a campaign may use; whatever is used up first ends it. None = not limited by this."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    experiments: int | None = Field(None, gt=0, le=100_000)
    runs: int | None = Field(None, gt=0, le=1_000_000, description="training runs of any kind")
    hours: float | None = Field(None, gt=0, le=24 * 366, description="of the clock, pauses not counted")
    gpu_hours: float | None = Field(None, gt=0, description="time of runs x devices; a run on a CPU holds one")
    money: float | None = Field(None, gt=0, description="in the currency of the prices in lab.toml")

    @classmethod
    def of(cls, amounts: Mapping[str, float | None]) -> Budget:
        """A budget of these amounts. Raises `Refused` for one that is out of range."""
        try:
            return cls.model_validate(dict(amounts))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name, given = ".".join(map(str, first["loc"])), first["input"]
            shown = f"{given:g}" if isinstance(given, int | float) else repr(given)[:40]
            most = first.get("ctx", {}).get("le")
            raise Refused(
                f"a budget of {shown} {name.replace('_', ' ')} is not possible",
                valid=f"above 0 and at most {most:,}" if most is not None else str(first["msg"]),
            ) from error

    def check(self) -> Budget:
        """Raises `Refused` when nothing is limited."""
        if not self.model_dump(exclude_none=True):
            raise Refused(
                "a campaign needs a budget, or it would never end",
                valid="experiments, runs, hours, gpu_hours or money, one or several",
                fix="name one, for example hours = 8",
            )
        return self

    def plus(self, more: Budget) -> Budget:
        """This budget with `more` of each kind it limits; a limit that was not there stays away."""
        mine, theirs = self.model_dump(), more.model_dump(exclude_none=True)
        if odd := [name for name in theirs if mine[name] is None]:
            limits = ", ".join(self.model_dump(exclude_none=True))
            raise Refused(f"this campaign is not limited in {odd[0]}, so that cannot be extended", valid=limits)
        return Budget.of({name: mine[name] + theirs.get(name, 0) if mine[name] else None for name in mine})

    def used_up(self, spent: Spent) -> str | None:
        """Which limit has been reached, in words."""
        for name, limit in self.model_dump(exclude_none=True).items():
            if getattr(spent, name) >= limit:
                return f"the budget of {limit:g} {name.replace('gpu_hours', 'GPU-hours')} is used up"
        return None


class Spent(Frozen):
    """What a campaign has used, counted from its experiments, runs and answers."""

    experiments: int = 0
    runs: int = 0
    hours: float = 0.0
    gpu_hours: float = 0.0
    money: float = 0.0


class CampaignStep(Frozen):
    """Something that happened to a campaign: started, paused, resumed, extended, stagnation, ended, audited."""

    name: str
    at: str
    why: str = ""
    data: dict[str, Any] = {}


class Attempt(Frozen):
    """One question put to a model, and what became of it. Written before it is asked, and again when it is answered."""

    at: str
    model: str
    open: bool = Field(False, description="asked, and no answer noted (yet): money is the most it can have cost")
    problem: str | None = Field(None, description="why the answer could not be used")
    text: str = Field("", description="the beginning of an answer that could not be used")
    input_tokens: int = 0
    output_tokens: int = 0
    money: float = 0.0


class Proposal(Frozen):
    """The n-th thing a campaign proposed. It is asked for once; the answer is stored before it is acted upon."""

    campaign: str
    number: int
    state: Literal["asked", "answered", "proposed", "refused"]
    asked_at: str
    proposer: str | None = Field(None, description="who answered, e.g. optuna/tpe or llm/NAME")
    answer: dict[str, Any] | None = Field(None, description="the hypothesis that was answered, as given")
    attempts: list[Attempt] = []
    experiment: str | None = None
    problem: str | None = Field(None, description="why the lab refused it")

    @property
    def key(self) -> str:
        """The experiment's idempotency key."""
        return f"{self.campaign}/{self.number}"


class CampaignRecord(Frozen):
    """One campaign, whole."""

    id: str
    key: str | None = None
    state: State = "running"
    why: str = Field("", description="why it is in this state")
    goal: str
    metric: str
    direction: Direction
    smallest_effect: float = Field(description="smallest improvement worth having, in the metric's units")
    budget: Budget
    proposer: ProposerName
    settings: dict[str, Any] = Field({}, description="of the proposer: sampler, model")
    planned: int | None = Field(None, description="experiments it was meant for when it began; extending keeps it")
    seed: int = 0
    created_at: str
    ended_at: str | None = None
    stopped_by: str | None = Field(None, description="who stopped it before its budget was used up")
    session: str | None = None
    conversation: str | None = None
    audit: FinalAudit | None = Field(None, description="its best on text no decision has seen; made when it has ended")
    steps: list[CampaignStep] = []
