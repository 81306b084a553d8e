"""A supervised run ends with its true status, and nothing of it stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from runs_support import Bench, kill, run_folder, supervise

from training.runs import cgroup, tree
from workspace import durable
from workspace.process import start_time


@pytest.mark.parametrize(
    ("text", "state", "failure", "code", "number"),
    [
        ("print('fine')", "succeeded", None, 0, None),
        ("raise SystemExit(3)", "failed", "exit", 3, None),
        ("raise SystemExit(75)", "failed", "exit", 75, None),  # the trainer's codes mean nothing in a script
        ("import os; os.kill(os.getpid(), 9)", "failed", "signal", None, "SIGKILL"),
        ("import os; os.kill(os.getpid(), 11)", "failed", "signal", None, "SIGSEGV"),
        ("import a_module_nobody_has", "failed", "import", 1, None),
        ("open('/nowhere/data.bin')", "failed", "data", 1, None),
        ("raise MemoryError", "failed", "oom", 1, None),
        ("raise ValueError('odd')", "failed", "exit", 1, None),
        ("print('MemoryError\\nKilled\\nnan'); raise SystemExit(1)", "failed", "exit", 1, None),
    ],
)
def test_end_is_told_as_it_was(
    bench: Bench, text: str, state: str, failure: str | None, code: int | None, number: str | None
) -> None:
    run_id = bench.start(text)
    record = bench.end(run_id)
    assert (record.state, record.failure_class, record.exit_code, record.signal) == (state, failure, code, number)
    assert record.started_at is not None and record.ended_at is not None and record.started_at <= record.ended_at
    assert bench.events() == {("run.started", run_id): 1, ("run.ended", run_id): 1}
    final = durable.read_json(bench.folder(run_id) / "exit.json")
    assert final["state"] == state
    assert (record.reason is None) == (state == "succeeded")


def test_reason_is_the_exception(bench: Bench) -> None:
    record = bench.end(bench.start("raise ValueError('seven is odd')"))
    assert record.reason == "ValueError: seven is odd"


def test_job_sees_what_its_user_would_give_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_SERVICE_TOKEN", "hidden")
    monkeypatch.setenv("SOME_API_KEY", "hidden")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    text = """
        import json, os, sys
        seen = dict(cwd=os.getcwd(), stdin=sys.stdin.read(), argv=sys.argv[1:], safe_path=sys.flags.safe_path,
                    leaked=[k for k, v in os.environ.items() if v == "hidden" or "/somewhere" in v],
                    run_dir=os.environ["LAB_RUN_DIR"], terminal=os.isatty(1), group=os.getpgid(0))
        print(json.dumps(seen))
    """
    run_id = bench.start(textwrap.dedent(text), "two words", "ü", "{run_dir}")
    assert bench.end(run_id).state == "succeeded", bench.text(run_id)
    seen = json.loads(bench.text(run_id))
    assert seen.pop("group") not in (os.getpgid(0), os.getpid())
    assert seen == {
        "cwd": str(bench.workspace.root),
        "stdin": "",
        "argv": ["two words", "ü", "{run_dir}"],
        "safe_path": False,
        "leaked": [],
        "run_dir": str(bench.folder(run_id)),
        "terminal": False,
    }


STUBBORN = """
    import os, signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wait = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", wait])
    far = subprocess.Popen([sys.executable, "-c", wait], start_new_session=True, env={})
    print("pids", os.getpid(), child.pid, far.pid, "end", flush=True)
    time.sleep(600)
"""


def printed_pids(bench: Bench, run_id: str) -> list[int]:
    bench.printed(run_id, "end")
    line = next(line for line in bench.text(run_id).splitlines() if line.startswith("pids"))
    return [int(word) for word in line.split()[1:-1]]


def test_stop_ends_the_whole_tree(bench: Bench) -> None:
    run_id = bench.start(textwrap.dedent(STUBBORN))
    pids = printed_pids(bench, run_id) + list(bench.pids(run_id).values())
    assert bench.runs.stop(run_id, "seen enough", by="test").state == "stopping"
    record = bench.end(run_id)
    assert (record.state, record.signal, record.reason) == ("cancelled", "SIGKILL", "seen enough (by test)")
    bench.until(lambda: not [pid for pid in pids if start_time(pid)])
    assert not bench.runs.leases.holders()


def test_stop_leaves_time_to_tidy_up(make_bench: object) -> None:
    bench: Bench = make_bench(grace_seconds=60)  # type: ignore[operator]
    text = """
        import signal, sys, time
        def tidy(*_):
            time.sleep(0.3); print("tidied", flush=True); sys.exit(4)
        signal.signal(signal.SIGTERM, tidy)
        print("ready", flush=True); time.sleep(600)
    """
    run_id = bench.start(textwrap.dedent(text))
    bench.printed(run_id, "ready")
    bench.runs.stop(run_id)
    record = bench.end(run_id)
    assert (record.state, record.exit_code) == ("cancelled", 4)
    assert "tidied" in bench.text(run_id)


def test_time_limit(bench: Bench) -> None:
    record = bench.end(bench.start(textwrap.dedent(STUBBORN), time_limit_hours=0.8 / 3600))
    assert (record.state, record.failure_class, record.signal) == ("timed_out", None, "SIGKILL")
    assert record.elapsed_s is not None and record.elapsed_s >= 0.8


def test_what_the_job_leaves_behind_is_ended(bench: Bench) -> None:
    text = """
        import subprocess, sys
        forget = "import os, subprocess, sys; p = subprocess.Popen(['sleep', '600'], env={}, start_new_session=True);"
        forget += "print('pids', p.pid, 'end', flush=True)"
        subprocess.run([sys.executable, "-c", forget], start_new_session=True)
    """
    run_id = bench.start(textwrap.dedent(text))
    record = bench.end(run_id)
    assert (record.state, record.exit_code) == ("succeeded", 0)
    assert [pid for pid in printed_pids(bench, run_id) if start_time(pid)] == []
    assert durable.read_json(bench.folder(run_id) / "exit.json")["ended_leftovers"] == 1


def test_killed_shim_hides_nothing(bench: Bench) -> None:
    """The job is then the supervisor's own child."""
    gate = bench.workspace.root / "gate"
    text = f"import pathlib, sys, time\nwhile not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.02)\nsys.exit(7)"
    run_id = bench.start(text)
    kill(bench.pids(run_id)["shim"])
    gate.touch()
    record = bench.end(run_id)
    assert (record.state, record.exit_code) == ("failed", 7)


def test_a_signal_to_the_supervisor_is_a_stop(bench: Bench) -> None:
    run_id = bench.start("import time; print('ready', flush=True); time.sleep(600)")
    bench.printed(run_id, "ready")
    os.kill(bench.pids(run_id)["supervisor"], 15)
    record = bench.end(run_id)
    assert (record.state, record.signal) == ("cancelled", "SIGTERM")
    assert record.reason == "the supervisor was asked to end (SIGTERM)"


@pytest.mark.parametrize(("number", "state"), [(signal.SIGINT, "cancelled"), (signal.SIGTERM, "preempted")])
def test_only_the_system_preempts(bench: Bench, number: int, state: str) -> None:
    """What is preempted is started again; what a person stops is not, though the trainer ends as if preempted."""
    text = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print('ready', flush=True)"
    )
    folder = run_folder(bench, f"{text}; time.sleep(600)", kind="recipe", grace_s=60)
    command = [sys.executable, "-P", "-m", "training.runs.supervisor", str(folder)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as process:
        bench.printed(folder.name, "ready", tick=False)
        process.send_signal(number)
    final = durable.read_json(folder / "exit.json")
    assert (final["state"], final["exit_code"]) == (state, 75)


def test_a_job_that_cannot_start_fails_with_the_reason(bench: Bench) -> None:
    folder = run_folder(bench, "", command=["/nowhere/python", "x"])
    assert supervise(folder, "").returncode == 0
    final = durable.read_json(folder / "exit.json")
    assert (final["state"], final["class"], final["exit_code"]) == ("failed", "exit", 127)
    assert final["reason"] == "python could not be started: No such file or directory"


def test_one_folder_never_runs_twice(bench: Bench) -> None:
    folder = run_folder(bench, "print('once')")
    others = [
        subprocess.Popen(
            [sys.executable, "-P", "-m", "training.runs.supervisor", str(folder)],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    codes = sorted(other.wait(60) for other in others)
    for other in others:
        assert other.stderr
        other.stderr.close()
    assert codes[0] == 0 and set(codes) <= {0, 3}
    assert (folder / "train.log").read_text() == "once\n"


def test_on_end_brings_the_service_back(bench: Bench) -> None:
    mark = bench.workspace.root / "service came"
    folder = run_folder(bench, "", wake_service=True, on_end=["touch", str(mark)])
    assert supervise(folder, "").returncode == 0
    assert mark.exists() and (folder / "exit.json").exists()


@pytest.mark.parametrize(("beside", "woken"), [(["run.json"], True), (["run.json", "job.json"], False),
                                               (["run.json", "exit.json"], False), ([], False)])  # fmt: skip
def test_on_end_brings_the_service_back_for_a_queued_run(bench: Bench, beside: list[str], woken: bool) -> None:
    """Service and keeper may be dead: whoever queued a run must not have to come back for it."""
    mark = bench.workspace.root / "service came"
    folder = run_folder(bench, "", on_end=["touch", str(mark)])
    other = folder.with_name("run-0999")
    other.mkdir()
    for name in beside:
        (other / name).write_text("{}")
    assert supervise(folder, "").returncode == 0
    assert mark.exists() is woken


def test_supervisor_is_small(bench: Bench) -> None:
    """Under 20 MB resident, without pydantic or torch."""
    run_id = bench.start("import time; time.sleep(600)")
    for name in ("supervisor", "shim"):
        status = Path(f"/proc/{bench.pids(run_id)[name]}/status")
        if not status.exists():
            pytest.skip("no /proc here")
        resident = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        assert int(resident.split()[1]) < 20_000, resident


@pytest.mark.parametrize("pidfd", [True, False])
def test_signals_reach_exactly_the_process_meant(monkeypatch: pytest.MonkeyPatch, pidfd: bool) -> None:
    """Also in containers that forbid pidfd_open; never another process with the same pid."""
    if not pidfd:

        def forbidden(_: int) -> int:
            raise PermissionError

        monkeypatch.setattr(os, "pidfd_open", forbidden, raising=False)
    with subprocess.Popen(["sleep", "600"]) as process:
        started = start_time(process.pid)
        assert started is not None
        assert not tree.send(tree.Process(process.pid, started + "0", 0), signal.SIGKILL)
        assert process.poll() is None
        assert tree.send(tree.Process(process.pid, started, 0), signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM
    assert not tree.send(tree.Process(process.pid, started, 0), signal.SIGKILL)


FORGETS = """
    import os, subprocess, sys, time
    far = subprocess.Popen(["sleep", "600"], env={}, start_new_session=True)
    print("pids", os.getpid(), far.pid, "end", flush=True)
    time.sleep(600)
"""


def test_control_group_knows_what_forgot_everything_else(bench: Bench) -> None:
    """No environment, no session, no parent of the run left: only its control group tells whose it is."""
    run_id = bench.start(textwrap.dedent(FORGETS))
    pids = printed_pids(bench, run_id)
    known = bench.pids(run_id)
    group = (durable.read_json(bench.folder(run_id) / "job.json") or {})["cgroup"]
    if group is None:
        pytest.skip("this user may make no cgroup here")
    inside = cgroup.pids(Path(group))
    assert set(inside) == set(pids)  # the job and what it started; not the shim, which is to outlive them
    for name in ("supervisor", "shim", "job"):
        kill(known[name])
    assert start_time(pids[1])
    assert bench.end(run_id).state == "lost"
    assert not start_time(pids[1])
    assert not Path(group).exists()


def test_without_control_groups_everything_goes_on(bench: Bench, tmp_path: Path) -> None:
    folder = run_folder(bench, "print('through')")
    patch = "from training.runs import cgroup\ncgroup.own_group = lambda: None"
    assert supervise(folder, patch).returncode == 0
    assert durable.read_json(folder / "exit.json")["state"] == "succeeded"
    assert durable.read_json(folder / "job.json")["cgroup"] is None


def test_a_group_that_cannot_be_made_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "own_group", lambda: tmp_path)
    assert cgroup.create("x") is None, "a folder without cgroup.kill is no group"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(cgroup, "own_group", lambda: tmp_path / "nowhere" / "here")
    assert cgroup.create("x") is None
    assert cgroup.pids(tmp_path / "gone") == [] and not cgroup.kill(tmp_path / "gone")


def test_the_supervisor_holds_the_log_to_its_cap(bench: Bench) -> None:
    text = (
        "import sys, time\nfor n in range(64): sys.stdout.write('x' * 65535 + chr(10)); time.sleep(0.05)\nprint('last')"
    )
    folder = run_folder(bench, text, log_cap_bytes=2**20)
    patch = "from training.runs import heartbeat\nheartbeat.EVERY_S = 0.1"
    assert supervise(folder, patch).returncode == 0
    log = folder / "train.log"
    if next(durable.read_jsonl(folder / "alerts.jsonl"))["severity"] == "warn":
        pytest.skip("this file system cannot punch holes")
    assert log.stat().st_size == 64 * 65536 + 5
    assert log.stat().st_blocks * 512 < 2.5 * 2**20
    assert log.read_text().endswith("last\n")
