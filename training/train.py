"""The trainer's entry: `python -P -s -m training.train RUN_DIR [--resume]`.

Reads RUN_DIR/config.json and run.json; writes the log to stdout, metrics.jsonl, checkpoints/ and summary.json.
Exit codes: 0 done, 10 loss not a number, 11 out of memory, 12 data, 13 configuration or the recipe's code,
75 ended by SIGTERM after writing a checkpoint.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from training.job import SUMMARY, Job, read_job
from training.report import say, summary_block
from training.runs.outcome import PREEMPTED
from workspace import clock, durable

if TYPE_CHECKING:
    from training.evaluate import Evaluation
    from training.trainer import Trainer

SAMPLE_PROMPT = "def "


def main(arguments: list[str] | None = None) -> int:
    """Run the job in RUN_DIR; returns the exit code. On a failure summary.json says which and why."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(prog="training.train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--resume", action="store_true", help="continue from this run's newest checkpoint")
    options = parser.parse_args(arguments)
    folder: Path = options.run_dir
    job: Job | None = None
    try:
        (folder / SUMMARY).unlink(missing_ok=True)  # of the attempt that is resumed
        job = read_job(folder, resume=options.resume)
        summary = run(job, started)
    except (Exception, SystemExit) as error:  # noqa: BLE001  the one place that turns any failure into a record and an exit code
        return _failed(folder, error, job)
    durable.write_json(folder / SUMMARY, summary)
    say(summary_block(summary))
    return 0


def run(job: Job, started: float) -> dict[str, Any]:
    """Prepare the data, train, evaluate; the summary. `started` is the `time.perf_counter()` of the process' start."""
    # Before torch is imported. Waiting threads otherwise spin, and beside other busy processes (the lab's own are
    # enough) a step takes several times as long; measured: 5 times at a load of 10 on 2 cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from training.data import prepare

    data = prepare(job.config.data, job.workspace, allow_network=job.allow_network)
    prepared = time.perf_counter()
    counts = data.meta["tokens"]
    say(f"Data: {data.meta['corpus']}, {counts['train']:,} tokens to train on, {counts['validation']:,} to validate")

    from training.hardware.backend import choose
    from training.recipe_code import builders
    from training.trainer import Trainer

    backend = choose()
    recipe = builders(job.recipe_dir)
    trainer = Trainer(job, data, backend, recipe)
    signal.signal(signal.SIGTERM, lambda _number, _frame: _ask_to_stop(trainer))
    total = sum(p.numel() for p in trainer.model.parameters())
    say(f"Device: {backend.name} ({backend.kind}), {trainer.dtype_choice.used}: {trainer.dtype_choice.reason}")
    say(f"Compile: {trainer.compile_choice.used}: {trainer.compile_choice.reason}")
    say(f"Model: {total:,} parameters, {trainer.flops_per_token / 1e6:.1f} MFLOPs a token")
    ready = time.perf_counter()
    trainer.train()
    result = trainer.final_evaluation()
    seconds = {"data_seconds": prepared - started, "start_seconds": ready - started + trainer.warm_up_seconds}
    return _summary(trainer, result, recipe.files, seconds) | {"total_seconds": time.perf_counter() - started}


def _ask_to_stop(trainer: Trainer, _frame: FrameType | None = None) -> None:
    trainer.stop_requested = True


def _summary(
    trainer: Trainer, result: Evaluation, recipe_files: dict[str, str], seconds: dict[str, float]
) -> dict[str, Any]:
    config, backend, clock = trainer.config, trainer.backend, trainer.clock
    tokens = clock.tokens
    rate = tokens / clock.seconds
    peak, ceiling = backend.peak_flops(trainer.dtype), trainer.ceiling
    measured = trainer.canary.peak_flops(trainer.dtype_choice.used)
    return {
        "state": "succeeded",
        "val_bpb": result.val_bpb,
        "val_loss": result.val_loss,
        "perplexity": result.as_json()["perplexity"],
        "evaluated": {"tokens": result.tokens, "bytes": result.bytes},
        "train_loss": trainer.train_loss,
        "steps": clock.steps,
        "tokens": tokens,
        "epochs": tokens / trainer.data.meta["tokens"]["train"],
        "training_seconds": clock.seconds,
        "warm_up_seconds": trainer.warm_up_seconds,
        **seconds,
        "tokens_per_s": rate,
        "peak_memory_bytes": backend.peak_memory_bytes(),
        "parameters": _parameters(trainer),
        "depth": config.model.depth,
        "flops_per_token": trainer.flops_per_token,
        "mfu": trainer.mfu(rate),
        "mfu_ceiling": None if ceiling is None else {"flops": ceiling.flops, "source": ceiling.source},
        "mfu_of_canary": None if measured is None else trainer.flops_per_token * rate / measured,
        "peak_flops": None if peak is None else {"flops": peak.flops, "source": peak.source},
        "canary": trainer.canary.as_json(),
        "sample": _sample(trainer),
        "data": trainer.data.fingerprint,
        "recipe_files": recipe_files,
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


def _failed(folder: Path, error: BaseException, job: Job | None) -> int:
    """Record why the run ended and return the exit code; the log ends with the exception itself."""
    from training.failure import classify

    ended = classify(error, job)
    if ended.code == PREEMPTED:
        say("ended by SIGTERM; the checkpoint is written")
    else:
        traceback.print_exception(ended.shown, limit=-3, chain=False, file=sys.stdout)
        sys.stdout.flush()
    if folder.is_dir():
        if ended.kind in ("nan", "oom"):
            alert = {"time": clock.now(), "class": ended.kind, "severity": "stop", "text": ended.text[:600]}
            durable.append_jsonl(folder / "alerts.jsonl", alert, sync=True)
        durable.write_json(folder / SUMMARY, ended.summary())
    return ended.code


if __name__ == "__main__":
    sys.exit(main())
