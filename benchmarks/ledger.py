"""How the lab holds up with ten thousand experiments: results.tsv, listing, searching, counting, drawing.

python benchmarks/ledger.py [--experiments 10000] [--write]     --write also replaces the section in
docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from report import machine, write_section

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from made_up_night import night

from experiments.history import categories
from experiments.leaderboard import leaderboard
from experiments.ledger import Ledger
from experiments.record import ExperimentRecord
from experiments.report import figures
from experiments.report.blocks import markdown
from experiments.report.material import Material
from experiments.report.methods import build
from experiments.report.page import page
from experiments.report.progress import progress
from experiments.results import COLUMNS, Results, row
from workspace import durable
from workspace.database import Database
from workspace.layout import Workspace


def timed(act: Callable[[], object], repeat: int = 15) -> dict[str, float]:
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - started)
    return {"p50_ms": round(1000 * statistics.median(seconds), 1), "max_ms": round(1000 * max(seconds), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", type=int, default=10_000)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Workspace(Path(folder)), options.experiments)
    lines = [f"| with {options.experiments:,} experiments | p50 ms | slowest ms |", "|---|---:|---:|"]
    lines += [f"| {name} | {r['p50_ms']} | {r['max_ms']} |" for name, r in found.items()]
    text = f"Measured {machine()}.\n\n" + "\n".join(lines)
    print(text)
    print(json.dumps(found))
    if options.write:
        write_section("Experiments", "python benchmarks/ledger.py", text)


def measure(workspace: Workspace, count: int) -> dict[str, dict[str, float]]:
    ledger = Ledger(Database(workspace.database_file))
    ledger.restore(night(count))
    results = Results(workspace, ledger)

    def from_records() -> None:
        lines = ["\t".join(COLUMNS), *map(row, ledger.ended())]
        durable.write_text(workspace.results_file, "\n".join(lines) + "\n")

    found = {"results.tsv from every record (as it was)": timed(from_records, 3)}
    found["results.tsv, rows rendered for the first time"] = timed(results.write, 1)
    found["results.tsv, from kept rows"] = timed(results.write)
    found["list_experiments: the newest ten"] = timed(lambda: ledger.find(limit=10))
    found["the newest fifty"] = timed(lambda: ledger.find(limit=50))
    found["by verdict"] = timed(lambda: ledger.find(limit=50, verdict="keep"))
    found["by category"] = timed(lambda: ledger.find(limit=50, category="architecture"))
    found["by words that occur"] = timed(lambda: ledger.find(limit=50, text="warmdown lowers"))
    found["by words that do not occur"] = timed(lambda: ledger.find(limit=50, text="no such words"))
    found["the leaderboard"] = timed(lambda: leaderboard(ledger, 50))
    found["one experiment whole"] = timed(lambda: ledger.get(f"exp-{count // 2:04d}"))
    found["what was tried, by category"] = timed(lambda: categories(ledger))
    records = [record for name in ledger.ids() if (record := ledger.get(name)) is not None]
    found["progress figure of all of them, PNG"] = timed(lambda: figures.png(progress(records)), 3)
    found["progress figure of 80, PNG"] = timed(lambda: figures.png(progress(records[:80])), 3)
    found["report of 80, Markdown and HTML"] = timed(lambda: _report(records[:80]), 5)
    found["report of all of them, Markdown and HTML"] = timed(lambda: _report(records), 2)
    return found


def _report(records: list[ExperimentRecord]) -> None:
    document = build(Material(what="all", lab="bench", version="0", at=records[-1].created_at, records=records))
    markdown(document)
    page(document)


if __name__ == "__main__":
    main()
