"""`lab_watch` in scripts as users run them: in an environment without the lab, with threads, forks and crashes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
from runs_support import Bench, end_everything

from training.runs.manager import Runs
from training.runs.prepare import WATCH_FOLDER
from workspace import settings
from workspace.database import Database
from workspace.layout import Workspace
from workspace.outbox import Outbox


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter of a virtual environment with nothing in it."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, symlinks=True)
    return str(folder / "bin" / "python")


def run(tmp_path: Path, python: str, code: str, *flags: str, lab: bool = True) -> subprocess.CompletedProcess[str]:
    (tmp_path / "job.py").write_text(code)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(WATCH_FOLDER)}
    if lab:
        environment["LAB_RUN_DIR"] = str(tmp_path)
    command = [python, *flags, str(tmp_path / "job.py")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


LOOP = """
import sys, time
import lab_watch
assert not any(name in sys.modules for name in ("torch", "numpy", "workspace", "pydantic"))
for i in range(4):
    lab_watch.step(loss=2.0 / (i + 1), tokens=100, lr=0.1, note="text is left out")
    time.sleep(0.3)
lab_watch.step(val_bpb=1.5)
"""


@pytest.mark.parametrize("flags", [(), ("-S",), ("-S", "-s"), ("-OO",)])
def test_a_loop_in_a_bare_environment(tmp_path: Path, bare_python: str, flags: tuple[str, ...]) -> None:
    done = run(tmp_path, bare_python, LOOP, *flags)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    found = lines(tmp_path)
    assert [r["step"] for r in found] == [1, 2, 3, 4, 5]
    assert found[1]["loss"] == 1.0 and found[1]["tokens"] == 200 and found[1]["lr"] == 0.1 and "note" not in found[1]
    assert 0 < found[2]["tokens_per_s"] < 100 / 0.3
    assert found[4]["val_bpb"] == 1.5
    assert all({"time", "elapsed_s", "memory_bytes"} <= r.keys() for r in found)


def test_without_the_lab_it_does_nothing(tmp_path: Path, bare_python: str) -> None:
    done = run(tmp_path, bare_python, LOOP + "assert lab_watch.step is lab_watch._nothing\n", lab=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["job.py"]


def test_lines_are_few_however_many_steps(tmp_path: Path, bare_python: str) -> None:
    code = "import lab_watch, time\nends = time.monotonic() + 1\nn = 0\nwhile time.monotonic() < ends:\n"
    code += "    lab_watch.step(loss=1.0, tokens=1)\n    n += 1\nprint(n)"
    done = run(tmp_path, bare_python, code)
    assert int(done.stdout) > 1000
    assert 3 <= len(lines(tmp_path)) <= 6


def test_threads_do_not_tear_lines(tmp_path: Path, bare_python: str) -> None:
    code = """
import threading, lab_watch
lab_watch.step(loss=0.0)
def work():
    for i in range(200):
        lab_watch.step(val_loss=float(i), x="a" * 10)
threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
"""
    done = run(tmp_path, bare_python, code)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(r["step"] for r in lines(tmp_path)) == list(range(1, 1602))


def test_a_forked_loader_is_silent_and_a_forked_trainer_is_not(tmp_path: Path, bare_python: str) -> None:
    code = """
import os, lab_watch
lab_watch.step(loss=1.0)
if os.fork() == 0:
    lab_watch.step(val_loss=7.0); os._exit(0)
os.wait()
lab_watch.step(val_loss=2.0)
"""
    assert run(tmp_path, bare_python, code).returncode == 0
    assert [r["step"] for r in lines(tmp_path)] == [1, 2] and "7.0" not in (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").unlink()
    code = "import os, lab_watch\nif os.fork() == 0:\n    lab_watch.step(loss=3.0)\n    os._exit(0)\nos.wait()\n"
    assert run(tmp_path, bare_python, code).returncode == 0
    assert [r["loss"] for r in lines(tmp_path)] == [3.0]


def test_what_was_written_survives_a_crash(tmp_path: Path, bare_python: str) -> None:
    code = "import os, lab_watch\nlab_watch.step(val_loss=1.0)\nlab_watch.step(val_loss=2.0)\nos.kill(os.getpid(), 9)\n"
    assert run(tmp_path, bare_python, code).returncode == -9
    assert len(lines(tmp_path)) == 2
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "torn')
    assert run(tmp_path, bare_python, "import lab_watch\nlab_watch.step(loss=5.0)\n").returncode == 0
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["loss"] == 5.0


def test_a_full_disk_or_a_strange_value_never_ends_the_loop(tmp_path: Path, bare_python: str) -> None:
    code = """
import lab_watch
class Strange:
    def __float__(self): raise RuntimeError("a device that is gone")
lab_watch.step(loss=[1, 2], lr=None, tokens=None)
lab_watch.step(val_loss=Strange())
lab_watch.step(val_loss=1.0)
print("went on")
"""
    done = run(tmp_path, bare_python, code)
    assert done.stdout == "went on\n" and done.stderr.count("\n") == 1
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    done = run(
        tmp_path, bare_python, "import lab_watch\nlab_watch.step(loss=1.0)\nlab_watch.step(loss=1.0)\nprint('on')"
    )
    assert done.stdout == "on\n" and done.stderr.count("lab_watch") == 1


def test_odd_values_are_left_out_and_told_once(tmp_path: Path) -> None:
    """In the middle of somebody's loop nothing is raised, and the steps after are written as ever."""
    code = """
import lab_watch, torch
nan, several = float("nan"), torch.zeros(2)
for odd in ({"step": "three"}, {"step": nan}, {"tokens": nan}, {"tokens": several}, {"tokens": "many"},
            {"step": several}, {"tokens": float("inf")}, {"tokens": torch.tensor(7)}, {"loss": several}):
    lab_watch.step(val_loss=2.0, **odd)
lab_watch.step(step=40, val_loss=1.0, tokens=5)
"""
    done = run(tmp_path, sys.executable, code)
    assert done.returncode == 0 and done.stderr.count("lab_watch") == 1 == done.stderr.count("\n"), done.stderr
    found = lines(tmp_path)
    assert [r["step"] for r in found] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 40]
    assert found[-1]["tokens"] == 12 and all("loss" not in r for r in found)


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "raise ValueError('the end')"])
def test_the_last_step_is_written_at_the_end(tmp_path: Path, bare_python: str, end: str) -> None:
    """It came too soon for a line of its own; it may be the one that explains the end."""
    code = f"""
import lab_watch
for i in range(5):
    lab_watch.step(loss=float("nan") if i == 4 else 1.0, tokens=10)
{end}
"""
    run(tmp_path, bare_python, code)
    first, last = lines(tmp_path)
    assert (first["step"], last["step"], last["tokens"]) == (1, 5, 50) and last["loss"] != last["loss"]


def test_what_waits_to_be_written_holds_no_graph(tmp_path: Path) -> None:
    code = """
import lab_watch, torch
lab_watch.step(loss=1.0)
weights = torch.ones(3, requires_grad=True)
lab_watch.step(loss=(weights * 2).sum())
print(lab_watch.step.__self__.pending[1]["loss"].grad_fn)
"""
    done = run(tmp_path, sys.executable, code)
    assert done.stdout == "None\n", done.stderr
    assert [r["loss"] for r in lines(tmp_path)] == [1.0, 6.0]


def test_a_loss_that_is_not_a_number_is_written_as_that(tmp_path: Path, bare_python: str) -> None:
    assert run(tmp_path, bare_python, "import lab_watch\nlab_watch.step(loss=float('nan'))\n").returncode == 0
    (record,) = lines(tmp_path)
    assert record["loss"] != record["loss"]


def test_only_the_first_of_several_processes_writes(tmp_path: Path, bare_python: str) -> None:
    code = "import os\nos.environ['RANK'] = '1'\nimport lab_watch\nlab_watch.step(loss=1.0)\n"
    assert run(tmp_path, bare_python, code).returncode == 0
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_tensor_is_read_only_when_a_line_is_due(tmp_path: Path) -> None:
    code = """
import lab_watch, torch
class Counted(torch.Tensor):
    reads = 0
    def __float__(self):
        Counted.reads += 1
        return 1.0
loss = torch.zeros(()).as_subclass(Counted)
for _ in range(1000):
    lab_watch.step(loss=loss)
print(Counted.reads)
"""
    done = run(tmp_path, sys.executable, code)
    assert 1 <= int(done.stdout) <= 3, done.stderr


def test_under_the_lab(tmp_path: Path, bare_python: str) -> None:
    """A run started by start_training: the module is on its path, its curve is the run's progress."""
    workspace = Workspace(tmp_path.resolve())
    workspace.create_folders()
    database = Database(workspace.database_file)
    config = settings.load(tmp_path / "none.toml")
    runs = Runs(workspace, config, database, Outbox(database), devices=list)
    bench = Bench(workspace, database, runs)
    try:
        run_id = bench.start(LOOP, python=bare_python)
        ended = bench.end(run_id)
        assert ended.state == "succeeded", bench.text(run_id)
        assert [r["step"] for r in lines(bench.folder(run_id))] == [1, 2, 3, 4, 5]
    finally:
        end_everything(workspace)


def test_it_costs_little(tmp_path: Path) -> None:
    """A step that is not due costs microseconds: far below 1 % of any step worth watching (here 1 ms)."""
    code = "import lab_watch, time\nlab_watch.step(loss=1.0)\nstarted = time.perf_counter()\n"
    code += "for _ in range(20000): lab_watch.step(loss=1.0, tokens=10, lr=0.1)\nprint(time.perf_counter() - started)"
    best = min(float(run(tmp_path, sys.executable, code).stdout) for _ in range(3))
    assert best / 20000 < 0.01 * 1e-3 * 10  # ten times what is expected: other work shares this machine
