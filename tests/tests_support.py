"""What several tests need besides fixtures: finding and killing the processes of a workspace."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil

from workspace import durable
from workspace.layout import Workspace

# A recipe so small that a run takes seconds.
TINY = {
    "model.depth": 2,
    "model.width": 32,
    "model.head_dim": 16,
    "data.vocab_size": 300,
    "data.context": 32,
    "data.max_bytes": 60_000,
    "batch.tokens": 128,
    "batch.rows": 4,
    "evaluation.bytes": 2000,
    "evaluation.quick_bytes": 1000,
    "evaluation.quick_count": 1,
    "evaluation.sample_tokens": 8,
}


def processes_of(root: Path) -> list[psutil.Process]:
    """Every process that was started for the workspace at `root` (service, keeper, bridge, worker, supervisor, job)."""
    found = []
    for candidate in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(root) in part for part in candidate.cmdline()):
                found.append(candidate)
    return found


def end_all(root: Path) -> None:
    for _ in range(3):  # a keeper may just be starting a service
        left = processes_of(root)
        for victim in left:
            with contextlib.suppress(psutil.Error):
                victim.kill()
        psutil.wait_procs(left, timeout=5)
        time.sleep(0.05)


def service_pid(workspace: Workspace) -> int:
    content = durable.read_json(workspace.service_file)
    assert content is not None
    return int(content["process"]["pid"])


def kill_service(workspace: Workspace, *, keeper: bool = False) -> None:
    """kill -9, as a user or the kernel would."""
    pid = service_pid(workspace)
    if keeper:
        for candidate in processes_of(workspace.root):
            with contextlib.suppress(psutil.Error):
                if "lab_mcp.keeper" in candidate.cmdline():
                    candidate.kill()
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
