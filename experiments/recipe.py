"""A recipe as text and as settings: `recipe.toml` edited in place, and what makes two recipes the same."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.config import RECIPE_NAME, TrainingConfig
from workspace.errors import Refused

# settings that do not decide what is learnt, or that the lab sets itself for every run
NOT_COMPARED = ("seed", "checkpoint")


def edit(text: str, change: Mapping[str, Any]) -> str:
    """`text`, a `recipe.toml`, with some dotted keys set; comments, order and layout of the rest stay as they are."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
    except TOMLKitError as error:
        raise Refused(f"{RECIPE_NAME} is not valid TOML: {error}", fix=f"mend {RECIPE_NAME}") from error
    for key, value in change.items():
        *path, last = key.split(".")
        node: Any = document
        for part in path:
            if part not in node:
                node[part] = tomlkit.table()
            node = node[part]
        node[last] = value
    edited = tomlkit.dumps(document)
    _verify(edited, text, change)
    return edited


def _verify(edited: str, text: str, change: Mapping[str, Any]) -> None:
    """Nothing but the change has changed, by another parser than the one that wrote it."""
    expected, found = tomllib.loads(text), tomllib.loads(edited)
    for key, value in change.items():
        *path, last = key.split(".")
        node = expected
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    if expected != found:
        raise Refused(f"{RECIPE_NAME} is written in a way this change cannot be made in", fix="write it as [tables]")


def digest(config: TrainingConfig, recipe_dir: Path) -> str:
    """Names what a recipe trains: its effective settings and its code, without the seed."""
    code = {
        file.relative_to(recipe_dir).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(recipe_dir.rglob("*.py"))
        if file.is_file()
    }
    return _hash({"settings": _compared(config), "code": code})


def yardstick(config: TrainingConfig) -> str:
    """Names what a score is measured by: budget, text and evaluation. Scores with equal ones have comparable noise."""
    settings = _compared(config)
    data = {k: v for k, v in settings["data"].items() if k not in ("vocab_size", "context")}
    return _hash({"budget": settings["budget"], "evaluation": settings["evaluation"], "data": data})


def _compared(config: TrainingConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=set(NOT_COMPARED))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode("utf-8")).hexdigest()
