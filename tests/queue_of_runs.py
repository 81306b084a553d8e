"""Many runs started at once: they queue, run in order, and cancelling some leaves the rest untouched."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from runs_support import Bench

from training.runs.records import RunRequest

SCRIPT = 'echo ran >> "$LAB_RUN_DIR/ran"\n'


def play(bench: Bench, count: int, cancel: set[int]) -> dict[str, Any]:
    """Start `count` tiny runs at once, cancel those numbered `cancel` while they wait; figures. Asserts the rest."""
    gate = bench.start("import time; time.sleep(600)")
    slots = bench.runs.scheduler.cpu_slots
    gates = [gate, *(bench.start("import time; time.sleep(600)") for _ in range(slots - 1))]
    script = bench.write(SCRIPT, "tiny.sh")
    request = RunRequest(kind="script", script=script)
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        ids = sorted(record.id for record in pool.map(lambda _: bench.runs.start(request), range(count)))
    started_s = time.monotonic() - began
    bench.runs.tick()
    queued = [bench.runs.get(run_id) for run_id in ids]
    assert [record.queue_position for record in queued] == list(range(1, count + 1))
    assert all(record.state == "queued" and record.waiting_for and record.freed_by for record in queued)
    for number in sorted(cancel):
        assert bench.runs.stop(ids[number], "not needed").state == "cancelled"
    left = [run_id for number, run_id in enumerate(ids) if number not in cancel]
    assert [bench.runs.get(run_id).queue_position for run_id in left] == list(range(1, len(left) + 1))
    began = time.monotonic()
    for run_id in gates:
        bench.runs.stop(run_id)
    records = [bench.end(run_id) for run_id in left]
    ran_s = time.monotonic() - began
    assert all(record.state == "succeeded" for record in records), [r for r in records if r.state != "succeeded"]
    assert all((bench.folder(run_id) / "ran").read_text() == "ran\n" for run_id in left)
    assert not any((bench.folder(ids[number]) / "job.json").exists() for number in cancel)
    assert all(bench.runs.get(ids[number]).state == "cancelled" for number in cancel)
    order = sorted(left, key=lambda run_id: str(bench.runs.get(run_id).started_at))
    assert all(abs(order.index(run_id) - place) < slots for place, run_id in enumerate(left)), order
    bench.until(lambda: not bench.runs.leases.holders())
    return {
        "runs": count, "cancelled": len(cancel), "at once": slots, "started in s": round(started_s, 2),
        "finished in s": round(ran_s, 1),
    }  # fmt: skip
