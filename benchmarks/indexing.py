"""What taking papers in costs, and what survives a kill at any moment.

python benchmarks/indexing.py [--write] [--papers] [--rate] [--documents N] [--kills N] [--seed N]

Without a part named, all of them run. --write replaces the section in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from report import machine, write_section

from lab_mcp import connection, initialise
from rag.client import Memory
from rag.documents import chunks, files
from rag.embedding import embedder as embedding
from rag.engine import Engine
from rag.indexer import BATCH
from rag.scan import SHELF
from workspace.layout import Workspace
from workspace.settings import Settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))  # makers of papers, killers of services

import pdf_files
from tests_support import end_all, kill_service

PAPERS, PAGES = 12, 20
DOCUMENTS = 10_000
KILLS = 50
RATE_TEXTS = 400
ROUNDS = 5  # of embedder and indexer, in turn: a shared machine drifts


@contextlib.contextmanager
def workspace() -> Iterator[Workspace]:
    with tempfile.TemporaryDirectory(prefix="lab-indexing-") as folder:
        made = Workspace(Path(initialise.init(Path(folder) / "lab").root))
        try:
            yield made
        finally:
            end_all(made.root)


def sentences() -> list[str]:
    """Real sentences, to make papers of."""
    found: list[str] = []
    for note in sorted(SHELF.glob("*.md")):
        for block in files.read(note).blocks:
            found += [block.text[start:end] for start, end in chunks.sentence_spans(block.text)]
    return [" ".join(text.split()) for text in found if 40 < len(text) < 300 and "<" not in text and "&" not in text]


def paper(number: int, pages: int, known: list[str]) -> bytes:
    """About so many pages in two columns, no two papers alike."""
    chance = random.Random(number)
    sections = []
    for section in range(pages):
        paragraphs = [" ".join(chance.choices(known, k=6)) for _ in range(7)]
        sections.append((f"{section + 1} Part {'abcdefghijklmnopqrstuvwxyz'[section % 26]}", paragraphs))
    return pdf_files.article(
        f"Study Number {number} of Small Models", "Ann Smith, Bob Jones", sections, head="A Journal"
    )


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
    """Passages a second of the indexer beside the bare embedder's, the same texts in the same batches, in turn."""
    known = sentences()
    chance = random.Random(7)
    bare, whole = [], []
    with workspace() as lab:
        model = embedding.load(embedding.PACKAGED_MODEL, lab.cache_dir)
        engine = Engine(lab, embedding.PACKAGED_MODEL, 0.3, load=lambda: model)
        engine.indexer.wait_idle(120)
        for number in range(ROUNDS):
            text = "\n\n".join(" ".join(chance.choices(known, k=6)) for _ in range(RATE_TEXTS))
            file = lab.papers_dir / f"round-{number}.txt"
            file.write_text(text)
            searchable = [f"round-{number}\n{chunk.text}" for chunk in chunks.cut(files.read(file).blocks)]
            started = time.monotonic()
            for first in range(0, len(searchable), BATCH):
                model.embed(searchable[first : first + BATCH])
            bare.append(len(searchable) / (time.monotonic() - started))
            before = engine.generations.building.store.count()
            started = time.monotonic()
            assert engine.index([f"papers/{file.name}"], 300).state == "done"
            seconds = time.monotonic() - started
            whole.append((engine.generations.building.store.count() - before) / seconds)
        engine.close(10)
    ratios = sorted(b / a for a, b in zip(bare, whole, strict=True))
    return {
        "embedder_per_s": round(max(bare), 1),
        "indexer_per_s": round(max(whole), 1),
        "ratio_median": round(ratios[len(ratios) // 2], 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


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
    """kill -9 of service or worker at random moments while PDFs, notes and changes come in; then every document is
    counted in the store itself."""
    from lab_mcp.cli_client import call

    chance = random.Random(seed)
    known = sentences()
    victims: Counter[str] = Counter()
    with workspace() as lab:
        notes = []
        for number in range(rounds):
            (lab.papers_dir / f"study-{number}.pdf").write_bytes(paper(number, 2, known))
            if number >= 3 and number % 3 == 0:  # one changes, one moves
                (lab.papers_dir / f"study-{number - 3}.pdf").write_bytes(paper(1000 + number, 2, known))
            call(lab, "rag_index", {"wait_s": 0})
            said = call(lab, "write_session_note", {"text": f"Round {number}: the marmot was {known[number % 50]}"})
            notes.append(said["entry_id"])
            time.sleep(chance.random() * 0.6)
            victim = chance.choice(["service", "worker"])
            pid = _worker(lab) if victim == "worker" else None
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            else:
                victim = "service"
                kill_service(lab)
            victims[victim] += 1
        state = call(lab, "rag_index", {"wait_s": 240})
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and call(lab, "service_status", {})["to_document"]:
            time.sleep(0.2)
        call(lab, "rag_index", {"wait_s": 60})
        endpoint = connection.ensure_service(lab)
        connection.request(endpoint, "POST", "/api/shutdown")
        time.sleep(3.0)
        end_all(lab.root)
        found = _stored(lab)
    missing = [f"paper-study-{n}" for n in range(rounds) if f"paper-study-{n}" not in found["documents"]]
    missing += [note for note in notes if note not in found["documents"]]
    return {
        "seed": seed,
        "rounds": rounds,
        "killed": dict(victims),
        "state": state["state"],
        "missing": missing,
        "twice": found["twice"],
        "miscounted": found["miscounted"],
    }


def _worker(lab: Workspace) -> int | None:
    for candidate in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = candidate.cmdline()
            if "rag.worker" in line and str(lab.root) in line:
                return candidate.pid
    return None


def _stored(lab: Workspace) -> dict[str, Any]:
    """What the index holds when it is opened after all that: documents, passages twice, documents with too few."""
    import qdrant_edge as edge

    model = embedding.load(embedding.PACKAGED_MODEL, lab.cache_dir)
    engine = Engine(lab, embedding.PACKAGED_MODEL, 0.3, load=lambda: model)
    engine.indexer.wait_idle(120)
    entries = {entry.id: entry.chunks for entry in engine.generations.building.catalogue.entries(["done"])}
    shard = engine.generations.building.store._current._shard  # type: ignore[attr-defined]
    records, _ = shard.scroll(edge.ScrollRequest(limit=1_000_000, with_payload=True))
    passages = Counter((record.payload["document"], record.payload["number"]) for record in records)
    counted = Counter(document for document, _ in passages)
    engine.close(10)
    return {
        "documents": entries,
        "twice": [list(key) for key, times in passages.items() if times > 1],
        "miscounted": [name for name in entries.keys() | counted.keys() if entries.get(name) != counted.get(name)],
    }


def table(results: dict[str, Any]) -> str:
    lines = ["| what | measured | asked |", "|---|---|---|"]
    if found := results.get("papers"):
        what = f"{found['papers']} PDFs, {found['pages']} pages, {found['passages']} passages"
        lines.append(f"| {what} | {found['seconds']} s | 12 of 20 pages under 60 s |")
    if found := results.get("rate"):
        pair = f"{found['indexer_per_s']} against {found['embedder_per_s']} passages a second"
        lines.append(f"| indexer beside the bare embedder: {pair} | {found['ratio_median']:.1%} | at least 95 % |")
    if found := results.get("documents"):
        what = f"worker's memory while indexing {found['documents']:,} documents ({found['seconds']} s)"
        lines.append(f"| {what} | {found['peak_mib']:,} MiB | under 1,500 MB |")
    if found := results.get("kills"):
        what = f"kill -9 while indexing, {found['rounds']} times, {found['killed']} (seed {found['seed']})"
        bad = f"{len(found['missing'])} missing, {len(found['twice'])} twice, {len(found['miscounted'])} miscounted"
        lines.append(f"| {what} | {bad} | none |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--papers", action="store_true")
    parser.add_argument("--rate", action="store_true")
    parser.add_argument("--documents", type=int, nargs="?", const=DOCUMENTS)
    parser.add_argument("--kills", type=int, nargs="?", const=KILLS)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    given = parser.parse_args()
    everything = not (given.papers or given.rate or given.documents or given.kills)
    results: dict[str, Any] = {}
    if given.papers or everything:
        results["papers"] = papers()
    if given.rate or everything:
        results["rate"] = rate()
    if given.documents or everything:
        results["documents"] = documents(given.documents or DOCUMENTS)
    if given.kills or everything:
        results["kills"] = kills(given.kills or KILLS, given.seed)
    print(json.dumps(results, indent=1))
    print(table(results))
    if given.write:
        write_section("Indexing", "python benchmarks/indexing.py", f"{machine()}\n\n{table(results)}")


if __name__ == "__main__":
    main()
