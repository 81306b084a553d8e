"""How well the lab's search finds: nDCG@10 of any collection in the BEIR layout.

    python benchmarks/retrieval.py FOLDER [FOLDER ...]

FOLDER holds corpus.jsonl, queries.jsonl and qrels/test.tsv. Compared, all with the product's own passages, embedder
and store: words (BM25), dense, plain reciprocal rank fusion of both (k = 60), and the default. A document's rank is
that of its best passage. The last lines give the default's gain over plain fusion with a 95 % bootstrap interval.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from rag import ranking
from rag.documents import chunks, text
from rag.embedding import embedder as embedding
from rag.index.edge import EdgeStore
from rag.index.store import Narrowing, Passage

RRF_K = 60
FLOOR = 0.25
EVERYTHING = Narrowing()


def read_lines(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def read_judgments(file: Path) -> dict[str, dict[str, int]]:
    judgments: dict[str, dict[str, int]] = {}
    for line in file.read_text(encoding="utf-8").splitlines()[1:]:
        query, document, grade = line.split("\t")
        if int(grade) > 0:
            judgments.setdefault(query, {})[document] = int(grade)
    return judgments


def passages_of(document: dict[str, str]) -> Iterable[Passage]:
    for number, chunk in enumerate(chunks.cut(text.read_plain(document["text"]).blocks)):
        title = document.get("title", "")
        yield Passage(document["_id"], number, "paper", title, "", chunk.section, chunk.text, "")


def ndcg(documents: list[str], relevant: dict[str, int], depth: int = 10) -> float:
    gain = sum(relevant.get(name, 0) / math.log2(rank + 2) for rank, name in enumerate(documents[:depth]))
    best = sorted(relevant.values(), reverse=True)[:depth]
    return gain / sum(grade / math.log2(rank + 2) for rank, grade in enumerate(best))


def reciprocal_ranks(*rankings: list[tuple[str, float]]) -> list[str]:
    scores: dict[str, float] = {}
    for one in rankings:
        for rank, (name, _) in enumerate(one, 1):
            scores[name] = scores.get(name, 0.0) + 1.0 / (RRF_K + rank)
    return sorted(scores, key=lambda name: -scores[name])


def measure(folder: Path, store: EdgeStore, embedder: embedding.Embedder) -> dict[str, list[float]]:
    """nDCG@10 of every judged query, by method; prints what it took."""
    corpus = read_lines(folder / "corpus.jsonl")
    owners: dict[str, str] = {}
    started = time.perf_counter()
    batch: list[Passage] = []
    for document in corpus:
        for passage in passages_of(document):
            owners[passage.id] = passage.document
            batch.append(passage)
        if len(batch) >= 64:
            store.upsert(batch, embedder.embed([one.searchable for one in batch]))
            batch = []
    if batch:
        store.upsert(batch, embedder.embed([one.searchable for one in batch]))
    took = time.perf_counter() - started
    print(f"{folder.name}: {len(corpus)} documents, {len(owners)} passages, {len(owners) / took:.0f} passages/s")
    judgments = read_judgments(folder / "qrels" / "test.tsv")
    results: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for query in read_lines(folder / "queries.jsonl"):
        if query["_id"] not in judgments:
            continue
        asked = query["text"]
        vector = embedder.embed([asked])[0].tolist()
        methods: dict[str, Callable[[], list[str]]] = {
            "words": lambda q=asked: [name for name, _ in store.words(q, 100, EVERYTHING)],
            "dense": lambda v=vector: [name for name, _ in store.dense(v, 100, EVERYTHING)],
            "plain fusion": lambda q=asked, v=vector: reciprocal_ranks(
                store.words(q, 100, EVERYTHING), store.dense(v, 100, EVERYTHING)
            ),
            "default": lambda q=asked, v=vector: ranking.rank(q, v, store, EVERYTHING, FLOOR).order,
        }
        for name, method in methods.items():
            begin = time.perf_counter()
            found = method()
            seconds.setdefault(name, []).append(time.perf_counter() - begin)
            documents = list(dict.fromkeys(owners[one] for one in found))
            results.setdefault(name, []).append(ndcg(documents, judgments[query["_id"]]))
    for name, values in results.items():
        median = statistics.median(seconds[name]) * 1000
        print(f"  {name:14} nDCG@10 {np.mean(values):.4f}   {median:.1f} ms without embedding the query")
    return results


def gain(results: dict[str, list[float]]) -> str:
    """The default's mean gain over plain fusion, with a paired bootstrap interval over queries."""
    difference = np.array(results["default"]) - np.array(results["plain fusion"])
    draws = np.random.default_rng(0).choice(difference, (5000, len(difference))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{difference.mean():+.4f} [{low:+.4f}, {high:+.4f}] over {len(difference)} queries"


def main(folders: list[str]) -> None:
    if not folders:
        raise SystemExit(__doc__)
    pooled: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        embedder = embedding.load(embedding.PACKAGED_MODEL, Path(scratch))
        for number, folder in enumerate(folders):
            store = EdgeStore(Path(scratch) / f"store-{number}", embedder.dimension)
            try:
                results = measure(Path(folder), store, embedder)
            finally:
                store.close()
            print(f"  default over plain fusion: {gain(results)}")
            for name, values in results.items():
                pooled.setdefault(name, []).extend(values)
    if len(folders) > 1:
        print(f"all together: {gain(pooled)}")


if __name__ == "__main__":
    main(sys.argv[1:])
