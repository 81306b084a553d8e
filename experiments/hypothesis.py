"""The hypothesis: what is changed, what should happen to which metric, and how much of it would be worth having.

It is checked when it is proposed and frozen, with its hash, before anything runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from experiments import patches
from workspace.errors import Refused, closest

Kind = Literal["superiority", "non_inferiority", "cost"]
Direction = Literal["lower", "higher"]
Value = bool | int | float | str | list[bool | int | float | str]

# what an improvement is, for the numbers the trainer writes into a run's summary
KNOWN_DIRECTIONS: dict[str, Direction] = {
    "val_bpb": "lower",
    "val_loss": "lower",
    "perplexity": "lower",
    "train_loss": "lower",
    "training_seconds": "lower",
    "total_seconds": "lower",
    "peak_memory_bytes": "lower",
    "parameters.total": "lower",
    "flops_per_token": "lower",
    "tokens_per_s": "higher",
    "mfu": "higher",
}

# settings that decide how a score is taken: changing them changes the yardstick, not the thing measured
YARDSTICK = {
    "seed": "the lab sets the seed of every run itself; a lucky seed is not a finding",
    "evaluation": "it changes what is measured; both arms must be measured alike",
    "checkpoint": "it has no effect on the score",
    "data.corpus": "another corpus gives a score that cannot be compared; point the recipe at it yourself instead",
    "data.files": "other files give a score that cannot be compared; point the recipe at them yourself instead",
    "data.text_field": "another text gives a score that cannot be compared",
    "data.max_bytes": "another amount of data changes what the score is measured on",
    "data.validation_percent": "it changes what the score is measured on",
    "data.audit_percent": "it changes what the audit is measured on",
    "search_space": "it is a note for proposers and changes nothing that is trained",
}
LATER_FIELDS = ("patch", "changed_assumption")
MOVEMENT = re.compile(
    r"\b(lower|higher|reduc|rais|increas|decreas|halv|doubl|tripl|short|long|fewer|more|less|deep|shallow|wide|"
    r"narrow|fast|slow|small|larg|without|drop|remov|same|equal)",
    re.IGNORECASE,
)


class Hypothesis(BaseModel):
    """A falsifiable claim about one change of the recipe. Effects are in the metric's units, positive = better."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    statement: str = Field(max_length=600, description="one sentence: what is changed, and what it does to the metric")
    change: dict[str, Value] = Field({}, description='settings of recipe.toml, e.g. {"optimizer.matrix_lr": 0.02}')
    patch: str | None = Field(None, description="a unified diff of files under recipe/, besides or instead of change")
    metric: str = Field("val_bpb", max_length=80, description="a number of the run's summary")
    direction: Direction = Field(description="which way the metric gets better")
    kind: Kind = Field(
        "superiority",
        description="superiority: the metric gets better; non_inferiority: it gets worse by less than smallest_effect "
        "while cost_metric falls; cost: the metric is itself a cost",
    )
    smallest_effect: float = Field(
        gt=0, allow_inf_nan=False, description="smallest improvement worth having (non_inferiority: the margin)"
    )
    predicted_effect: float | None = Field(None, allow_inf_nan=False, description="the improvement expected")
    cost_metric: str = Field("training_seconds", max_length=80, description="non_inferiority: the cost that must fall")
    smallest_saving: float = Field(0.05, gt=0, lt=1, description="non_inferiority: smallest saving, as a fraction")
    why: str = Field("", max_length=4000, description="the reasoning behind it")
    citations: list[str] = Field([], max_length=40, description="ids of passages and experiments it rests on")
    category: str | None = Field(None, max_length=60, description="e.g. optimizer, schedule, architecture")
    repeat_of: str | None = Field(None, max_length=40, description="the experiment this one repeats on purpose")
    changed_assumption: str | None = Field(
        None, max_length=600, description="what has changed since a similar experiment was tried"
    )

    @field_validator("statement")
    @classmethod
    def _one_line(cls, statement: str) -> str:
        return " ".join(statement.split())

    @field_validator("change")
    @classmethod
    def _change(cls, change: dict[str, Value]) -> dict[str, Value]:
        for key, value in change.items():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, float) and not math.isfinite(item):
                    raise ValueError(f"{key} must be a finite number")
        return dict(sorted(change.items()))

    @model_validator(mode="after")
    def _falsifiable(self) -> Hypothesis:
        problem = self._problem()
        if problem:
            raise ValueError(problem)
        return self

    def _problem(self) -> str | None:
        """Why this cannot be tested, or None."""
        if not self.change and not self.patch:
            return "it changes nothing, so nothing can be learnt from it"
        if not self.metric.strip():
            return "it names no metric, so no result could contradict it"
        for name in (self.metric, self.cost_metric):
            near = [] if name in KNOWN_DIRECTIONS else closest(name, KNOWN_DIRECTIONS)
            if near:
                return f"no run reports {name!r}; closest: {', '.join(near)}"
        if self.kind == "non_inferiority" and KNOWN_DIRECTIONS.get(self.cost_metric) == "higher":
            return f"{self.cost_metric} is no cost: it gets better when it is higher, and a cost has to fall"
        known = KNOWN_DIRECTIONS.get(self.metric)
        if known and known != self.direction:
            return (
                f"{self.metric} gets better when it is {known}; direction says which way is better, "
                f"and {self.direction!r} would keep a worse recipe"
            )
        if problem := _moves_yardstick(self.change, self.kind):
            return problem
        if (
            self.predicted_effect is not None
            and self.kind != "non_inferiority"
            and (self.predicted_effect < self.smallest_effect)
        ):
            return (
                f"it predicts {self.predicted_effect:g}, less than the {self.smallest_effect:g} that would be "
                "worth having: it would be discarded even if it were right"
            )
        return None if _concrete(self) else "the statement is too vague to be wrong: it names no setting and no outcome"

    def canonical(self) -> str:
        """The text that is hashed: JSON with sorted keys. Fields of later versions are left out where they are unused,
        so that a hypothesis that was frozen before keeps its hash."""
        unused = {name for name in LATER_FIELDS if getattr(self, name) is None}
        content = self.model_dump(mode="json", exclude=unused)
        return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    def digest(self) -> str:
        return hashlib.sha256(self.canonical().encode("utf-8")).hexdigest()

    @property
    def parts(self) -> int:
        """How many things it changes: settings, and files of the patch."""
        return len(self.change) + (max(1, len(patches.touched(self.patch))) if self.patch else 0)

    def describe_change(self) -> str:
        """`optimizer.matrix_lr = 0.02, patch of recipe/model.py (+3 -1)`."""
        parts = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in self.change.items()]
        return ", ".join([*parts, patches.summary(self.patch)] if self.patch else parts)


def parse(values: Mapping[str, Any] | Hypothesis) -> Hypothesis:
    """A checked hypothesis; `Refused` says what is missing and shows the same hypothesis rewritten so that it holds."""
    if isinstance(values, Hypothesis):
        return values
    unknown_fields = [name for name in values if name not in Hypothesis.model_fields]
    if unknown_fields:
        name = unknown_fields[0]
        near = closest(name, Hypothesis.model_fields) or list(Hypothesis.model_fields)
        raise Refused(f"a hypothesis has no field {name[:80]!r}", valid=", ".join(near))
    try:
        return Hypothesis.model_validate(dict(values))
    except ValidationError as error:
        raise Refused(
            "this hypothesis cannot be tested: " + _explain(error),
            fix="rewrite it, for example: " + json.dumps(example(values), ensure_ascii=False),
        ) from error


def example(values: Mapping[str, Any]) -> dict[str, Any]:
    """The hypothesis `values` tries to be, with everything a testable one needs."""
    change = values.get("change")
    if not change and isinstance(values.get("patch"), str) and values["patch"].strip():
        change = {}
    elif not isinstance(change, Mapping) or not change or not all(_allowed(str(k), v) for k, v in change.items()):
        change = {"optimizer.matrix_lr": 0.02}
    metric = values.get("metric")
    metric = metric if isinstance(metric, str) and metric.strip() else "val_bpb"
    metric = metric if metric in KNOWN_DIRECTIONS else (closest(metric, KNOWN_DIRECTIONS) or ["val_bpb"])[0]
    given = values.get("direction")
    direction = KNOWN_DIRECTIONS.get(metric) or (given if given in ("lower", "higher") else "lower")
    effect = values.get("smallest_effect")
    if isinstance(effect, bool) or not isinstance(effect, int | float) or not math.isfinite(effect) or effect <= 0:
        effect = 0.005
    changed = " and ".join(f"{key} to {json.dumps(value)}" for key, value in list(change.items())[:3])
    begin = f"Setting {changed}" if changed else "This patch of the model"
    return {
        "statement": f"{begin} makes {metric} {direction} by at least {effect:g}",
        **({"change": dict(change)} if change else {"patch": values.get("patch")}),
        "metric": metric,
        "direction": direction,
        "smallest_effect": effect,
        "why": "what makes you expect it",
    }


def check_yardstick(keys: Iterable[str], kind: str) -> None:
    """Raises `Refused` when one of these settings, changed by a patch, decides how scores are taken."""
    if problem := _moves_yardstick(sorted(keys), kind):
        raise Refused(problem)


def _moves_yardstick(keys: Iterable[str], kind: str) -> str | None:
    for key in keys:
        for part, reason in YARDSTICK.items():
            if key == part or key.startswith(part + "."):
                return f"{key} cannot be part of a change: {reason}"
        if key.startswith("budget.") and kind == "superiority":
            return f"{key} cannot win: more budget is not a better recipe (a smaller one: kind non_inferiority)"
    return None


def _allowed(key: str, value: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return not any(key == part or key.startswith(part + ".") for part in (*YARDSTICK, "budget"))


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "missing":
        reasons = {
            "statement": "it states nothing",
            "direction": "it names no direction, so no result could contradict it",
            "smallest_effect": "it does not say which effect would be worth having, so any noise would do",
        }
        return f"{name} is missing ({reasons.get(name, 'required')})"
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{name}: {message}" if name else message


def _concrete(hypothesis: Hypothesis) -> bool:
    """Does the statement say what is changed or what will happen? (words alone cannot decide more than that)"""
    text = hypothesis.statement.lower()
    words = re.findall(r"[\w.]+", text)
    if len(words) < 4:
        return False
    names = {hypothesis.metric.lower(), "bpb", "loss", "bits per byte", "perplexity", "memory"}
    if hypothesis.patch:
        names.update(("model", "optimizer", "layer", "attention", "schedule", "rate", "recipe"))
    for key in hypothesis.change:
        names.update(part for part in re.split(r"[._]", key.lower()) if len(part) >= 3)
    named = any(name in text for name in names)
    moves = bool(MOVEMENT.search(text)) or bool(re.search(r"\d", text))
    return moves and (named or bool(re.search(r"\d", text)))
