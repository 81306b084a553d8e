"""Which folders are checkpoints, and whether they are whole. No torch; what is in them is `checkpoint`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workspace import durable
from workspace.errors import NotFound, Refused

PREFIX = "step-"
STATE, CONFIG, TOKENIZER = "state.json", "config.json", "tokenizer.json"
MODEL, OPTIMIZER, REST = "model.safetensors", "optimizer.safetensors", "optimizer.pt"
SAME = ("model", "data", "batch", "seed")  # parts of a configuration that a checkpoint cannot do without
ANOTHER = "resume from another checkpoint, or start the run anew"


def all_in(folder: Path) -> list[Path]:
    """The checkpoints in a `checkpoints` folder, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / STATE).is_file())


def find(path: Path) -> tuple[Path, dict[str, Any]]:
    """Folder and state of the checkpoint at `path`: its folder, a run's, or a `checkpoints` folder (then the newest).

    Raises `NotFound` when there is none, `Refused` when it is not whole or was not written by this lab.
    """
    for folder in (path, path / "checkpoints"):
        newest = folder if (folder / STATE).is_file() else next(iter(all_in(folder)[::-1]), None)
        if newest is not None:
            return newest, _checked_state(newest)
    if (path / MODEL).is_file():
        raise Refused(f"{path.name} is not a checkpoint of this lab: it has weights but no {STATE}", fix=ANOTHER)
    raise NotFound(f"there is no checkpoint in {path.name}", fix="start the run anew")


def _checked_state(folder: Path) -> dict[str, Any]:
    try:
        state, config = durable.read_json(folder / STATE), durable.read_json(folder / CONFIG)
    except ValueError as error:
        raise Refused(f"checkpoint {folder.name} is damaged: {error}", fix=ANOTHER) from error
    if not isinstance(state, dict) or not isinstance(config, dict) or not {"step", "files"} <= state.keys():
        raise Refused(f"{folder.name} is not a checkpoint of this lab, or of an older version", fix=ANOTHER)
    for name, size in state["files"].items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"is truncated: {found} bytes of {size}"
            raise Refused(f"checkpoint {folder.name} is not whole: {name} {what}", fix=ANOTHER)
    return state
