"""The lab as the tools see it: its parts, already put together by the app."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from experiments.campaigns import Campaigns
from experiments.lab import Experiments
from experiments.reproduce import Reproductions
from rag.client import Memory
from sessions.notebook import Notebook
from tools.calls import Calls
from training.runs.manager import Runs
from training.telemetry import Sampler
from workspace.database import Database
from workspace.layout import Workspace
from workspace.outbox import Outbox
from workspace.settings import Settings


@dataclass
class Lab:
    workspace: Workspace
    settings: Settings
    database: Database
    outbox: Outbox
    calls: Calls
    hardware: Sampler
    runs: Runs
    memory: Memory
    notebook: Notebook
    experiments: Experiments
    campaigns: Campaigns
    reproductions: Reproductions
    changed: Callable[[str], None] = field(default=lambda uri: None, kw_only=True)  # tells clients of a resource
    told_alerts: dict[tuple[str, str], int] = field(default_factory=dict, kw_only=True)  # conversation, run -> how many
    service: dict[str, Any]  # pid, url, started_at, version of the process this lab lives in
