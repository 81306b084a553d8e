"""A training run's own process: `python -P -s -m training.train RUN_DIR [--resume]`.

Reads RUN_DIR/config.json and run.json; prepares the data, has a process of its own train (`training.worker`), scores
the result (`training.sealed`) and writes summary.json. No recipe's code ever runs in here, so the score is ours.
Exit codes: 0 done, 10 loss not a number, 11 out of memory, 12 data, 13 configuration or the recipe's code,
75 ended by SIGTERM, with a checkpoint when training had begun.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda _number, _frame: os._exit(75))  # nothing has begun that could be lost

from training import report
from training.failure import Preempted, record
from training.job import CHECKPOINTS, FACTS, METRICS, SUMMARY, Job, read_job
from training.report import say, summary_block
from workspace import durable
from workspace.interpreter import python_command

if TYPE_CHECKING:
    from training.data import PreparedData
    from training.sealed.scoring import Seal


def main(arguments: list[str] | None = None) -> int:
    """Run the job in RUN_DIR; returns the exit code. On a failure summary.json says which and why."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(prog="training.train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--resume", action="store_true", help="continue from this run's newest checkpoint")
    options = parser.parse_args(arguments)
    folder: Path = options.run_dir
    job: Job | None = None
    with Signals() as signals:
        try:
            for name in (SUMMARY, FACTS):  # of the attempt that is resumed
                (folder / name).unlink(missing_ok=True)
            job = read_job(folder, resume=options.resume)
            summary = run(job, signals, started, resume=options.resume)
        except WorkerFailed as ended:
            return end_like(ended.code)
        except (Exception, SystemExit) as error:  # noqa: BLE001  the one place that turns any failure into a record and an exit code
            return record(folder, error, job)
    durable.write_json(folder / SUMMARY, summary)
    say(summary_block(summary))
    return 0


class Signals:
    """SIGTERM goes on to the training process, which ends by itself; with none, it ends this process."""

    def __init__(self) -> None:
        self.worker: subprocess.Popen[str] | None = None
        self.seen = False

    def check(self) -> None:
        """Raises `Preempted` when a signal came whose own exception got lost, as in a callback it does."""
        if self.seen:
            raise Preempted("SIGTERM while nothing was being trained; what is prepared or trained is kept")

    def __enter__(self) -> Signals:
        self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.seen = True
        if self.worker is None:
            self.check()
        else:  # which may have ended, or be past heeding it: `check` again when it has ended well
            self.worker.terminate()


def run(job: Job, signals: Signals, started: float, *, resume: bool = False) -> dict[str, Any]:
    """Prepare the data, have it trained on, score the result; the summary."""
    with Worker(job, signals, resume=resume) as worker:
        from training import data
        from training.sealed.scoring import Seal

        prepared = data.prepare(job.config.data, job.workspace, allow_network=job.allow_network)
        seal = Seal.take(prepared)
        data_seconds = time.perf_counter() - started
        signals.check()
        n = prepared.meta["tokens"]
        say(f"Data: {prepared.meta['corpus']}, {n['train']:,} tokens to train on, {n['validation']:,} to validate")
        facts = worker.train(prepared)
    score = evaluate(job, prepared, seal, facts)
    signals.check()
    seconds = {"data_seconds": data_seconds, "total_seconds": time.perf_counter() - started}
    return facts | {"state": "succeeded", "data": prepared.fingerprint} | score | seconds  # what is ours comes last


def evaluate(job: Job, prepared: PreparedData, seal: Seal, facts: dict[str, Any]) -> dict[str, Any]:
    """The score of the newest checkpoint, on the validation text of the configuration."""
    from training.sealed import scoring

    started = time.perf_counter()
    seal.check(prepared)
    candidate = scoring.Candidate(job.folder / CHECKPOINTS, job.recipe_dir, facts["dtype"]["used"], job.config)
    text, size = prepared.ids("validation"), prepared.meta["bytes"]["validation"]
    result = scoring.evaluate(candidate, prepared, text, size)
    report.evaluated(job.folder / METRICS, facts["steps"], facts["training_seconds"], result.as_json(), full=True)
    found = result.as_json()
    evaluated = {"tokens": found.pop("tokens"), "bytes": found.pop("bytes"), "code": seal.code}
    return found | {"evaluated": evaluated, "evaluation_seconds": time.perf_counter() - started}


class WorkerFailed(Exception):
    """The training process ended with an exit code of its own; why stands in summary.json when it could say."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the training process ended with exit code {code}")
        self.code = code


class Worker:
    """The training process. It is started early: while the data are prepared, it imports torch.

    Several, under torchrun, where the recipe asks for it: torchrun hands nothing on, so they start when the data are
    there.
    """

    def __init__(self, job: Job, signals: Signals, *, resume: bool) -> None:
        self.job, self.signals = job, signals
        self.arguments = ["training.worker", str(job.folder), *(["--resume"] if resume else [])]
        self.parallel = job.config.parallel.kind != "none"
        self.process: subprocess.Popen[str] | None = None
        if not self.parallel:
            command = python_command(*self.arguments)
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)

    def _start_all(self, data_folder: Path) -> subprocess.Popen[str]:
        count = self.job.config.parallel.processes or max(1, len(self.job.run.get("devices") or []))
        arguments = ["--standalone", "--nproc-per-node", str(count), "-m", *self.arguments, "--data", str(data_folder)]
        threads = str(max(1, (os.cpu_count() or 1) // count))
        # torchrun starts plain interpreters: what `-P -s` would do comes by variables
        clean = {"PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1"}
        environment = {"OMP_NUM_THREADS": threads} | os.environ | clean
        command = python_command("torch.distributed.run", *arguments)
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, text=True)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        if self.process is None:
            return
        if kind is not None:
            self.process.terminate() if self.parallel else self.process.kill()  # torchrun ends its own children
        if self.process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        self.process.wait()

    def train(self, prepared: PreparedData) -> dict[str, Any]:
        """Hand over the data and wait for the end; what the worker tells of the run.

        Raises `WorkerFailed`, or `Preempted` when a signal came before the worker could heed it.
        """
        process = self.process = self.process or self._start_all(prepared.folder)
        self.signals.worker = process
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it has ended already; how, is next
                process.stdin.write(f"{prepared.folder}\n")
                process.stdin.close()
        code = process.wait()
        self.signals.worker = None
        if self.parallel and code != 0:  # torchrun's own code says nothing
            code = (durable.read_json(self.job.folder / SUMMARY) or {}).get("exit_code", code)
        if code == -signal.SIGTERM:
            raise Preempted("SIGTERM before the first step")
        facts = durable.read_json(self.job.folder / FACTS)
        if code != 0 or facts is None:
            raise WorkerFailed(code)
        self.signals.check()
        return dict(facts)


def end_like(code: int) -> int:
    """End this process as the worker ended, so that whoever watches sees a crash as what it was."""
    if code < 0:
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
