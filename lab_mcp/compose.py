"""Puts the lab together: which parts there are and how they are wired. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from experiments.campaigns import Campaigns
from experiments.lab import Experiments
from experiments.proposers.choose import proposers
from experiments.reproduce import Reproductions
from lab_mcp.documenting import Documenting
from rag.client import Memory
from sessions.notebook import Notebook
from tools import campaigns as campaign_tools
from tools import experiments as experiment_tools
from tools import hardware as hardware_tools
from tools import logs as log_tools
from tools import memory as memory_tools
from tools import notebook as notebook_tools
from tools import runs as run_tools
from tools.calls import Calls
from tools.lab import Lab
from tools.tool import Tools
from training.runs.alerts.watch import Watch
from training.runs.manager import Runs
from training.runs.records import LIVE
from training.telemetry import Sampler
from workspace import interpreter
from workspace import settings as settings_module
from workspace.database import Database
from workspace.layout import Workspace
from workspace.outbox import Outbox


def all_tools() -> Tools:
    return Tools(
        [
            *hardware_tools.TOOLS,
            *run_tools.TOOLS,
            *log_tools.TOOLS,
            *experiment_tools.TOOLS,
            *campaign_tools.TOOLS,
            *memory_tools.TOOLS,
            *notebook_tools.TOOLS,
        ]
    )


def build_lab(workspace: Workspace, service: dict[str, Any], memory: Memory | None = None) -> Lab:
    """Open the workspace, with its `memory` if that was started already.

    Raises `LabError` for wrong settings, a newer database, a read-only folder.
    """
    settings = settings_module.load(workspace.settings_file)
    workspace.create_folders()
    database = Database(workspace.database_file)
    outbox = Outbox(database)
    sampler = Sampler(workspace, settings)
    notebook = Notebook(workspace, database, outbox, hardware=lambda: hardware_tools.summary(sampler.latest()))
    on_end = interpreter.python_command("lab_mcp", "wake", "--workspace", str(workspace.root))
    runs = Runs(workspace, settings, database, outbox, on_end=on_end)
    memory = memory or Memory(workspace, settings)
    experiments = Experiments(workspace, settings, database, outbox, runs, memory, notebook)
    return Lab(
        workspace=workspace,
        settings=settings,
        database=database,
        outbox=outbox,
        calls=Calls(database, notebook),
        hardware=sampler,
        runs=runs,
        memory=memory,
        notebook=notebook,
        experiments=experiments,
        campaigns=Campaigns(
            workspace,
            database,
            outbox,
            experiments,
            proposers(workspace, settings),
            gpu_hour_price=settings.campaigns.gpu_hour_price,
        ),
        reproductions=Reproductions(workspace, experiments.ledger, experiments.lineage, runs, notebook),
        service=service,
    )


Round = list[Callable[[], object]]


def rounds(lab: Lab) -> list[Round]:
    """What the service does again and again; each round in a thread of its own, so that none waits for another."""
    documenting = Documenting(lab)
    watch = Watch(lab.workspace, lab.settings, lab.runs, lab.hardware)
    return [
        [lab.runs.tick, lambda: lab.outbox.drain(documenting.notebook_round)],
        [lab.experiments.tick],
        [lab.campaigns.tick],
        [lab.campaigns.tick_audits],
        [lab.reproductions.tick],
        [watch.tick],
        [lambda: lab.outbox.drain(documenting.memory_round)],
    ]


def is_busy(lab: Lab) -> bool:
    """True while a run, an experiment or a campaign is under way or something is to be documented: it stays then."""
    going_on = lab.campaigns.busy() or lab.experiments.busy() or lab.reproductions.busy()
    return going_on or bool(lab.runs.list(states=LIVE, limit=1)) or bool(lab.outbox.pending())


def start(lab: Lab) -> None:
    lab.hardware.start()
    lab.notebook.recover()


def stop(lab: Lab) -> None:
    lab.hardware.stop()
    lab.memory.close()
    lab.database.close()
