"""The embedder: our ONNX graph gives the vectors of the model it is made from."""

from pathlib import Path

import numpy as np
import pytest

from rag.embedding import embedder as embedding
from rag.embedding import graph
from rag.embedding.embedder import Embedder, OnnxEmbedder, TorchEmbedder

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
    embedding.load(embedding.PACKAGED_MODEL, tmp_path)
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
    for text, vector in zip(TEXTS, embedder.embed(TEXTS), strict=True):
        assert float(embedder.embed_query(text) @ vector) > 0.995  # once settled, of rounded weights


def test_weights_of_8_bits_give_nearly_the_exact_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(embedding, "GAIN", float("-inf"))  # also where they are slower
    own = embedding.load(embedding.PACKAGED_MODEL, tmp_path)
    exact, passages = [own.embed_query(text) for text in TEXTS], own.embed(TEXTS)
    own.settle()
    assert own.engine == "onnxruntime, queries with 8-bit weights"
    cosines = [float(one @ own.embed_query(text)) for one, text in zip(exact, TEXTS, strict=True)]
    assert 0.995 < min(cosines) < max(cosines) < 1 - 1e-6  # rounded, not the same weights again
    assert np.array_equal(own.embed(TEXTS), passages)  # an index does not change with the machine


def test_weights_of_8_bits_that_gain_nothing_or_fail_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slower, broken = (embedding.load(embedding.PACKAGED_MODEL, tmp_path) for _ in range(2))
    before = slower.embed_query(TEXTS[1])
    monkeypatch.setattr(embedding, "GAIN", 1.0)
    slower.settle()
    monkeypatch.setattr(graph, "BLOCK", 256)  # into which the layers do not divide
    broken.settle()
    assert "not a multiple of 256" in caplog.text
    for own in (slower, broken):
        assert own.engine == "onnxruntime"
        assert np.array_equal(own.embed_query(TEXTS[1]), before)


@pytest.mark.slow
def test_vectors_equal_those_of_sentence_transformers(embedder: Embedder) -> None:
    reference = TorchEmbedder("reference", embedding.packaged_folder())
    assert reference.dimension == embedder.dimension
    cosines = (embedder.embed(TEXTS) * reference.embed(TEXTS)).sum(axis=1)
    assert cosines.min() > 0.9999
