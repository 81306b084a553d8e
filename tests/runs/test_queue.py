"""The queue: who is next, what a run waits for, and that nobody is held up or touched by what happens to others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from queue_of_runs import play
from runs_support import Bench

from training.runs.records import RunRequest
from workspace.errors import NotFound

SLEEPS = "import time; print('ready', flush=True); time.sleep(600)"


def test_many_runs_started_at_once(make_bench: Callable[..., Bench]) -> None:
    figures = play(make_bench(max_concurrent=2), 8, cancel={0, 4, 7})
    assert figures["runs"] == 8


@pytest.mark.slow
def test_fifty_runs_started_at_once(make_bench: Callable[..., Bench]) -> None:
    play(make_bench(max_concurrent=2), 50, cancel={0, 7, 25, 49})


def test_order_is_priority_then_age(bench: Bench) -> None:
    blocker = bench.start(SLEEPS)
    wishes = {"late": 9, "first of two": 4, "second of two": 4, "urgent": 0}
    ids = {name: bench.start("pass", priority=priority) for name, priority in wishes.items()}
    ids["usual"] = bench.start("pass")
    expected = ["urgent", "first of two", "second of two", "usual", "late"]
    positions = {bench.runs.get(run_id).queue_position: name for name, run_id in ids.items()}
    assert [positions[place] for place in range(1, 6)] == expected
    assert bench.runs.get(ids["usual"]).priority == 5
    bench.runs.stop(blocker)
    ended = {name: bench.end(run_id) for name, run_id in ids.items()}
    assert sorted(expected, key=lambda name: str(ended[name].started_at)) == expected
    assert ended["usual"].queue_position is None and ended["usual"].freed_by is None


def test_a_waiting_run_says_what_would_free_it_and_when(bench: Bench) -> None:
    text = """
import json, os, time
with open(os.environ["LAB_RUN_DIR"] + "/metrics.jsonl", "w") as file:
    file.write(json.dumps({"step": 10, "loss": 1.0, "elapsed_s": 30.0}) + "\\n")
time.sleep(600)
"""
    first = bench.start(text)
    budget = '{"kind": "seconds", "amount": 70}'
    with bench.database.transaction() as tx:
        bench.runs.store.change(tx, first, ["starting", "running"], budget=budget)
    second, third = bench.start("pass"), bench.start("pass")
    bench.until(lambda: "left" in (bench.runs.get(second).freed_by or ""))
    record = bench.runs.get(second)
    assert record.freed_by == f"the end of {first} (about 40 s left)"
    assert record.waiting_for == (
        f"a CPU slot: cpu-0 is held by {first}; position 1 of 2 in the queue; "
        f"freed by the end of {first} (about 40 s left)"
    )
    assert bench.runs.get(third).freed_by == f"the end of {second}"


def test_cpu_runs_are_limited_by_cores(make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.runs.scheduler.usable_cores", lambda: 2.0)
    bench = make_bench(max_concurrent=64)
    ids = [bench.start(SLEEPS) for _ in range(3)]
    for run_id in ids[:2]:
        bench.printed(run_id, "ready")
    bench.runs.tick()
    assert bench.runs.get(ids[2]).state == "queued"
    waiting = bench.runs.get(ids[2]).waiting_for or ""
    assert f"cpu-0 is held by {ids[0]}" in waiting and f"cpu-1 is held by {ids[1]}" in waiting


def test_cpu_slots_are_the_machines_not_the_workspaces(make_bench: Callable[..., Bench]) -> None:
    one, two = make_bench("eins"), make_bench("zwei")
    first, other = one.start(SLEEPS), two.start("pass")
    one.printed(first, "ready")
    two.runs.tick()
    assert two.runs.get(other).state == "queued"
    assert two.runs.get(other).freed_by is not None and "of workspace eins" in str(two.runs.get(other).freed_by)
    one.runs.stop(first)
    one.end(first)
    assert two.end(other).state == "succeeded"


def test_priority_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="less than or equal to 9"):
        RunRequest(priority=10)


def test_older_than_a_run_nobody_knows_names_the_closest(bench: Bench) -> None:
    bench.end(bench.start("pass"))
    with pytest.raises(NotFound, match="closest run-0001"):
        bench.runs.list(before="run-001")
