"""kill -9 at any moment of an indexing: afterwards no document is missing and none is there twice."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
from indexing_kills import Outcome, kill_while_indexing
from rag_support import pdf
from tests_support import end_all

from lab_mcp import initialise
from rag.client import Memory
from rag.embedding.embedder import PACKAGED_MODEL, Embedder
from rag.engine import Engine
from rag.index.catalogue import DEADLY
from rag.query import check
from workspace.layout import Workspace
from workspace.settings import Settings

BEASTS = "lynx otter heron badger weasel marten stoat plover curlew dunlin knot shrike".split()


def crash_while_indexing(workspace: Workspace, rounds: int, seed: int) -> None:
    """Fill papers/ in steps, hand over notes, kill the worker `rounds` times, then let it finish."""
    chance = random.Random(seed)
    memory = Memory(workspace, Settings())
    try:
        for n, beast in enumerate(BEASTS):
            body = [f"The {beast} was seen {i} times at the river near camp {i * n}." for i in range(12)]
            (workspace.papers_dir / f"{beast}.pdf").write_bytes(pdf([[f"On the {beast} in winter", *body]] * 2))
        for n in range(rounds):
            memory.index(wait_s=0)
            memory.add("note", f"note-{n}", f"Diary {n}", f"Day {n}: a {BEASTS[n % len(BEASTS)]} crossed the path.")
            time.sleep(chance.random() * 0.4)
            with contextlib.suppress(ProcessLookupError):
                os.kill(memory.worker_pid or 0, signal.SIGKILL)
        report = memory.index(wait_s=120)
        if report.failed:  # in hand through five kills in a row: listed with that reason, read when asked again
            assert {problem.reason for problem in report.failed} == {DEADLY}
            report = memory.index(wait_s=120)
        assert (report.state, report.failed) == ("done", [])
    finally:
        memory.close()


def check_complete(workspace: Workspace, embedder: Embedder, rounds: int) -> None:
    engine = Engine(workspace, PACKAGED_MODEL, 0.3, load=lambda: embedder)
    try:
        catalogue = engine.generations.building.catalogue
        entries = {entry.id: entry for entry in catalogue.entries(["done"])}
        assert catalogue.counts().keys() == {"paper", "note"}
        assert {f"paper-{beast}" for beast in BEASTS} <= entries.keys()
        assert {f"note-{n}" for n in range(rounds)} <= entries.keys()
        stored = stored_passages(engine)
        assert {document: entry.chunks for document, entry in entries.items()} == stored
        for beast in BEASTS:
            hits = engine.search(check(f"{beast} in winter", kinds=["paper"], limit=2)).hits
            assert hits[0].id == f"paper-{beast}"
    finally:
        assert engine.close(10)


def stored_passages(engine: Engine) -> Counter[str]:
    """How many passages the store holds of each document, counted in the store itself."""
    import qdrant_edge as edge

    shard = engine.generations.building.store._current._shard  # type: ignore[attr-defined]
    records, rest = shard.scroll(edge.ScrollRequest(limit=100_000, with_payload=True))
    assert rest is None
    numbers = [(record.payload["document"], record.payload["number"]) for record in records]
    assert len(numbers) == len(set(numbers))
    return Counter(document for document, _ in numbers)


def test_killed_while_indexing(papers: Workspace, embedder: Embedder) -> None:
    crash_while_indexing(papers, 4, seed=1)
    check_complete(papers, embedder, 4)


@pytest.mark.slow
def test_killed_fifty_times_while_indexing(papers: Workspace, embedder: Embedder) -> None:
    crash_while_indexing(papers, 50, seed=2)
    check_complete(papers, embedder, 50)


@pytest.mark.slow
def test_service_and_worker_killed_while_papers_and_notes_come_in(tmp_path: Path) -> None:
    lab = Workspace(Path(initialise.init(tmp_path / "Labor ä 1").root))
    try:
        outcome = kill_while_indexing(lab, 6, seed=3)
    finally:
        end_all(lab.root)
    assert outcome.under_way and all(outcome.killed.values()), "no kill met an indexing"
    assert asdict(outcome) == asdict(Outcome(outcome.killed, outcome.under_way))
