"""The recipe's own code: `model.py` with build_model(config) and `optim.py` with build_optimizer(model, config).

What is absent comes from `training`. The two signatures are the whole contract:
build_model(config: TrainingConfig) -> torch.nn.Module, tokens (B, T) int64 -> logits (B, T, vocab_size);
  optional: a method loss(tokens, targets) -> mean nats a token;
build_optimizer(model, config) -> torch.optim.Optimizer; its groups' "lr" is the peak the schedule scales.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn, optim

from training import model as default_model
from training import optim as default_optim
from training.config import TrainingConfig
from training.failure import RecipeProblem
from workspace.errors import LabError, closest


@dataclass(frozen=True)
class Builders:
    """What makes the model and its optimizer, and the hash of each file of the recipe that takes part."""

    model: Callable[[TrainingConfig], nn.Module]
    optimizer: Callable[[nn.Module, TrainingConfig], optim.Optimizer]
    files: dict[str, str]


def builders(recipe_dir: Path | None) -> Builders:
    """Ours, each replaced by the recipe's where it has a file for it. Raises `RecipeProblem`."""
    files: dict[str, str] = {}
    build_model = _from_file(recipe_dir, "model.py", "build_model", files) or default_model.build_model
    build_optimizer = _from_file(recipe_dir, "optim.py", "build_optimizer", files) or default_optim.build_optimizer
    return Builders(_checked_model(build_model, files), _checked_optimizer(build_optimizer, files), files)


def _from_file(recipe_dir: Path | None, name: str, function: str, files: dict[str, str]) -> Any | None:
    path = None if recipe_dir is None else recipe_dir / name
    if path is None or not path.is_file():
        return None
    files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    # a name of its own: the recipe's model.py must not pass for training.model, nor one recipe's for another's
    module_name = f"recipe_{path.stem}_{files[name][:16]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the recipe is foreign code: it may raise anything
        del sys.modules[module_name]
        raise RecipeProblem(
            f"recipe/{name} cannot be imported: {type(error).__name__}: {error}{_line_of(error, path)}", kind="import"
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        near = closest(function, [n for n in vars(module) if callable(getattr(module, n))])
        raise RecipeProblem(
            f"recipe/{name} has no function {function}", valid=", ".join(near) or None, fix=f"define {function}(...)"
        )
    return found


def _checked_model(build: Any, files: dict[str, str]) -> Callable[[TrainingConfig], nn.Module]:
    if "model.py" not in files:
        return default_model.build_model

    def checked(config: TrainingConfig) -> nn.Module:
        built = _call(lambda: build(config), "model.py", "build_model")
        if not isinstance(built, nn.Module):
            raise RecipeProblem(f"recipe/model.py: build_model returned {type(built).__name__}, not a torch.nn.Module")
        return built

    return checked


def _checked_optimizer(build: Any, files: dict[str, str]) -> Callable[[nn.Module, TrainingConfig], optim.Optimizer]:
    def checked(model: nn.Module, config: TrainingConfig) -> optim.Optimizer:
        built = _call(lambda: build(model, config), "optim.py", "build_optimizer")
        if not isinstance(built, optim.Optimizer):
            raise RecipeProblem(f"recipe/optim.py: build_optimizer returned {type(built).__name__}, not an Optimizer")
        try:
            default_optim.assert_each_once(model, built.param_groups)
        except AssertionError as error:
            raise RecipeProblem(
                str(error), fix="give every parameter to exactly one group of build_optimizer"
            ) from error
        for group in built.param_groups:
            group.setdefault("initial_lr", group["lr"])
        return built

    return checked


def _call(function: Callable[[], Any], name: str, what: str) -> Any:
    try:
        return function()
    except LabError:
        raise
    except (Exception, SystemExit) as error:
        raise RecipeProblem(f"recipe/{name}: {what} failed: {type(error).__name__}: {error}") from error


def _line_of(error: BaseException, path: Path) -> str:
    trace, line = error.__traceback__, error.lineno if isinstance(error, SyntaxError) else None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line})" if line else ""


def check_loss(loss: Any) -> None:
    """Raises `RecipeProblem` when a model's own loss is not a single number that gradients can be taken of."""
    if not isinstance(loss, Tensor):
        found = type(loss).__name__
    elif loss.numel() != 1 or not loss.is_floating_point():
        found = f"{tuple(loss.shape)} of {loss.dtype}"
    elif not loss.requires_grad:
        found = "a number without a gradient"
    else:
        return
    raise RecipeProblem(
        f"recipe/model.py: loss(tokens, targets) returned {found}", valid="the mean nats a token, a tensor of shape ()"
    )
