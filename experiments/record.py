"""What is known of an experiment: plain, frozen records, as they lie in the ledger and in the experiment's folder."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from experiments.hypothesis import Hypothesis
from experiments.rule import Role, Rule
from experiments.verdict import Numbers

State = Literal["proposed", "preflight", "ready", "test_run", "gate", "measuring", "verdict", "record", "done"]
VerdictName = Literal["keep", "discard", "inconclusive", "no_effect", "crash", "invalid"]
VERDICTS: tuple[VerdictName, ...] = ("keep", "discard", "inconclusive", "no_effect", "crash", "invalid")
# from its admission until the best is known again: the next experiment starts from that
MEASURING: tuple[State, ...] = ("test_run", "gate", "measuring", "verdict")
ENDING: tuple[State, ...] = ("verdict", "record", "done")  # what was measured has a verdict


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class ParentRef(Frozen):
    """What the candidate is compared with."""

    commit: str
    base: str  # tree id of the user's recipe/ it goes back to
    experiment: str | None = None  # the kept experiment that made it, if one did
    generation: int = 0  # kept experiments between the user's recipe and it


class Arm(Frozen):
    """One side of the comparison: a committed recipe and the settings it resolves to."""

    commit: str
    digest: str  # names the effective settings and code, without the seed
    settings: dict[str, Any]


class Score(Frozen):
    """One run's result. `values` are all numbers of its summary."""

    role: Role
    index: int  # replicate
    seed: int
    run: str
    value: float
    values: dict[str, float]
    machine: str
    on: dict[str, str] = Field({}, description="text, tokens, evaluation and device, as far as its run told")
    started_at: str | None = None
    at: str  # when it ended


class Step(Frozen):
    """One step of the experiment that was completed, and what it left."""

    name: str
    at: str
    data: dict[str, Any] = {}


class Evidence(Frozen):
    """A passage of the memory that was near the hypothesis when it was proposed."""

    id: str
    kind: str
    title: str
    quote: str
    cited: bool = False  # by the hypothesis


class Duplicate(Frozen):
    """An earlier experiment like this one."""

    experiment: str
    verdict: str | None
    sentence: str | None
    exact: bool


class Version(Frozen):
    """A later wording of the hypothesis. It is kept beside the frozen one, which alone is judged."""

    at: str
    why: str
    hypothesis: Hypothesis
    hypothesis_hash: str
    state: State = Field(description="of the experiment when it was written")


class ExperimentRecord(Frozen):
    """One experiment, whole. Effects are in the metric's units, positive = better. Times are ISO 8601 UTC."""

    id: str
    key: str | None = None
    state: State
    verdict: VerdictName | None = None
    sentence: str | None = Field(None, description="the verdict in plain words")
    advice: str | None = Field(None, description="what to do next, where the lab can tell")
    failure_class: str | None = None
    hypothesis: Hypothesis
    hypothesis_hash: str
    versions: list[Version] = Field([], description="later wordings of the hypothesis; the frozen one is judged")
    created_at: str
    ended_at: str | None = None
    session: str | None = None
    conversation: str | None = None
    campaign: str | None = None
    proposer: str = Field("assistant", description="who proposed it, e.g. assistant, optuna/tpe, llm/NAME")
    budget: dict[str, Any] | None = Field(None, description="kind and amount, where the recipe's is overridden")
    skip_test_run: str | None = Field(None, description="why there is no test run")
    rule: Rule = Rule()
    parent: ParentRef | None = None
    best_before: str | None = Field(None, description="the kept experiment that was the best when this one started")
    control: Arm | None = None
    candidate: Arm | None = None
    commit: str | None = None
    ref: str | None = None
    numbers: Numbers | None = None
    saving: Numbers | None = None
    duplicates: list[Duplicate] = []
    evidence: list[Evidence] = []
    notes: list[str] = []
    cancelled_by: str | None = None
    waits_since: str | None = Field(None, description="since when something outside the lab is missing")
    waits_for: str | None = Field(None, description="what is missing, in words")
    waits_tries: int = Field(0, description="how often in a row git has failed meanwhile")
    is_best: bool = False
    yardstick: str | None = Field(None, description="names budget, text and evaluation the scores were taken with")
    runs: list[str] = Field([], description="its own runs, borrowed controls not counted")
    seconds: float = Field(0.0, description="wall-clock seconds of its own runs")
    device_seconds: float = Field(0.0, description="the same, times the devices each run held (at least one)")
    steps: list[Step] = []
    scores: list[Score] = []

    @property
    def open(self) -> bool:
        return self.state != "done"

    def scored(self, role: Role) -> dict[int, Score]:
        """The scores of one role by replicate, in order."""
        found = sorted((s for s in self.scores if s.role == role), key=lambda score: score.index)
        return {score.index: score for score in found}

    def decisive(self, role: Role = "candidate") -> list[Score]:
        """The scores a figure may be quoted from: those of the pairs, where there are any. What was measured before
        was selected by its own first look, and flatters."""
        scores = [s for s in self.scores if s.role == role]
        return [s for s in scores if s.index >= self.rule.min_controls] or scores

    def mean(self) -> float | None:
        """The candidate's mean score."""
        values = [s.value for s in self.decisive()]
        return sum(values) / len(values) if values else None


class Best(Frozen):
    """The last kept recipe: what the next experiment starts from, unless the user changes recipe/."""

    experiment: str
    commit: str
    base: str
