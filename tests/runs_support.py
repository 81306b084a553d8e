"""What tests of runs need: a manager over a workspace, waiting, killing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests_support import processes_of

from training.runs import tree
from training.runs.manager import Runs
from training.runs.records import RunRecord, RunRequest
from workspace import durable
from workspace.database import Database
from workspace.layout import Workspace
from workspace.outbox import Outbox
from workspace.process import TAG_VARIABLE, start_time

PATIENCE_S = 60.0  # a hang, not a measure


@dataclass
class Bench:
    """A manager over a workspace, and what tests do with it."""

    workspace: Workspace
    database: Database
    runs: Runs

    def write(self, text: str, name: str = "job.py") -> str:
        path = self.workspace.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return name

    def start(self, text: str, *args: str, key: str | None = None, **request: Any) -> str:
        """Start a script with this text; its id."""
        name = self.write(text, f"job-{time.monotonic_ns()}.py")
        return self.runs.start(RunRequest(kind="script", script=name, args=args, **request), key).id

    def folder(self, run_id: str) -> Path:
        return self.workspace.run_dir(run_id)

    def until(self, condition: Callable[[], Any], *, tick: bool = True) -> Any:
        """Tick until the condition holds; its value."""
        deadline = time.monotonic() + PATIENCE_S
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited {PATIENCE_S} s in vain"
            if tick:
                self.runs.tick()
            time.sleep(0.02)
        return value

    def end(self, run_id: str) -> RunRecord:
        self.until(lambda: self.runs.get(run_id).ended)
        return self.runs.get(run_id)

    def text(self, run_id: str) -> str:
        return (self.folder(run_id) / "train.log").read_text(encoding="utf-8")

    def printed(self, run_id: str, text: str, *, tick: bool = True) -> None:
        """Wait until the job has printed a text."""
        log = self.folder(run_id) / "train.log"
        self.until(lambda: log.exists() and text in log.read_text(encoding="utf-8"), tick=tick)

    def pids(self, run_id: str) -> dict[str, int]:
        """supervisor, shim, job, once they are all known."""

        def known() -> dict[str, int] | None:
            heartbeat = durable.read_json(self.folder(run_id) / "heartbeat.json") or {}
            job = durable.read_json(self.folder(run_id) / "job.json") or {}
            if not (heartbeat and job.get("job")):
                return None
            found = {"supervisor": heartbeat["supervisor"], "shim": job["shim"], "job": job["job"]}
            return {name: identity["pid"] for name, identity in found.items()}

        result = self.until(known)
        assert isinstance(result, dict)
        return result

    def events(self) -> Counter[tuple[str, str]]:
        """(topic, run) -> how often it was posted."""
        rows = self.database.query("SELECT topic, json_extract(payload, '$.run') AS run FROM outbox")
        return Counter((row["topic"], row["run"]) for row in rows)

    def another(self, **options: Any) -> Runs:
        """A second manager on the same workspace, as after a restart of the service."""
        database = Database(self.workspace.database_file)
        return Runs(self.workspace, self.runs.settings, database, Outbox(database), **{"devices": list, **options})


def kill(pid: int) -> None:
    """-9, and gone when this returns."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while start_time(pid) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def end_everything(workspace: Workspace) -> None:
    """Supervisors first (they name the workspace in their command), then every process carrying a run's tag."""
    if not (workspace.runs_dir / ".last-id").exists() and not any(workspace.runs_dir.glob("run-*")):
        return
    while left := processes_of(workspace.root):
        for process in left:
            kill(process.pid)
    for folder in workspace.runs_dir.glob("run-*"):
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
            tag = (durable.read_json(folder / "run.json") or {})["environment"][TAG_VARIABLE]
            tree.kill_all(lambda tag=tag: tree.members((), tag))  # type: ignore[misc]


# runs until the file `gate` appears beside its folder, then exits with the code written there
GATED = """
    import os, pathlib, sys, time
    gate = pathlib.Path(os.environ["LAB_RUN_DIR"]) / "gate"
    print("ready", flush=True)
    while not gate.exists():
        time.sleep(0.02)
    sys.exit(int(gate.read_text()))
"""


def start_gated(bench: Bench) -> tuple[str, dict[str, int]]:
    run_id = bench.start(textwrap.dedent(GATED))
    bench.printed(run_id, "ready")
    bench.until(lambda: bench.runs.get(run_id).state == "running")
    return run_id, bench.pids(run_id)


def open_gate(bench: Bench, run_id: str, code: int) -> None:
    (bench.folder(run_id) / "gate.tmp").write_text(str(code))
    (bench.folder(run_id) / "gate.tmp").rename(bench.folder(run_id) / "gate")


def gone(bench: Bench, pids: dict[str, int]) -> None:
    bench.until(lambda: not any(start_time(pid) for pid in pids.values()))


def supervise(folder: Path, patch: str, stderr: Any = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """The real supervisor in a process of its own, something in it patched beforehand."""
    code = (
        f"{textwrap.dedent(patch)}\nfrom training.runs.supervisor import main\nimport sys\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-P", "-c", code, str(folder)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60, check=False)


def run_folder(bench: Bench, text: str, **fields: object) -> Path:
    folder = bench.folder("run-9001")
    folder.mkdir()
    script = bench.workspace.root / bench.write(text)
    run = {"id": "run-9001", "kind": "script", "command": [sys.executable, str(script)], "cwd": str(folder)}
    run |= {"environment": {TAG_VARIABLE: f"test:{folder}"}, "time_limit_s": 0, "grace_s": 1, **fields}
    durable.write_json(folder / "run.json", run)
    return folder
