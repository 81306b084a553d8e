"""Puts the lab together: which parts there are and how they are wired. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tools import hardware as hardware_tools
from tools import runs as run_tools
from tools.calls import Calls
from tools.lab import Lab
from tools.tool import Tools
from training.runs.manager import Runs
from training.telemetry import Sampler
from workspace import settings as settings_module
from workspace.database import Database
from workspace.layout import Workspace
from workspace.outbox import Handler, Outbox


def all_tools() -> Tools:
    return Tools([*hardware_tools.TOOLS, *run_tools.TOOLS])


def build_lab(workspace: Workspace, service: dict[str, Any]) -> Lab:
    """Open the workspace. Raises `LabError` for wrong settings, a newer database, a read-only folder."""
    settings = settings_module.load(workspace.settings_file)
    workspace.create_folders()
    database = Database(workspace.database_file)
    outbox = Outbox(database)
    sampler = Sampler(workspace, settings)
    return Lab(
        workspace=workspace,
        settings=settings,
        database=database,
        outbox=outbox,
        calls=Calls(database, journal=None),
        hardware=sampler,
        runs=Runs(workspace, settings, database, outbox),
        service=service,
    )


def outbox_handlers(lab: Lab) -> dict[str, Handler]:
    """Who is told of what: the notebook and the index, by topic."""
    return {}


def periodic_work(lab: Lab) -> list[Callable[[], object]]:
    """What the service does twice a second, in this order, each in a worker thread."""
    work: list[Callable[[], object]] = [lab.runs.tick]
    if lab.outbox.posted.is_set():
        work.append(lambda: lab.outbox.drain(outbox_handlers(lab)))
    return work


def is_busy(lab: Lab) -> bool:
    """True while a run lives or waits: the service does not end then."""
    return bool(lab.runs.list(states=["queued", "starting", "running", "stopping"], limit=1))


def start(lab: Lab) -> None:
    lab.hardware.start()


def stop(lab: Lab) -> None:
    lab.hardware.stop()
    lab.database.close()
