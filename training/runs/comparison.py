"""How two runs differ: their settings or commands, and what they reached."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.runs.place import read
from training.runs.progress import shown

RESULTS = ("val_bpb", "train_loss", "steps", "tokens", "tokens_per_s", "training_seconds", "peak_memory_bytes", "mfu")
ASKED = ("name", "kind", "command", "source", "versions", "devices", "time_limit_s")


def differences(one: Path, other: Path) -> dict[str, list[Any]]:
    """dotted name -> [of `one`, of `other`] for every setting, part of the command and result that is not the same.

    None stands for what one of them does not have. `config.` comes from config.json, `result.` from summary.json.
    """
    first, second = _facts(one), _facts(other)
    names = [*first, *(name for name in second if name not in first)]
    return {name: [first.get(name), second.get(name)] for name in names if first.get(name) != second.get(name)}


def _facts(folder: Path) -> dict[str, Any]:
    run, summary = read(folder / "run.json"), read(folder / "summary.json")
    asked = {name: run.get(name) for name in ASKED}
    if asked["kind"] == "recipe":
        del asked["command"]  # names the folder, and is the same otherwise
    reached = {name: shown(summary[name]) for name in RESULTS if _finite(summary.get(name))}
    return {
        **dict(flat(read(folder / "config.json"), "config.")),
        **dict(flat(asked)),
        **{f"result.{name}": found for name, found in reached.items()},
    }


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested objects as dotted names with their values; lists stay whole."""
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
