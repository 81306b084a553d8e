"""What memory answers. Plain dataclasses: the service imports them without numpy, Qdrant or onnxruntime."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Self, get_args, get_type_hints

KINDS = ("paper", "note", "session", "experiment", "run")


class Record:
    """A dataclass that travels between the service and the worker as JSON."""

    def as_json(self) -> dict[str, Any]:
        records = _records_in(type(self))  # type: ignore[arg-type]  # mypy takes a class for unhashable
        return {
            name: [part.as_json() for part in content] if name in records else content
            for name, content in vars(self).items()
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        records = _records_in(cls)  # type: ignore[arg-type]  # mypy takes a class for unhashable
        return cls(
            **{
                name: [records[name].from_json(part) for part in content] if name in records else content
                for name, content in value.items()
            }
        )


@functools.cache  # reading type hints takes longer than a search of a small index
def _records_in(cls: type[Record]) -> dict[str, type[Record]]:
    """The fields of a record that are lists of records, with what they hold."""
    items = {name: (get_args(hint) or (None,))[0] for name, hint in get_type_hints(cls).items()}
    return {name: item for name, item in items.items() if isinstance(item, type) and issubclass(item, Record)}


@dataclass(frozen=True)
class Hit(Record):
    """One passage that answers a query."""

    id: str  # of its document: a run, experiment or note id, `paper-...`, `shelf:...`
    kind: str
    title: str
    quote: str  # the sentences that match best, at most 400 characters
    source: str  # path relative to the workspace, `shelf:name`, or what was given when it was added
    page: int | None  # from 1, of the quote; for PDFs
    section: str
    date: str  # YYYY, YYYY-MM, YYYY-MM-DD or empty
    score: float  # 0 to 1 within this answer's query; orders the hits
    why: str  # the words matched and the similarity
    similarity: float | None  # cosine of query and passage; None while vectors are being rebuilt
    tags: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)  # start and end of the quote in the file (in the page's text)
    also: list[str] = field(default_factory=list)  # ids of documents with nearly the same passage
    cursor: str = ""  # where the page after this hit begins
    page_end: int | None = None  # where the quote goes on over the page's end
    passage: str = ""  # the whole passage, where it was asked for


@dataclass(frozen=True)
class SearchPage(Record):
    """The answer to a search. Without hits, `note` says so and `nearest` names what came closest."""

    hits: list[Hit]
    next_cursor: str | None = None
    note: str = ""
    nearest: list[str] = field(default_factory=list)
    partial: str = ""  # why something may be missing from this answer
    milliseconds: float = 0.0


@dataclass(frozen=True)
class Listed(Record):
    """A document in memory. `state` is pending, written, done (all of it on disk), failed or removing."""

    id: str
    kind: str
    title: str
    source: str
    date: str
    tags: list[str]
    state: str
    reason: str  # why it failed
    passages: int


@dataclass(frozen=True)
class Listing(Record):
    """A page of the documents in memory, in the order of their ids; `total` counts all that were asked for."""

    documents: list[Listed]
    total: int
    next_cursor: str | None = None


@dataclass(frozen=True)
class Excerpt(Record):
    text: str
    section: str
    page: int | None


@dataclass(frozen=True)
class Opening(Record):
    """How a document begins: its first passages in order, of `total`."""

    id: str
    kind: str
    title: str
    authors: str
    source: str
    date: str
    passages: list[Excerpt]
    total: int


@dataclass(frozen=True)
class Rankings(Record):
    """What several ways of ranking found: {method: document ids, best first, one list a query}."""

    documents: dict[str, list[list[str]]]
    milliseconds: dict[str, float]  # median of a query, its embedding not included


@dataclass(frozen=True)
class Problem(Record):
    """A document that could not be indexed."""

    source: str
    reason: str


@dataclass(frozen=True)
class IndexReport(Record):
    """What an indexing found and did. `state` is `done`, or `indexing` while documents wait their turn."""

    state: str
    added: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    duplicates: int = 0
    waiting: int = 0
    passages: int = 0  # in the whole index
    failed: list[Problem] = field(default_factory=list)
    failed_total: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class MemoryStatus(Record):
    """`state`: `starting`, `ready`, `indexing` or `rebuilding`."""

    state: str
    model: str
    embedder: str  # what runs the model
    documents: dict[str, int]  # by kind
    passages: int
    waiting: int
    failed: list[Problem]
    failed_total: int
    partial: str = ""
    current: str = ""  # the document being indexed
    worker: int | None = None  # pid
    memory_bytes: int | None = None
