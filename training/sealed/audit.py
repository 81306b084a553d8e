"""The audit: a run's score on text that nothing has been chosen by. On request only; every opening is recorded.

    python -P -s -m training.sealed.audit WORKSPACE RUN --by WHO

prints one JSON object: the record of this opening, or {"error", "again"}. Records are kept in `.lab/audits.jsonl`: one
before the text is opened, so that no opening goes unseen, and one with the score. A run that was scored by the same
code on the same text is not scored again: the record is that of the earlier opening. One audit of a workspace is made
at a time, and one that `audit` has started ends with the process that asked for it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training import tokens
from training.data import PreparedData, load
from training.failure import Told
from training.job import CHECKPOINTS, SUMMARY, read_job
from training.sealed import scoring, vault
from workspace import clock, durable
from workspace.errors import LabError, NotFound, Refused, Unavailable
from workspace.interpreter import python_command
from workspace.layout import Workspace

RECORDS = "audits.jsonl"


def audit(workspace: Workspace, run: str, *, by: str, timeout_s: float | None = None) -> dict[str, Any]:
    """Have a process of its own score `run` on the audit text; the record: run, by, time, val_bpb, val_loss, ...

    Blocks; the process ends with this one, whatever ends it. Raises `Refused` when the run cannot be audited,
    `Unavailable` when that takes more than `timeout_s` or something outside ended it, so that it may be tried again.
    """
    command = python_command("training.sealed.audit", str(workspace.root), run, "--by", by, "--until-asker-ends")
    said, complaint, code = _run(command, f"the audit of {run}", timeout_s)
    answer: dict[str, Any] | None = json.loads(said.splitlines()[-1]) if said.strip() else None
    if answer is None:
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise Unavailable(f"the audit of {run} {how}", fix=complaint.strip()[-300:] or None)
    if "error" in answer:
        raise (Unavailable if answer["again"] else Refused)(answer["error"])
    return answer


def _run(command: list[str], what: str, timeout_s: float | None) -> tuple[str, str, int]:
    """stdout, stderr and exit code of a process that lives as long as the other end of its stdin, in a group of its
    own: the model's process, which may hang, goes with it."""
    asker, ours = os.pipe()
    try:
        try:
            process = subprocess.Popen(
                command, stdin=asker, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
        finally:
            os.close(asker)
        with process:
            try:
                said, complaint = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired as error:
                raise Unavailable(f"{what} took more than {timeout_s:g} s") from error
            finally:
                if process.poll() != 0:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
    finally:
        os.close(ours)
    return said, complaint, process.returncode


def openings(workspace: Workspace) -> list[dict[str, Any]]:
    """Every recorded opening, oldest first; one without a score did not come to an end."""
    found: dict[str, dict[str, Any]] = {}
    for record in durable.read_jsonl(workspace.lab_dir / RECORDS):
        found[record["id"]] = record
    return list(found.values())


def audit_ids(data: PreparedData, cache_dir: Path) -> NDArray[np.integer]:
    """(N,) ids of the audit text: BOS, document, BOS, document, ..."""
    return tokens.from_bytes(vault.take(cache_dir, data.meta["key"]))


def open_and_score(workspace: Workspace, run: str, by: str) -> dict[str, Any]:
    """The audit itself, in this process; see `audit`."""
    folder = workspace.run_dir(run)
    summary: Any = durable.read_json(folder / SUMMARY)
    if not isinstance(summary, dict) or summary.get("state") != "succeeded" or "data" not in summary:
        raise NotFound(f"{run} is not a run of the built-in trainer that succeeded", valid="a run with a val_bpb")
    job = read_job(folder)
    data = load(workspace.cache_dir / "data" / summary["data"]["key"])
    if data.meta["sha256"] != summary["data"]["sha256"]:
        raise Refused(f"the prepared data are not those of {run}", fix="run the recipe again")
    seal = scoring.Seal.take(data)
    asked = {"run": run, "data": data.meta["key"], "code": seal.code}
    with _one_at_a_time(workspace):
        for earlier in openings(workspace):
            if "val_bpb" in earlier and all(earlier.get(name) == value for name, value in asked.items()):
                return earlier
        record: dict[str, Any] = {"id": os.urandom(8).hex(), "time": clock.now(), "by": by, **asked}
        durable.append_jsonl(workspace.lab_dir / RECORDS, record, sync=True)
        candidate = scoring.Candidate(folder / CHECKPOINTS, job.recipe_dir, summary["dtype"]["used"], job.config)
        ids = audit_ids(data, workspace.cache_dir)
        result = scoring.evaluate(candidate, data, ids, data.meta["bytes"]["audit"])
        record |= result.as_json()
        durable.append_jsonl(workspace.lab_dir / RECORDS, record, sync=True)
    return record


@contextlib.contextmanager
def _one_at_a_time(workspace: Workspace) -> Iterator[None]:
    """Two that ask for the same run at once would open the text twice: the second waits, and finds the score."""
    workspace.locks_dir.mkdir(parents=True, exist_ok=True)
    with (workspace.locks_dir / "audit.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _end_with_the_asker() -> None:
    """Kill this process and the model's, its group, once nobody holds the other end of stdin any more."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="training.sealed.audit", description="Score a run on the audit text.")
    parser.add_argument("workspace", type=Path)
    parser.add_argument("run")
    parser.add_argument("--by", required=True, help="who asked")
    parser.add_argument("--until-asker-ends", action="store_true", help="end when stdin does; leads a process group")
    options = parser.parse_args(arguments)
    if options.until_asker_ends:
        _end_with_the_asker()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the recipe's code prints is not the answer
    try:
        record = open_and_score(Workspace(options.workspace.resolve()), options.run, options.by)
    except (LabError, Told) as error:
        # killed from outside, often for memory that others held: that says nothing of the run
        again = error.failure.kind == "signal" if isinstance(error, Told) else isinstance(error, Unavailable)
        print(json.dumps({"error": str(error), "again": again}), file=answers)
        return 1
    print(json.dumps(record), file=answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
