"""Whatever is killed, at whatever moment: the next tick finds out what is true and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import kill_rounds
import pytest
from runs_support import Bench, gone, kill, open_gate, start_gated

from training.runs.leases import Leases
from workspace import durable
from workspace.process import ProcessIdentity, host_name, start_time, this_process


def test_supervisor_killed_job_watched_again(bench: Bench) -> None:
    run_id, pids = start_gated(bench)
    kill(pids["supervisor"])
    bench.until(lambda: bench.pids(run_id)["supervisor"] != pids["supervisor"])
    again = bench.pids(run_id)
    assert (again["shim"], again["job"]) == (pids["shim"], pids["job"])
    assert bench.runs.get(run_id).state == "running"
    open_gate(bench, run_id, 5)
    record = bench.end(run_id)
    assert (record.state, record.failure_class, record.exit_code) == ("failed", "exit", 5)
    assert bench.events() == {("run.started", run_id): 1, ("run.ended", run_id): 1}


def test_job_that_ended_unwatched_has_its_true_status(bench: Bench) -> None:
    run_id, pids = start_gated(bench)
    kill(pids["supervisor"])
    open_gate(bench, run_id, 0)
    bench.until(lambda: not start_time(pids["shim"]), tick=False)
    assert bench.end(run_id).state == "succeeded"


def test_what_a_person_stopped_is_cancelled_though_the_supervisor_that_told_the_job_was_killed(bench: Bench) -> None:
    run_id, pids = start_gated(bench)
    folder = bench.workspace.run_dir(run_id)
    kill(pids["supervisor"])
    bench.runs.launcher.cancel(folder, "seen enough", "user")
    os.kill(pids["job"], signal.SIGTERM)  # as the supervisor did before it was killed
    bench.until(lambda: not start_time(pids["shim"]), tick=False)
    bench.runs.launcher.cancel(folder, "once more", "user")  # later than the end: what was asked first counts
    record = bench.end(run_id)
    assert (record.state, record.signal, record.reason) == ("cancelled", "SIGTERM", "seen enough (by user)")


def test_supervisor_and_shim_killed_job_watched_then_lost(bench: Bench) -> None:
    run_id, pids = start_gated(bench)
    kill(pids["supervisor"])
    kill(pids["shim"])
    bench.until(lambda: bench.pids(run_id)["supervisor"] != pids["supervisor"])
    assert bench.runs.get(run_id).state == "running"
    open_gate(bench, run_id, 0)
    record = bench.end(run_id)
    assert (record.state, record.exit_code, record.signal) == ("lost", None, None)
    assert record.reason and "not known" in record.reason


def test_everything_killed_is_lost(bench: Bench) -> None:
    run_id, pids = start_gated(bench)
    for name in ("supervisor", "shim", "job"):
        kill(pids[name])
    record = bench.end(run_id)
    assert (record.state, record.exit_code) == ("lost", None)
    assert not bench.runs.leases.holders()


@pytest.mark.parametrize("killed", ["supervisor", "supervisor shim"])
def test_adopted_run_can_be_stopped_with_its_whole_tree(bench: Bench, killed: str) -> None:
    text = """
        import subprocess, sys, time
        far = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        print("far", far.pid, "end", flush=True); time.sleep(600)
    """
    run_id = bench.start(textwrap.dedent(text))
    bench.printed(run_id, "end")
    pids = bench.pids(run_id)
    pids["far"] = int(bench.text(run_id).split()[1])
    for name in killed.split():
        kill(pids[name])
    bench.runs.stop(run_id, "enough")
    assert bench.end(run_id).state == "cancelled"
    gone(bench, pids)


def test_orphan_of_a_killed_tree_is_found_by_its_tag(bench: Bench) -> None:
    text = """
        import subprocess, sys, time
        far = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        print("far", far.pid, "end", flush=True); time.sleep(600)
    """
    run_id = bench.start(textwrap.dedent(text))
    bench.printed(run_id, "end")
    pids = bench.pids(run_id)
    far = int(bench.text(run_id).split()[1])
    for name in ("supervisor", "shim", "job"):
        kill(pids[name])
    assert start_time(far)
    assert bench.end(run_id).state == "lost"
    assert not start_time(far)


def test_lease_lives_exactly_as_long_as_the_job(bench: Bench) -> None:
    run_id, pids = start_gated(bench)
    leases = Leases()
    kill(pids["supervisor"])
    kill(pids["shim"])
    assert leases.holders()["cpu-0"].run == run_id
    assert leases.acquire("cpu-0", run="other", workspace=Path("/")) is None
    kill(pids["job"])
    bench.until(lambda: not leases.holders(), tick=False)


def test_service_killed_after_claiming_before_launching(bench: Bench) -> None:
    run_id = start_one_behind(bench)
    with bench.database.transaction() as tx:
        assert bench.runs.store.claim(tx, run_id, ["cpu"])
    bench.runs.stop("run-0001")
    record = bench.end(run_id)
    assert record.state == "succeeded"
    assert bench.text(run_id) == "once\n"


def start_one_behind(bench: Bench) -> str:
    """A run that waits for another one."""
    bench.start("import time; time.sleep(600)")
    run_id = bench.start("print('once')")
    assert bench.runs.get(run_id).state == "queued"
    return run_id


def test_supervisor_that_cannot_start_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "training.runs.launcher.python_command", lambda *_: [sys.executable, "-c", "raise SystemExit('broken')"]
    )
    run_id = bench.start("print('never')")
    record = bench.end(run_id)
    assert (record.state, record.failure_class) == ("failed", "exit")
    assert record.reason and "supervisor.log" in record.reason
    assert not (bench.folder(run_id) / "job.json").exists()
    assert "broken" in (bench.folder(run_id) / "supervisor.log").read_text()


@pytest.mark.parametrize(
    ("kind", "summary", "checkpoint", "state", "failure"),
    [
        ("script", None, False, "lost", None),
        ("script", {"state": "succeeded"}, True, "lost", None),  # a script's files prove nothing
        ("recipe", None, False, "lost", None),
        ("recipe", None, True, "preempted", None),
        ("recipe", {"state": "succeeded", "val_bpb": 1.0}, True, "succeeded", None),
        ("recipe", {"state": "failed", "class": "nan", "error": "loss is nan"}, True, "failed", "nan"),
    ],
)
def test_after_a_reboot(
    bench: Bench, kind: str, summary: dict[str, Any] | None, checkpoint: bool, state: str, failure: str | None
) -> None:
    """The pids on disk belong to another boot: nothing is alive, whoever has these pids now."""
    run_id = start_one_behind(bench)
    folder = bench.folder(run_id)
    other_boot = this_process().as_json() | {"boot": "an earlier one"}
    durable.write_json(folder / "run.json", durable.read_json(folder / "run.json") | {"kind": kind})
    durable.write_json(
        folder / "job.json", {"shim": other_boot, "job": other_boot, "started_at": "2026-01-01T00:00:00.000Z"}
    )
    durable.write_json(folder / "heartbeat.json", {"state": "running", "supervisor": other_boot, "job": other_boot})
    with bench.database.transaction() as tx:
        bench.runs.store.claim(tx, run_id, ["cpu"])
    if summary:
        durable.write_json(folder / "summary.json", summary)
    if checkpoint:
        (folder / "checkpoints" / "step-00000010").mkdir(parents=True)
    record = bench.end(run_id)
    assert (record.state, record.failure_class, record.exit_code) == (state, failure, None)
    if state in ("lost", "preempted"):
        assert record.reason and "restarted" in record.reason


def test_lost_database_is_rebuilt_from_the_folders(bench: Bench) -> None:
    done = bench.start("print('done')", key="first")
    assert bench.end(done).state == "succeeded"
    run_id, pids = start_gated(bench)
    bench.start("print('queued')", key="third")
    bench.database.close()
    for file in bench.workspace.state_dir.glob("lab.db*"):
        file.unlink()
    runs = bench.another()
    assert [(r.id, r.state) for r in runs.list()] == [
        ("run-0003", "queued"),
        ("run-0002", "starting"),
        ("run-0001", "succeeded"),
    ]
    bench.runs, bench.database = runs, runs.database
    bench.runs.tick()
    assert bench.runs.get(run_id).state == "running"
    assert bench.pids(run_id) == pids
    open_gate(bench, run_id, 0)
    assert bench.end(run_id).state == "succeeded"
    assert bench.end("run-0003").state == "succeeded"
    assert bench.start("print(4)") == "run-0004"


def test_deleted_folder_ends_the_run(bench: Bench) -> None:
    import shutil

    run_id, pids = start_gated(bench)
    shutil.rmtree(bench.folder(run_id))
    record = bench.end(run_id)
    assert (record.state, record.reason) == ("lost", "its run folder was deleted")
    gone(bench, pids)


def test_after_a_reboot_a_process_with_the_same_pid_is_none_of_ours(bench: Bench) -> None:
    """Same pid, even the same start time, on another boot: neither watched nor ended."""
    run_id = start_one_behind(bench)
    folder = bench.folder(run_id)
    with subprocess.Popen(["sleep", "600"]) as stranger:
        identity = ProcessIdentity(stranger.pid, str(start_time(stranger.pid)), "an earlier boot", host_name())
        durable.write_json(
            folder / "job.json",
            {"shim": identity.as_json(), "job": identity.as_json(), "started_at": "2026-01-01T00:00:00.000Z"},
        )
        with bench.database.transaction() as tx:
            bench.runs.store.claim(tx, run_id, ["cpu"])
        assert bench.end(run_id).state == "lost"
        assert stranger.poll() is None
        stranger.kill()


def test_shim_killed_before_it_wrote_the_end_the_job_is_still_reaped(bench: Bench) -> None:
    """The shim looks at the job's status before it takes it, so its next parent finds it too."""
    run_id, pids = start_gated(bench)
    os.kill(pids["shim"], signal.SIGSTOP)  # it will not see the job end
    open_gate(bench, run_id, 9)
    bench.until(lambda: start_time(pids["job"]) is None)
    kill(pids["shim"])
    record = bench.end(run_id)
    assert (record.state, record.failure_class, record.exit_code) == ("failed", "exit", 9)


@pytest.mark.slow
def test_random_kills(tmp_path: Path) -> None:
    """20 of them, at random moments, of everything there is, against the oracle; `make bench` plays 200."""
    seed = time.time_ns() % 10**6
    print(f"seed {seed}")
    kill_rounds.run(tmp_path, rounds=20, seed=seed)
