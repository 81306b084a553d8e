"""What a configuration amounts to: two configurations with equal fingerprints train the same way.

    python -P -s -m training.fingerprint CONFIG.json [--recipe-dir DIR]

prints one JSON object. `structural` hashes parameter shapes, FLOPs a token, optimizer groups, the schedule at ten
points, the data and its order, the budget; `behavioural` hashes losses and gradient norms of three seeded steps on a
fixed batch, made on the CPU, so that no accelerator is disturbed. The seed is part of neither.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from training import extras
from training.config import EvaluationConfig, TrainingConfig, load_config
from workspace import durable
from workspace.errors import LabError

# Settings that change neither what is learned nor how it is measured, and why.
WITHOUT_EFFECT = {
    "seed": "another draw of the same experiment: a replicate",
    "batch.rows": "how a step is divided to fit into memory; the gradients are summed over all parts",
    "compile": "speed, not mathematics",
    "deterministic": "which of several orders of summation is taken",
    "evaluation.quick_bytes": "a glance during the run; the result is the final evaluation's",
    "evaluation.quick_count": "a glance during the run; the clock stands still meanwhile",
    "evaluation.sample_tokens": "text for people at the end",
    "checkpoint.every_seconds": "what is kept on disk; the clock stands still meanwhile",
    "checkpoint.keep": "what is kept on disk",
    "optimizer.offload": "where the moments lie; the mathematics stay",
    "parallel.kind": "who computes what; the gradients are averaged over all",
    "parallel.processes": "who computes what; the gradients are averaged over all",
    "profile.steps": "a look inside; the mathematics stay",
    "tracker": "where metrics are shown as well",
}
SCHEDULE_POINTS = 10
STEPS_AT = (0.1, 0.8, 0.9)  # progress the three steps pretend to: before and in the usual warm-down
ROWS = 2
LONGEST = 128  # tokens of a row of the fixed batch
DIGITS = 6


def fingerprint(
    config: TrainingConfig, recipe_dir: Path | None = None, cache_dir: Path | None = None
) -> dict[str, Any]:
    """`structural` and `behavioural` hashes with what went into them.

    Raises `LabError` when the recipe fails, `Unavailable` when a package is missing that its settings need. Changes
    torch's global random state. `cache_dir` keeps what was measured of this machine, so that `dtype = "auto"` is the
    same each time.
    """
    extras.check_packages(config)
    import torch

    from training.hardware.backend import choose
    from training.recipe_code import builders

    started = time.perf_counter()
    recipe = builders(recipe_dir)
    dtype = choose().dtype_choice(config.dtype, cache_dir).used
    torch.manual_seed(0)
    model = recipe.model(config)
    optimizer = recipe.optimizer(model, config)
    structure = _structure(config, model, optimizer, dtype)
    behaviour = _behaviour(config, model, optimizer, dtype)
    return {
        "structural": _hash(structure),
        "behavioural": _hash(behaviour),
        "structure": structure,
        "behaviour": behaviour,
        "recipe_files": recipe.files,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _structure(config: TrainingConfig, model: Any, optimizer: Any, dtype: str) -> dict[str, Any]:
    from training.corpus import settings_that_matter
    from training.schedule import rates

    points = [rates(config, i / (SCHEDULE_POINTS - 1)) for i in range(SCHEDULE_POINTS)]
    shapes = [[name, *p.shape] for name, p in model.named_parameters()]
    return {
        "parameters": _hash(shapes),
        "parameter_count": sum(p.numel() for p in model.parameters()),
        "flops_per_token": getattr(model, "flops_per_token", None),
        "optimizer": [_group(group) for group in optimizer.param_groups],
        "grad_clip": config.optimizer.grad_clip,
        "schedule": [[r.lr, r.momentum, r.weight_decay] for r in points],
        "data": settings_that_matter(config.data),
        "data_order": _order(config),
        "tokens_per_step": config.batch.tokens,
        "budget": [config.budget.kind, config.budget.amount],
        "evaluated_bytes": config.evaluation.bytes,
        "early_stopping": _early_stopping(config.evaluation),
        "dtype": dtype,
    }


def _early_stopping(evaluation: EvaluationConfig) -> list[float] | None:
    if not evaluation.patience:
        return None
    return [evaluation.patience, evaluation.min_delta, evaluation.quick_count, evaluation.quick_bytes]


def _group(group: dict[str, Any]) -> dict[str, Any]:
    """A parameter group: its plain values and how many parameters it holds."""
    plain = {k: v for k, v in group.items() if isinstance(v, int | float | str | bool | tuple) and k != "offload"}
    return plain | {"parameters": sum(p.numel() for p in group["params"])}


def _order(config: TrainingConfig) -> str:
    """Hash of the first rows the loader takes from a made-up text of 64 rows."""
    import numpy as np

    from training.loader import TrainingLoader

    bos = config.data.vocab_size - 1
    ids = np.arange(64 * config.data.context) % bos
    rows = TrainingLoader(ids, config.data.context, bos, seed=0).next(16)
    return hashlib.sha256(rows.tobytes()).hexdigest()[:16]


def _behaviour(config: TrainingConfig, model: Any, optimizer: Any, dtype: str) -> dict[str, list[str]]:
    import torch
    import torch.nn.functional as F
    from torch import nn

    from training.optim import set_rates
    from training.schedule import rates

    length = min(config.data.context, LONGEST)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(config.data.vocab_size, (ROWS, length + 1), generator=draw)
    inputs, targets = ids[:, :-1], ids[:, 1:]
    own = getattr(model, "loss", None)
    losses, norms = [], []
    for progress in STEPS_AT:
        set_rates(optimizer, rates(config, progress))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            if callable(own):
                loss = own(inputs, targets)
            else:
                loss = F.cross_entropy(model(inputs).float().flatten(0, 1), targets.flatten())
        loss.backward()
        if config.optimizer.grad_clip:
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.grad_clip)
        else:
            norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(f"{loss.item():.{DIGITS}g}")
        norms.append(f"{norm.item():.{DIGITS}g}")
    return {"losses": losses, "gradient_norms": norms}


def main(arguments: list[str] | None = None) -> int:
    """0 and the JSON on stdout; 13 and {"error", "class"} when configuration or recipe fail."""
    parser = argparse.ArgumentParser(prog="training.fingerprint", description="Fingerprint of a configuration.")
    parser.add_argument("config", type=Path)
    parser.add_argument("--recipe-dir", type=Path)
    parser.add_argument("--cache-dir", type=Path)
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see training.train; before torch is imported
    from training.failure import RecipeProblem
    from training.runs.outcome import CONFIGURATION

    try:
        config = load_config(durable.read_json(options.config) or {}, source=options.config.name)
        print(json.dumps(fingerprint(config, options.recipe_dir, options.cache_dir)))
    except LabError as error:
        kind = error.kind if isinstance(error, RecipeProblem) else "exit"
        print(json.dumps({"error": str(error), "class": kind}))
        return CONFIGURATION
    except (Exception, SystemExit) as error:
        if options.recipe_dir is None:
            raise
        # the recipe's model or optimizer failed in a step
        print(json.dumps({"error": f"the recipe's code failed: {type(error).__name__}: {error}", "class": "exit"}))
        return CONFIGURATION
    return 0


if __name__ == "__main__":
    sys.exit(main())
