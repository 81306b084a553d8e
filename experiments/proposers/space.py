"""The search space of a recipe: which settings a campaign may try, and between which values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from experiments.hypothesis import YARDSTICK
from training.config import TrainingConfig, allowed_values, apply, knobs, value_of
from workspace.errors import Refused, closest

EXAMPLE = '[search_space]\n"optimizer.matrix_lr" = { low = 0.005, high = 0.1, log = true }'
DIGITS = 4  # significant ones of a proposed number: more say nothing and read badly


@dataclass(frozen=True)
class Dimension:
    """One setting: a range `low` to `high`, or `choices`."""

    key: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()

    def clip(self, value: float) -> float | int:
        """`value` as it would be proposed: within the range, with few digits."""
        if self.whole:
            return int(min(max(round(value), math.ceil(self.low)), math.floor(self.high)))
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def holds(self, value: Any) -> bool:
        """Could this value have been proposed? (the parent's may lie outside)"""
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high


def parse(tables: Mapping[str, Any]) -> list[Dimension]:
    """The dimensions of `[search_space]`. Raises `Refused` naming the entry and what a valid one looks like."""
    if not tables:
        raise Refused("the recipe has no [search_space], so nothing can be searched", fix=f"add one, e.g. {EXAMPLE}")
    known = dict(knobs())
    dimensions = []
    for key, entry in _flat(tables):
        if key not in known:
            near = ", ".join(closest(key, known)) or ", ".join(list(known)[:8])
            raise Refused(f"[search_space] names {key[:80]!r}, which is no setting", valid=near)
        held = next((reason for part, reason in YARDSTICK.items() if key == part or key.startswith(part + ".")), None)
        if held or key.startswith("budget."):
            raise Refused(f"{key} cannot be searched: {held or 'more budget is not a better recipe'}")
        dimensions.append(_dimension(key, entry, whole=known[key].annotation is int))
    return dimensions


def _flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """`"a.b" = {...}` and `a.b = {...}` mean the same."""
    for name, entry in tables.items():
        if not isinstance(entry, Mapping):
            raise Refused(f"[search_space] {prefix}{name} is no range and no choice", fix=f"write it as in {EXAMPLE}")
        if {"low", "high", "choices"} & entry.keys():
            yield prefix + name, entry
        else:
            yield from _flat(entry, f"{prefix}{name}.")


def _dimension(key: str, entry: Mapping[str, Any], *, whole: bool) -> Dimension:
    def refuse(problem: str) -> Refused:
        return Refused(f"[search_space] {key}: {problem}", valid="{ low, high, log? } or { choices = [...] }",
                       fix=f"for example {EXAMPLE}")  # fmt: skip

    if odd := entry.keys() - {"low", "high", "log", "choices"}:
        raise refuse(f"{sorted(odd)[0]} means nothing here")
    if "choices" in entry:
        choices = entry["choices"]
        if not isinstance(choices, list) or len({str(c) for c in choices}) < 2 or entry.keys() != {"choices"}:
            raise refuse("choices is a list of at least two values, and stands alone")
        for choice in choices:
            _allowed(key, choice)
        return Dimension(key, choices=tuple(choices))
    low, high, log = entry.get("low"), entry.get("high"), entry.get("log", False)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in (low, high))
    if not numbers or not isinstance(log, bool):
        raise refuse("low and high are numbers, log is true or false")
    assert isinstance(low, int | float) and isinstance(high, int | float)
    if low >= high or (log and low <= 0):
        raise refuse("low is not below high" if low >= high else "a logarithmic range begins above 0")
    if whole and math.ceil(low) >= math.floor(high):
        raise refuse("there are not two whole numbers between low and high")
    dimension = Dimension(key, float(low), float(high), log, whole)
    for edge in (low, high):
        _allowed(key, dimension.clip(edge))
    return dimension


def _allowed(key: str, value: Any) -> None:
    """Raises `Refused` for a value the setting never takes; what belongs together (divisibility) is seen later."""
    info = dict(knobs())[key]
    field: Any = Annotated[info.annotation, info]
    try:
        TypeAdapter(field).validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise Refused(
            f"[search_space] {key} = {value!r} is not allowed: {problem}", valid=allowed_values(key)
        ) from error


def difference(parent: TrainingConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `values` the parent does not have."""
    return {key: value for key, value in values.items() if value_of(parent, key) != value}


def fits(parent: TrainingConfig, change: Mapping[str, Any]) -> bool:
    """Is there anything to change, and do the settings go together?"""
    try:
        return bool(change) and apply(parent, change) != parent
    except Refused:
        return False


def category(change: Sequence[str]) -> str:
    """`optimizer`, `model`, ..., or `several` for a change of more than one kind."""
    sections = {key.partition(".")[0] for key in change}
    return sections.pop() if len(sections) == 1 else "several"
