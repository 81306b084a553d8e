"""Passages of several documents embedded together: how many at once, and what becomes of one that changes meanwhile."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from killed_child import ROOT
from rag_support import eventually

from rag import indexer
from rag.documents import chunks, files
from rag.documents.document import Unreadable
from rag.embedding.embedder import PACKAGED_MODEL, Embedder
from rag.engine import Engine
from rag.index.catalogue import READ_ATTEMPTS, Catalogue, Entry
from rag.query import check
from workspace.layout import Workspace

if TYPE_CHECKING:
    from rag.embedding.embedder import Vectors

POISON = """
import os
from pathlib import Path
import numpy as np
from rag.embedding.embedder import PACKAGED_MODEL
from rag.engine import Engine
from workspace.layout import Workspace
class Deadly:
    model, dimension, engine = PACKAGED_MODEL, 384, "none"
    def embed(self, texts):
        if any("hemlock" in text for text in texts):
            os._exit(9)
        return np.full((len(texts), 384), 384 ** -0.5, dtype=np.float32)
    def embed_query(self, text):
        return self.embed([text])[0]
    def settle(self, stop):
        pass
engine = Engine(Workspace(Path(sys.argv[1])), PACKAGED_MODEL, 0.3, load=Deadly)
assert engine.indexer.wait_idle(60)
assert engine.close(10)
"""


class Watched:
    """An embedder that notes what it is asked, and lets a test do something before it answers."""

    def __init__(self, real: Embedder) -> None:
        self._real = real
        self.model, self.dimension, self.engine = real.model, real.dimension, real.engine
        self.calls: list[list[str]] = []
        self.before: Callable[[Sequence[str]], None] = lambda texts: None

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.calls.append(list(texts))
        self.before(texts)
        return self._real.embed(texts)

    def embed_query(self, text: str) -> Vectors:
        return self._real.embed_query(text)

    def settle(self, stop: threading.Event) -> None:
        self._real.settle(stop)


@pytest.fixture
def watched(embedder: Embedder) -> Watched:
    return Watched(embedder)


@pytest.fixture
def lab(papers: Workspace, watched: Watched) -> Iterator[Engine]:
    made = Engine(papers, PACKAGED_MODEL, 0.3, load=lambda: watched)
    yield made
    assert made.close(10)


def note(number: int, body: str) -> Entry:
    return Entry(f"note-{number}", "note", f"Note {number}", f"note-{number}", "", body=body)


def long_text(beast: str) -> str:
    return f"# {beast}\n\n" + " ".join(f"Sentence {n} is about a {beast} in the hills." for n in range(600))


def numbers(engine: Engine, document: str) -> list[int]:
    """Of a document's passages, as the store holds them."""
    import qdrant_edge as edge

    shard = engine.generations.building.store._current._shard  # type: ignore[attr-defined]
    records, _ = shard.scroll(edge.ScrollRequest(limit=100_000, with_payload=True))
    return sorted(record.payload["number"] for record in records if record.payload["document"] == document)


def test_short_documents_are_embedded_together(lab: Engine, watched: Watched) -> None:
    lab.indexer.wait_idle(60)
    watched.calls.clear()
    count = 100
    assert lab.add_all(note(n, f"Day {n}: a stoat crossed the path near hut {n * 7}.") for n in range(count)) == count
    assert lab.indexer.wait_idle(60)
    asked = [texts for texts in watched.calls if any("stoat" in text for text in texts)]
    assert sum(map(len, asked)) == count and len(asked) <= 4
    assert max(map(len, asked)) <= indexer.MOST_AT_ONCE
    entries = [lab.generations.building.catalogue.get(f"note-{n}") for n in range(count)]
    assert {entry and entry.chunks for entry in entries} == {1}
    assert all(numbers(lab, f"note-{n}") == [0] for n in (0, 50, 99))


def test_a_batch_is_bounded_and_joins_the_end_of_one_document_with_the_next(
    lab: Engine, papers: Workspace, watched: Watched
) -> None:
    for beast in ("chamois", "ibex", "marmot"):
        (papers.papers_dir / f"{beast}.md").write_text(long_text(beast))
    watched.calls.clear()
    assert lab.index(None, 120).state == "done"
    asked = [texts for texts in watched.calls if any("Sentence" in text for text in texts)]
    assert max(sum(map(len, texts)) for texts in asked) < indexer.BATCH + 2 * chunks.LONGEST
    assert any(len({text.split("\n")[0] for text in texts}) > 1 for texts in asked)
    for beast in ("chamois", "ibex", "marmot"):
        entry = lab.generations.building.catalogue.get(f"paper-{beast}")
        assert entry is not None and numbers(lab, entry.id) == list(range(entry.chunks)) and entry.chunks > 8


def test_the_next_batch_is_read_while_one_is_embedded(lab: Engine, watched: Watched) -> None:
    catalogue = lab.generations.building.catalogue
    read: list[bool] = []

    def look(texts: Sequence[str]) -> None:
        if not read and any("stoat" in text for text in texts):
            eventually(lambda: any(entry.attempts for entry in map(catalogue.get, later) if entry))
            read.append(True)

    watched.before = look
    notes = [note(n, f"Day {n}: a stoat crossed the path near hut {n * 7}.") for n in range(3 * indexer.MOST_AT_ONCE)]
    later = [one.id for one in notes[indexer.MOST_AT_ONCE :]]
    lab.add_all(notes)
    assert lab.indexer.wait_idle(60) and read == [True]
    assert all(numbers(lab, one.id) == [0] for one in notes)


def test_what_is_embedded_waits_for_no_row_of_unreadable_papers_and_neither_does_a_note(
    lab: Engine, papers: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalogue = lab.generations.building.catalogue
    real, seen, count = files.read, [], 60

    def read(path: Path, *more: object, **named: object) -> object:
        if path.name.startswith("scan"):
            time.sleep(0.05)
            seen.append([entry and entry.state for entry in map(catalogue.get, ("paper-a-stoat", "note-1"))])
            if len(seen) == 5:
                lab.add(note(1, "A vole digs."))
            raise Unreadable("it has no text layer")
        return real(path, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "read", read)
    (papers.papers_dir / "a-stoat.md").write_text("A stoat crossed the path near the hut.")
    for number in range(count):
        (papers.papers_dir / f"scan-{number:02d}.md").write_text(f"{number}")
    assert lab.index(None, 60).failed_total == count and len(seen) == count
    assert any(set(states) <= {"written", "done"} for states in seen)


def test_a_store_that_fails_once_loses_and_doubles_nothing(lab: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the next batch is embedded."""
    store = lab.generations.building.store
    real, failures = store.upsert, []

    def upsert(*given: object) -> None:
        if not failures:
            failures.append(len(given))
            raise RuntimeError("the segment is gone")
        real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "upsert", upsert)
    notes = [note(n, f"Day {n}: a stoat crossed the path near hut {n * 7}.") for n in range(3 * indexer.MOST_AT_ONCE)]
    lab.add_all(notes)
    assert lab.indexer.wait_idle(60) and failures
    assert all(numbers(lab, one.id) == [0] for one in notes)
    entries = [lab.generations.building.catalogue.get(one.id) for one in notes]
    assert {entry and (entry.attempts, entry.chunks) for entry in entries} == {(0, 1)}


def test_a_document_a_process_died_over_is_embedded_alone(papers: Workspace, watched: Watched) -> None:
    """Also where it waits behind others that are being embedded."""
    catalogue = Catalogue(next(papers.index_dir.glob("generation-*")) / "catalogue.db")
    count = 2 * indexer.MOST_AT_ONCE
    catalogue.put_all(note(n, f"Day {n}: a stoat crossed the path near hut {n * 7}.") for n in range(count))
    dangerous = catalogue.get(f"note-{count // 2 + 3}")
    assert dangerous is not None and catalogue.opening(dangerous)
    catalogue.close()
    under_way: list[str] = []

    def look(texts: Sequence[str]) -> None:
        for entry in map(engine.generations.building.catalogue.get, (f"note-{n}" for n in range(count))):
            if entry is not None and entry.attempts and any(str(entry.body) in text for text in texts):
                under_way.append(f"{entry.id} x{entry.attempts} of {len(texts)}")

    watched.before = look
    engine = Engine(papers, PACKAGED_MODEL, 0.3, load=lambda: watched)
    assert engine.indexer.wait_idle(60) and engine.close(10)
    assert [told for told in under_way if told.startswith(f"{dangerous.id} ")] == [f"{dangerous.id} x2 of 1"]


def test_documents_are_embedded_together_when_all_are_indexed_again(lab: Engine, watched: Watched) -> None:
    lab.add_all(note(n, f"Day {n}: a stoat crossed the path near hut {n * 7}.") for n in range(60))
    assert lab.indexer.wait_idle(60)
    watched.calls.clear()
    catalogue = lab.generations.building.catalogue
    catalogue.again(f"note-{n}" for n in range(60))
    lab.indexer.wake()
    assert lab.indexer.wait_idle(60)
    assert len(watched.calls) <= 2 and sum(map(len, watched.calls)) == 60


def test_what_is_to_be_done_is_found_without_looking_through_all_documents(tmp_path: Path) -> None:
    """Counted in the database's own steps."""

    def steps(done: int, waiting: int) -> list[int]:
        catalogue = Catalogue(tmp_path / f"{done}-{waiting}.db")
        catalogue.put_all(note(n, "") for n in range(done + waiting))
        catalogue.written_all((one, 1, "") for n in range(done) if (one := catalogue.get(f"note-{n}")))
        catalogue.flushed()
        first = catalogue.next()
        assert first is not None and first.id == f"note-{done}" and catalogue.waiting() == waiting
        asked: list[Callable[[], object]] = [
            catalogue.next,
            lambda: catalogue.next(after=first),
            lambda: catalogue.entries(["failed"]),
            catalogue.flushed,
            lambda: catalogue.standing([first]),
        ]
        counts = []
        for ask in asked:
            count = [0]
            for database in (catalogue._database, catalogue._progress):
                database._connection().set_progress_handler(lambda count=count: count.append(1), 1)  # type: ignore[misc]
            ask()
            for database in (catalogue._database, catalogue._progress):
                database._connection().set_progress_handler(None, 1)
            counts.append(len(count))
        catalogue.close()
        return counts

    few = steps(done=10, waiting=5)
    assert max(steps(done=1000, waiting=5)) <= 2 * max(few) < 1000
    assert max(steps(done=10, waiting=1000)) <= 2 * max(few)


def test_one_removed_while_it_is_in_hand_leaves_nothing(lab: Engine, papers: Workspace, watched: Watched) -> None:
    removed: list[bool] = []

    def remove(texts: Sequence[str]) -> None:
        if not removed and any("chamois" in text for text in texts):
            removed.append(lab.remove("paper-chamois"))

    watched.before = remove
    (papers.papers_dir / "chamois.md").write_text(long_text("chamois"))
    (papers.papers_dir / "ibex.md").write_text(long_text("ibex"))
    lab.index(None, 120)
    assert lab.indexer.wait_idle(60) and removed == [True]
    assert numbers(lab, "paper-chamois") == []
    assert lab.generations.building.catalogue.get("paper-chamois") is None
    assert numbers(lab, "paper-ibex")


def test_one_put_again_while_it_is_in_hand_ends_as_it_was_put_last(lab: Engine, watched: Watched) -> None:
    again: list[bool] = []

    def put(texts: Sequence[str]) -> None:
        if not again and any("chamois" in text for text in texts):
            again.append(lab.add(note(1, "A pika whistles.")))

    watched.before = put
    lab.add_all([note(1, long_text("chamois")), note(2, "A vole digs.")])
    assert lab.indexer.wait_idle(60) and again == [True]
    assert numbers(lab, "note-1") == numbers(lab, "note-2") == [0]
    assert lab.search(check("pika whistles")).hits[0].id == "note-1"


def test_one_whose_cutting_fails_takes_no_other_with_it(
    lab: Engine, papers: Workspace, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = chunks.cut

    def cut(blocks: Sequence[object]) -> Iterator[chunks.Chunk]:
        for number, chunk in enumerate(real(blocks)):  # type: ignore[arg-type]
            if "ibex" in chunk.text and number == 9:
                raise ValueError("no end to this sentence")
            yield chunk

    monkeypatch.setattr(chunks, "cut", cut)
    for beast in ("chamois", "ibex", "marmot"):
        (papers.papers_dir / f"{beast}.md").write_text(long_text(beast))
    report = lab.index(None, 120)
    assert [(one.source, one.reason) for one in report.failed] == [
        ("papers/ibex.md", "it cannot be read (ValueError: no end to this sentence)")
    ]
    assert numbers(lab, "paper-ibex") == []
    assert numbers(lab, "paper-chamois") and numbers(lab, "paper-marmot")
    assert lab.status().partial == ""


def test_an_end_in_the_middle_of_a_document_is_not_held_against_it(
    lab: Engine, papers: Workspace, watched: Watched
) -> None:
    reached, go = threading.Event(), threading.Event()

    def wait(texts: Sequence[str]) -> None:
        if any("chamois" in text for text in texts):
            reached.set()
            assert go.wait(60)

    watched.before = wait
    (papers.papers_dir / "chamois.md").write_text(long_text("chamois"))
    lab.index(None, 0)
    assert reached.wait(60)
    catalogue = lab.generations.building.catalogue
    entry = catalogue.get("paper-chamois")
    assert entry is not None and entry.attempts == 1
    threading.Timer(0.2, go.set).start()
    assert lab.indexer.stop(30)
    entry = catalogue.get("paper-chamois")
    assert entry is not None and (entry.state, entry.attempts) == ("pending", 0)


def test_the_one_document_that_kills_the_process_is_given_up_and_no_other(papers: Workspace) -> None:
    catalogue = Catalogue(next(papers.index_dir.glob("generation-*")) / "catalogue.db")
    plants = [*(f"Plant {n} is a harmless cress." for n in range(5)), "A hemlock.", "A late cress."]
    catalogue.put_all(note(n, text) for n, text in enumerate(plants))
    code = [sys.executable, "-P", "-s", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{POISON}"]
    deaths = 0
    while subprocess.run([*code, str(papers.root)], check=False).returncode == 9:
        deaths += 1
        assert deaths <= READ_ATTEMPTS, "it is tried for ever"
    assert deaths == READ_ATTEMPTS
    states = {number: catalogue.get(f"note-{number}") for number in range(len(plants))}
    assert {number: entry and entry.state for number, entry in states.items()} == {
        number: "failed" if "hemlock" in text else "done" for number, text in enumerate(plants)
    }
    catalogue.close()
