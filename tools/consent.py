"""Asking before much compute is spent: `[runs] ask_above_hours` of lab.toml. Nothing here knows a transport."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tools.experiments import ProposeArguments
from tools.lab import Lab
from tools.runs import StartTrainingArguments
from training.config import TrainingConfig, apply, load_recipe
from workspace.errors import LabError, Refused

SECONDS = 3600.0


def question(lab: Lab, tool: str, arguments: Any) -> str | None:
    """What to ask the user before this call is carried out, or None when nothing needs asking.

    `arguments` are the checked ones of the tool. A call that will be refused anyway is not asked about.
    """
    limit = lab.settings.runs.ask_above_hours
    spent = SPENDING.get(tool)
    if not limit or spent is None:
        return None
    try:
        hours = spent(lab, arguments)
    except LabError:
        return None
    if hours <= limit:
        return None
    return f"{tool} may use the machine for {hours:.3g} hours (you are asked above {limit:g}). Go ahead?"


def refused(tool: str, action: str) -> Refused:
    """What the model is told when the user did not agree. `action`: decline, cancel or none (nobody could be asked)."""
    told = {"decline": "the user said no", "none": "this client cannot ask the user"}
    return Refused(
        f"{tool} was not carried out: {told.get(action, 'the user did not answer')}",
        valid="a call whose budget or time_limit_hours stays under [runs] ask_above_hours of lab.toml",
        fix="ask the user in the conversation: they can raise ask_above_hours, or agree to a smaller budget",
    )


def _training(lab: Lab, arguments: StartTrainingArguments) -> float:
    """Device hours of one run, at most."""
    limit = arguments.time_limit_hours or lab.settings.runs.time_limit_hours
    hours = limit
    if arguments.script is None:
        recipe = apply(load_recipe(lab.workspace.recipe_dir), arguments.overrides or {})
        hours = min(limit, _hours(recipe) or limit)
    return hours * max(1, arguments.gpu_count or 1)


def _experiment(lab: Lab, arguments: ProposeArguments) -> float:
    """Device hours of an experiment that goes to its last look: test run, controls and candidates."""
    recipe = load_recipe(Path(lab.workspace.recipe_dir))
    amount = arguments.budget_amount or recipe.budget.amount
    kind = arguments.budget_kind or recipe.budget.kind
    one = amount / SECONDS if kind == "seconds" else lab.settings.runs.time_limit_hours
    rule = lab.experiments.rule
    return one * (2 * rule.max_pairs + lab.settings.experiments.test_fraction)


def _hours(recipe: TrainingConfig) -> float | None:
    """None for a budget that is not a time."""
    return recipe.budget.amount / SECONDS if recipe.budget.kind == "seconds" else None


SPENDING: Mapping[str, Callable[[Lab, Any], float]] = {
    "start_training": _training,
    "propose_and_run_experiment": _experiment,
}
