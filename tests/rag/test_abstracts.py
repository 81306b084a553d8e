"""A paper is there once: as its file, or as the abstract in a bibliography while there is no file."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from rag_support import eventually

from rag.documents import files
from rag.engine import Engine
from rag.records import IndexReport
from workspace.layout import Workspace

ENTRY = "@article{smith2019, title={%s}, year=2019, %s abstract={An abstract about gannets and their dives.}}"
TITLE = "Gannets: How They Dive"


def index(engine: Engine, *paths: str) -> IndexReport:
    report = engine.index(list(paths) or None, 60)
    assert report.state == "done"
    return report


def papers_in(engine: Engine) -> set[str]:
    """The sources of all papers but those of the shelf."""
    return {one.source for one in engine.documents(["paper"], "", "", 200).documents if one.source[:6] != "shelf:"}


def test_a_paper_indexed_while_the_look_goes_on_is_not_there_as_its_abstract_too(
    engine: Engine, papers: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, catalogue = papers.papers_dir, engine.generations.building.catalogue
    (folder / "refs.bib").write_text(ENTRY % (TITLE, ""))
    (folder / "download.md").write_text(f"# {TITLE}\n\nGannets plunge from thirty metres.")
    (folder / "later.md").write_text("# Later\n\nPuffins overwinter at sea.")
    real = files.content_hash

    def held(parts: list[Path]) -> str:
        if parts[0].name == "later.md":  # the look is half done, and what it has found so far is indexed
            eventually(lambda: any(entry.path for entry in catalogue.entries(["written", "done"]) if
                                   entry.source == "papers/download.md"))  # fmt: skip
        return real(parts)

    monkeypatch.setattr("rag.scan.AT_ONCE", 1)
    monkeypatch.setattr(files, "content_hash", held)
    assert index(engine).added == 2
    assert papers_in(engine) == {"papers/download.md", "papers/later.md"}
    report = index(engine)
    assert (report.added, report.changed, report.removed) == (0, 0, 0)


def test_an_abstract_put_while_its_paper_is_read_gives_way_to_it(
    engine: Engine, papers: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, looked = papers.papers_dir, threading.Event()
    (folder / "refs.bib").write_text(ENTRY % (TITLE, ""))
    (folder / "download.md").write_text(f"# {TITLE}\n\nGannets plunge from thirty metres.")
    joined = engine.indexer._joined

    def held(*arguments: object) -> object:
        answer = joined(*arguments)  # type: ignore[arg-type]
        assert looked.wait(60)
        return answer

    monkeypatch.setattr(engine.indexer, "_joined", held)
    monkeypatch.setattr("rag.scan.AT_ONCE", 1)
    assert engine.index(None, 0).state == "indexing"
    assert papers_in(engine) == {"papers/download.md", "smith2019"}  # nobody knows yet
    looked.set()
    assert engine.indexer.wait_idle(60)
    assert papers_in(engine) == {"papers/download.md"}


@pytest.mark.parametrize("name", ["smith2019.md", "download.md"])
def test_a_look_elsewhere_leaves_a_paper_its_abstract(engine: Engine, papers: Workspace, name: str) -> None:
    """Found to be its own by the file's name, or by the title."""
    (papers.papers_dir / "refs.bib").write_text(ENTRY % (TITLE, ""))
    file = papers.papers_dir / name
    file.write_text(f"# {TITLE}\n\nGannets plunge from thirty metres.")
    index(engine)
    (papers.root / "texts").mkdir()
    (papers.root / "texts" / "later.md").write_text("# Later\n\nPuffins overwinter at sea.")
    assert index(engine, "texts").added == 1
    assert papers_in(engine) == {f"papers/{name}", "texts/later.md"}
    file.unlink()
    assert index(engine).removed == 1
    assert papers_in(engine) == {"smith2019", "texts/later.md"}  # at once, though it may have the file's id


def test_a_paper_known_by_its_arxiv_id_alone_stays_as_it_is(engine: Engine, papers: Workspace) -> None:
    (papers.papers_dir / "refs.bib").write_text(ENTRY % ("Dives", "eprint={2001.01234}, archivePrefix={arXiv},"))
    (papers.papers_dir / "download.md").write_text("---\narxiv: 2001.01234\n---\n\nGannets plunge from on high.")
    index(engine)
    for _ in range(2):
        report = index(engine)
        assert (report.added, report.changed, report.removed) == (0, 0, 0)
    assert papers_in(engine) == {"papers/download.md"}
