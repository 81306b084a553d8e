"""Promoted models: `models/NAME/`, a checkpoint's weights with everything needed to use them and where they came from.

models/NAME/  model.safetensors  config.json  tokenizer.json  state.json  recipe/  origin.json
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from training import checkpoint_folder
from training.checkpoint_folder import CONFIG, MODEL, STATE, TOKENIZER
from training.job import SUMMARY
from workspace import clock, durable
from workspace.errors import Refused, unknown
from workspace.layout import Workspace

ORIGIN = "origin.json"
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,79}")
FROM_SUMMARY = (
    "state",
    "val_bpb",
    "perplexity",
    "evaluated",
    "steps",
    "tokens",
    "training_seconds",
    "parameters",
    "data",
)


def promote(workspace: Workspace, run: str, name: str, *, by: str) -> Path:
    """Copy the newest checkpoint of `run` to `models/name`. Raises `NotFound`, or `Refused` when `name` is taken."""
    if not NAME.fullmatch(name):
        raise Refused(f"{name[:100]!r} is no name for a model", valid="letters, digits, dot, dash and underscore")
    folder = workspace.run_dir(run)
    if not NAME.fullmatch(run) or not folder.is_dir():
        raise unknown("run", run, [path.name for path in workspace.runs_dir.glob("*") if path.is_dir()])
    target = workspace.models_dir / name
    checkpoint, state = checkpoint_folder.find(folder)
    workspace.models_dir.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=workspace.models_dir))
    try:
        for file in (MODEL, CONFIG, TOKENIZER):
            shutil.copyfile(checkpoint / file, work / file)
        if (folder / "recipe").is_dir():
            shutil.copytree(folder / "recipe", work / "recipe")
        files = {file: size for file, size in state["files"].items() if (work / file).exists()}
        durable.write_json(work / STATE, state | {"files": files})
        durable.write_json(work / ORIGIN, _origin(folder, run, checkpoint, name, by))
        work.chmod(0o755)
        if target.exists():
            raise Refused(f"models/{name} is there already, and nothing is overwritten", fix="take another name")
        work.rename(target)
        durable.sync_folder(workspace.models_dir)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _origin(folder: Path, run: str, checkpoint: Path, name: str, by: str) -> dict[str, Any]:
    record, summary = durable.read_json(folder / "run.json") or {}, durable.read_json(folder / SUMMARY) or {}
    return {
        "name": name,
        "run": run,
        "checkpoint": checkpoint.name,
        "promoted_at": clock.now(),
        "by": by,
        "experiment": record.get("experiment"),
        "source": record.get("source"),
        "versions": record.get("versions"),
        "recipe_files": summary.get("recipe_files"),
        "result": {key: summary[key] for key in FROM_SUMMARY if key in summary},
    }


def promoted(workspace: Workspace) -> list[dict[str, Any]]:
    """The origins of all promoted models, by name; `bytes` is what each takes on disk."""
    found = []
    for file in sorted(workspace.models_dir.glob(f"[!.]*/{ORIGIN}")):
        size = sum(path.stat().st_size for path in file.parent.rglob("*") if path.is_file())
        found.append({**(durable.read_json(file) or {}), "name": file.parent.name, "bytes": size})
    return found
