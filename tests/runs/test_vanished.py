"""A folder that is not there: deleted, moved or not mounted are three things, and `lost` is said of the first alone."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from runs_support import Bench, gone, kill, open_gate, start_gated

from training.runs import place
from training.runs.launcher import _signal
from training.runs.records import RunRequest
from workspace import durable
from workspace.errors import Unavailable
from workspace.process import start_time


def test_runs_that_are_away_are_neither_lost_nor_ended(bench: Bench, tmp_path: Path) -> None:
    """As when the disk of runs/ is taken off under a live run, and a service starts anew meanwhile."""
    run_id, pids = start_gated(bench)
    runs_dir, aside = bench.workspace.runs_dir, tmp_path / "away"
    runs_dir.rename(aside)
    bench.runs.tick()
    bench.workspace.create_folders()  # an empty mount point is there
    again, request = bench.another(), bench_request(bench)
    for runs in (bench.runs, again):
        runs.tick()
        record = runs.get(run_id)
        assert record.state == "running" and "nothing is known of it" in (record.reason or "")
        with pytest.raises(Unavailable, match="mount or move back"):
            runs.start(request)
    assert all(start_time(pid) for pid in pids.values()), "nobody ends the job for it"
    shutil.rmtree(runs_dir)
    aside.rename(runs_dir)
    again.tick()
    assert again.get(run_id).reason is None
    open_gate(bench, run_id, 3)
    record = bench.end(run_id)
    assert (record.state, record.failure_class, record.exit_code) == ("failed", "exit", 3)
    assert bench.runs.start(request).id == "run-0002"


def bench_request(bench: Bench):

    return RunRequest(kind="script", script=bench.write("print(1)"))


def test_a_job_that_ends_while_runs_are_away_has_its_true_status(bench: Bench, tmp_path: Path) -> None:
    text = "import sys, time\nprint('ready', flush=True)\ntime.sleep(1.5)\nsys.exit(7)\n"
    run_id = bench.start(text)
    bench.printed(run_id, "ready")
    pids = bench.pids(run_id)
    bench.workspace.runs_dir.rename(tmp_path / "away")
    bench.workspace.create_folders()
    bench.until(lambda: start_time(pids["job"]) is None)
    shutil.rmtree(bench.workspace.runs_dir)
    (tmp_path / "away").rename(bench.workspace.runs_dir)
    record = bench.end(run_id)
    assert (record.state, record.exit_code) == ("failed", 7)


def test_a_workspace_that_was_moved_takes_its_run_with_it(bench: Bench, make_bench: Callable[..., Bench]) -> None:
    run_id, pids = start_gated(bench)
    root = bench.workspace.root
    moved = root.with_name("moved")
    root.rename(moved)
    folder = moved / "runs" / run_id
    bench.until(lambda: str(folder) in (folder / "supervisor.log").read_text(), tick=False)
    (folder / "stop.json").write_text('{"reason": "seen enough"}')
    bench.until(lambda: (folder / "exit.json").exists(), tick=False)
    assert durable.read_json(folder / "exit.json")["reason"] == "seen enough"
    gone(bench, pids)
    moved.rename(root)
    assert bench.end(run_id).state == "cancelled"


@pytest.mark.parametrize("alive", [True, False])
def test_runs_that_stay_away_end_when_somebody_says_so(bench: Bench, tmp_path: Path, alive: bool) -> None:
    run_id, pids = start_gated(bench)
    if not alive:
        for name in ("supervisor", "shim", "job"):
            kill(pids[name])
    bench.workspace.runs_dir.rename(tmp_path / "away")
    if alive:
        assert bench.runs.stop(run_id, "gone for good").state == "stopping"
        gone(bench, {"job": pids["job"]})
        bench.until(lambda: not bench.runs.leases.holders())
    record = bench.runs.stop(run_id, "gone for good")
    assert record.state == "lost" and "gone for good (by user); its folder is not there" in (record.reason or "")
    assert record.given_up
    done = bench.start("print('next')")
    assert bench.end(done).state == "succeeded"
    assert place.is_whole(bench.workspace.runs_dir)


@pytest.mark.parametrize("hindered", ["away", "full"])
def test_a_stop_that_only_a_signal_can_carry_is_a_persons(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hindered: str
) -> None:
    run_id, pids = start_gated(bench)
    runs_dir, aside = bench.workspace.runs_dir, tmp_path / "away"
    if hindered == "away":
        runs_dir.rename(aside)
        bench.runs.stop(run_id)
        gone(bench, pids)
        aside.rename(runs_dir)
    else:
        write = durable.write_json

        def full(path: Path, value: object) -> None:
            if path.name == "stop.json":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(path, value)

        with monkeypatch.context() as patch:
            patch.setattr(durable, "write_json", full)
            bench.runs.stop(run_id)
    record = bench.end(run_id)
    assert (record.state, record.reason) == ("cancelled", "the supervisor was asked to end (SIGINT)")


def test_a_rule_that_preempts_does_so_by_signal_too() -> None:
    assert _signal(None) == _signal("log") == signal.SIGINT
    assert _signal("disk_filling") == signal.SIGTERM


def test_a_run_given_up_has_its_true_end_once_that_appears(bench: Bench, tmp_path: Path) -> None:
    """The job ended while runs/ was away; its supervisor waits with the truth for it to come back."""
    gate = bench.workspace.root / "gate"
    run_id = bench.start(f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.02)")
    bench.pids(run_id)
    bench.until(lambda: bench.runs.get(run_id).state == "running")
    runs_dir, aside = bench.workspace.runs_dir, tmp_path / "away"
    (runs_dir / place.MARK).rename(tmp_path / "mark")  # else its supervisor would follow it
    runs_dir.rename(aside)
    gate.touch()
    bench.until(lambda: not bench.runs.leases.holders())
    assert bench.runs.stop(run_id).state == "stopping", "somebody is there who knows"
    assert bench.runs.stop(run_id).state == "lost", "whoever insists is believed"
    bench.runs.tick()
    (tmp_path / "mark").rename(aside / place.MARK)
    aside.rename(runs_dir)
    again = bench.another()
    assert again.get(run_id).state == "lost"
    for runs in (again, bench.runs):
        bench.until(lambda runs=runs: runs.tick() or runs.get(run_id).state == "succeeded", tick=False)
    again.database.close()
    record = bench.runs.get(run_id)
    assert (record.exit_code, record.reason) == (0, None)
    assert bench.events()["run.ended", run_id] == 2, "who was told of the one end is told of the other"


def test_a_folder_moved_out_of_the_lab_is_deleted(bench: Bench, tmp_path: Path) -> None:
    run_id, pids = start_gated(bench)
    bench.folder(run_id).rename(tmp_path / run_id)
    record = bench.end(run_id)
    assert (record.state, record.reason) == ("lost", "its run folder was deleted")
    gone(bench, pids)


def test_the_job_of_a_deleted_run_is_ended_though_its_supervisor_was_killed(bench: Bench) -> None:
    run_id, pids = start_gated(bench)
    kill(pids["supervisor"])
    shutil.rmtree(bench.folder(run_id))
    assert bench.end(run_id).state == "lost"
    gone(bench, pids)
    assert not bench.runs.leases.holders()


def test_a_deleted_folder_is_told_from_runs_that_are_away(tmp_path: Path) -> None:
    runs_dir = tmp_path / "runs"
    (runs_dir / "run-0001").mkdir(parents=True)
    assert not place.is_gone(runs_dir / "run-0001") and not place.is_gone(runs_dir / "run-0002")
    place.mark(runs_dir)
    assert not place.is_gone(runs_dir / "run-0001") and place.is_gone(runs_dir / "run-0002")
    assert not place.is_gone(tmp_path / "elsewhere" / "run-0001")


def test_a_place_where_runs_is_not_mounted_yet_is_not_taken_for_it(bench: Bench, tmp_path: Path) -> None:
    """Else, once it is mounted and taken off again, live runs would seem deleted: the mark below would show."""
    first = bench.start("print(1)")
    assert bench.end(first).state == "succeeded"
    runs_dir, disk = bench.workspace.runs_dir, tmp_path / "disk"
    runs_dir.rename(disk)
    bench.workspace.create_folders()
    early = bench.another()
    with pytest.raises(Unavailable, match="mount or move back"):
        early.start(bench_request(bench))
    assert not place.is_whole(runs_dir) and not list(runs_dir.glob("run-*"))
    shutil.rmtree(runs_dir)
    disk.rename(runs_dir)
    assert early.start(bench_request(bench)).id == "run-0002"
    bench.end("run-0002")
    shutil.rmtree(runs_dir)  # somebody deletes them all, and says so
    runs_dir.mkdir()
    (runs_dir / place.MARK).touch()
    assert early.start(bench_request(bench)).id == "run-0003"
    bench.end("run-0003")
    early.database.close()


@pytest.mark.parametrize("disk_mark", [None, place.MARK_TEXT, f"{place.MARK_TEXT}{'ab' * 8}\n"])
def test_the_folder_a_lab_without_runs_was_first_started_with_is_not_the_disk_mounted_over_it(
    bench: Bench, tmp_path: Path, disk_mark: str | None
) -> None:
    """The disk has no mark, one as earlier versions wrote it, or that of another lab."""
    runs_dir, bare, disk = bench.workspace.runs_dir, tmp_path / "bare", tmp_path / "disk"
    assert place.is_whole(runs_dir)
    runs_dir.rename(bare)
    runs_dir.mkdir()
    if disk_mark is not None:
        (runs_dir / place.MARK).write_text(disk_mark)
    run_id, pids = start_gated(bench)
    (runs_dir / place.MARK).rename(tmp_path / "mark")  # else its supervisor would follow it
    runs_dir.rename(disk)
    bare.rename(runs_dir)
    again, request = bench.another(), bench_request(bench)
    for runs in (bench.runs, again):
        runs.tick()
        assert runs.away()
        record = runs.get(run_id)
        assert record.state == "running" and "nothing is known of it" in (record.reason or "")
        with pytest.raises(Unavailable, match="mount or move back"):
            runs.start(request)
    assert all(start_time(pid) for pid in pids.values()), "nobody ends the job for it"
    runs_dir.rename(bare)
    (tmp_path / "mark").rename(disk / place.MARK)
    disk.rename(runs_dir)
    open_gate(bench, run_id, 3)
    record = bench.end(run_id)
    assert (record.state, record.exit_code) == ("failed", 3)
    shutil.rmtree(bench.folder(run_id))
    assert again.start(request).id == "run-0002"
    bench.end("run-0002")
    again.database.close()


def test_marks_are_told_apart(tmp_path: Path) -> None:
    runs, other = tmp_path / "runs", tmp_path / "other"
    runs.mkdir()
    other.mkdir()
    assert place.mark_of(runs) is None and not place.is_whole(runs)
    mine = place.mark(runs)
    assert place.mark(runs) == mine == place.mark_of(runs) != place.mark(other)
    assert place.is_whole(runs, mine) and not place.is_whole(other, mine) and place.is_whole(other)
    assert place.is_gone(runs / "run-0001", mine) and not place.is_gone(other / "run-0001", mine)
    (runs / "run-0002").mkdir()
    assert place.mark_beside(runs / "run-0002") == mine and place.mark_beside(runs / "run-0001") is None
    (other / place.MARK).write_text("")
    assert place.is_whole(other, mine) and place.is_gone(other / "run-0001", mine), "a person says so"
    (other / place.MARK).write_text(place.MARK_TEXT)
    assert not place.is_whole(other, mine), "an earlier version's"
    place.mark(other)
    assert len(place.mark_of(other) or "") == 16


def test_a_lab_of_an_earlier_version_keeps_its_runs(bench: Bench) -> None:
    """Its mark has no id, its database knows of none; one is made beside the other."""
    run_id, pids = start_gated(bench)
    (bench.workspace.runs_dir / place.MARK).write_text(place.MARK_TEXT)
    with bench.database.transaction() as tx:
        tx.execute("DELETE FROM runs_home")
    again = bench.another()
    assert place.mark_of(bench.workspace.runs_dir) == again.store.home()
    heartbeat = bench.folder(run_id) / "heartbeat.json"
    beats = {heartbeat.read_text()}  # its supervisor sees the new mark with the next one
    bench.until(lambda: len(beats) > 2 or beats.add(heartbeat.read_text()))
    shutil.rmtree(bench.folder(run_id))
    assert bench.end(run_id).state == "lost"
    gone(bench, pids)
    again.database.close()


def test_a_disk_mounted_between_two_looks_deletes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is looked for on the bare mount point, the mark on the disk; or the other way round."""
    runs_dir, disk = tmp_path / "runs", tmp_path / "disk"
    runs_dir.mkdir()
    (disk / "run-0001").mkdir(parents=True)
    place.mark(disk)
    for marked in (False, True):
        if marked:
            place.mark(runs_dir)

        def mounts(path: Path, look: Callable[[Path], bool | None] = place.seen) -> bool | None:
            found = look(path)
            runs_dir.rename(tmp_path / "bare")
            disk.rename(runs_dir)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(place, "seen", mounts)
            assert not place.is_gone(runs_dir / "run-0001")
        if runs_dir.joinpath("run-0001").exists():
            runs_dir.rename(disk)
            (tmp_path / "bare").rename(runs_dir)


def test_a_damaged_record_of_the_end_is_made_again_from_what_the_shim_wrote(bench: Bench) -> None:
    run_id, pids = start_gated(bench)
    kill(pids["supervisor"])
    open_gate(bench, run_id, 4)
    bench.until(lambda: not start_time(pids["shim"]), tick=False)
    (bench.folder(run_id) / "exit.json").write_bytes(b"\0" * 200)  # as some file systems leave it after a power loss
    record = bench.end(run_id)
    assert (record.state, record.exit_code) == ("failed", 4)
