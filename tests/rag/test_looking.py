"""A look at the files that goes on after the answer: whatever ends it, it is made to its end, and says how it is."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from killed_child import Child
from rag_support import eventually

from rag.documents import files
from rag.embedding.embedder import PACKAGED_MODEL, Embedder
from rag.engine import Engine
from rag.index.catalogue import Catalogue
from rag.query import check
from workspace.errors import Unavailable
from workspace.layout import Workspace

BIRDS = {"a": "Waxwings eat rowan berries.", "b": "Bramblings eat beech mast.", "c": "Siskins eat alder cones."}
HUNG = """
import threading, time
from pathlib import Path
from rag import engine
from rag.documents import files
from rag.embedding.embedder import PACKAGED_MODEL
from workspace.layout import Workspace
files.content_hash = lambda parts: threading.Event().wait()
engine.LOOK_S = 0.1
made = engine.Engine(Workspace(Path(sys.argv[1])), PACKAGED_MODEL, 0.3)
assert made.index(None, 0).state == "indexing"
print(1, flush=True)
time.sleep(600)
"""


@pytest.fixture
def go(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until it is set no file's content is read, as on a disk that does not answer."""
    event = threading.Event()
    real = files.content_hash

    def held(parts: list[Path]) -> str:
        assert event.wait(60)
        return real(parts)

    monkeypatch.setattr(files, "content_hash", held)
    monkeypatch.setattr("rag.engine.LOOK_S", 0.1)
    yield event
    event.set()


def write_birds(workspace: Workspace) -> None:
    for name, text in BIRDS.items():
        (workspace.papers_dir / f"{name}.md").write_text(text)


def check_birds(workspace: Workspace, embedder: Embedder) -> None:
    """They are found without anybody asking for an indexing again, and nothing is left to look at."""
    engine = Engine(workspace, PACKAGED_MODEL, 0.3, load=lambda: embedder)
    try:
        catalogue = engine.generations.building.catalogue
        eventually(lambda: all(catalogue.get(f"paper-{name}") for name in BIRDS) and not engine.status().waiting)
        for name, text in BIRDS.items():
            assert engine.search(check(text, kinds=["paper"])).hits[0].id == f"paper-{name}"
        eventually(lambda: engine.status().state == "ready")
        assert engine.status().partial == "" and catalogue.looks() == {}
    finally:
        assert engine.close(10)


def test_a_look_that_a_kill_ends_goes_on_at_the_next_start(
    papers: Workspace, embedder: Embedder, tmp_path: Path
) -> None:
    write_birds(papers)
    child = Child(HUNG, tmp_path / "said", str(papers.root))
    child.wait_for_first_line()
    child.kill()
    check_birds(papers, embedder)


def test_a_look_that_a_proper_end_cuts_short_goes_on_at_the_next_start(
    papers: Workspace, embedder: Embedder, go: threading.Event
) -> None:
    engine = Engine(papers, PACKAGED_MODEL, 0.3, load=lambda: embedder)
    write_birds(papers)
    (papers.root / "texts").mkdir()
    (papers.root / "texts" / "d.md").write_text("Dotterels nest on bare mountain tops.")
    assert engine.index(None, 0).state == "indexing"
    assert engine.index(["texts"], 0).state == "indexing"  # this one waits for its turn
    threading.Timer(0.3, go.set).start()
    assert engine.close(10)
    with pytest.raises(Unavailable, match="closing"):
        engine._scanner.look()
    check_birds(papers, embedder)
    again = Engine(papers, PACKAGED_MODEL, 0.3, load=lambda: embedder)
    try:
        assert again.search(check("dotterels mountain", kinds=["paper"])).hits[0].source == "texts/d.md"
    finally:
        assert again.close(10)


def test_what_is_asked_during_a_look_stays_asked_when_that_one_ends(tmp_path: Path) -> None:
    catalogue, newer = Catalogue(tmp_path / "one.db"), Catalogue(tmp_path / "two.db")
    catalogue.look_asked(())
    begun = catalogue.looks()[()]
    catalogue.look_asked(())
    catalogue.look_asked(("texts",))
    catalogue.looked((), begun)
    assert list(catalogue.looks()) == [(), ("texts",)]
    newer.take_over(catalogue)  # another model: what is still to be looked at is so for the new index
    assert list(newer.looks()) == [(), ("texts",)]
    catalogue.looked((), catalogue.looks()[()])
    assert list(catalogue.looks()) == [("texts",)]
    catalogue.close()
    newer.close()


def test_an_end_does_not_wait_for_a_disk_that_does_not_answer(
    papers: Workspace, embedder: Embedder, go: threading.Event
) -> None:
    engine = Engine(papers, PACKAGED_MODEL, 0.3, load=lambda: embedder)
    write_birds(papers)
    assert engine.index(None, 0).state == "indexing"
    answers: list[bool] = []
    closing = threading.Thread(target=lambda: answers.append(engine.close(0.5)), daemon=True)
    closing.start()
    closing.join(30)
    assert answers == [False], "it waited for the disk, or closed the index under a look"
    go.set()
    assert engine.close(10)


def test_an_indexing_answers_while_it_still_looks(engine: Engine, papers: Workspace, go: threading.Event) -> None:
    (papers.papers_dir / "first.md").write_text("# First\n\nWaxwings eat rowan berries.")
    report = engine.index(None, 0)
    assert (report.state, report.added, report.waiting) == ("indexing", 0, 0)
    (papers.papers_dir / "second.md").write_text("# Second\n\nBramblings eat beech mast.")
    assert engine.index(None, 0).state == "indexing"
    go.set()
    assert engine.index(None, 60).state == "done"
    for words, name in (("waxwings rowan", "first"), ("bramblings beech", "second")):
        assert engine.search(check(words)).hits[0].id == f"paper-{name}"


def test_a_look_is_told_by_status_and_searches(engine: Engine, papers: Workspace, go: threading.Event) -> None:
    write_birds(papers)
    eventually(lambda: engine.status().state == "ready")  # the model is being loaded
    engine.index(None, 0)
    status = engine.status()
    assert (status.state, status.waiting) == ("indexing", 0)
    assert "looked through" in status.partial and "looked through" in engine.search(check("waxwings")).partial
    go.set()
    assert engine.index(None, 60).state == "done"
    assert (engine.status().state, engine.status().partial) == ("ready", "")


def test_a_look_that_fails_after_the_answer_is_told(
    engine: Engine, papers: Workspace, go: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, broken = files.find, threading.Event()

    def away(*arguments: Path) -> Iterator[Path]:
        if broken.is_set():
            raise TimeoutError(110, os.strerror(110), str(arguments[0]))
        return find(*arguments)

    write_birds(papers)
    monkeypatch.setattr(files, "find", away)
    assert engine.index(None, 0).state == "indexing"  # held at the first file
    broken.set()
    assert engine.index(None, 0).state == "indexing"  # waits for its turn
    go.set()
    eventually(lambda: "looking for changes failed (TimeoutError" in engine.status().partial)
    with pytest.raises(TimeoutError):  # not "still indexing": it is over
        engine.index(None, 60)
    broken.clear()
    assert engine.index(None, 60).state == "done"
    assert engine.status().partial == ""
