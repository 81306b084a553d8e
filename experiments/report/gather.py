"""What a report needs, gathered from the lab: which experiments are meant, and what their runs were made with."""

from __future__ import annotations

import re
from typing import Any, Protocol

from experiments.campaigns import Campaigns
from experiments.ledger import Ledger
from experiments.ports import RunsPort
from experiments.record import ExperimentRecord
from experiments.report.material import Material, telling_runs
from sessions.export import select
from sessions.notebook import Notebook
from workspace import clock
from workspace.errors import LabError, NotFound
from workspace.ids import number
from workspace.layout import Workspace

ALL_SESSIONS = 1_000_000


class Parts(Protocol):
    """The parts of the lab a report is gathered from (`tools.lab.Lab`)."""

    workspace: Workspace
    runs: Any
    notebook: Notebook
    experiments: Any
    campaigns: Campaigns


def gather(lab: Parts, what: str, version: str) -> Material:
    """Everything about a campaign, a range of sessions or of experiments, or all. Raises `LabError` for none."""
    ledger: Ledger = lab.experiments.ledger
    what = what.strip() or "all"
    chosen = choose(lab, what)
    records = [record for name in chosen if (record := ledger.get(name)) is not None]
    if not records:
        raise NotFound(f"there are no experiments in {what[:80]!r}", fix="lab-mcp experiments shows what there is")
    campaign = lab.campaigns.get(what) if what.startswith("camp-") else None
    return Material(
        what=what, lab=lab.workspace.root.name, version=version, at=clock.now(), records=records, campaign=campaign,
        spent=lab.campaigns.spent(campaign) if campaign else None, summaries=_summaries(lab.runs, records),
        openings=_openings(lab.workspace), error_budget=lab.experiments.error_budget,
    )  # fmt: skip


def choose(lab: Parts, what: str) -> list[str]:
    """The experiments that are meant, oldest first: `all`, a campaign, one or FROM..TO, or a range of sessions."""
    ledger: Ledger = lab.experiments.ledger
    if what == "all":
        return ledger.ids()
    if what.startswith("camp-"):
        return [record.id for record in ledger.of_campaign(lab.campaigns.get(what).id)]
    if re.match(r"exp-", what):
        first, _, last = what.partition("..")
        low, high = number(lab.experiments.get(first).id, "exp"), number(lab.experiments.get(last or first).id, "exp")
        return [name for name in ledger.ids() if (low or 0) <= (number(name, "exp") or 0) <= (high or 0)]
    if not re.match(r"[\d.]", what):
        raise LabError(
            f"{what[:80]!r} names no experiments",
            valid="all, a campaign (camp-0001), experiments (exp-0003..exp-0010), a day (2026-11-21), a session "
            "(2026-11-21-01), or FROM..TO of days or sessions",
        )
    return _of_sessions(lab, what)


def _of_sessions(lab: Parts, what: str) -> list[str]:
    """Those whose verdict the notebook tells of in these sessions."""
    sessions = sorted(lab.notebook.list(ALL_SESSIONS), key=lambda session: session.id)
    names = set[str]()
    for session in select(sessions, what):
        for entry in lab.notebook.entries(session.id):
            if entry.kind == "event":
                names.update(entry.links.experiments)
    return sorted(names, key=lambda name: number(name, "exp") or 0)


def _summaries(runs: RunsPort, records: list[ExperimentRecord]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for run in telling_runs(records):
        try:
            found[run] = runs.get(run).summary or {}
        except NotFound:  # an old run whose folder somebody has cleared away
            continue
    return found


def _openings(workspace: Workspace) -> list[dict[str, Any]]:
    from training.sealed.audit import openings

    return openings(workspace)
