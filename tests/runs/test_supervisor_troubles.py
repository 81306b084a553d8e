"""What a supervisor does when the disk, or the log on it, gives trouble: the end of the run is not lost."""

from __future__ import annotations

import errno
import textwrap
from pathlib import Path

import pytest
from runs_support import Bench, run_folder, supervise

from workspace import durable


def test_full_disk_neither_ends_the_run_nor_loses_its_end(bench: Bench) -> None:
    folder = run_folder(bench, "import time; time.sleep(2); print('through')")
    patch = f"""
        import pathlib
        from training.runs import heartbeat
        from workspace import durable
        heartbeat.EVERY_S = 0.1
        refuse = {{"heartbeat": 3, "exit": 2}}
        def full(name, function):
            def call(*a, **k):
                if name in str(a[0]) and refuse[name] > 0:
                    refuse[name] -= 1
                    raise OSError({errno.ENOSPC}, "No space left on device")
                return function(*a, **k)
            return call
        pathlib.Path.write_text = full("heartbeat", pathlib.Path.write_text)
        durable.write_json = full("exit", durable.write_json)
    """
    answer = supervise(folder, patch)
    assert answer.returncode == 0
    assert answer.stderr.count("No space left") >= 3
    assert durable.read_json(folder / "exit.json")["state"] == "succeeded"
    assert "could not be written" in durable.read_json(folder / "heartbeat.json")["note"]
    assert (folder / "train.log").read_text() == "through\n"


def test_a_disk_too_full_for_a_complaint_ends_neither_supervisor_nor_shim(bench: Bench) -> None:
    """Both write of their trouble into files of the same disk."""
    folder = run_folder(bench, "import sys, time; time.sleep(1.5); sys.exit(5)")
    (folder / "train.log").symlink_to("/dev/full")
    (folder / ".heartbeat.tmp").mkdir()  # nor can the heartbeat be written
    (folder / "job_exit.json").mkdir()  # nor how it ended
    with Path("/dev/full").open("wb") as full:
        assert supervise(folder, "", stderr=full).returncode == 0
    assert durable.read_json(folder / "exit.json")["exit_code"] == 5


def test_the_end_is_written_before_others_are_woken(bench: Bench) -> None:
    folder = run_folder(bench, "")
    patch = f"""
        from pathlib import Path
        from training.runs import supervisor
        def wake_others(_):
            print(Path({str(folder / "exit.json")!r}).exists())
            raise SystemExit(9)
        supervisor.wake_others = wake_others
    """
    answer = supervise(folder, patch)
    assert (answer.returncode, answer.stdout) == (9, "True\n")
    assert durable.read_json(folder / "exit.json")["state"] == "succeeded"


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ENOTCONN, errno.EIO, errno.EACCES])
def test_a_disk_that_does_not_answer_ends_no_supervisor(bench: Bench, number: int) -> None:
    """From just after the start until the record was refused twice; nothing can be read, nothing be written."""
    folder = run_folder(bench, "import sys, time; time.sleep(0.7); sys.exit(6)")
    patch = f"""
        import os
        from training.runs import supervisor
        from workspace import durable
        stale, tries, real, read = [], [], os.stat, supervisor.read
        def away(path):
            if stale and len(tries) < 2 and {str(folder)!r} in str(path):
                raise OSError({number}, os.strerror({number}))
        def stat(path, *a, **k):
            away(path)
            return real(path, *a, **k)
        os.stat = stat
        def beat(self, beat=supervisor.Supervisor.beat):
            beat(self)
            stale.append(self.job)
        def say(text, say=supervisor.say):
            say(text)
            if text.startswith("exit.json not written"):
                tries.append(text)
        supervisor.say, supervisor.Supervisor.beat = say, beat
    """
    answer = supervise(folder, patch)
    assert answer.returncode == 0, answer.stderr
    assert "Traceback" not in answer.stderr and answer.stderr.count("exit.json not written") == 2
    final = durable.read_json(folder / "exit.json")
    assert (final["state"], final["exit_code"]) == ("failed", 6)


@pytest.mark.parametrize(
    ("code", "log", "state", "failure"),
    [(0, "", "succeeded", None), (1, "raise MemoryError", "failed", "oom"), (75, "", "preempted", None)],
)
def test_the_end_is_judged_when_the_folder_is_there(
    bench: Bench, tmp_path: Path, code: int, log: str, state: str, failure: str | None
) -> None:
    """Summary, log and checkpoints on a disk that went away as the job ended say nothing; once it is back, all."""
    runs_dir, aside = bench.workspace.runs_dir, tmp_path / "away"
    text = f"""
        import json, os, pathlib, sys
        summary = {{"state": "succeeded"}}
        if {code} == 0:
            pathlib.Path("summary.json").write_text(json.dumps(summary))
        os.rename({str(runs_dir)!r}, {str(aside)!r})
        {log}
        sys.exit({code})
    """
    folder = run_folder(bench, textwrap.dedent(text), kind="recipe")
    patch = f"""
        import pathlib
        from training.runs import place, supervisor
        place.moved_to = lambda *_: None  # as for a disk that is taken off
        def say(text, say=supervisor.say):
            say(text)
            if text.startswith("exit.json not written"):
                pathlib.Path({str(aside)!r}).rename({str(runs_dir)!r})
        supervisor.say = say
    """
    answer = supervise(folder, patch)
    assert answer.returncode == 0, answer.stderr
    assert "exit.json not written" in answer.stderr
    final = durable.read_json(folder / "exit.json")
    assert (final["state"], final["class"], final["exit_code"]) == (state, failure, code)


def test_a_log_that_fills_the_disk_ends_its_run_though_nothing_can_be_written(bench: Bench) -> None:
    text = "import time; print('x' * 200_000, flush=True); time.sleep(600)"
    folder = run_folder(bench, text, log_cap_bytes=65536, log_policy="stop")
    patch = f"""
        from training.runs import heartbeat, log_cap
        from workspace import durable
        heartbeat.EVERY_S = 0.1
        def full(*a, **k):
            raise OSError({errno.ENOSPC}, "No space left on device")
        log_cap.punch = durable.append_jsonl = full
        def write_json(path, value, write=durable.write_json):
            full() if path.name == "stop.json" else write(path, value)
        durable.write_json = write_json
    """
    answer = supervise(folder, patch)
    assert answer.returncode == 0, answer.stderr
    final = durable.read_json(folder / "exit.json")
    assert (final["state"], final["alert"]) == ("cancelled", "log") and "larger than" in final["reason"]
