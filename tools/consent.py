"""Asking before much compute is spent: `[runs] ask_above_hours` of lab.toml. Nothing here knows a transport."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from tools.campaigns import RunCampaignArguments
from tools.experiments import ProposeArguments
from tools.lab import Lab
from tools.runs import StartTrainingArguments
from training.config import apply, load_config, load_recipe
from training.runs.place import read
from workspace.errors import LabError, Refused

SECONDS = 3600.0
_BUDGET_IN_PATCH = re.compile(r"^\+\s*(budget\.)?(kind|amount)\s*=", re.MULTILINE)


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
    spent_in_words = f"for {hours:.3g} hours" if math.isfinite(hours) else "without a limit in time"
    return f"{tool} may use the machine {spent_in_words} (you are asked above {limit:g} hours). Go ahead?"


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
        if arguments.resume is not None:  # of its budget a part is spent
            recipe = load_config(read(lab.workspace.run_dir(arguments.resume) / "config.json"))
        else:
            recipe = load_recipe(lab.workspace.recipe_dir)
        recipe = apply(recipe, arguments.overrides or {})
        hours = min(limit, _hours(lab, recipe.budget.kind, recipe.budget.amount))
    return hours * max(1, arguments.gpu_count or 1)


def _experiment(lab: Lab, arguments: ProposeArguments) -> float:
    """Device hours of an experiment that goes to its last look: test run, controls and candidates.

    One of a campaign is part of what was agreed to with it, as long as its runs are the recipe's own.
    """
    recipe = load_recipe(lab.workspace.recipe_dir)
    given = {"budget.kind": arguments.budget_kind, "budget.amount": arguments.budget_amount}
    control = apply(recipe, {name: value for name, value in given.items() if value is not None})
    candidate = apply(control, arguments.change or {})
    hours = max(_hours(lab, arm.budget.kind, arm.budget.amount) for arm in (control, candidate))
    if _BUDGET_IN_PATCH.search(arguments.patch or ""):  # of unknown size before it is applied
        hours = max(hours, lab.settings.runs.time_limit_hours)
    elif arguments.campaign_id is not None and candidate.budget == recipe.budget == control.budget:
        return 0.0
    return hours * _longest_experiment(lab)


def _campaign(lab: Lab, arguments: RunCampaignArguments) -> float:
    """Device hours of the budget that is given or added; the smallest limit ends it.

    The experiment under way when a limit is reached is finished, so that one is the least there is.
    """
    if arguments.action not in ("start", "extend"):
        return 0.0
    budget = load_recipe(lab.workspace.recipe_dir).budget
    one = _hours(lab, budget.kind, budget.amount)
    limits = [hours for hours in (arguments.hours, arguments.gpu_hours) if hours is not None]
    if arguments.runs is not None:
        limits.append(arguments.runs * one)
    if arguments.experiments is not None:
        limits.append(arguments.experiments * one * _longest_experiment(lab))
    least = one * _longest_experiment(lab) if budget.kind == "seconds" else 0.0
    return max(min(limits, default=math.inf), least)


def _hours(lab: Lab, kind: str, amount: float) -> float:
    """Of one run; where the budget is no time, only the time limit is known."""
    return amount / SECONDS if kind == "seconds" else lab.settings.runs.time_limit_hours


def _longest_experiment(lab: Lab) -> float:
    """In full runs."""
    return 2 * lab.experiments.rule.max_pairs + lab.settings.experiments.test_fraction


SPENDING: Mapping[str, Callable[[Lab, Any], float]] = {
    "start_training": _training,
    "propose_and_run_experiment": _experiment,
    "run_campaign": _campaign,
}
