"""Proposals from a sampler over the recipe's search space: TPE (Optuna's), or CMA-ES.

The ledger is the truth: the sampler's state is rebuilt from it for every proposal, so nothing is lost or forgotten
with a process, and the same history and seed give the same proposal. What a sampler minimises is free of drift: the
measured gain of a candidate over its own control plus the gains of the kept experiments its parent is made of.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.campaign import SAMPLERS
from experiments.proposers import space
from experiments.proposers.port import Answer, Exhausted, Question
from experiments.proposers.space import Dimension
from experiments.record import ExperimentRecord
from training.config import TrainingConfig, apply, value_of
from workspace.errors import Refused

STARTUP = 5  # experiments before TPE models anything
TRIES = 40  # of finding something that fits together and was not tried
NAMED = 4  # settings named in a statement


class OptunaProposer:
    """`sampler`: tpe or cmaes."""

    def __init__(self, sampler: str = "tpe") -> None:
        self.sampler = sampler

    def check(self, question: Question) -> None:
        if self.sampler not in SAMPLERS:
            raise Refused(f"there is no sampler {self.sampler[:40]!r}", valid=", ".join(SAMPLERS))
        dimensions = space.parse(question.search_space)
        if self.sampler == "cmaes" and len(dimensions) < 2:
            raise Refused("CMA-ES needs at least two settings to search", fix="take the sampler tpe")

    def propose(self, question: Question) -> Answer:
        """Raises `Exhausted` when nothing untried was found, `Refused` for a search space that makes no sense."""
        dimensions = space.parse(question.search_space)
        tried = {_name(r.candidate.settings) for r in question.history if r.candidate is not None}
        draw = _cmaes if self.sampler == "cmaes" else _tpe
        for values in draw(question, dimensions):
            change = space.difference(question.parent, values)
            if space.fits(question.parent, change):
                config = apply(question.parent, change).model_dump(mode="json")
                if _name(config) not in tried:
                    return Answer(f"optuna/{self.sampler}", _claim(question, change, self.sampler))
        raise Exhausted(
            "nothing in the search space is left that fits together and was not tried",
            fix="widen [search_space] in recipe/recipe.toml, then start a new campaign",
        )


def gains(history: Sequence[ExperimentRecord], base: str) -> list[tuple[ExperimentRecord, float | None]]:
    """Each experiment that tells something, with its gain over the recipe the campaign began with; None = it crashed.

    Experiments on another recipe of the user's (another `base`) are left out: their gains have another zero.
    """
    reached: dict[str, float] = {}  # kept experiment -> its gain
    found: list[tuple[ExperimentRecord, float | None]] = []
    for record in history:
        if record.parent is None or record.candidate is None or record.parent.base != base or record.open:
            continue
        start = reached.get(record.parent.experiment or "", 0.0)
        if record.verdict == "no_effect":
            found.append((record, start))
        elif record.verdict == "crash":
            found.append((record, None))
        elif record.numbers is not None and record.verdict in ("keep", "discard", "inconclusive"):
            found.append((record, start + record.numbers.effect))
            if record.verdict == "keep":
                reached[record.id] = start + record.numbers.effect
    return found


def _tpe(question: Question, dimensions: Sequence[Dimension]) -> Iterable[dict[str, Any]]:
    """Optuna's TPE. A third of the proposals move every setting, the others one or two and leave the rest at the
    parent's: around a recipe that is any good, moving everything at once mostly loses."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {d.key: _distribution(d) for d in dimensions}
    known = gains(question.history, question.base)
    worst = min((gain for _, gain in known if gain is not None), default=0.0)
    trials = []
    for record, gain in [*known, *((r, 0.0) for r in _under_way(question))]:
        assert record.candidate is not None
        params = _values(record.candidate.settings, dimensions)
        trials.append(
            optuna.trial.create_trial(
                params=params,
                distributions={key: distributions[key] for key in params},
                value=None if record.open else -(worst if gain is None else gain),
                state=optuna.trial.TrialState.RUNNING if record.open else optuna.trial.TrialState.COMPLETE,
            )
        )
    here = _values(question.parent.model_dump(mode="json"), dimensions)
    for attempt in range(TRIES):
        seed = (question.seed + 7919 * attempt) % 2**32
        draw = random.Random(seed)
        moved = draw.sample([d.key for d in dimensions], draw.choice([1, min(2, len(dimensions)), len(dimensions)]))
        fixed = {key: value for key, value in here.items() if key not in moved}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # parts of optuna call themselves experimental
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=STARTUP, multivariate=True, constant_liar=True
            )
            study = optuna.create_study(sampler=optuna.samplers.PartialFixedSampler(fixed, sampler))
            study.add_trials(trials)
            asked = study.ask(fixed_distributions=distributions).params
        yield {d.key: asked[d.key] if d.choices else d.clip(asked[d.key]) for d in dimensions if d.key in moved}


def _distribution(dimension: Dimension) -> Any:
    import optuna

    if dimension.choices:
        return optuna.distributions.CategoricalDistribution(dimension.choices)
    if dimension.whole:
        return optuna.distributions.IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return optuna.distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _cmaes(question: Question, dimensions: Sequence[Dimension]) -> Iterable[dict[str, Any]]:
    """CMA-ES on the unit cube around the first parent, its generations replayed from the ledger."""
    import cmaes
    import numpy as np

    known = [(r, g) for r, g in gains(question.history, question.base) if r.proposer == "optuna/cmaes"]
    worst = min((gain for _, gain in known if gain is not None), default=0.0)
    first = question.parent.model_dump(mode="json")
    if known and known[0][0].control is not None:
        first = known[0][0].control.settings
    optimizer = cmaes.CMA(
        mean=np.array([_to_unit(d, _at(first, d.key)) for d in dimensions]),
        sigma=0.25,
        bounds=np.array([[0.0, 1.0]] * len(dimensions)),
        seed=question.campaign.seed,
    )
    told = [
        (np.array([_to_unit(d, _at(r.candidate.settings, d.key)) for d in dimensions]), -(worst if g is None else g))
        for r, g in known
        if r.candidate is not None
    ]
    size = optimizer.population_size
    for start in range(0, len(told) - size + 1, size):
        optimizer.tell(told[start : start + size])
    for attempt in range(TRIES):
        optimizer.reseed_rng((question.seed + 7919 * attempt) % 2**32)
        point = optimizer.ask()
        yield {d.key: _from_unit(d, float(x)) for d, x in zip(dimensions, point, strict=True)}


def _to_unit(d: Dimension, value: Any) -> float:
    """Where a value lies between 0 and 1; the nearest end, where the range does not hold it."""
    import math

    if d.choices:
        return (d.choices.index(value) if value in d.choices else 0) / (len(d.choices) - 1)
    number = min(max(float(value), d.low), d.high)
    if d.log:
        return math.log(number / d.low) / math.log(d.high / d.low)
    return (number - d.low) / (d.high - d.low)


def _from_unit(d: Dimension, x: float) -> Any:
    if d.choices:
        return d.choices[round(x * (len(d.choices) - 1))]
    return d.clip(d.low * (d.high / d.low) ** x if d.log else d.low + x * (d.high - d.low))


def _under_way(question: Question) -> list[ExperimentRecord]:
    return [r for r in question.history if r.open and r.candidate is not None]


def _values(settings: Mapping[str, Any], dimensions: Sequence[Dimension]) -> dict[str, Any]:
    """The searched settings of a configuration, those left out that lie outside the space."""
    found = {d.key: _at(settings, d.key) for d in dimensions}
    return {d.key: found[d.key] for d in dimensions if d.holds(found[d.key])}


def _at(settings: Mapping[str, Any], key: str) -> Any:
    node: Any = settings
    for part in key.split("."):
        node = node[part]
    return node


def _name(settings: Mapping[str, Any]) -> str:
    return json.dumps({k: v for k, v in settings.items() if k != "seed"}, sort_keys=True)


def _claim(question: Question, change: Mapping[str, Any], sampler: str) -> dict[str, Any]:
    campaign = question.campaign
    measured = [(r, gain) for r, gain in gains(question.history, question.base) if gain is not None]
    why = f"Proposal {question.number} of {campaign.id}, {sampler.upper()} after {len(measured)} measured ones."
    best = max(measured, key=lambda pair: pair[1], default=None)
    citations = []
    if best is not None and best[1] > 0:
        why += f" The largest gain so far is {best[1]:.4g} ({best[0].id})."
        citations = [best[0].id]
    return {
        "statement": f"Setting {_words(question.parent, change)} makes {campaign.metric} {campaign.direction} "
        f"by at least {campaign.smallest_effect:g}",
        "change": dict(change),
        "why": why,
        "citations": citations,
        "category": space.category(list(change)),
    }


def _words(parent: TrainingConfig, change: Mapping[str, Any]) -> str:
    """`optimizer.matrix_lr to 0.02 (now 0.04) and 3 more settings`."""
    parts = [f"{key} to {json.dumps(value)} (now {value_of(parent, key)})" for key, value in change.items()]
    if len(parts) > NAMED:
        parts[NAMED:] = [f"{len(parts) - NAMED} more settings"]
    return " and ".join(parts)
