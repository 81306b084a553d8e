"""How well the lab's search finds, as `lab-mcp rag-eval` measures it, into docs/benchmarks.md.

python benchmarks/retrieval.py [--write] [--index DIR] [FOLDER ...]

--index keeps the indexes there for another time; making them takes minutes. FOLDER holds a collection in the BEIR
layout; without one, cranfield and vaswani of the folder LAB_BENCH_DATA names.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

from report import machine, write_section

from rag.embedding.embedder import PACKAGED_MODEL
from rag.evaluation import collection
from rag.evaluation.bootstrap import Interval
from rag.evaluation.evaluate import Evaluation, evaluate, pooled
from workspace.settings import Settings

COLLECTIONS = ("cranfield", "vaswani")
METHODS = {
    "words": "words (BM25)", "dense": "dense", "fusion": "plain fusion (k = 60)", "default": "default",
    "shown": "what a search shows",
}  # fmt: skip
HEAD = (
    "Intervals are 95 %, over queries; milliseconds are medians of one query without its embedding. Words, dense and "
    "plain fusion rank 400 passages each, so that a hundred documents are ranked; the default's milliseconds hold what "
    "it does beyond its sixtieth passage, for which a search that shows fewer does not wait."
)


def shown(value: Interval, sign: str = "") -> str:
    return f"{value.mean:{sign}.3f} ({value.low:{sign}.3f} to {value.high:{sign}.3f})"


def table(measured: Evaluation) -> str:
    head = (
        f"{measured.name}: {measured.queries} queries, {measured.documents:,} documents, {measured.passages:,} passages"
    )
    lines = ["| method | nDCG@10 | recall@100 | MRR | nDCG@10 over fusion | recall@100 over fusion | ms |"]
    lines += ["|---|---|---|---|---|---|---:|"]
    gains = [measured.gains(measure) for measure in ("ndcg@10", "recall@100")]
    for name, measures in measured.means().items():
        cells = [shown(measures[measure]) for measure in ("ndcg@10", "recall@100", "mrr")]
        cells += [shown(gain[name], "+") if name in gain else "" for gain in gains]
        lines.append(f"| {METHODS[name]} | {' | '.join(cells)} | {measured.milliseconds.get(name, '')} |")
    return f"{head}\n\n" + "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--index", type=Path)
    parser.add_argument("folders", nargs="*", type=Path)
    options = parser.parse_args()
    data = os.environ.get("LAB_BENCH_DATA")
    folders = options.folders or [Path(data) / name for name in COLLECTIONS if data]
    if not folders:
        print("skipped: no folder was named, and LAB_BENCH_DATA is not set")
        return
    with tempfile.TemporaryDirectory() as scratch:
        floor = Settings().rag.floor
        place = options.index or Path(scratch)
        done = [evaluate(collection.read(folder), place, PACKAGED_MODEL, floor) for folder in folders]
    if len(done) > 1:
        done.append(pooled(done))
    text = "\n\n".join([f"Measured {machine()}. {HEAD}", *map(table, done)])
    print(text)
    if options.write:
        write_section("Retrieval", "python benchmarks/retrieval.py", text)


if __name__ == "__main__":
    main()
