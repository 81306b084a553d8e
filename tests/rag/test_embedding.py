"""The embedder: our ONNX graph gives the vectors of the model it is made from."""

import threading
from pathlib import Path
from shutil import rmtree
from types import ModuleType

import numpy as np
import pytest

from rag import engine
from rag.embedding import embedder as embedding
from rag.embedding import graph
from rag.embedding.embedder import Embedder, OnnxEmbedder, TorchEmbedder
from rag.query import check
from workspace.layout import Workspace

TEXTS = [
    "warm-up",
    "The learning rate is raised slowly at the beginning of training.",
    "A slow rise of the step size in the first steps.",
    "Two eggs, flour and a little salt: mix and bake for an hour.",
    "Größenordnung — naïve café, 数学 and emoji 🙂",
    "A long text. " * 300,  # cut at the model's window
]


def test_the_packaged_model_runs_without_torch(embedder: Embedder) -> None:
    assert isinstance(embedder, OnnxEmbedder)
    assert embedder.dimension == 384


def test_vectors_have_length_one_and_do_not_depend_on_their_batch(embedder: Embedder) -> None:
    together = embedder.embed(TEXTS)
    alone = np.concatenate([embedder.embed([text]) for text in TEXTS])
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.allclose(together, alone, atol=1e-5)


def test_like_texts_are_near_and_unlike_ones_are_not(embedder: Embedder) -> None:
    one, like, other = embedder.embed(TEXTS[1:4])
    assert float(one @ like) > float(one @ other) + 0.2


def test_the_graph_is_built_once_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    embedding.load(embedding.PACKAGED_MODEL, tmp_path).embed(TEXTS[:1])
    built = list((tmp_path / "lab-mcp" / "models").glob("*.onnx"))
    assert len(built) == 1  # one graph serves passages and queries
    assert built[0].stat().st_size < 100_000  # the graph only: its weights stay in the model's own file
    before = built[0].stat().st_mtime_ns
    embedding.load(embedding.PACKAGED_MODEL, tmp_path)
    assert built[0].stat().st_mtime_ns == before


def test_a_cache_that_cannot_be_written_falls_back_to_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert embedding.cache_folder(tmp_path / "own") == tmp_path / "own" / "models"


def test_queries_have_the_vectors_of_passages(embedder: Embedder) -> None:
    queries = np.stack([embedder.embed_query(text) for text in TEXTS])
    assert np.allclose(queries, embedder.embed(TEXTS), atol=1e-5)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnnxEmbedder:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = embedding.load(embedding.PACKAGED_MODEL, tmp_path)
    assert isinstance(made, OnnxEmbedder)
    return made


def test_weights_of_8_bits_give_nearly_the_exact_vectors(own: OnnxEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "GAIN", float("-inf"))  # also where they are slower
    exact, passages = [own.embed_query(text) for text in TEXTS], own.embed(TEXTS)
    own.settle(threading.Event())
    assert own.engine == "onnxruntime, queries with 8-bit weights"
    cosines = [float(one @ own.embed_query(text)) for one, text in zip(exact, TEXTS, strict=True)]
    assert 0.99 < min(cosines) < max(cosines) < 1 - 1e-6  # rounded, not the same weights again
    assert np.array_equal(own.embed(TEXTS), passages)


def test_what_is_stopped_settles_nothing(own: OnnxEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "GAIN", float("-inf"))
    stop = threading.Event()
    monkeypatch.setattr(own, "_timed", lambda *_: stop.set() or 0.001)
    own.settle(stop)
    assert own.engine == "onnxruntime"


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (embedding, "GAIN", 1.0),  # nothing is that much faster
        (embedding, "LEAST_COSINE", 1.0),  # as if the kernel were wrong
        (graph, "BLOCK", 256),  # into which the layers do not divide
    ],
)
def test_weights_of_8_bits_that_gain_nothing_are_wrong_or_fail_change_nothing(
    own: OnnxEmbedder, monkeypatch: pytest.MonkeyPatch, where: ModuleType, name: str, value: float
) -> None:
    before = own.embed_query(TEXTS[1])
    if name != "GAIN":
        monkeypatch.setattr(embedding, "GAIN", float("-inf"))
    monkeypatch.setattr(where, name, value)
    own.settle(threading.Event())
    assert own.engine == "onnxruntime"
    assert np.array_equal(own.embed_query(TEXTS[1]), before)


def test_a_cache_that_is_cleared_or_full_costs_nothing_but_time(own: OnnxEmbedder, tmp_path: Path) -> None:
    rmtree(tmp_path / "lab-mcp")
    (tmp_path / "lab-mcp").write_text("nothing can be kept here")
    assert own.embed(TEXTS[:1]).shape == (1, 384)  # its session is made only now


class Recorder:
    """The packaged model, and when it was told to settle."""

    def __init__(self, real: Embedder) -> None:
        self.model, self.dimension, self.engine = real.model, real.dimension, real.engine
        self.embed, self.embed_query = real.embed, real.embed_query
        self.settled = threading.Event()

    def settle(self, stop: threading.Event) -> None:
        self.settled.set()


def test_memory_settles_when_it_has_come_up(
    papers: Workspace, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SETTLE_AFTER_S", 0.2)
    recorder = Recorder(embedder)
    memory = engine.Engine(papers, embedding.PACKAGED_MODEL, 0.3, load=lambda: recorder)
    assert recorder.settled.wait(30)
    assert memory.close(10)


def test_memory_that_is_closed_does_not_settle_any_more(
    papers: Workspace, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SETTLE_AFTER_S", 600)
    recorder = Recorder(embedder)
    memory = engine.Engine(papers, embedding.PACKAGED_MODEL, 0.3, load=lambda: recorder)
    memory.search(check("warm-up"))
    assert memory.close(10)
    assert not recorder.settled.is_set()


def test_an_evaluation_lets_memory_settle_first(
    papers: Workspace, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "SETTLE_AFTER_S", 600)
    recorder = Recorder(embedder)
    memory = engine.Engine(papers, embedding.PACKAGED_MODEL, 0.3, load=lambda: recorder)
    memory.rankings(["warm-up"])
    assert recorder.settled.is_set()
    assert memory.close(10)


@pytest.mark.slow
def test_vectors_equal_those_of_sentence_transformers(embedder: Embedder) -> None:
    reference = TorchEmbedder("reference", embedding.packaged_folder())
    assert reference.dimension == embedder.dimension
    cosines = (embedder.embed(TEXTS) * reference.embed(TEXTS)).sum(axis=1)
    assert cosines.min() > 0.9999
