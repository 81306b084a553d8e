"""Checkpoints: a folder that appears whole or not at all.

checkpoints/step-00000120/
  model.safetensors      the weights, for anyone to read
  optimizer.safetensors  the optimizer's tensors; optimizer.pt, the rest of its state and the random number generators
  state.json             step, clock, loader, data, and the size of every other file
  config.json  tokenizer.json
"""

from __future__ import annotations

import ctypes
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from training import checkpoint_folder, distributed, generators, tensor_file
from training.checkpoint_folder import ANOTHER, CONFIG, MODEL, OPTIMIZER, PREFIX, REST, STATE, TOKENIZER
from training.config import TrainingConfig, load_config
from workspace import durable
from workspace.errors import Refused

TENSOR = "tensor in optimizer.safetensors"  # key of the mark that stands for a tensor in optimizer.pt
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@dataclass(frozen=True)
class Content:
    """What a checkpoint is made of. Tensors may lie on any device; they are only read."""

    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    rest: Any  # of the optimizer's state, and the generators: plain values, small tensors, marks for the others
    state: Mapping[str, Any]
    config: TrainingConfig
    tokenizer_file: Path


def content_of(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainingConfig,
    state: Mapping[str, Any],
    tokenizer_file: Path,
) -> Content:
    """The present state of everything; nothing is copied yet."""
    tensors: dict[str, Tensor] = {}
    kept = generators.take(_device_of(optimizer))
    rest = {"optimizer": _without_tensors(optimizer.state_dict(), tensors), "generators": kept}
    return Content(model.state_dict(), tensors, rest, state, config, tokenizer_file)


def _device_of(optimizer: torch.optim.Optimizer) -> torch.device:
    device: torch.device = next(p.device for group in optimizer.param_groups for p in group["params"])
    return device


def _without_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` with its tensors moved to `tensors` and marks in their place."""
    if isinstance(value, Tensor):
        name = f"{len(tensors):06d}"
        tensors[name] = value
        return {TENSOR: name}
    if isinstance(value, dict):
        return {key: _without_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_tensors(item, tensors) for item in value)
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if TENSOR in value:
            return tensors[value[TENSOR]]
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_tensors(item, tensors) for item in value)
    return value


def write(folder: Path, content: Content, keep: int, more: Callable[[Path], None] | None = None) -> Path:
    """Write `folder`/step-N durably, then delete all but the newest `keep`. Raises OSError; older ones stay then.

    `more` is called with the folder while it has another name, and may add to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f".{PREFIX}*"):  # of a writer that was killed; this run has only one
        shutil.rmtree(left, ignore_errors=True)
    final = folder / f"{PREFIX}{content.state['step']:08d}"
    work = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=folder))
    try:
        tensor_file.write(work / MODEL, content.model)
        tensor_file.write(work / OPTIMIZER, content.optimizer)
        torch.save(content.rest, work / REST)
        _sync(work / REST)
        shutil.copyfile(content.tokenizer_file, work / TOKENIZER)
        _sync(work / TOKENIZER)
        durable.write_json(work / CONFIG, content.config.model_dump(mode="json"))
        if more is not None:
            more(work)
        sizes = {path.name: path.stat().st_size for path in sorted(work.iterdir()) if path.is_file()}
        durable.write_json(work / STATE, {**content.state, "files": sizes})
        work.chmod(0o755)
        _put(work, final)
        durable.sync_folder(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for old in checkpoint_folder.all_in(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _put(work: Path, final: Path) -> None:
    """Rename `work` to `final`. One of that name (the same step again) changes places with it: one is always there."""
    if not final.exists():
        work.replace(final)
        return
    exchange = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(work), os.fsencode(final)
    if exchange is None or exchange(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) != 0:
        aside = work.with_name(f"{work.name}.old")  # no system call for it here: for a moment both have hidden names
        final.rename(aside)
        work.rename(final)
        shutil.rmtree(aside, ignore_errors=True)


# -- reading ----------------------------------------------------------------------------------------------------------


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
        """Raises `Refused` when the weights belong to another model. A sharded model takes its parts."""
        try:
            held = self._tensors(MODEL)
            ours = model.state_dict()
            if not any(distributed.is_sharded(tensor) for tensor in ours.values()) or held.keys() != ours.keys():
                model.load_state_dict(held)
                return
            with torch.no_grad():
                for name, tensor in ours.items():
                    distributed.put(tensor, held[name])
        except RuntimeError as error:
            raise Refused(
                f"checkpoint {self.folder.name} belongs to another model: {str(error).splitlines()[-1].strip()}",
                fix="resume with the configuration and recipe it was written with",
            ) from error

    def load_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Also puts torch's random number generators where they were. Raises `Refused`."""
        if (self.folder / distributed.SHARDS).is_dir():
            raise Refused(
                f"the optimizer's state in {self.folder.name} is sharded", fix="resume with parallel.kind = 'fsdp'"
            )
        try:
            rest = torch.load(self.folder / REST, weights_only=True, map_location="cpu")
            optimizer.load_state_dict(_with_tensors(rest["optimizer"], self._tensors(OPTIMIZER)))
        except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise Refused(
                f"checkpoint {self.folder.name} has the state of another optimizer: {str(error).splitlines()[0]}",
                fix="resume with the configuration and recipe it was written with",
            ) from error
        generators.put(rest["generators"], _device_of(optimizer))

    def load_shards(self, optimizer: torch.optim.Optimizer, template: dict[str, Any]) -> None:
        """`load_optimizer` for a sharded one; `template` is the state of one that has made a step. Raises `Refused`."""
        if not (self.folder / distributed.SHARDS).is_dir():
            raise Refused(
                f"the optimizer's state in {self.folder.name} is not sharded",
                fix="resume without parallel.kind = 'fsdp'",
            )
        tensors: dict[str, Tensor] = {}
        _without_tensors(template, tensors)
        distributed.read_shards(self.folder / distributed.SHARDS, tensors)
        rest = torch.load(self.folder / REST, weights_only=True, map_location="cpu")
        optimizer.load_state_dict(_with_tensors(rest["optimizer"], tensors))
        generators.put(rest["generators"], _device_of(optimizer))

    def _tensors(self, name: str) -> dict[str, Tensor]:
        try:
            return dict(load_file(self.folder / name))
        except (SafetensorError, OSError) as error:
            raise Refused(f"checkpoint {self.folder.name}: {name} cannot be read: {error}", fix=ANOTHER) from error


def open_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path`: its folder, a run's folder, or a `checkpoints` folder (then the newest in it).

    Raises `NotFound` when there is none, `Refused` when it is not whole or was not written by this lab.
    """
    folder, state = checkpoint_folder.find(path)
    config: Any = durable.read_json(folder / CONFIG)
    return Checkpoint(folder, state, load_config(config, source=f"{folder.name}/{CONFIG}"))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
