"""The real embedder (loaded once), the real index, the real worker. The starter shelf is indexed once and copied."""

from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest
from rag_support import make_workspace

from rag.client import Memory
from rag.embedding import embedder as embedding
from rag.embedding.embedder import Embedder
from rag.engine import Engine
from workspace.layout import Workspace
from workspace.settings import Settings


@pytest.fixture(scope="session")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    """With exact weights also for queries, however long its engines live and whatever machine this is."""
    made = embedding.load(embedding.PACKAGED_MODEL, tmp_path_factory.mktemp("models"))
    made.settle = lambda stop: None  # type: ignore[method-assign]
    return made


@pytest.fixture(scope="session")
def shelf_lab(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Workspace:
    """A workspace in whose index the starter shelf stands."""
    workspace = make_workspace(tmp_path_factory.mktemp("shelf") / "lab")
    engine = Engine(workspace, embedding.PACKAGED_MODEL, 0.3, load=lambda: embedder)
    assert engine.indexer.wait_idle(120)
    assert engine.close(10)
    return workspace


@pytest.fixture
def papers(tmp_path: Path, shelf_lab: Workspace) -> Workspace:
    """A workspace of its own for each test, with the shelf indexed; its name holds a space and a non-ASCII letter."""
    workspace = make_workspace(tmp_path / "Labor ä 1")
    copytree(shelf_lab.index_dir, workspace.index_dir)
    return workspace


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory, shelf_lab: Workspace, embedder: Embedder) -> Iterator[Engine]:
    """Memory in this process with nothing but the starter shelf; only to be read."""
    workspace = make_workspace(tmp_path_factory.mktemp("library") / "lab")
    copytree(shelf_lab.index_dir, workspace.index_dir)
    made = Engine(workspace, embedding.PACKAGED_MODEL, 0.3, load=lambda: embedder)
    yield made
    assert made.close(10)


@pytest.fixture
def engine(papers: Workspace, embedder: Embedder) -> Iterator[Engine]:
    """Memory in this process."""
    made = Engine(papers, embedding.PACKAGED_MODEL, 0.3, load=lambda: embedder)
    yield made
    assert made.close(10)


@pytest.fixture
def memory(papers: Workspace) -> Iterator[Memory]:
    """Memory as the service has it: a real worker process."""
    made = Memory(papers, Settings())
    yield made
    made.close()
    assert made.worker_pid is None
