"""The training process: `python -P -s -m training.worker RUN_DIR [--resume] [--data FOLDER]`.

Started by `training.train`; the only process of a run in which the recipe's code trains. Writes metrics.jsonl,
checkpoints/ and training.json, what it tells of itself; on a failure summary.json. Exit codes as `training.train`.
Without --data it reads the prepared data's folder from its standard input, so that torch loads meanwhile.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import ctypes
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from training.job import FACTS, Job, read_job
from training.report import be_silent, say
from workspace import durable

if TYPE_CHECKING:
    from training.data import PreparedData
    from training.distributed import Group
    from training.hardware.backend import Backend
    from training.recipe_code import Builders
    from training.trainer import Trainer

SAMPLE_PROMPT = "def "
PR_SET_PDEATHSIG = 1


def main(arguments: list[str] | None = None) -> int:
    """Train the job in RUN_DIR; returns the exit code."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(prog="training.worker", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--data", type=Path, help="the folder of the prepared data")
    options = parser.parse_args(arguments)
    folder: Path = options.run_dir
    _end_with_parent()
    # Before torch is imported. Waiting threads otherwise spin, and beside other busy processes (the lab's own are
    # enough) a step takes several times as long; measured: 5 times at a load of 10 on 2 cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    job: Job | None = None
    try:
        job = read_job(folder, resume=options.resume)
        data_folder = options.data or _told_folder()
        if data_folder is None:
            return 0  # whoever started this has ended
        facts = run(job, data_folder, started)
    except (Exception, SystemExit) as error:  # noqa: BLE001  the one place that turns any failure into a record and an exit code
        from training.failure import record

        return record(folder, error, job)
    if int(os.environ.get("RANK", "0")) == 0:
        durable.write_json(folder / FACTS, facts)
    return 0


def _end_with_parent() -> None:
    """Nobody would read what a worker goes on to write when the run's own process was killed. Linux only."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _told_folder() -> Path | None:
    """The line on standard input, None when it ends without one. torch is imported while it is waited for."""
    import training.trainer  # noqa: F401

    line = sys.stdin.readline().strip()
    return Path(line) if line else None


def run(job: Job, data_folder: Path, started: float) -> dict[str, Any]:
    """Train on the prepared data; the facts. `started` is the `time.perf_counter()` of the process' start."""
    from training import data
    from training.distributed import joined
    from training.failure import RecipeProblem
    from training.hardware.backend import choose
    from training.recipe_code import builders
    from training.sealed import vault

    prepared = data.load(data_folder)
    with joined(job.config.parallel.kind) as group, vault.forbidden() as attempts:
        if not group.first:
            be_silent()
        facts = _train(job, prepared, choose(), builders(job.recipe_dir), group, started)
    if attempts:
        raise RecipeProblem("the recipe's code tried to open the text that is held back for the audit")
    return facts


def _train(
    job: Job, prepared: PreparedData, backend: Backend, recipe: Builders, group: Group, started: float
) -> dict[str, Any]:
    from training.trainer import Trainer

    trainer = Trainer(job, prepared, backend, recipe, group)
    signal.signal(signal.SIGTERM, lambda _number, _frame: trainer.stop())
    total = sum(p.numel() for p in trainer.model.parameters())
    rates = ", ".join(f"{name} {rate:,.0f} GFLOP/s" for name, rate in trainer.canary.matmul_gflops.items())
    say(f"Canary: {rates}, {trainer.canary.bandwidth_gb_s:.1f} GB/s copied")
    say(f"Device: {backend.name} ({backend.kind}), {trainer.dtype_choice.used}: {trainer.dtype_choice.reason}")
    say(f"Compile: {trainer.compile_choice.used}: {trainer.compile_choice.reason}")
    say(f"Model: {total:,} parameters, {trainer.flops_per_token / 1e6:.1f} MFLOPs a token")
    ready = time.perf_counter()
    trainer.train()
    return _facts(trainer, recipe.files) | {"start_seconds": ready - started + trainer.warm_up_seconds}


def _facts(trainer: Trainer, recipe_files: dict[str, str]) -> dict[str, Any]:
    config, backend, clock = trainer.config, trainer.backend, trainer.clock
    rate = clock.tokens / clock.seconds
    utilisation = trainer.utilisation
    peak, ceiling = utilisation.known, utilisation.ceiling
    return {
        "train_loss": trainer.train_loss,
        "stopped_early": trainer.stopped_early,
        "steps": clock.steps,
        "tokens": clock.tokens,
        "epochs": clock.tokens / trainer.data.meta["tokens"]["train"],
        "training_seconds": clock.seconds,
        "warm_up_seconds": trainer.warm_up_seconds,
        "checkpoint_stall_seconds": trainer.writer.stalled_s,
        "tokens_per_s": rate,
        "energy": trainer.meter.summary(),
        "peak_memory_bytes": backend.peak_memory_bytes(),
        "parameters": _parameters(trainer),
        "depth": config.model.depth,
        "flops_per_token": trainer.flops_per_token,
        "mfu": utilisation.mfu(rate),
        "mfu_ceiling": None if ceiling is None else {"flops": ceiling.flops, "source": ceiling.source},
        "mfu_of_canary": utilisation.mfu_of_canary(rate),
        "peak_flops": None if peak is None else {"flops": peak.flops, "source": peak.source},
        "canary": trainer.canary.as_json(),
        "sample": _sample(trainer),
        "recipe_files": recipe_files,
        "parallel": {"kind": trainer.group.kind, "processes": trainer.group.world, "devices": trainer.devices},
        "backend": {"kind": backend.kind, "device": backend.name, "threads": _threads()},
        "dtype": trainer.dtype_choice.as_json(),
        "compile": trainer.compile_choice.as_json(),
        "versions": _versions(),
    }


def _sample(trainer: Trainer) -> str:
    from training.sample import generate

    count, config = trainer.config.evaluation.sample_tokens, trainer.config
    if not count:
        return ""
    model, tokenizer = trainer.model, trainer.data.tokenizer
    try:
        with trainer.precision():
            return generate(model, tokenizer, SAMPLE_PROMPT, tokens=count, context=config.data.context, temperature=0.7)
    except Exception as error:  # noqa: BLE001  a recipe's model may take full rows only; its result is not lost for that
        say(f"No sample: {type(error).__name__}: {error}")
        return ""


def _parameters(trainer: Trainer) -> dict[str, int]:
    """Parameters by optimizer group, and in all."""
    groups = trainer.optimizer.param_groups
    counts = {str(g.get("name", f"group {i}")): sum(p.numel() for p in g["params"]) for i, g in enumerate(groups)}
    return counts | {"total": sum(counts.values())}


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _versions() -> dict[str, str]:
    from importlib import metadata

    names = ("torch", "tokenizers", "numpy", "lab-mcp")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}


def _leave(code: int) -> NoReturn:
    """End without taking the interpreter down: everything is written, and its end is where libraries' threads abort.

    Measured: gloo's threads outlive `destroy_process_group`, as DistributedDataParallel and FSDP keep their group; one
    that still lets go of a tensor while the interpreter ends takes the process, and a finished run, with it (SIGABRT).
    """
    atexit._run_exitfuncs()  # as torch's compiling processes are ended by
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or whoever read it has ended
            stream.flush()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).fflush(None)  # what native libraries print
    os._exit(code)


if __name__ == "__main__":
    _leave(main())
