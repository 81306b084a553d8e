"""The store: passages with a dense vector and a BM25 vector, behind one small interface."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rag.embedding.embedder import Vectors

SCHEMA = 3  # raise it when passages, their ids or their vectors are made differently: the index is then rebuilt
DENSE, WORDS = "dense", "bm25"  # the names of a passage's two vectors
NAMESPACE = uuid.UUID("6ad0a1c9-3f0f-5e0a-9c43-5b7f6f0f3c11")


def passage_id(document: str, number: int) -> str:
    """A UUID without its dashes: `UUID.hex` is what a search of hundreds of passages can afford."""
    return uuid.uuid5(NAMESPACE, f"{document}\n{number}").hex


@dataclass(frozen=True)
class Passage:
    """What the store holds of a passage, besides its vectors."""

    document: str
    number: int
    kind: str
    title: str
    source: str
    section: str
    text: str
    hash: str  # of its document's content
    date: str = ""
    time: float | None = None  # the start of `date` as seconds since 1970, for filters
    tags: tuple[str, ...] = ()
    page: int | None = None
    page_end: int | None = None
    start: int = 0
    end: int = 0
    marks: tuple[tuple[int, int, int | None], ...] = ()  # see `rag.documents.chunks.Chunk`
    campaign: str = ""
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return passage_id(self.document, self.number)

    @property
    def context(self) -> str:
        """`title > section`."""
        return " > ".join(part for part in (self.title, self.section) if part)

    @property
    def searchable(self) -> str:
        """The text both vectors are made from."""
        return f"{self.context}\n{self.text}"

    def place(self, offset: int) -> tuple[int, int | None]:
        """Where a character of `text` stands: its offset in the file, or in the text of its page, and the page."""
        mark = next((mark for mark in reversed(self.marks) if mark[0] <= offset), (0, self.start, self.page))
        return mark[1] + offset - mark[0], mark[2]

    def payload(self) -> dict[str, Any]:
        """What is not as by default: every field costs the engine 3 to 5 us going in."""
        told = {name: value for name, value in vars(self).items() if value != DEFAULTS[name]}
        for name in told.keys() & {"tags", "marks"}:
            told[name] = [list(value) if isinstance(value, tuple) else value for value in told[name]]
        return told

    @classmethod
    def from_payload(cls, payload: dict[str, Any]) -> Passage:
        known = {name: payload[name] for name in cls.__dataclass_fields__ if name in payload}
        marks = tuple((mark[0], mark[1], mark[2]) for mark in payload.get("marks") or ())
        return cls(**{**known, "tags": tuple(payload.get("tags") or ()), "marks": marks})


DEFAULTS: dict[str, Any] = {one.name: one.default for one in fields(Passage)} | {"metrics": {}}


@dataclass(frozen=True)
class Range:
    """A metric's range; `low` and `high` are included unless `open`, None stands for no bound."""

    metric: str
    low: float | None = None
    high: float | None = None
    open: bool = False

    def bounds(self) -> dict[str, float]:
        """As both engines name them: gt or gte, lt or lte."""
        names = ("gt", "lt") if self.open else ("gte", "lte")
        return {name: value for name, value in zip(names, (self.low, self.high), strict=True) if value is not None}


@dataclass(frozen=True)
class Narrowing:
    """Which passages a search may return; `tags` must all be there, `ranges` all hold."""

    kinds: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None  # exclusive
    ids: tuple[str, ...] = ()
    campaign: str = ""
    ranges: tuple[Range, ...] = ()


class Store(Protocol):
    """Thread-safe. Scores: cosine for `dense`, BM25 for `words`; best first.

    Every method raises `Unavailable` when the store cannot be reached (a server that does not answer).
    """

    def upsert(self, passages: Sequence[Passage], vectors: Vectors) -> None: ...
    def delete(self, document: str, from_number: int = 0) -> None: ...
    def relabel(self, document: str, source: str) -> None: ...
    def dense(self, vector: Sequence[float], limit: int, narrowing: Narrowing) -> list[tuple[str, float]]: ...
    def words(self, query: str, limit: int, narrowing: Narrowing) -> list[tuple[str, float]]: ...
    def passages(self, ids: Sequence[str]) -> dict[str, Passage]: ...
    def vectors(self, ids: Sequence[str]) -> dict[str, list[float]]: ...
    def tokens(self, text: str) -> Sequence[int]: ...
    def count(self) -> int: ...
    def flush(self) -> None: ...
    def maintain(self) -> None:
        """Called now and then after a flush: a store may begin slow work on itself in the background."""

    def close(self) -> None: ...
