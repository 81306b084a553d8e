"""The audit: a run's score on text that nothing has been chosen by. On request only; every opening is recorded.

    python -P -s -m training.sealed.audit WORKSPACE RUN --by WHO

prints one JSON object: the record of this opening, or {"error"}. Records are kept in `.lab/audits.jsonl`: one before
the text is opened, so that no opening goes unseen, and one with the score. A run that was scored by the same code on
the same text is not scored again: the record is that of the earlier opening.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
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

    Blocks. Raises `LabError` when the run cannot be audited, `Unavailable` when that takes more than `timeout_s`.
    """
    command = python_command("training.sealed.audit", str(workspace.root), run, "--by", by)
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"the audit of {run} took more than {timeout_s:g} s") from error
    answer: dict[str, Any] | None = None
    if done.stdout.strip():
        answer = json.loads(done.stdout.splitlines()[-1])
    if answer is None:
        raise Unavailable(f"the audit of {run} ended with exit code {done.returncode}", fix=done.stderr.strip()[-300:])
    if "error" in answer:
        raise Refused(answer["error"])
    return answer


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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="training.sealed.audit", description="Score a run on the audit text.")
    parser.add_argument("workspace", type=Path)
    parser.add_argument("run")
    parser.add_argument("--by", required=True, help="who asked")
    options = parser.parse_args(arguments)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the recipe's code prints is not the answer
    try:
        record = open_and_score(Workspace(options.workspace.resolve()), options.run, options.by)
    except (LabError, Told) as error:
        print(json.dumps({"error": str(error)}), file=answers)
        return 1
    print(json.dumps(record), file=answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
