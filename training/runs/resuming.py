"""A new run that goes on from the newest checkpoint of one that has ended: what it takes over, and whether it can."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training import checkpoint_folder, size
from training.budget import Clock
from training.config import TrainingConfig, apply, load_config
from training.runs.place import read
from workspace.errors import NotFound, Refused
from workspace.layout import Workspace


def source_of(
    run_id: str, overrides: Mapping[str, Any], workspace: Workspace
) -> tuple[TrainingConfig, Path, dict[str, Any]]:
    """Configuration, recipe folder and entries of run.json for a run that goes on from `run_id`, which has ended.

    Its configuration is the default, so that the budget goes on from its clock; `overrides` may ask for more. Raises
    `NotFound` without a checkpoint, `Refused` when it is not whole or does not fit what is asked for.
    """
    earlier = workspace.run_dir(run_id)
    run, raw = read(earlier / "run.json"), read(earlier / "config.json")
    if not run:
        raise NotFound(f"the folder of {run_id} is not there", fix="start the run anew")
    if not raw or run.get("kind") != "recipe":
        raise Refused(
            f"{run_id} is not a run of the built-in trainer", fix="start the script anew, if it can go on by itself"
        )
    try:
        found, state = checkpoint_folder.find(earlier)
    except NotFound as error:
        before = f"resume {Path(str(run['resume_from'])).name}, as it did, or " if run.get("resume_from") else ""
        raise NotFound(f"{run_id} has no checkpoint", fix=f"{before}start the run anew") from error
    config = apply(load_config(raw, source=f"config.json of {run_id}"), overrides)
    written = load_config(read(found / checkpoint_folder.CONFIG), source=f"config.json of {found.name}")
    for part in checkpoint_folder.SAME:
        if getattr(config, part) != getattr(written, part):
            raise Refused(
                f"[{part}] differs from that of {run_id}: its checkpoint belongs to another training",
                valid="other settings, budget.amount above all",
                fix=f"leave [{part}] out, or start a run of its own",
            )
    _refuse_spent(run_id, earlier, config, state)
    return config, earlier / "recipe", {"resume_from": f"runs/{run_id}", "name": run.get("name")}


def _refuse_spent(run_id: str, earlier: Path, config: TrainingConfig, state: Mapping[str, Any]) -> None:
    """One interrupted behind its last step has still to be scored; one that succeeded needs a larger budget."""
    own_model = (earlier / "recipe" / "model.py").exists()
    if read(earlier / "summary.json").get("state") != "succeeded" or (config.budget.kind == "flops" and own_model):
        return
    spent = Clock(config, size.flops_per_token(config), float(state["training_seconds"]), int(state["step"]))
    if spent.progress >= 1:
        amount = config.budget.amount
        raise Refused(
            f"{run_id} has succeeded: its budget of {amount:g} {config.budget.kind} is spent",
            fix=f'a larger one, for example overrides {{"budget.amount": {2 * amount:g}}}',
        )
