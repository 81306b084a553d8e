"""Checkpoints: a folder that appears whole or not at all.

checkpoints/step-00000120/  model.safetensors  optimizer.pt (tensors only)  state.json  config.json  tokenizer.json
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from training.config import TrainingConfig, load_config
from workspace import durable
from workspace.errors import NotFound, Refused

PREFIX = "step-"
STATE = "state.json"
# torch's own layout reads back with weights_only=True, so a checkpoint can never run code


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint on disk; `state` is what the trainer put in: step, clock, loader, data, ..."""

    folder: Path
    state: dict[str, Any]
    config: TrainingConfig

    @property
    def step(self) -> int:
        return int(self.state["step"])

    def load_model(self, model: nn.Module) -> None:
        """Raises `Refused` when the weights belong to another model."""
        try:
            model.load_state_dict(load_file(self.folder / "model.safetensors"))
        except RuntimeError as error:
            raise Refused(
                f"checkpoint {self.folder.name} belongs to another model: {str(error).splitlines()[-1].strip()}",
                fix="resume with the configuration and recipe it was written with",
            ) from error

    def load_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Also puts torch's random number generator where it was."""
        rest = torch.load(self.folder / "optimizer.pt", weights_only=True, map_location="cpu")
        optimizer.load_state_dict(rest["optimizer"])
        torch.set_rng_state(rest["rng"])


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    state: dict[str, Any],
    tokenizer_file: Path,
    keep: int,
) -> Path:
    """Write `folder`/step-N durably, then delete all but the newest `keep`. Raises OSError; older ones stay then."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f".{PREFIX}*"):  # of a writer that was killed; this run has only one
        shutil.rmtree(left, ignore_errors=True)
    final = folder / f"{PREFIX}{state['step']:08d}"
    work = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=folder))
    try:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
        save_file(_without_shared(weights), work / "model.safetensors")
        torch.save({"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}, work / "optimizer.pt")
        shutil.copyfile(tokenizer_file, work / "tokenizer.json")
        durable.write_json(work / "config.json", config.model_dump(mode="json"))
        durable.write_json(work / STATE, state)
        for name in ("model.safetensors", "optimizer.pt", "tokenizer.json"):
            _sync(work / name)
        work.chmod(0o755)
        if final.exists():  # the same step again, after a resume
            shutil.rmtree(final)
        work.replace(final)
        durable.sync_folder(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for old in _folders(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`: its folder, a run's folder, or a `checkpoints` folder (then the newest in it)."""
    for folder in (path, path / "checkpoints"):
        newest = folder if (folder / STATE).is_file() else next(iter(_folders(folder)[::-1]), None)
        if newest is not None:
            state: Any = durable.read_json(newest / STATE)
            config: Any = durable.read_json(newest / "config.json")
            return Checkpoint(newest, state, load_config(config, source=f"{newest.name}/config.json"))
    raise NotFound(f"there is no checkpoint in {path.name}", fix="start the run anew")


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob(f"{PREFIX}*") if (p / STATE).is_file())


def _without_shared(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """safetensors refuses tensors that share memory (a tied head): each gets its own copy."""
    seen: set[int] = set()
    result = {}
    for name, tensor in weights.items():
        pointer = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return result


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
