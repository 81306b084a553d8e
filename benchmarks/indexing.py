"""What taking papers in costs, and what survives a kill at any moment.

python benchmarks/indexing.py [--write] [--papers] [--rate] [--documents [N]] [--kills [N]] [--seed N] [--kept FILE]

Without a part named, all of them run. --write replaces the section in docs/benchmarks.md. --kept FILE keeps figures
there, each with the day and commit of its measuring, so that parts measured one after the other make one section.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from report import commit, machine, write_section

from lab_mcp import initialise
from rag.client import Memory
from rag.documents import chunks, files
from rag.embedding import embedder as embedding
from rag.engine import Engine
from rag.indexer import BATCH, MOST_AT_ONCE
from workspace import durable
from workspace.layout import Workspace
from workspace.settings import Settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))  # makers of papers, killers of services

from indexing_kills import kill_while_indexing, paper, sentences
from tests_support import end_all

PAPERS, PAGES = 12, 20
DOCUMENTS = 10_000
KILLS = 50
RATE_TEXTS = 150  # paragraphs
RATE_NOTES = 200
WRONG = ("missing", "too_many", "twice", "miscounted", "stale")
ROUNDS = 15  # of embedder and indexer, in turn: a shared machine drifts


@contextlib.contextmanager
def workspace() -> Iterator[Workspace]:
    with tempfile.TemporaryDirectory(prefix="lab-indexing-") as folder:
        made = Workspace(Path(initialise.init(Path(folder) / "lab").root))
        try:
            yield made
        finally:
            end_all(made.root)


def papers() -> dict[str, Any]:
    """Twelve PDFs of twenty pages, from the call to `done`; the first word of progress."""
    import pypdfium2

    known = sentences()
    with workspace() as lab:
        pages = 0
        for number in range(PAPERS):
            content = paper(number, PAGES, known)
            (lab.papers_dir / f"study-{number}.pdf").write_bytes(content)
            pages += len(pypdfium2.PdfDocument(content))
        memory = Memory(lab, Settings())
        memory.search("warm up")  # worker, model and starter shelf are there
        before = memory.status().passages
        started = time.monotonic()
        report = memory.index(wait_s=0)
        told = []
        while report.state != "done":
            status = memory.status()
            told.append((round(time.monotonic() - started, 1), status.waiting, status.current))
            report = memory.index(wait_s=1.0)
        seconds = time.monotonic() - started
        memory.close()
    return {
        "papers": PAPERS,
        "pages": pages,
        "passages": report.passages - before,
        "seconds": round(seconds, 1),
        "failed": report.failed_total,
        "progress": told[:: max(1, len(told) // 5)],
    }


def rate() -> dict[str, Any]:
    """Passages a second of the indexer beside the bare embedder's, the same texts in batches as large, in turn: one
    long text, and many short notes."""
    with workspace() as lab:
        model = embedding.load(embedding.PACKAGED_MODEL, lab.cache_dir)
        engine = Engine(lab, embedding.PACKAGED_MODEL, 0.3, load=lambda: model)
        engine.indexer.wait_idle(120)
        chance, known = random.Random(7), sentences()
        return {
            "long": rounds_of(engine, model, long_text(chance, known)),
            "short": rounds_of(engine, model, short_notes(chance, known)),
        }


Writer = Callable[[Path], list[str]]  # fills a folder; what there is to embed


def long_text(chance: random.Random, known: list[str]) -> Writer:
    def write(folder: Path) -> list[str]:
        file = folder / "text.txt"
        file.write_text("\n\n".join(" ".join(chance.choices(known, k=6)) for _ in range(RATE_TEXTS)))
        return [f"text\n{chunk.text}" for chunk in chunks.cut(files.read(file).blocks)]

    return write


def short_notes(chance: random.Random, known: list[str]) -> Writer:
    def write(folder: Path) -> list[str]:
        texts = []
        for number in range(RATE_NOTES):
            text = f"Note {number} of {folder.name}. {' '.join(chance.choices(known, k=chance.choice([1, 1, 2, 3])))}"
            (folder / f"note-{number}.txt").write_text(text)
            texts.append(f"note-{number}\n{text}")
        return texts

    return write


def rounds_of(engine: Engine, model: embedding.Embedder, write: Writer) -> dict[str, Any]:
    bare, whole = [], []
    for _ in range(ROUNDS):
        folder = Path(tempfile.mkdtemp(dir=engine.workspace.papers_dir))
        searchable = write(folder)
        started = time.monotonic()
        for batch in batches(searchable):
            model.embed(batch)
        bare.append(len(searchable) / (time.monotonic() - started))
        before = engine.generations.building.store.count()
        started = time.monotonic()
        assert engine.index([engine.workspace.relative(folder)], 300).state == "done"
        seconds = time.monotonic() - started
        whole.append((engine.generations.building.store.count() - before) / seconds)
    ratios = sorted(b / a for a, b in zip(bare, whole, strict=True))
    return {
        "embedder_per_s": round(max(bare), 1),
        "indexer_per_s": round(max(whole), 1),
        "ratio_median": round(ratios[len(ratios) // 2], 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def batches(texts: list[str]) -> Iterator[list[str]]:
    """As large as the indexer's."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if sum(map(len, batch)) >= BATCH or len(batch) == MOST_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def documents(count: int) -> dict[str, Any]:
    """The worker's largest memory while it takes in so many one-passage documents, scan included."""
    known = sentences()
    chance = random.Random(11)
    with workspace() as lab:
        for number in range(count):
            folder = lab.papers_dir / f"{number // 500:03d}"
            folder.mkdir(exist_ok=True)
            text = f"# Report {number}\n\n{chance.choice(known)} It was case {number}."
            (folder / f"report-{number}.md").write_text(text)
        memory = Memory(lab, Settings())
        memory.search("warm up")
        peak, stop = [0], threading.Event()

        def watch() -> None:
            while not stop.wait(0.2):
                with contextlib.suppress(psutil.Error):
                    peak[0] = max(peak[0], psutil.Process(memory.worker_pid).memory_info().rss)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        started = time.monotonic()
        report = memory.index(wait_s=0)
        listed = time.monotonic() - started
        while report.state != "done":
            time.sleep(1.0)
            waiting = memory.status().waiting
            print(f"  {time.monotonic() - started:5.0f} s, {waiting} waiting, {peak[0] >> 20} MiB", file=sys.stderr)
            if waiting == 0:
                report = memory.index(wait_s=5.0)
        seconds = time.monotonic() - started
        stop.set()
        watcher.join()
        memory.close()
    return {
        "documents": count,
        "listed_s": round(listed, 1),
        "seconds": round(seconds, 1),
        "peak_mib": peak[0] >> 20,
        "failed": report.failed_total,
    }


def kills(rounds: int, seed: int) -> dict[str, Any]:
    """kill -9 of service or worker at random moments while papers, notes and changes come in."""
    with workspace() as lab:
        return {"seed": seed, "rounds": rounds, **asdict(kill_while_indexing(lab, rounds, seed))}


def table(results: dict[str, Any]) -> str:
    lines = ["| what | measured | asked | at |", "|---|---|---|---|"]

    def row(found: dict[str, Any], what: str, measured: str, asked: str) -> None:
        lines.append(f"| {what} | {measured} | {asked} | {found.get('at', 'not recorded')} |")

    if found := results.get("papers"):
        what = f"{found['papers']} PDFs, {found['pages']} pages, {found['passages']} passages"
        row(found, what, f"{found['seconds']} s", "12 of 20 pages under 60 s")
    if found := results.get("rate"):
        for name, about in (("long", "a long text"), ("short", f"{RATE_NOTES} short notes")):
            if (one := found.get(name)) is None:  # kept from before short notes were measured
                continue
            pair = f"{one['indexer_per_s']} against {one['embedder_per_s']} passages a second at best"
            pair += f", median of {len(one['ratios'])} rounds ({one['ratios'][0]:.0%} to {one['ratios'][-1]:.0%})"
            row(
                found,
                f"indexer beside the bare embedder, {about}: {pair}",
                f"{one['ratio_median']:.1%}",
                "at least 95 %",
            )
    if found := results.get("documents"):
        what = f"worker's memory while indexing {found['documents']:,} documents ({found['seconds']} s)"
        row(found, what, f"{found['peak_mib']:,} MiB", "under 1,500 MB")
    if found := results.get("kills"):
        killed = ", ".join(f"{count} of the {name}" for name, count in found["killed"].items())
        what = f"{found['rounds']} times kill -9 ({killed}; {found['under_way']} while documents waited)"
        counted = [(name.replace("_", " "), found.get(name)) for name in WRONG]
        bad = ", ".join(f"{name} not counted" if one is None else f"{len(one)} {name}" for name, one in counted)
        row(found, f"{what}, seed {found['seed']}", bad, "none")
    return "\n".join(lines)


def stamped(found: dict[str, Any]) -> dict[str, Any]:
    """With the day and the commit it was measured at: a kept figure stays one of its day."""
    return {**found, "at": f"{datetime.now(UTC):%Y-%m-%d}, {commit()}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--papers", action="store_true")
    parser.add_argument("--rate", action="store_true")
    parser.add_argument("--documents", type=int, nargs="?", const=DOCUMENTS)
    parser.add_argument("--kills", type=int, nargs="?", const=KILLS)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--kept", type=Path)
    given = parser.parse_args()
    everything = not (given.papers or given.rate or given.documents or given.kills)
    results: dict[str, Any] = (given.kept and durable.read_json(given.kept)) or {}
    if given.papers or everything:
        results["papers"] = stamped(papers())
    if given.rate or everything:
        results["rate"] = stamped(rate())
    if given.documents or everything:
        results["documents"] = stamped(documents(given.documents or DOCUMENTS))
    if given.kills or everything:
        results["kills"] = stamped(kills(given.kills or KILLS, given.seed))
    if given.kept:
        durable.write_json(given.kept, results)
    print(json.dumps(results, indent=1))
    print(table(results))
    if given.write:
        told = f"Written {machine()}; each row was measured on the day and at the commit its last column names."
        write_section("Indexing", "python benchmarks/indexing.py", f"{told}\n\n{table(results)}")


if __name__ == "__main__":
    main()
