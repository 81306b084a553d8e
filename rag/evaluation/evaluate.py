"""Measures the lab's own search on a collection, or on what a person has judged.

A collection is indexed into a scratch index of its own by the engine that serves a workspace (same reading, passages,
model, store and ranking) and stays there, so that a second evaluation only asks the queries.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rag.evaluation import bootstrap
from rag.evaluation.bootstrap import Interval
from rag.evaluation.collection import Collection
from rag.evaluation.measures import MEASURES
from rag.index.catalogue import Entry
from workspace import durable
from workspace.errors import Unavailable
from workspace.layout import Workspace

BASELINE = "fusion"
FILLED = "filled.json"
AT_ONCE = 500  # documents handed over in one transaction
POLL_S = 1.0
LONGEST_S = 24 * 3600.0
Progress = Callable[[int, int], None]  # documents indexed, of how many


@dataclass(frozen=True)
class Evaluation:
    """`values`: {method: {measure: one value a query}}; the queries are in the same order everywhere."""

    name: str
    queries: int
    documents: int
    passages: int
    values: dict[str, dict[str, list[float]]]
    milliseconds: dict[str, float] = field(default_factory=dict)  # median of one query, its embedding not included

    def means(self) -> dict[str, dict[str, Interval]]:
        """With 95 % intervals over queries."""
        return {
            method: {measure: bootstrap.interval(values) for measure, values in measures.items()}
            for method, measures in self.values.items()
        }

    def gains(self, measure: str = "ndcg@10") -> dict[str, Interval]:
        """Of every method over plain fusion, paired by query."""
        base = self.values[BASELINE][measure]
        others = {method: values[measure] for method, values in self.values.items() if method != BASELINE}
        return {method: bootstrap.difference(values, base) for method, values in others.items()}

    def as_json(self) -> dict[str, Any]:
        means = {
            method: {measure: asdict(interval) for measure, interval in measures.items()}
            for method, measures in self.means().items()
        }
        gains = {method: asdict(interval) for method, interval in self.gains().items()}
        counts = {"name": self.name, "queries": self.queries, "documents": self.documents, "passages": self.passages}
        return {**counts, "methods": means, "ndcg@10 over fusion": gains, "milliseconds": self.milliseconds}


def summarise(
    name: str,
    judgments: Sequence[Mapping[str, int]],
    rankings: Mapping[str, Sequence[Sequence[str]]],
    *,
    documents: int = 0,
    passages: int = 0,
    milliseconds: Mapping[str, float] | None = None,
) -> Evaluation:
    """`judgments` one a query, `rankings` of each method one a query in the same order."""
    values = {
        method: {
            measure: [value(ranking, relevant) for ranking, relevant in zip(found, judgments, strict=True)]
            for measure, value in MEASURES.items()
        }
        for method, found in rankings.items()
    }
    return Evaluation(name, len(judgments), documents, passages, values, dict(milliseconds or {}))


def pooled(evaluations: Sequence[Evaluation]) -> Evaluation:
    """All queries of several collections together."""
    values = {
        method: {
            measure: list(itertools.chain.from_iterable(one.values[method][measure] for one in evaluations))
            for measure in measures
        }
        for method, measures in evaluations[0].values.items()
    }
    return Evaluation(
        "all together",
        sum(one.queries for one in evaluations),
        sum(one.documents for one in evaluations),
        sum(one.passages for one in evaluations),
        values,
    )


def evaluate(
    collection: Collection,
    scratch: Path,
    model: str,
    floor: float,
    reranker: str = "",
    progress: Progress = lambda done, total: None,
) -> Evaluation:
    """Index `collection` under `scratch` unless it is there already, and ask its queries."""
    from rag.engine import Engine

    workspace = Workspace((scratch / f"{collection.name[:40]}-{collection.fingerprint}").resolve())
    workspace.root.mkdir(parents=True, exist_ok=True)
    workspace.create_folders()
    engine = Engine(workspace, model, floor, reranker=reranker, shelf=False)
    try:
        _fill(engine, collection, workspace.lab_dir / FILLED)
        _wait(engine, progress)
        counts = engine.status()
        judged = [collection.judgments[query.id] for query in collection.queries]
        found = engine.rankings([query.text for query in collection.queries])
    finally:
        engine.close()
    return summarise(
        collection.name,
        judged,
        found.documents,
        documents=sum(counts.documents.values()),
        passages=counts.passages,
        milliseconds=found.milliseconds,
    )


def _fill(engine: Any, collection: Collection, mark: Path) -> None:
    if mark.exists():
        return
    documents = collection.documents()
    while batch := list(itertools.islice(documents, AT_ONCE)):
        engine.add_all(Entry(one.id, "paper", one.title, one.id, "", body=one.text) for one in batch)
    durable.write_json(mark, {"collection": collection.name})


def _wait(engine: Any, progress: Progress) -> None:
    catalogue = engine.generations.building.catalogue
    started, total = time.monotonic(), catalogue.waiting()
    while not engine.indexer.wait_idle(POLL_S):
        progress(total - catalogue.waiting(), total)
        if engine.indexer.error:
            raise Unavailable(f"the collection cannot be indexed: {engine.indexer.error}")
        if time.monotonic() - started > LONGEST_S:
            raise Unavailable("indexing the collection takes longer than a day")
    if total:
        progress(total, total)
