"""One open shard of Qdrant's engine (`qdrant_edge`) in a folder.

Always with its write-ahead log (without it there is no lock between processes), and always closed. Every call holds
Python's lock while it runs; all used here take milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rag.index.store import DENSE, WORDS, Narrowing, Passage
from rag.index.words import Words
from workspace.errors import Unavailable

if TYPE_CHECKING:
    from rag.embedding.embedder import Vectors

COPIED_AT_ONCE = 128  # points


@dataclass(frozen=True)
class Size:
    """Points that are there, and the engine's count of indexed vectors, which still holds deleted ones."""

    points: int
    indexed: int


class Shard:
    """Passages in `folder`; the shard is made when there is none. Raises `Unavailable` when it cannot be opened."""

    def __init__(self, folder: Path, dimension: int, words: Words) -> None:
        import qdrant_edge as edge

        self.folder = folder
        self.readers = 0  # searches under way, counted by the store
        self._edge: Any = edge
        self._words = words
        try:
            if (folder / "segments").is_dir():
                self._shard: Any = edge.EdgeShard.load(str(folder))
            else:
                folder.mkdir(parents=True, exist_ok=True)
                self._shard = edge.EdgeShard.create(str(folder), self._config(dimension))
        except Exception as error:  # the library raises nothing more special
            if "WouldBlock" in str(error):
                raise Unavailable("the index is in use by another process", fix="close it and try again") from error
            raise Unavailable(
                f"the index cannot be opened ({str(error)[:200]})",
                fix="remove the folder .lab/index; it is built again from the documents",
            ) from error
        schema = edge.PayloadSchemaType
        types = dict.fromkeys(("document", "kind", "tags", "campaign"), schema.Keyword)
        types |= {"number": schema.Integer, "time": schema.Float}
        there = self._shard.info().payload_schema
        for name, kind in types.items():
            if name not in there:
                self._shard.update(edge.UpdateOperation.create_field_index(name, kind))

    def _config(self, dimension: int) -> Any:
        edge = self._edge
        return edge.EdgeConfig(
            vectors={DENSE: edge.EdgeVectorParams(size=dimension, distance=edge.Distance.Cosine)},
            sparse_vectors={WORDS: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf)},
        )

    def upsert(self, passages: Sequence[Passage], vectors: Vectors) -> None:
        edge = self._edge
        points = []
        for passage, vector in zip(passages, vectors, strict=True):
            sparse = edge.SparseVector(*self._words.document(passage.searchable))
            points.append(edge.Point(passage.id, {DENSE: vector.tolist(), WORDS: sparse}, passage.payload()))
        self._shard.update(edge.UpdateOperation.upsert_points(points))

    def delete(self, document: str, from_number: int = 0) -> None:
        edge = self._edge
        conditions = [edge.FieldCondition("document", match=edge.MatchValue(document))]
        if from_number:
            conditions.append(edge.FieldCondition("number", range=edge.RangeFloat(gte=float(from_number))))
        self._shard.update(edge.UpdateOperation.delete_points_by_filter(edge.Filter(must=conditions)))

    def relabel(self, document: str, source: str) -> None:
        chosen = self._of_document(document)
        self._shard.update(self._edge.UpdateOperation.set_payload_by_filter(chosen, {"source": source}))

    def _of_document(self, document: str) -> Any:
        edge = self._edge
        return edge.Filter(must=[edge.FieldCondition("document", match=edge.MatchValue(document))])

    def copy_document(self, document: str, other: Shard) -> None:
        """Replace a document's passages here by those in `other`, vectors included."""
        edge = self._edge
        self.delete(document)
        place = None
        while True:
            request = edge.ScrollRequest(
                offset=place,
                limit=COPIED_AT_ONCE,
                filter=self._of_document(document),
                with_payload=True,
                with_vector=True,
            )
            records, place = other._shard.scroll(request)
            if records:
                points = [edge.Point(record.id, record.vector, record.payload) for record in records]
                self._shard.update(edge.UpdateOperation.upsert_points(points))
            if place is None:
                return

    def dense(self, vector: Sequence[float], limit: int, narrowing: Narrowing) -> list[tuple[str, float]]:
        return self._nearest(self._edge.Query.Nearest(list(vector), using=DENSE), limit, narrowing)

    def words(self, query: str, limit: int, narrowing: Narrowing) -> list[tuple[str, float]]:
        indices, values = self._words.query(query)
        if not indices:
            return []
        sparse = self._edge.SparseVector(indices, values)
        return self._nearest(self._edge.Query.Nearest(sparse, using=WORDS), limit, narrowing)

    def _nearest(self, query: Any, limit: int, narrowing: Narrowing) -> list[tuple[str, float]]:
        request = self._edge.QueryRequest(
            limit=limit, query=query, filter=self._filter(narrowing), with_payload=False, with_vector=False
        )
        return [(point.id.hex, point.score) for point in self._shard.query(request)]

    def _filter(self, narrowing: Narrowing) -> Any:
        edge = self._edge
        must = [edge.FieldCondition("tags", match=edge.MatchValue(tag)) for tag in narrowing.tags]
        if narrowing.kinds:
            must.append(edge.FieldCondition("kind", match=edge.MatchAny(list(narrowing.kinds))))
        if narrowing.since is not None or narrowing.until is not None:
            must.append(edge.FieldCondition("time", range=edge.RangeFloat(gte=narrowing.since, lt=narrowing.until)))
        if narrowing.campaign:
            must.append(edge.FieldCondition("campaign", match=edge.MatchValue(narrowing.campaign)))
        for one in narrowing.ranges:
            must.append(edge.FieldCondition(f"metrics.{one.metric}", range=edge.RangeFloat(**one.bounds())))
        if narrowing.ids:
            must.append(edge.HasIdCondition(set(narrowing.ids)))
        return edge.Filter(must=must) if must else None

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        records = self._shard.retrieve(list(ids), with_payload=True, with_vector=False) if ids else []
        return {record.id.hex: Passage.from_payload(record.payload) for record in records}

    def vectors(self, ids: Sequence[str]) -> dict[str, list[float]]:
        records = self._shard.retrieve(list(ids), with_payload=False, with_vector=[DENSE]) if ids else []
        return {record.id.hex: list(record.vector[DENSE]) for record in records}

    def count(self) -> int:
        return int(self._shard.count(self._edge.CountRequest(exact=True)))

    def size(self) -> Size:
        found = self._shard.info()
        return Size(int(found.points_count), int(found.indexed_vectors_count))

    def flush(self) -> None:
        self._shard.flush()

    def close(self) -> None:
        self._shard.flush()
        self._shard.close()
