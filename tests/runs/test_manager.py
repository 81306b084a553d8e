"""Runs are found, started once, and refused without a trace when they make no sense."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest
from runs_support import Bench

from training.runs.records import RunRecord, RunRequest
from workspace import durable
from workspace.errors import LabError, NotFound, Refused, Unavailable
from workspace.settings import Settings


def trace(bench: Bench) -> tuple[int, list[str]]:
    """Rows and folders: what a refusal must not change."""
    row = bench.database.one("SELECT count(*) AS n FROM runs")
    assert row is not None
    return row["n"], sorted(p.name for p in bench.workspace.runs_dir.iterdir() if p.is_dir())


def test_first_run(bench: Bench) -> None:
    record = bench.runs.start(RunRequest(kind="script", script=bench.write("print('hello')", "Übung 1.py")))
    assert (record.id, record.name, record.kind, record.state) == ("run-0001", "Übung 1", "script", "starting")
    assert record.devices == ["cpu"]
    record = bench.end("run-0001")
    assert record.state == "succeeded" and record.folder == "runs/run-0001"
    run = durable.read_json(bench.folder("run-0001") / "run.json")
    for key in (
        "purpose",
        "key",
        "command",
        "cwd",
        "environment",
        "devices",
        "time_limit_s",
        "versions",
        "settings_hash",
    ):
        assert key in run
    assert bench.runs.tail("run-0001").lines == ["hello"]


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"kind": "script"}, "names no script"),
        ({"kind": "script", "script": "absent.py"}, "no script 'absent.py'"),
        ({"kind": "script", "script": "../outside.py"}, "outside the workspace"),
        ({"kind": "script", "script": "/etc/passwd"}, "outside the workspace"),
        ({"kind": "script", "script": "link.py"}, "outside the workspace"),
        ({"kind": "script", "script": "recipe"}, "is a folder"),
        ({"kind": "script", "script": "notes.txt"}, "not clear how to run"),
        ({"kind": "script", "script": "good.py", "time_limit_hours": 0}, "time_limit_hours"),
        ({"kind": "script", "script": "good.py", "time_limit_hours": -1}, "time_limit_hours"),
        ({"kind": "script", "script": "good.py", "time_limit_hours": float("nan")}, "time_limit_hours"),
        ({"kind": "script", "script": "good.py", "gpu_count": -1}, "gpu_count"),
        ({"kind": "script", "script": "good.py", "gpu_count": 1}, "cannot give 1 accelerator"),
        ({"kind": "script", "script": "good.py", "gpu_memory_min_gb": 8}, "with at least 8 GB"),
        ({"kind": "script", "script": "good.py", "prefer_resource": "H200"}, "named like 'H200'"),
        ({"kind": "script", "script": "good.py", "prefer_resource": "cpu", "gpu_count": 1}, "on the CPU has no GPUs"),
        ({"kind": "script", "script": "good.py", "python": "python9.9"}, "no interpreter 'python9.9'"),
        ({"kind": "script", "script": "good.py", "args": ["a\0b"]}, "NUL"),
        ({"kind": "script", "script": "good.py", "branch": "main"}, "branch without repo"),
        ({"kind": "script", "script": "good.py", "overrides": {"seed": 1}}, "belong to the built-in trainer"),
        ({"kind": "recipe", "script": "good.py"}, "belongs to a run of kind script"),
        ({"kind": "recipe", "overrides": {"optimizer.matrix_rl": 1}}, "no setting 'optimizer.matrix_rl'"),
        ({"kind": "recipe", "overrides": {"budget.amount": -3}}, "budget.amount = -3"),
        ({"kind": "recipe", "overrides": {"data.corpus": "files", "data.files": ["../x"]}}, "outside the workspace"),
        ({"kind": "recipe", "overrides": {"data.corpus": "files", "data.files": ["x.txt"]}}, "there is no 'x.txt'"),
    ],
)  # fmt: skip
def test_senseless_requests_change_nothing(bench: Bench, wish: dict[str, Any], words: str) -> None:
    bench.write("print(1)", "good.py")
    bench.write("hello", "notes.txt")
    (bench.workspace.root / "recipe").mkdir()
    outside = bench.workspace.root.parent / "outside.py"
    outside.write_text("print('never')")
    (bench.workspace.root / "link.py").symlink_to(outside)
    before = trace(bench)
    with pytest.raises(LabError) as refusal:
        bench.runs.start(RunRequest(**wish), key="k")
    assert words in str(refusal.value)
    assert str(bench.workspace.root.parent) not in str(refusal.value)
    assert trace(bench) == before


def test_missing_script_names_the_closest(bench: Bench) -> None:
    bench.write("", "train.py")
    with pytest.raises(NotFound, match=r"closest train\.py"):
        bench.runs.start(RunRequest(kind="script", script="trian.py"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_cannot_be_written_changes_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    name = bench.write("print(1)")
    write_json = durable.write_json

    def fail(path: Path, value: Any, **options: Any) -> None:
        if path.name == "run.json":
            raise OSError(code, os.strerror(code))
        write_json(path, value, **options)

    monkeypatch.setattr(durable, "write_json", fail)
    before = trace(bench)
    with pytest.raises(Unavailable, match=os.strerror(code)):
        bench.runs.start(RunRequest(kind="script", script=name), key="k")
    assert trace(bench) == before
    monkeypatch.undo()
    assert bench.end(bench.runs.start(RunRequest(kind="script", script=name), key="k").id).state == "succeeded"


def test_a_service_killed_while_it_writes_a_run_leaves_no_half_of_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = bench.workspace.runs_dir / ".writing-run-0001"  # of an earlier kill
    left.mkdir()
    (left / "config.json").write_text("{}")
    write_json = durable.write_json
    there: list[list[str]] = []

    def look(path: Path, value: Any, **options: Any) -> None:
        there.append(sorted(p.name for p in bench.workspace.runs_dir.glob("run-*")))
        write_json(path, value, **options)

    monkeypatch.setattr(durable, "write_json", look)
    run_id = bench.runs.start(RunRequest(kind="script", script=bench.write("print(1)"))).id
    assert there[0] == [], "until it is whole there is no run folder"
    assert run_id == "run-0001" and bench.end(run_id).state == "succeeded"
    assert not left.exists() and not (bench.folder(run_id) / "config.json").exists()


def test_a_nearly_full_disk_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    name = bench.write("print(1)")
    usage = shutil.disk_usage(bench.workspace.root)._replace(free=10**6)
    monkeypatch.setattr("training.runs.prepare.shutil.disk_usage", lambda _: usage)
    with pytest.raises(Unavailable, match="MiB left"):
        bench.runs.start(RunRequest(kind="script", script=name))
    assert trace(bench) == (0, [])


def test_same_key_same_run_from_eight_threads(bench: Bench) -> None:
    request = RunRequest(kind="script", script=bench.write("print('once')"))
    together = threading.Barrier(8)

    def start(_: int) -> str:
        together.wait()
        return bench.runs.start(request, key="the same").id

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(start, range(8))) == {"run-0001"}
    bench.end("run-0001")
    assert bench.runs.start(request, key="the same").state == "succeeded"
    assert bench.runs.start(request, key="another").id == "run-0002"
    assert trace(bench) == (2, ["run-0001", "run-0002"])


def test_two_managers_start_every_run_once(make_bench: Any) -> None:
    bench: Bench = make_bench(max_concurrent=2)
    count = "import os; open(os.environ['LAB_RUN_DIR'] + '/ran', 'a').write('x')"
    other = bench.another()
    done = threading.Event()

    def tick(runs: Any) -> None:
        while not done.is_set():
            runs.tick()

    threads = [threading.Thread(target=tick, args=(runs,)) for runs in (bench.runs, other)]
    try:
        for thread in threads:
            thread.start()
        names = [bench.write(count, f"count{i}.py") for i in range(6)]
        ids = [
            (bench.runs, other)[i % 2].start(RunRequest(kind="script", script=name), key=f"key {i}").id
            for i, name in enumerate(names)
        ]
        for run_id in ids:
            bench.until(lambda run_id=run_id: bench.runs.get(run_id).ended, tick=False)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert len(set(ids)) == 6
    for run_id in ids:
        assert bench.runs.get(run_id).state == "succeeded"
        assert (bench.folder(run_id) / "ran").read_text() == "x"
    assert set(bench.events().values()) == {1} and len(bench.events()) == 12


def test_unknown_run_names_the_closest(bench: Bench) -> None:
    bench.end(bench.start("pass"))
    for call in (bench.runs.get, bench.runs.stop, bench.runs.tail, bench.runs.detail):
        with pytest.raises(NotFound, match="closest run-0001"):
            call("run-001")  # type: ignore[operator]


def test_queued_run_says_why_and_can_be_cancelled(bench: Bench) -> None:
    first = bench.start("import time; time.sleep(600)")
    second, third = bench.start("print(2)"), bench.start("print(3)")
    waiting = bench.runs.get(second).waiting_for
    assert waiting == f"a CPU slot: cpu-0 is held by {first}; position 1 of 2 in the queue"
    assert bench.runs.get(third).waiting_for == "the runs before it in the queue; position 2 of 2 in the queue"
    cancelled = bench.runs.stop(second, "not needed", by="me")
    assert (cancelled.state, cancelled.reason, cancelled.started_at) == ("cancelled", "not needed (by me)", None)
    assert bench.runs.stop(second, "again").reason == "not needed (by me)"
    assert not (bench.folder(second) / "job.json").exists()
    bench.runs.stop(first)
    assert bench.end(first).state == "cancelled"
    assert bench.end(third).state == "succeeded"
    assert bench.events()["run.ended", second] == 1 and ("run.started", second) not in bench.events()


def test_tests_go_before_runs_and_runs_before_a_campaign(bench: Bench) -> None:
    blocker = bench.start("import time; time.sleep(600)")
    purposes = ["candidate", "run", "test", "replicate"]
    ids = {purpose: bench.start("pass", purpose=purpose) for purpose in purposes}
    bench.runs.stop(blocker)
    records = [bench.end(run_id) for run_id in ids.values()]
    order = sorted(records, key=lambda record: str(record.started_at))
    assert [record.purpose for record in order] == ["test", "run", "candidate", "replicate"]


def test_wait_reports_progress_and_is_bounded(bench: Bench) -> None:
    text = """
import json, os, time
with open(os.environ["LAB_RUN_DIR"] + "/metrics.jsonl", "a") as file:
    for step in range(4):
        file.write(json.dumps({"step": step, "loss": 2.0 - step / 10, "elapsed_s": step}) + "\\n"); file.flush()
        time.sleep(0.5)
"""
    run_id = bench.start(text)
    told: list[RunRecord] = []

    async def main() -> tuple[RunRecord, RunRecord, RunRecord]:
        at_once = await bench.runs.wait(run_id, 0)
        early = await bench.runs.wait(run_id, 0.1)

        async def tell(record: RunRecord) -> None:
            told.append(record)

        return at_once, early, await bench.runs.wait(run_id, 60, tell)

    at_once, early, last = anyio.run(main)
    assert not at_once.ended and not early.ended
    assert last.state == "succeeded"
    losses = [record.progress["loss"] for record in told if record.progress]
    assert losses == sorted(losses, reverse=True) and len(losses) >= 2
    detail = bench.runs.detail(run_id, points=3)
    assert [point["step"] for point in detail["curve"]] == [0, 2, 3] and detail["config"] is None


def test_list_page_and_detail(bench: Bench) -> None:
    add_ended(bench, 30)
    assert [r.id for r in bench.runs.list(limit=2)] == ["run-0030", "run-0029"]
    assert [r.id for r in bench.runs.list(limit=2, before="run-0029")] == ["run-0028", "run-0027"]
    assert bench.runs.list(states=["running"]) == []
    failed, total = bench.runs.page(states=["failed"], limit=3)
    assert [r.id for r in failed] == ["run-0030", "run-0027", "run-0024"] and total == 10
    assert [r.id for r in bench.runs.list(text="wide 7")] == ["run-0007"]
    assert bench.runs.list(text="100%") == []
    assert {r.id for r in bench.runs.list(experiment="exp-0002", limit=100)} == {"run-0005", "run-0015", "run-0025"}
    with pytest.raises(Refused, match="no state 'finished'"):
        bench.runs.list(states=["finished"])


def add_ended(bench: Bench, count: int) -> None:
    with bench.database.transaction() as tx:
        for i in range(1, count + 1):
            run = {"id": f"run-{i:04d}", "kind": "script", "name": f"wide {i}", "purpose": "run"}
            run |= {"created_at": "2026-11-21T00:00:00.000Z", "experiment": "exp-0002" if i % 10 == 5 else None}
            bench.runs.store.insert(tx, run, {"count": 0})
            final = {"state": "failed" if i % 3 == 0 else "succeeded", "ended_at": "2026-11-21T00:01:00.000Z"}
            bench.runs.store.end(tx, f"run-{i:04d}", final, {"val_bpb": 1.0 + i / 1000})


def test_ten_thousand_ended_runs_cost_a_tick_nothing(bench: Bench) -> None:
    """Counted in rows and plans, not seconds: a tick looks at live runs only, a list at what it shows."""
    add_ended(bench, 10_000)
    assert bench.runs.store.live() == []
    plan = " ".join(
        row["detail"]
        for row in bench.database.query(
            "EXPLAIN QUERY PLAN SELECT * FROM runs WHERE ended_at IS NULL ORDER BY priority, number"
        )
    )
    assert "runs_live" in plan and "TEMP B-TREE" not in plan
    records, total = bench.runs.page(limit=20)
    assert len(records) == 20 and total == 10_000


@pytest.mark.parametrize(
    ("states", "text", "index"),
    [
        (None, "77", "COVERING INDEX runs_text"),
        (["queued", "running"], None, "runs_live"),
        (["failed"], "7", "runs_text"),
    ],
)
def test_a_list_is_found_without_reading_past_every_summary(
    bench: Bench, states: list[str] | None, text: str | None, index: str
) -> None:
    asked: list[tuple[str, Any]] = []
    query = bench.database.query

    def explained(sql: str, values: Any = ()) -> Any:
        asked.append((sql, values))
        return query(sql, values)

    bench.runs.store.database = types.SimpleNamespace(query=explained)  # type: ignore[assignment]
    bench.runs.store.find(states, None, 20, None, text)
    (sql, values) = asked[0]
    assert any(index in row["detail"] for row in query(f"EXPLAIN QUERY PLAN {sql}", values))


def test_a_service_that_forgot_everything_goes_on(bench: Bench) -> None:
    """Every manager is new: nothing may live in memory only."""
    script = bench.write("import time; time.sleep(0.3)")
    ids = [bench.runs.start(RunRequest(kind="script", script=script), key=str(i)).id for i in range(3)]
    deadline = time.monotonic() + 60
    while not all(bench.runs.get(run_id).ended for run_id in ids):
        assert time.monotonic() < deadline
        bench.another().tick()
        time.sleep(0.05)
    assert [bench.runs.get(run_id).state for run_id in ids] == ["succeeded"] * 3
    assert set(bench.events().values()) == {1}


def test_interpreter_is_the_users(bench: Bench, tmp_path: Path) -> None:
    """The argument wins over lab.toml, that over the workspace's .venv, that over ours."""
    fake = {}
    for name in ("argument", "setting", ".venv/bin"):
        fake[name] = bench.workspace.root / name / "python"
        fake[name].parent.mkdir(parents=True)
        fake[name].write_text(f"#!/bin/sh\necho {name}\n")
        fake[name].chmod(0o755)
    script = bench.write("")
    request = RunRequest(kind="script", script=script)
    assert bench.end(bench.runs.start(request).id).state == "succeeded"
    assert bench.text("run-0001") == ".venv/bin\n"
    settings = Settings.model_validate({"runs": {"python": str(fake["setting"])}})
    bench.runs.settings = settings
    bench.end(bench.runs.start(request).id)
    assert bench.text("run-0002") == "setting\n"
    bench.end(bench.runs.start(request.model_copy(update={"python": "argument/python"})).id)
    assert bench.text("run-0003") == "argument\n"
    shutil.rmtree(bench.workspace.root / ".venv")
    bench.runs.settings = Settings()
    bench.runs.start(request)
    assert durable.read_json(bench.folder("run-0004") / "run.json")["command"][0] == sys.executable
    bench.end("run-0004")


def test_shell_and_executable_scripts(bench: Bench) -> None:
    bench.write('echo "shell $1"\nexit 6\n', "go.sh")
    bench.write("#!/bin/sh\necho executable $1\n", "go")
    (bench.workspace.root / "go").chmod(0o755)
    first = bench.end(bench.runs.start(RunRequest(kind="script", script="go.sh", args=("a b",))).id)
    assert (first.exit_code, bench.text(first.id)) == (6, "shell a b\n")
    second = bench.end(bench.runs.start(RunRequest(kind="script", script="go", args=("x",))).id)
    assert (second.exit_code, bench.text(second.id)) == (0, "executable x\n")


def test_recipe_run_is_written_whole_before_it_starts(bench: Bench) -> None:
    """Queued behind another run: config and a copy of the recipe lie there, whatever happens to the recipe."""
    bench.start("import time; time.sleep(600)")
    recipe = bench.workspace.recipe_dir
    recipe.mkdir()
    (recipe / "recipe.toml").write_text("seed = 5\n")
    (recipe / "model.py").write_text("# first\n")
    run_id = bench.runs.start(RunRequest(overrides={"model.depth": 2}, name="zwei\x1b[31m Schichten\n")).id
    (recipe / "model.py").write_text("# second\n")
    folder = bench.folder(run_id)
    config = json.loads((folder / "config.json").read_text())
    assert (config["seed"], config["model"]["depth"]) == (5, 2)
    assert (folder / "recipe" / "model.py").read_text() == "# first\n"
    run = durable.read_json(folder / "run.json")
    assert run["recipe_dir"] == str(folder / "recipe") and run["budget"]["kind"] == "seconds"
    assert bench.runs.get(run_id).name == "zwei[31m Schichten"
    bench.runs.stop(run_id)


def test_a_run_that_cannot_be_started_now_is_queued_and_says_why(bench: Bench, tmp_path: Path) -> None:
    good = bench.runs.leases.folder
    (tmp_path / "file").touch()
    bench.runs.leases.folder = tmp_path / "file" / "leases"
    run = bench.start("print(1)")
    assert bench.runs.get(run).state == "queued"
    assert "leases cannot be used" in str(bench.runs.get(run).waiting_for)
    bench.runs.leases.folder = good
    assert bench.end(run).state == "succeeded"
