"""`lab-mcp simulate`: how often the rule keeps chance, and at what cost, beside the rules of other projects."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Annotated, Any

import typer
from rich.table import Table

from experiments import other_rules
from experiments.simulation import DRIFTS, NOISES, Campaign, Drift, Noise, Outcome, our_campaign, simulate, upper_bound
from lab_mcp.terminal import console

PIECE = 50  # campaigns to a task
OTHERS_SHARE = 10  # the others' rules get a tenth of the campaigns: their errors are not rare
RULES: dict[str, Campaign] = {
    "lab-mcp": our_campaign,
    "keep if lower (autoresearch)": other_rules.keep_if_lower,
    "2 MAD (pi-autoresearch)": other_rules.mad_confidence,
    "two seeds, fixed thresholds (autoresearch-lab)": other_rules.two_seeds,
    "bootstrap of medians, 3 runs (the_lab)": other_rules.bootstrap_medians,
    "BCa interval, 5 runs (hugoferreira)": other_rules.bca,
}
SCENARIOS: dict[str, Campaign] = {  # the lab's own rule where a session is short, or a change adds noise
    "lab-mcp, the level from 24 runs": functools.partial(our_campaign, session=24),
    "lab-mcp, the level from 12 runs": functools.partial(our_campaign, session=12),
    "lab-mcp, candidates with twice the variance": functools.partial(our_campaign, variance=2.0),
    "lab-mcp, candidates with three times the variance": functools.partial(our_campaign, variance=3.0),
}
SCENARIO_DRIFTS: tuple[Drift, ...] = ("none",)  # with normal noise
Wanted = tuple[str, Noise, Drift, int]  # rule, noise, drift, campaigns
Task = tuple[str, Noise, Drift, bool, range, int]


def run(task: Task) -> Outcome:
    """In a process of its own."""
    rule, noise, drift, planted, campaigns, seed = task
    return simulate((RULES | SCENARIOS)[rule], noise, drift, planted, campaigns, seed)


def rules(campaigns: int, others: bool = True) -> list[Wanted]:
    """Every noise and drift; the other projects' rules too."""
    wanted: list[Wanted] = []
    for rule in RULES if others else ("lab-mcp",):
        count = campaigns if rule == "lab-mcp" else max(1, campaigns // OTHERS_SHARE)
        wanted += [(rule, noise, drift, count) for noise in NOISES for drift in DRIFTS]
    return wanted


def scenarios(campaigns: int) -> list[Wanted]:
    return [(rule, "normal", drift, campaigns) for drift in SCENARIO_DRIFTS for rule in SCENARIOS]


def table(wanted: Sequence[Wanted], seed: int = 1, workers: int = 1) -> list[dict[str, Any]]:
    """A row for each, from its campaigns without and as many with planted effects."""
    tasks: list[Task] = []
    for rule, noise, drift, count in wanted:
        for planted in (False, True):
            pieces = [range(first, min(first + PIECE, count)) for first in range(0, count, PIECE)]
            tasks += [(rule, noise, drift, planted, piece, seed) for piece in pieces]
    totals: dict[tuple[str, Noise, Drift, bool], Outcome] = {}
    for task, outcome in zip(tasks, _outcomes(tasks, workers), strict=True):
        totals.setdefault(task[:4], Outcome()).add(outcome)
    return [
        _row(rule, noise, drift, found, totals[rule, noise, drift, True])
        for (rule, noise, drift, planted), found in totals.items()
        if not planted
    ]


def _outcomes(tasks: list[Task], workers: int) -> Iterator[Outcome]:
    if workers <= 1:
        yield from map(run, tasks)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(run, tasks)


def _row(rule: str, noise: Noise, drift: Drift, null: Outcome, planted: Outcome) -> dict[str, Any]:
    return {
        "rule": rule,
        "noise": noise,
        "drift": drift,
        "campaigns": null.campaigns,
        "false_keep": null.with_false_keep / null.campaigns,
        "false_keep_upper": upper_bound(null.with_false_keep, null.campaigns),
        "false_keeps_each": null.false_keeps / null.campaigns,
        "false_keep_planted": planted.with_false_keep / planted.campaigns,
        "found": planted.found / planted.planted,
        "cost_null": null.null_cost / null.nulls,
        "cost_null_planted": planted.null_cost / planted.nulls,
    }


def simulate_command(
    campaigns: Annotated[
        int, typer.Option(min=10, help="simulated campaigns of 80 proposals, per noise and drift")
    ] = 200,
    seed: Annotated[int, typer.Option(help="the same seed gives the same table")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="processes")] = min(2, os.cpu_count() or 1),
    others: Annotated[bool, typer.Option(help="also the rules of other projects (a tenth of the campaigns)")] = True,
    harder: Annotated[bool, typer.Option(help="also short sessions, and candidates that scatter more")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """Judge simulated campaigns by the very functions that judge yours: false keeps, effects found, cost."""
    rows = table([*rules(campaigns, others), *(scenarios(campaigns) if harder else ())], seed, workers)
    if as_json:
        typer.echo(json.dumps(rows))
        return
    shown = Table(title="80 proposals a campaign; effects in noise SDs", title_justify="left")
    for name in ("rule", "noise", "drift"):
        shown.add_column(name)
    for name in ("campaigns", *COLUMNS):
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(row["rule"], row["noise"], row["drift"], str(row["campaigns"]), *cells(row))
    console.print(shown)


COLUMNS = (
    "with a false keep",
    "95 % upper bound",
    "false keeps each",
    "runs per null proposal",
    "3 SD found",
    "with a false keep, 8 of 80 planted",
    "runs per null proposal, 8 of 80 planted",
)


def cells(row: dict[str, Any]) -> list[str]:
    """The figures of a row as text, by COLUMNS."""
    return [
        f"{row['false_keep']:.1%}",
        f"{row['false_keep_upper']:.1%}",
        f"{row['false_keeps_each']:.2f}",
        f"{row['cost_null']:.2f}",
        f"{row['found']:.1%}",
        f"{row['false_keep_planted']:.1%}",
        f"{row['cost_null_planted']:.2f}",
    ]
