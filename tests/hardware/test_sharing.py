"""Runs on devices as the stand-in driver shows them: two workspaces, other people's processes, a card that is lost."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nvml_machines import RTX

ROOT = Path(__file__).parent.parent.parent
IDLE = RTX.format(pid=1) + "0.processes=\n0.graphics=\n"

# A workspace of its own: starts `count` runs, follows them to their end, prints what each saw and when.
LAB = """
import json, sys, time
from pathlib import Path
from training.runs.manager import Runs
from training.runs.records import RunRequest
from workspace.database import Database
from workspace.layout import Workspace
from workspace.outbox import Outbox
from workspace.settings import Settings
root, count, seconds, until = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
workspace = Workspace(root)
workspace.create_folders()
(root / "job.py").write_text(
    "import os, time\\n"
    "print(time.monotonic(), os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\\n"
    f"time.sleep({seconds})\\nprint(time.monotonic())"
)
database = Database(workspace.database_file)
runs = Runs(workspace, Settings(runs=json.loads(sys.argv[5])), database, Outbox(database))
ids = [runs.start(RunRequest(kind="script", script="job.py", gpu_count=1)).id for _ in range(count)]
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    runs.tick()
    records = [runs.get(run_id) for run_id in ids]
    if until == "ended" and all(record.ended for record in records):
        break
    if until == "waiting" and all(record.waiting_for or record.state == "running" for record in records):
        break
    time.sleep(0.05)
logs = [workspace.run_dir(run_id) / "train.log" for run_id in ids]
print(json.dumps([
    [record.state, record.waiting_for, log.read_text().split() if log.exists() else []]
    for record, log in zip(records, logs)
]))
"""


@pytest.fixture
def labs(tmp_path: Path, compile_nvml: Callable[..., Path]) -> Callable[..., list[list[list[Any]]]]:
    """Runs workspaces side by side on the machine of a scenario; what each of their runs saw."""

    def play(text: str, names: list[str], count: int, seconds: float, until: str = "ended", **settings: Any) -> Any:
        (tmp_path / "scenario").write_text(text)
        environment = {
            "LD_LIBRARY_PATH": str(compile_nvml()),
            "FAKE_NVML": str(tmp_path / "scenario"),
            "PATH": "/usr/bin:/bin",
            "LAB_LEASE_DIR": os.environ["LAB_LEASE_DIR"],
        }
        started = []
        for name in names:
            (tmp_path / name).mkdir()
            code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{LAB}"
            arguments = [str(tmp_path / name), str(count), str(seconds), until, json.dumps(settings)]
            started.append(
                subprocess.Popen(
                    [sys.executable, "-P", "-s", "-c", code, *arguments], env=environment, stdout=subprocess.PIPE
                )
            )
        return [json.loads(each.communicate(timeout=90)[0]) for each in started]

    return play


def test_two_workspaces_never_hold_one_gpu(labs: Callable[..., Any]) -> None:
    found = [run for runs in labs(IDLE, ["eins", "zwei"], 3, 0.4) for run in runs]
    assert [state for state, _, _ in found] == ["succeeded"] * 6
    held: dict[str, list[tuple[float, float]]] = {}
    for _, _, (began, device, ended) in found:
        held.setdefault(device, []).append((float(began), float(ended)))
    assert set(held) == {"GPU-11111111-aaaa-bbbb-cccc-000000000001", "GPU-22222222-aaaa-bbbb-cccc-000000000002"}
    for times in held.values():
        ordered = sorted(times)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(ordered)), held


def test_a_card_somebody_computes_on_is_left_alone(labs: Callable[..., Any]) -> None:
    text = IDLE + "1.processes=4194305:9000000000\n"  # somebody computes on the second
    ((first, second),) = labs(text, ["eins"], 2, 0.3)
    assert {first[2][1], second[2][1]} == {"GPU-11111111-aaaa-bbbb-cccc-000000000001"}


def test_a_run_waits_for_other_peoples_processes_and_says_so(labs: Callable[..., Any]) -> None:
    text = IDLE + "0.processes=4194304:9000000000\n1.processes=4194305:9000000000\n"
    ((state, waiting, _),) = labs(text, ["eins"], 1, 0.1, "waiting")[0]
    assert state == "queued"
    assert "cuda:0 is in use by a process (pid 4194304, 9.0 GB), not the lab's" in waiting
    assert "share_with_others" in waiting


def test_a_card_that_is_lost_gets_no_run(labs: Callable[..., Any]) -> None:
    ((first, second),) = labs(IDLE + "0.lost=1\n", ["eins"], 2, 0.3)
    assert {first[2][1], second[2][1]} == {"GPU-22222222-aaaa-bbbb-cccc-000000000002"}
