"""Mirrors of a run's metrics in other tools: tensorboard, wandb, trackio. Nothing leaves the machine.

The run's own files stay the record; a mirror that fails is dropped with a line in the log.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from training.report import say
from workspace.errors import Unavailable

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}


class Mirror(Protocol):
    def log(self, numbers: dict[str, float], step: int) -> None: ...
    def close(self) -> None: ...


def check(name: str) -> None:
    """Raises `Unavailable` when the package behind `tracker = name` is not installed."""
    package = PACKAGES.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise Unavailable(f"tracker = {name!r} needs the package {package}", fix="pip install 'lab-mcp[track]'")


class Tracker:
    """The mirror `name` of the run in `folder`; "none" mirrors nothing."""

    def __init__(self, name: str, folder: Path, config: dict[str, Any]) -> None:
        check(name)
        self._mirror: Mirror | None = None
        if name != "none":
            self._safely(lambda: self._open(name, folder, config))

    def _open(self, name: str, folder: Path, config: dict[str, Any]) -> None:
        kinds: dict[str, Callable[[Path, dict[str, Any]], Mirror]]
        kinds = {"tensorboard": _Tensorboard, "wandb": _Wandb, "trackio": _Trackio}
        self._mirror = kinds[name](folder, config)

    def log(self, record: dict[str, Any]) -> None:
        """The finite numbers of a record of metrics.jsonl, but its step."""
        mirror = self._mirror
        if mirror is None:
            return
        numbers = {
            key: float(value)
            for key, value in record.items()
            if key != "step" and isinstance(value, int | float) and math.isfinite(value)
        }
        self._safely(lambda: mirror.log(numbers, int(record["step"])))

    def close(self) -> None:
        mirror, self._mirror = self._mirror, None
        if mirror is not None:
            self._safely(mirror.close)

    def _safely(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001  foreign packages; a run is not lost for its mirror
            self._mirror = None
            say(f"The mirror of the metrics is dropped: {type(error).__name__}: {error}")


class _Tensorboard:
    """Event files in `tensorboard/` of the run: `tensorboard --logdir runs`."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def log(self, numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """An offline run in `wandb/` of the run; `wandb sync` sends it where you want it."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        os.environ["WANDB_MODE"] = "offline"
        os.environ.setdefault("WANDB_SILENT", "true")
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(project="lab-mcp", name=folder.name, dir=str(folder), config=config, mode="offline")

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._run.log(numbers, step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A local database in `trackio/` of the run: `TRACKIO_DIR=runs/RUN/trackio trackio show`."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        os.environ["TRACKIO_DIR"] = str(folder / "trackio")  # read at import
        self._trackio: Any = importlib.import_module("trackio")
        with contextlib.redirect_stdout(None):
            self._trackio.init(project="lab-mcp", name=folder.name, config=config)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self._trackio.log(numbers, step=step)

    def close(self) -> None:
        self._trackio.finish()
