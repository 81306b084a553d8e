"""How long passages should be: retrieval with several sizes.

python benchmarks/passages.py [--write] [--sizes 300 1000 ...]

Reads cranfield and pubmedqa of the folder LAB_BENCH_DATA names. Cranfield's documents are taken whole and ranked by
their best passage. 500 abstracts of PubMedQA are bound into volumes of 20, in which passages may straddle abstracts:
a question has found its place when more than half of a quote shown lies in its abstract.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import machine, write_section

from rag.documents import chunks
from rag.embedding.embedder import PACKAGED_MODEL, load
from rag.engine import Engine
from rag.evaluation import bootstrap, collection
from rag.evaluation.evaluate import evaluate
from rag.index.catalogue import Entry
from rag.query import check
from workspace.layout import Workspace
from workspace.settings import Settings

SIZES = (500, 1000, 1500)  # characters
VOLUME, VOLUMES = 20, 25  # abstracts in one; volumes
SHOWN = 10
LONGEST_S = 1800.0
FLOOR = Settings().rag.floor


def set_size(target: int) -> None:
    """With the other two limits in the same proportion as those in use."""
    chunks.TARGET, chunks.LONGEST, chunks.SHORTEST = target, round(1.3 * target), round(0.25 * target)


def volumes(data: Path) -> tuple[list[Entry], dict[str, tuple[str, int, int]]]:
    """The volumes, and for each question its document with the start and end of its abstract in it."""
    articles = json.loads((data / "pubmedqa" / "ori_pqal.json").read_text(encoding="utf-8"))
    names = sorted(articles)[: VOLUME * VOLUMES]
    entries, places = [], {}
    for begin in range(0, len(names), VOLUME):
        name, text = f"volume-{begin // VOLUME + 1:02d}", ""
        for one in names[begin : begin + VOLUME]:
            abstract = "\n\n".join(articles[one]["CONTEXTS"])
            places[articles[one]["QUESTION"]] = (name, len(text), len(text) + len(abstract))
            text += abstract + "\n\n"
        entries.append(Entry(name, "paper", name.replace("-", " ").title(), name, "", body=text))
    return entries, places


def in_volumes(data: Path, scratch: Path) -> dict[str, Any]:
    entries, places = volumes(data)
    workspace = Workspace(scratch)
    workspace.root.mkdir()
    workspace.create_folders()
    model = load(PACKAGED_MODEL, workspace.cache_dir)
    engine = Engine(workspace, PACKAGED_MODEL, FLOOR, load=lambda: model, shelf=False)
    try:
        engine.add_all(entries)
        assert engine.indexer.wait_idle(LONGEST_S)
        first, ranks, took = [], [], []
        for question, (document, start, end) in places.items():
            asked = check(question, limit=SHOWN)
            begun = time.perf_counter()
            hits = engine.search(asked).hits
            took.append(time.perf_counter() - begun)
            right = [hit.id == document and _mostly(hit.offsets, start, end) for hit in hits]
            first.append(float(right[:1] == [True]))
            ranks.append(next((1 / n for n, one in enumerate(right, 1) if one), 0.0))
        count = engine.status().passages
    finally:
        engine.close()
    return {"passages": count, "first": first, "mrr": ranks, "ms": statistics.median(took) * 1000}


def _mostly(offsets: list[int], start: int, end: int) -> bool:
    inside = min(offsets[1], end) - max(offsets[0], start)
    return inside * 2 > offsets[1] - offsets[0]


def measure(size: int, data: Path) -> dict[str, Any]:
    set_size(size)
    with tempfile.TemporaryDirectory() as folder:
        whole = evaluate(collection.read(data / "cranfield"), Path(folder), PACKAGED_MODEL, FLOOR)
        bound = in_volumes(data, Path(folder) / "volumes")
    values = whole.values["default"]
    return {
        "size": size,
        "cranfield_passages": whole.passages,
        "ndcg": values["ndcg@10"],
        "recall": values["recall@100"],
        "volumes": bound,
    }


def table(results: list[dict[str, Any]], base: int) -> str:
    lines = [
        "| characters | Cranfield: passages | nDCG@10 | recall@100 | volumes: passages | right place first | MRR |",
        "|---:|---:|---|---|---:|---|---|",
    ]
    reference = next((one for one in results if one["size"] == base), results[0])
    for one in results:
        cells = [
            _cell(one["ndcg"], reference["ndcg"], one is reference),
            _cell(one["recall"], reference["recall"], one is reference),
            f"{one['volumes']['passages']:,}",
            _cell(one["volumes"]["first"], reference["volumes"]["first"], one is reference),
            _cell(one["volumes"]["mrr"], reference["volumes"]["mrr"], one is reference),
        ]
        lines.append(f"| {one['size']:,} | {one['cranfield_passages']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float], reference: list[float], itself: bool) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    if itself:
        return mean
    gain = bootstrap.difference(values, reference)
    return f"{mean} ({gain.low:+.3f} to {gain.high:+.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    options = parser.parse_args()
    data = os.environ.get("LAB_BENCH_DATA")
    if not data:
        print("skipped: LAB_BENCH_DATA is not set")
        return
    in_use = chunks.TARGET
    results = []
    for size in options.sizes:
        results.append(measure(size, Path(data)))
        print(table(results, in_use), file=sys.stderr, flush=True)
    head = f"Measured {machine()}. In brackets the 95 % interval of the difference to the size in use, over questions."
    text = f"{head}\n\n{table(results, in_use)}"
    print(text)
    if options.write:
        write_section("Passage size", "python benchmarks/passages.py", text)


if __name__ == "__main__":
    main()
