"""What a trainer is asked to do: RUN_DIR/run.json and RUN_DIR/config.json, read once. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.config import TrainingConfig, load_config
from training.runs.outcome import has_checkpoint
from workspace import durable, settings
from workspace.errors import NotFound, Refused
from workspace.layout import Workspace

CONFIG = "config.json"
RUN = "run.json"
SUMMARY = "summary.json"
FACTS = "training.json"  # what the training process tells of itself, for the summary
METRICS = "metrics.jsonl"
ALERTS = "alerts.jsonl"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Job:
    """One run as the trainer sees it."""

    folder: Path
    workspace: Workspace
    config: TrainingConfig
    recipe_dir: Path
    resume_from: Path | None  # a checkpoint's or run's folder
    allow_network: bool
    device_index: int | None  # as the vendor's tool counts, for the log
    run: dict[str, Any]


def read_job(folder: Path, *, resume: bool = False) -> Job:
    """The job in a run's folder. run.json may be absent, and its keys too; config.json may not.

    `resume`: continue from this run's own newest checkpoint, if it has one, as run.json's "resume_from" does from any.
    Raises `NotFound` or `Refused`.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise NotFound(f"there is no run folder {folder.name!r}")
    try:
        run, raw = durable.read_json(folder / RUN) or {}, durable.read_json(folder / CONFIG)
    except ValueError as error:
        raise Refused(str(error)) from error
    if raw is None:
        raise NotFound(f"{folder.name} has no {CONFIG}", fix="write the resolved configuration there")
    workspace = Workspace(Path(run["workspace"]).resolve() if run.get("workspace") else folder.parent.parent)
    recipe = run.get("recipe_dir")
    resume_from = folder if resume and has_checkpoint(folder) else run.get("resume_from")
    devices = run.get("devices") or []
    return Job(
        folder=folder,
        workspace=workspace,
        config=load_config(raw, source=CONFIG),
        recipe_dir=(workspace.root / recipe) if recipe else workspace.recipe_dir,
        resume_from=None if resume_from is None else workspace.root / resume_from,
        allow_network=settings.load(workspace.settings_file).network.hub,
        device_index=devices[0].get("index") if devices else None,
        run=run,
    )
