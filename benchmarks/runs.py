"""What runs cost, and what they survive: kill rounds, a queue of 50, long lists, loud jobs, watching.

python benchmarks/runs.py [--write] [--only PART ...] [--rounds 200] [--seed N] [--batches FIRST END]

Parts: kills, queue, list, loud, watch, tail. Each writes its rows into benchmarks/runs.json; --write renders all that
is there into docs/benchmarks.md. The kill rounds and the queue are those of the slow tests. With --batches only those
batches (of ten rounds) are played, and added to the ones of this seed that were played before.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import kill_rounds
import psutil
import queue_of_runs
from report import machine, write_section
from runs_support import Bench, end_everything
from tests_support import end_all

from lab_mcp import connection, initialise
from training.runs.manager import Runs
from training.runs.place import FOLDER_VARIABLE
from workspace.database import Database
from workspace.layout import Workspace
from workspace.outbox import Outbox
from workspace.settings import Settings

RESULTS, KILLS = Path(__file__).with_name("runs.json"), Path(__file__).with_name("kills.json")
Row = tuple[str, str, str]  # what, measured, asked
LIST_RUNS, LIST_CALLS, TAIL_CALLS = 10_000, 200, 1000
LOUD_BYTES, LOUD_RATE, LOUD_PAIRS = 1_000_000_000, 100_000_000, 3
LOUD_CAP_GB = 0.25
WATCH_S = 30.0
LOUD = """
import sys, time
size, rate = int(sys.argv[1]), int(sys.argv[2])
line = b"step 1234 | loss 3.1415 | 123456 tokens/s | a line of a usual log, some words longer " * 12 + b"\\n"
block = line * (1_000_000 // len(line))
out = open(1, "wb", buffering=0, closefd=False)
began, busy, written = time.monotonic(), 0.0, 0
while written < size:
    before = time.monotonic()
    written += out.write(block)
    busy += time.monotonic() - before
    ahead = written / rate - (time.monotonic() - began)
    if rate and ahead > 0:
        time.sleep(ahead)
sys.stderr.write(f"\\nseconds {time.monotonic() - began:.4f} {busy:.4f}\\n")
"""


@contextlib.contextmanager
def bench_of(folder: Path, **settings: Any) -> Iterator[Bench]:
    """A manager over a fresh workspace; everything is ended afterwards."""
    workspace = Workspace((folder / f"lab-{time.monotonic_ns()}").resolve())
    workspace.root.mkdir()
    workspace.settings_file.touch()
    workspace.create_folders()
    database = Database(workspace.database_file)
    settings_of = Settings.model_validate({"runs": {"grace_seconds": 1.0, **settings}})
    bench = Bench(workspace, database, Runs(workspace, settings_of, database, Outbox(database), devices=list))
    try:
        yield bench
    finally:
        end_everything(workspace)
        database.close()


def kills(folder: Path, options: argparse.Namespace) -> list[Row]:
    """Some batches of the rounds, or all; those played with this seed before count too."""
    batches = None if options.batches is None else range(*options.batches)
    played = json.loads(KILLS.read_text()) if batches and KILLS.exists() else []
    new = kill_rounds.run(folder, options.rounds, options.seed, batches)
    played = [f for f in played if f["seed"] == options.seed and f["batch"] not in {n["batch"] for n in new}] + new
    KILLS.write_text(json.dumps(played, indent=1) + "\n")
    killed: Counter[str] = Counter()
    for figures in played:
        killed += Counter(figures["killed"])
    words = ", ".join(f"{count} {name}s" for name, count in sorted(killed.items()))
    rounds, runs, seconds = (sum(f[name] for f in played) for name in ("rounds", "runs", "seconds"))
    what = f"{rounds} random kills over {runs} runs (seed {options.seed}; {words}): contradictions of the oracle"
    return [(what, "0", "0"), ("the same, s", f"{seconds:.0f}", "")]


def queue(folder: Path, _: argparse.Namespace) -> list[Row]:
    with bench_of(folder, max_concurrent=2) as bench:
        found = queue_of_runs.play(bench, 50, cancel={0, 7, 25, 49})
    what = f"50 runs started at once, {found['cancelled']} cancelled, {found['at once']} at a time: ended in order, s"
    return [
        (what, f"{found['finished in s']}", "in order, the rest untouched"),
        ("the same: until all 50 were written down and queued, s", f"{found['started in s']}", ""),
    ]


def listing(folder: Path, _: argparse.Namespace) -> list[Row]:
    with bench_of(folder) as bench:
        with bench.database.transaction() as tx:
            for i in range(1, LIST_RUNS + 1):
                run = {"id": f"run-{i:04d}", "kind": "script", "name": f"run number {i}", "purpose": "run"}
                run |= {"created_at": "2026-11-21T00:00:00.000Z", "experiment": f"exp-{i % 300:04d}"}
                bench.runs.store.insert(tx, run, {"count": 0})
                final = {"state": "failed" if i % 3 == 0 else "succeeded", "ended_at": "2026-11-21T00:01:00.000Z"}
                bench.runs.store.end(tx, run["id"], final, {"val_bpb": 1.0 + i / 1000, "steps": i})
        pages: dict[str, Callable[[], object]] = {
            "newest 20": lambda: bench.runs.page(limit=20),
            "failed ones": lambda: bench.runs.page(states=["failed"], limit=20),
            "by text": lambda: bench.runs.page(text="number 77", limit=20),
            "older than run-0100": lambda: bench.runs.page(limit=20, before="run-0100"),
        }
        rows: list[Row] = []
        for name, page in pages.items():
            rows += _latency(page, LIST_CALLS, f"list_runs among {LIST_RUNS:,}, {name}", "< 50")
    return rows


def loud(folder: Path, _: argparse.Namespace) -> list[Row]:
    """The same job with its output in a file of its own, and as a run whose log is capped: what the writing took."""
    script = folder / "loud.py"
    script.write_text(LOUD)
    alone, watched, kept = [], [], 0.0
    for number in range(LOUD_PAIRS):
        log = folder / "alone.log"
        with log.open("wb") as file:
            command = [sys.executable, str(script), str(LOUD_BYTES), str(LOUD_RATE)]
            subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=True)
        alone.append(_told(log))
        log.unlink()
        with bench_of(folder, log_gigabytes=LOUD_CAP_GB) as bench:
            run_id = bench.start(LOUD, str(LOUD_BYTES), str(LOUD_RATE))
            while not bench.runs.get(run_id).ended:
                bench.runs.tick()
                time.sleep(0.5)
            assert bench.runs.get(run_id).state == "succeeded"
            log = bench.folder(run_id) / "train.log"
            watched.append(_told(log))
            kept = log.stat().st_blocks * 512 / 1e9
            log.unlink()
        print(
            f"pair {number}: {alone[-1]} alone, {watched[-1]} as a run (seconds in all, in writes); {kept:.2f} GB kept"
        )
    slower = 100 * (
        statistics.median(total for total, _ in watched) / statistics.median(total for total, _ in alone) - 1
    )
    writing = [statistics.median(busy for _, busy in times) for times in (alone, watched)]
    extra = 100 * (writing[1] - writing[0]) / (LOUD_BYTES / LOUD_RATE)
    return [
        ("a job printing 100 MB/s takes longer as a run by", f"{slower:.2f} %", "< 5 %"),
        ("the same: more time inside its writes, of its whole time", f"{extra:.2f} %", "< 5 %"),
        (
            f"its log of {LOUD_BYTES / 1e9:g} GB with a cap of {LOUD_CAP_GB:g} GB takes",
            f"{kept:.2f} GB",
            "the end kept",
        ),
    ]


def _told(log: Path) -> tuple[float, float]:
    """Seconds in all and inside writes, as the loud job wrote them at the end of its log."""
    with log.open("rb") as file:
        file.seek(-200, os.SEEK_END)
        total, busy = file.read().split(b"seconds ")[-1].split()[:2]
        return float(total), float(busy)


def watch(folder: Path, _: argparse.Namespace) -> list[Row]:
    """Supervisor and shim of a running job, and the service's sampler: memory and share of a core."""
    rows: list[Row] = []
    with bench_of(folder) as bench:
        run_id = bench.start("import time; time.sleep(600)")
        pids = bench.pids(run_id)
        share = _share(psutil.Process(pids["supervisor"]))
        for name in ("supervisor", "shim"):
            mb = psutil.Process(pids[name]).memory_info().rss / 1e6
            rows.append((f"{name} of a running run, resident MB", f"{mb:.1f}", "< 20"))
        rows.append(("supervisor, share of a core", f"{share:.2f} %", "< 0.5 %"))
    workspace = Workspace(Path(initialise.init(folder / "served").root))
    try:
        service = psutil.Process(connection.ensure_service(workspace).identity.pid)
        time.sleep(8.0)  # the start, and what warms up after it
        rows.append(("service at rest, share of a core", f"{_share(service):.2f} %", ""))
        rows.append(("service at rest, resident MB", f"{service.memory_info().rss / 1e6:.0f}", "< 150"))
    finally:
        end_all(workspace.root)
    rows.append(("sampler (a reading and its row, every 2 s), share of a core", f"{_sampler(folder):.2f} %", "< 0.5 %"))
    return rows


def _share(process: psutil.Process) -> float:
    """CPU time over `WATCH_S`, in percent of a core."""
    before = process.cpu_times()
    time.sleep(WATCH_S)
    after = process.cpu_times()
    return 100 * (after.user + after.system - before.user - before.system) / WATCH_S


def _sampler(folder: Path) -> float:
    """CPU time of a sampler's own work in percent of a core at its usual interval."""
    from training.telemetry import Sampler

    workspace = Workspace((folder / "sampled").resolve())
    workspace.root.mkdir()
    workspace.create_folders()
    settings = Settings()
    sampler = Sampler(workspace, settings)
    sampler.sample()
    before, count = time.thread_time(), 200
    for _ in range(count):
        sampler.sample()
        time.sleep(0.01)
    spent = (time.thread_time() - before) / count
    sampler.stop()
    return 100 * spent / settings.hardware.sample_seconds


def tail(folder: Path, _: argparse.Namespace) -> list[Row]:
    """10 GB of log: the last lines, and what reading them adds to this process."""
    with bench_of(folder) as bench:
        run_id = bench.start("for i in range(100): print(f'Step {i} | Loss: 3.1415 | a line of a usual log')")
        bench.end(run_id)
        log = bench.folder(run_id) / "train.log"
        end = log.read_bytes() * 2
        with log.open("wb") as file:
            file.truncate(10_000_000_000 - len(end))  # a sparse head: the size without the disk
            file.seek(0, os.SEEK_END)
            file.write(end)
        process = psutil.Process()
        bench.runs.tail(run_id)
        before = process.memory_info().rss
        rows = _latency(lambda: bench.runs.tail(run_id, lines=50), TAIL_CALLS, "tail_log of 10 GB", "< 10")
        grown = max(0, process.memory_info().rss - before) / 1e6
    return [*rows, ("tail_log of 10 GB: memory it added, MB", f"{grown:.1f}", "< 20")]


def _latency(work: Callable[[], object], calls: int, what: str, asked: str) -> list[Row]:
    """Wall-clock time of a call, and the processor time of the longest: the rest of a long call is somebody else's."""
    wall, own = [], []
    for _ in range(calls):
        began, spent = time.perf_counter(), time.thread_time()
        work()
        own.append((time.thread_time() - spent) * 1000)
        wall.append((time.perf_counter() - began) * 1000)
    last = sorted(wall)[int(0.99 * calls)]
    shown = f"{statistics.median(wall):.2f} / {last:.2f} / {max(wall):.2f} ({max(own):.2f})"
    return [(f"{what}: p50 / p99 / slowest of {calls} (its processor time at most), ms", shown, asked)]


PARTS: dict[str, Callable[[Path, argparse.Namespace], list[Row]]] = {
    "kills": kills, "queue": queue, "list": listing, "loud": loud, "watch": watch, "tail": tail,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6)
    parser.add_argument("--batches", type=int, nargs=2)
    options = parser.parse_args()
    results: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER_VARIABLE] = f"{folder}/leases"
        for part in options.only:
            place = Path(folder) / part
            place.mkdir()
            rows = PARTS[part](place, options)
            for row in rows:
                print(" | ".join(row), flush=True)
            results = (json.loads(RESULTS.read_text()) if RESULTS.exists() else {}) | {part: rows}
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    lines = ["| what | measured | asked |", "|---|---:|---:|"]
    lines += [f"| {what} | {shown} | {asked} |" for part in PARTS for what, shown, asked in results.get(part, [])]
    text = f"Measured {machine()}.\n\n" + "\n".join(lines)
    print(text)
    if options.write:
        write_section("Runs", "python benchmarks/runs.py", text)


if __name__ == "__main__":
    main()
