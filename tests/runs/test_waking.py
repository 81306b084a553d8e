"""A run that waits for another workspace's run, with nobody left to look: that run's end brings its service back."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from runs_support import Bench

from lab_mcp.keeper import lock
from training.runs import waking
from training.runs.leases import Note

SLEEP = "import time; time.sleep(600)"


def waiting(make_bench: Callable[..., Bench], tmp_path: Path) -> tuple[Bench, Bench, Path, Path]:
    """Two workspaces, the second waits for the first; the file its service would make; its note."""
    one, two, woken = make_bench("eins"), make_bench("zwei"), tmp_path / "woken"
    command = [sys.executable, "-c", f"open({str(woken)!r}, 'a').write('woken ')"]
    two.runs = two.another(on_end=command)
    blocker = one.start(SLEEP)
    one.pids(blocker)
    run_id = two.start("print('now')")
    assert "run-0001 of workspace eins" in (two.runs.get(run_id).waiting_for or "")
    (note,) = two.runs.leases.folder.glob(f"*{waking.NOTE}")
    return one, two, woken, note


def test_the_end_of_the_other_run_brings_the_service_back(make_bench: Callable[..., Bench], tmp_path: Path) -> None:
    one, two, woken, note = waiting(make_bench, tmp_path)
    one.runs.stop("run-0001")
    one.end("run-0001")
    one.until(lambda: woken.exists() and woken.read_text() == "woken ")
    assert two.end("run-0001").state == "succeeded"
    assert not note.exists(), "it waits for nobody any more"


def test_a_service_that_is_there_is_left_alone(make_bench: Callable[..., Bench], tmp_path: Path) -> None:
    one, two, woken, _ = waiting(make_bench, tmp_path)
    held = lock(two.workspace.locks_dir / "service.lock")
    assert held is not None
    one.runs.stop("run-0001")
    one.end("run-0001")
    assert two.end("run-0001").state == "succeeded"
    assert not woken.exists()


@pytest.mark.parametrize("spoilt", ["writable", "link", "no command", "torn", "workspace gone",
                                     "no words", "one word", "no lock", "odd lock", "deep"])  # fmt: skip
def test_a_note_that_may_not_be_this_users_is_not_obeyed(tmp_path: Path, spoilt: str) -> None:
    """Anybody may write into the machine's folder of leases."""
    folder = tmp_path / "leases"
    folder.mkdir()
    note = Note(folder, tmp_path, ["/bin/true"], tmp_path / "service.lock")
    note.leave(waits=True)
    assert [found["command"] for found in waking._notes(folder)] == [["/bin/true"]]
    content = json.loads(note.path.read_text())
    if spoilt == "writable":
        note.path.chmod(0o666)
    elif spoilt == "link":
        note.path.rename(tmp_path / "real")
        note.path.symlink_to(tmp_path / "real")
    elif spoilt == "no command":
        note.path.write_text(json.dumps(content | {"command": [7]}))
    elif spoilt == "torn":
        note.path.write_text(note.path.read_text()[:20])
    elif spoilt == "workspace gone":
        note.path.write_text(json.dumps(content | {"workspace": str(tmp_path / "gone")}))
    elif spoilt == "no words":
        note.path.write_text(json.dumps(content | {"command": []}))
    elif spoilt == "one word":
        note.path.write_text(json.dumps(content | {"command": "/bin/true"}))
    elif spoilt == "no lock":
        del content["service_lock"]
        note.path.write_text(json.dumps(content))
    elif spoilt == "odd lock":
        note.path.write_text(json.dumps(content | {"service_lock": 7}))
    else:
        note.path.write_text("[" * waking.NOTE_BYTES)
    assert list(waking._notes(folder)) == []
    waking.wake_others(folder)


def test_what_others_put_into_the_folder_of_leases_holds_nobody_up(make_bench: Callable[..., Bench]) -> None:
    """A FIFO that nobody writes to, a note that names no command or one no system can take: the run ends, is told."""
    bench = make_bench()
    run_id = bench.start(SLEEP)
    bench.pids(run_id)
    folder = bench.runs.leases.folder
    os.mkfifo(folder / f"0{waking.NOTE}", 0o644)
    os.mkfifo(folder / "elsewhere.lock", 0o444)
    lock = str(bench.workspace.locks_dir / "service.lock")
    for number, command in enumerate(([], ["\0"], ["\ud800"])):
        note = {"workspace": str(bench.workspace.root), "service_lock": lock, "command": command}
        (folder / f"{number + 1}{waking.NOTE}").write_text(json.dumps(note))
        (folder / f"{number + 1}{waking.NOTE}").chmod(0o644)
    bench.runs.stop(run_id)
    assert bench.end(run_id).state == "cancelled"
    assert "Traceback" not in (bench.folder(run_id) / "supervisor.log").read_text()
