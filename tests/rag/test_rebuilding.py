"""A change of model or schema: the new index is built beside the old one, which answers by words until the swap."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from rag_support import eventually

from rag.embedding.embedder import PACKAGED_MODEL, Embedder
from rag.engine import Engine
from rag.index.catalogue import Entry
from rag.index.inspect import index_state
from rag.index.store import SCHEMA
from rag.query import check
from workspace.layout import Workspace

if TYPE_CHECKING:
    from rag.embedding.embedder import Vectors


class Held:
    """The packaged model under another name, cut to fewer dimensions; embeds documents when it is let go."""

    model = "held"
    engine = "test"
    dimension = 100

    def __init__(self, inner: Embedder) -> None:
        self.inner = inner
        self.go = threading.Event()

    def embed(self, texts: Sequence[str]) -> Vectors:
        if max(map(len, texts)) > 40:
            assert self.go.wait(60)
        vectors = self.inner.embed(texts)[:, : self.dimension]
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def embed_query(self, text: str) -> Vectors:
        vector: Vectors = self.embed([text])[0]
        return vector

    def settle(self, stop: threading.Event) -> None:
        """It is as fast as it gets."""


def note(name: str, body: str) -> Entry:
    return Entry(name, "note", name.title(), name, "", body=body)


def test_a_new_model_is_swapped_in_when_its_index_is_complete(papers: Workspace, embedder: Embedder) -> None:
    first = Engine(papers, PACKAGED_MODEL, 0.3, load=lambda: embedder)
    first.add(note("note-1", "Capercaillies lek in pine forests, and dance before the sun is up in early spring."))
    first.add(note("note-2", "Dotterels trip over the tops of the fells, and are seldom seen there by anybody."))
    assert first.indexer.wait_idle(30)
    assert first.search(check("dotterels trip over the tops")).hits[0].id == "note-2"
    passages = first.generations.building.store.count()
    assert first.close(10)

    held = Held(embedder)
    second = Engine(papers, "held", 0.25, load=lambda: held)
    page = second.search(check("capercaillies in pine forests"))
    assert page.hits[0].id == "note-1"
    assert page.hits[0].similarity is None
    assert "being rebuilt" in page.partial
    assert second.status().state == "rebuilding"
    assert second.remove("note-2")  # which the old index still holds
    assert "note-2" not in [hit.id for hit in second.search(check("dotterels trip over the tops")).hits]
    held.go.set()
    eventually(lambda: second.generations.serving is None, 60)
    page = second.search(check("capercaillies in pine forests"))
    assert (page.hits[0].id, page.partial) == ("note-1", "")
    assert page.hits[0].similarity is not None
    assert second.generations.building.store.count() == passages - 1
    eventually(lambda: len(list(papers.index_dir.glob("generation-*"))) == 1)
    assert second.close(10)


def test_a_rebuild_that_was_interrupted_goes_on(papers: Workspace, embedder: Embedder) -> None:
    held = Held(embedder)
    interrupted = Engine(papers, "held", 0.25, load=lambda: held)
    interrupted.indexer._stopping.set()  # ends before its first document is in
    held.go.set()
    assert interrupted.close(10)
    assert len(list(papers.index_dir.glob("generation-*"))) == 2

    third = Engine(papers, "held", 0.25, load=lambda: held)
    eventually(lambda: third.generations.serving is None, 60)
    assert third.search(check("keyword search against dense retrieval")).hits
    assert third.close(10)


def test_a_new_schema_starts_afresh_and_keeps_what_was_handed_over(papers: Workspace, embedder: Embedder) -> None:
    first = Engine(papers, PACKAGED_MODEL, 0.3, load=lambda: embedder)
    first.add(note("note-1", "Ospreys plunge for trout."))
    assert first.indexer.wait_idle(30)
    assert first.close(10)
    second = Engine(papers, PACKAGED_MODEL, 0.3, load=lambda: embedder, schema=99)
    assert second.indexer.wait_idle(60)
    eventually(lambda: second.search(check("ospreys trout")).hits)
    assert second.close(10)


def test_an_index_is_looked_at_without_opening_it(papers: Workspace, embedder: Embedder) -> None:
    engine = Engine(papers, PACKAGED_MODEL, 0.3, load=lambda: embedder)
    try:
        engine.add(note("note-1", "Ptarmigans turn white in winter."))
        engine.add(note("note-2", "1"))
        assert engine.indexer.wait_idle(30)
        found = index_state(papers.index_dir)  # while it is in use
        assert found is not None
        assert (found.model, found.schema, found.failed, found.problem) == (PACKAGED_MODEL, SCHEMA, 1, "")
        assert found.documents == sum(engine.status().documents.values())
        folder = engine.generations.building.folder
    finally:
        assert engine.close(10)
    (folder / "catalogue.db").write_bytes(b"not a database " * 500)
    damaged = index_state(papers.index_dir)
    assert damaged is not None and "cannot be read" in damaged.problem
    (folder / "catalogue.db").unlink()
    missing = index_state(papers.index_dir)
    assert missing is not None and missing.problem == "its catalogue is missing"
    assert index_state(papers.root) is None
