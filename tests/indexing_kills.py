"""kill -9 of service and worker while papers and notes come in; then everything is counted in the store itself."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sqlite3
import time
from collections import Counter
from dataclasses import dataclass, field

import pdf_files
import psutil
from tests_support import end_all, kill_service, processes_of

from lab_mcp import connection
from lab_mcp.cli_client import call
from rag.documents import chunks, files
from rag.embedding import embedder as embedding
from rag.engine import Engine
from rag.query import check
from rag.scan import SHELF
from workspace import durable
from workspace.layout import Workspace

LONGEST_S = 300.0
MARK = re.compile(r"zq\d+[ab] (?:marmot|badger)")  # words only one state of one paper holds


@dataclass
class Outcome:
    """What the kills met and what is wrong after them; everything after `under_way` should be empty."""

    killed: dict[str, int] = field(default_factory=lambda: {"service": 0, "worker": 0})
    under_way: int = 0  # kills that came while documents waited or were being indexed
    missing: list[str] = field(default_factory=list)
    too_many: list[str] = field(default_factory=list)  # documents whose file is gone
    twice: list[str] = field(default_factory=list)  # passages
    miscounted: list[str] = field(default_factory=list)  # documents with more or fewer passages than were written
    stale: list[str] = field(default_factory=list)  # papers whose passages do not hold the words of their last state


def sentences() -> list[str]:
    """Real sentences, to make papers of."""
    found: list[str] = []
    for note in sorted(SHELF.glob("*.md")):
        for block in files.read(note).blocks:
            found += [block.text[start:end] for start, end in chunks.sentence_spans(block.text)]
    return [" ".join(text.split()) for text in found if 40 < len(text) < 300 and "<" not in text and "&" not in text]


def paper(number: int, pages: int, known: list[str], words: str = "") -> bytes:
    """About so many pages in two columns, no two papers alike; `words` end its first paragraph."""
    chance = random.Random(number)
    sections = []
    for section in range(pages):
        paragraphs = [" ".join(chance.choices(known, k=6)) for _ in range(7)]
        if section == 0 and words:
            paragraphs[0] = f"This study is about the {words}. {paragraphs[0]}"
        sections.append((f"{section + 1} Part {'abcdefghijklmnopqrstuvwxyz'[section % 26]}", paragraphs))
    return pdf_files.article(
        f"Study Number {number} of Small Models", "Ann Smith, Bob Jones", sections, head="A Journal"
    )


def kill_while_indexing(lab: Workspace, rounds: int, seed: int) -> Outcome:
    """Each round two papers and a note come, sometimes one changes, moves or goes; then service or worker is killed."""
    chance, known, outcome = random.Random(seed), sentences(), Outcome()
    words: dict[str, str] = {}  # of each paper that is there: only it holds them
    notes: list[str] = []
    for number in range(rounds):
        for which in (2 * number, 2 * number + 1):
            words[f"study-{which}"] = f"zq{which}a marmot"
            (lab.papers_dir / f"study-{which}.pdf").write_bytes(paper(which, 1, known, words[f"study-{which}"]))
        if number % 3 == 2:
            changed, moved, gone = chance.sample(sorted(words), 3)
            words[changed] = f"zq{number}b badger"
            path = next(lab.papers_dir.rglob(f"{changed}.pdf"))
            path.write_bytes(paper(1000 + number, 1, known, words[changed]))
            (lab.papers_dir / f"moved-{number}").mkdir()
            next(lab.papers_dir.rglob(f"{moved}.pdf")).rename(lab.papers_dir / f"moved-{number}" / f"{moved}.pdf")
            next(lab.papers_dir.rglob(f"{gone}.pdf")).unlink()
            del words[gone]
        call(lab, "rag_index", {"wait_s": 0})
        said = call(lab, "write_session_note", {"text": f"Round {number}: the weasel was {known[number % len(known)]}"})
        notes.append(f"note-{said['entry_id']}")
        which = ("service", "worker")[number % 2]
        _kill(lab, which, chance.random() * 0.6)
        outcome.killed[which] += 1
        outcome.under_way += _waits(lab)
    _finish(lab)
    _compare(lab, words, notes, outcome)
    return outcome


def _kill(lab: Workspace, which: str, after_s: float) -> None:
    deadline = time.monotonic() + LONGEST_S
    while (worker := next((p for p in processes_of(lab.root) if _is_worker(p)), None)) is None and which == "worker":
        assert time.monotonic() < deadline, "no worker was started"
        time.sleep(0.02)
    time.sleep(after_s)
    if which == "service":
        kill_service(lab)
    elif worker is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGKILL)


def _is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "rag.worker" in process.cmdline()
    return False


def _waits(lab: Workspace) -> bool:
    """Whether the catalogue on disk holds documents that are not indexed yet, or places still to be looked at."""
    current = durable.read_json(lab.index_dir / "current.json")
    if current is None:
        return True
    file = lab.index_dir / current["folder"] / "catalogue.db"
    with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=5.0)) as catalogue:
        documents = "SELECT count(*) FROM documents WHERE state IN ('pending', 'written', 'removing')"
        return any(catalogue.execute(query).fetchone()[0] for query in (documents, "SELECT count(*) FROM looks"))


def _finish(lab: Workspace) -> None:
    """Let everything be taken in without asking for it again, and end service and worker properly."""
    deadline = time.monotonic() + LONGEST_S
    call(lab, "rag_search", {"query": "marmot"})  # starts a worker that was killed
    while call(lab, "service_status", {})["to_document"] or _waits(lab):
        assert time.monotonic() < deadline, "indexing did not come to its end"
        time.sleep(0.2)
    connection.request(connection.ensure_service(lab), "POST", "/api/shutdown")
    psutil.wait_procs(processes_of(lab.root), timeout=15)
    end_all(lab.root)


def _compare(lab: Workspace, words: dict[str, str], notes: list[str], outcome: Outcome) -> None:
    import qdrant_edge as edge

    model = embedding.load(embedding.PACKAGED_MODEL, lab.cache_dir)
    engine = Engine(lab, embedding.PACKAGED_MODEL, 0.3, load=lambda: model)
    try:
        entries = {entry.id: entry.chunks for entry in engine.generations.building.catalogue.entries(["done"])}
        shard = engine.generations.building.store._current._shard  # type: ignore[attr-defined]
        records, rest = shard.scroll(edge.ScrollRequest(limit=1_000_000, with_payload=True))
        assert rest is None
        passages = Counter((record.payload["document"], record.payload["number"]) for record in records)
        counted = Counter(document for document, _ in passages)
        wanted = {f"paper-{name}" for name in words} | set(notes)
        outcome.missing = sorted(wanted - entries.keys())
        outcome.too_many = sorted(n for n in entries if n.startswith("paper-study-") and n not in wanted)
        outcome.twice = [f"{name} {number}" for (name, number), times in passages.items() if times > 1]
        outcome.miscounted = sorted(n for n in entries.keys() | counted.keys() if entries.get(n) != counted.get(n))
        texts: dict[str, str] = {}
        for record in records:
            texts[record.payload["document"]] = f"{texts.get(record.payload['document'], '')} {record.payload['text']}"
        for name, said in words.items():
            held = set(MARK.findall(texts.get(f"paper-{name}", "")))
            if held != {said} or not engine.search(check(said, kinds=["paper"])).hits:
                outcome.stale.append(name)
    finally:
        assert engine.close(10)
