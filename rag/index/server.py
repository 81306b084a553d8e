"""The store on a Qdrant server, or where neither a server nor the engine's wheel is at hand in qdrant-client itself.

The collection's name is kept in `collection.json`: the workspace's name, the schema, and letters drawn once, so that
several labs may share a server. Nothing is asked of a server before it is needed: while it is away, documents are
taken in and wait.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from rag.index.store import DENSE, SCHEMA, WORDS, Narrowing, Passage
from rag.index.words import Words, words
from workspace import durable
from workspace.errors import Unavailable

if TYPE_CHECKING:
    from rag.embedding.embedder import Vectors

ABOUT = "collection.json"
KEY_VARIABLE = "LAB_QDRANT_API_KEY"
BATCH = 64  # points in one request
ANSWER_S = 10  # of one request
WRITE_WAITS_S = (0.3, 1.0, 3.0)  # between attempts
READ_WAITS_S = (0.3,)
INDEXES = dict.fromkeys(("document", "kind", "tags", "campaign"), "keyword") | {
    "number": "integer",
    "time": "float",
}
Answer = TypeVar("Answer")
log = logging.getLogger(__name__)


class QdrantStore:
    """Passages in a collection. `connect` gives a `QdrantClient`; `name` is what errors call the server.

    Raises `Unavailable` naming it from every method when it does not answer. `made` is called whenever the collection
    was not there and has been made, so that what was in it is known to be gone.
    """

    def __init__(
        self,
        folder: Path,
        dimension: int,
        made: Callable[[], None] = lambda: None,
        *,
        connect: Callable[[], Any],
        name: str,
        local: bool = False,
        label: str = "lab",
        encoder: Words | None = None,
    ) -> None:
        from qdrant_client import models

        self.name = name
        self._models = models
        self._dimension = dimension
        self._made = made
        self._connect = connect
        self._words = encoder or words()
        # the client's local mode is damaged by threads; a server takes calls side by side
        self._one_by_one: contextlib.AbstractContextManager[Any] = threading.RLock() if local else _Free()
        self._local = local
        self._opening = threading.Lock()
        self._client: Any = None
        self._there = False  # the collection, as far as is known
        folder.mkdir(parents=True, exist_ok=True)
        about = durable.read_json(folder / ABOUT)
        if about is None:
            plain = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40] or "lab"
            about = {"collection": f"lab-{plain}-schema{SCHEMA}-{secrets.token_hex(4)}", "server": name}
            durable.write_json(folder / ABOUT, about)
        self.collection: str = about["collection"]
        if local:
            self._ready()

    def _ready(self) -> Any:
        with self._opening:
            if self._client is None:
                self._client = self._connect()
            if not self._there:
                if not self._client.collection_exists(self.collection):
                    self._made()  # first: told in vain is harmless, not told would lose documents
                    self._create(self._client)
                if not self._local:  # they have no effect there
                    for field, kind in INDEXES.items():
                        self._client.create_payload_index(self.collection, field, kind, wait=True)
                self._there = True
            return self._client

    def _create(self, client: Any) -> None:
        models = self._models
        client.create_collection(
            self.collection,
            vectors_config={DENSE: models.VectorParams(size=self._dimension, distance=models.Distance.COSINE)},
            sparse_vectors_config={WORDS: models.SparseVectorParams(modifier=models.Modifier.IDF)},
        )

    def _call(self, ask: Callable[[Any], Answer], waits_s: Sequence[float]) -> Answer:
        """`ask` with the client; again after each of `waits_s` seconds while the server does not answer."""
        from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

        reason = ""
        for wait_s in (0.0, *waits_s):
            time.sleep(wait_s)
            try:
                with self._one_by_one:
                    return ask(self._ready())
            except (ResponseHandlingException, ResourceExhaustedResponse) as error:
                reason = str(error)
            except UnexpectedResponse as error:
                reason = f"{error.status_code} {error.reason_phrase}"
                if error.status_code == 404:  # somebody removed the collection: the next attempt makes it anew
                    self._there = False
                elif 400 <= (error.status_code or 0) < 500 and error.status_code != 429:
                    content = error.content[:200].decode(errors="replace")
                    raise self._unavailable("refused a request", f"{reason}: {content}") from error
        raise self._unavailable("does not answer", reason)

    def _unavailable(self, what: str, reason: str) -> Unavailable:
        return Unavailable(
            f"the Qdrant server {self.name} {what} ({' '.join(reason.split())[:300]})",
            fix="start it, or correct [rag] qdrant_url (LAB_QDRANT_URL), or leave it empty to keep the index here;"
            f" a server with a key wants it in {KEY_VARIABLE}",
        )

    def upsert(self, passages: Sequence[Passage], vectors: Vectors) -> None:
        models = self._models
        points = []
        for passage, vector in zip(passages, vectors, strict=True):
            indices, values = self._words.document(passage.searchable)
            sparse = models.SparseVector(indices=indices, values=values)
            both = {DENSE: vector.tolist(), WORDS: sparse}
            points.append(models.PointStruct(id=passage.id, vector=both, payload=passage.payload()))
        for begin in range(0, len(points), BATCH):
            write = functools.partial(self._write, points[begin : begin + BATCH])
            self._call(write, WRITE_WAITS_S)

    def _write(self, points: list[Any], client: Any) -> None:
        client.upsert(self.collection, points, wait=True)

    def delete(self, document: str, from_number: int = 0) -> None:
        models = self._models
        must: list[Any] = [models.FieldCondition(key="document", match=models.MatchValue(value=document))]
        if from_number:
            must.append(models.FieldCondition(key="number", range=models.Range(gte=from_number)))
        chosen = models.FilterSelector(filter=models.Filter(must=must))
        self._call(lambda client: client.delete(self.collection, chosen, wait=True), WRITE_WAITS_S)

    def relabel(self, document: str, source: str) -> None:
        models = self._models
        match = models.FieldCondition(key="document", match=models.MatchValue(value=document))
        chosen = models.Filter(must=[match])
        self._call(
            lambda client: client.set_payload(self.collection, {"source": source}, points=chosen, wait=True),
            WRITE_WAITS_S,
        )

    def dense(self, vector: Sequence[float], limit: int, narrowing: Narrowing) -> list[tuple[str, float]]:
        return self._nearest(list(vector), DENSE, limit, narrowing)

    def words(self, query: str, limit: int, narrowing: Narrowing) -> list[tuple[str, float]]:
        indices, values = self._words.query(query)
        if not indices:
            return []
        return self._nearest(self._models.SparseVector(indices=indices, values=values), WORDS, limit, narrowing)

    def _nearest(self, query: Any, using: str, limit: int, narrowing: Narrowing) -> list[tuple[str, float]]:
        found = self._call(
            lambda client: client.query_points(
                self.collection,
                query=query,
                using=using,
                limit=limit,
                query_filter=self._filter(narrowing),
                with_payload=False,
            ),
            READ_WAITS_S,
        )
        return [(_plain(point.id), float(point.score)) for point in found.points]

    def _filter(self, narrowing: Narrowing) -> Any:
        models = self._models
        must: list[Any] = [
            models.FieldCondition(key="tags", match=models.MatchValue(value=tag)) for tag in narrowing.tags
        ]
        if narrowing.kinds:
            must.append(models.FieldCondition(key="kind", match=models.MatchAny(any=list(narrowing.kinds))))
        if narrowing.since is not None or narrowing.until is not None:
            span = models.Range(gte=narrowing.since, lt=narrowing.until)
            must.append(models.FieldCondition(key="time", range=span))
        if narrowing.campaign:
            must.append(models.FieldCondition(key="campaign", match=models.MatchValue(value=narrowing.campaign)))
        for one in narrowing.ranges:
            must.append(models.FieldCondition(key=f"metrics.{one.metric}", range=models.Range(**one.bounds())))
        if narrowing.ids:
            must.append(models.HasIdCondition(has_id=list(narrowing.ids)))
        return models.Filter(must=must) if must else None

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        records = self._retrieve(ids, with_payload=True)
        return {_plain(record.id): Passage.from_payload(record.payload) for record in records}

    def vectors(self, ids: Sequence[str]) -> dict[str, list[float]]:
        records = self._retrieve(ids, with_payload=False, with_vectors=[DENSE])
        return {_plain(record.id): list(record.vector[DENSE]) for record in records}

    def _retrieve(self, ids: Sequence[str], **what: Any) -> list[Any]:
        if not ids:
            return []
        return self._call(lambda client: list(client.retrieve(self.collection, list(ids), **what)), READ_WAITS_S)

    def tokens(self, text: str) -> Sequence[int]:
        """The ids of the words of `text` as BM25 counts them."""
        return self._words.tokens(text)

    def count(self) -> int:
        return self._call(lambda client: int(client.count(self.collection, exact=True).count), READ_WAITS_S)

    def flush(self) -> None:
        """Nothing to do: an answered write is in the server's log."""

    def maintain(self) -> None:
        """Nothing to do: a server optimises by itself, the local mode has no index."""

    def drop(self) -> None:
        """Remove the collection, if it is there."""
        with self._one_by_one:
            client = self._connect()
            try:
                client.delete_collection(self.collection)
            except Exception as error:
                raise self._unavailable("does not answer", str(error)) from error
            finally:
                client.close()

    def close(self) -> None:
        with self._one_by_one, self._opening:
            if self._client is not None:
                self._client.close()
                self._client = None


def _plain(point: str) -> str:
    """A point's id as `passage_id` writes it."""
    return point.replace("-", "")


class _Free:
    """Stands for a lock where none is needed."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None


def connector(url: str) -> Callable[[], Any]:
    """Makes clients of the server at `url`; its key, if it wants one, is in the environment."""

    def connect() -> Any:
        from qdrant_client import QdrantClient

        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 6333)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a key on a plain connection is the user's choice
            return QdrantClient(
                url=url, port=port, api_key=os.environ.get(KEY_VARIABLE), timeout=ANSWER_S, check_compatibility=False
            )

    return connect


def local_connector(folder: Path) -> Callable[[], Any]:
    """Makes the client's own local mode on `folder`. Raises `Unavailable` when another process has it."""

    def connect() -> Any:
        from qdrant_client import QdrantClient

        warnings.filterwarnings("ignore", message="Local mode is not recommended")  # the documentation says it
        try:
            return QdrantClient(path=str(folder), force_disable_check_same_thread=True)
        except RuntimeError as error:
            if "already accessed" in str(error):
                raise Unavailable("the index is in use by another process", fix="close it and try again") from error
            raise

    return connect


def shown(url: str) -> str:
    """`url` without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
