"""Answering a query: ranked, what is not evidence left out, near-duplicates folded, quotes cut."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rag.embedding.embedder import Embedder
from rag.index.generation import Generations
from rag.index.store import Narrowing, Passage, Store
from rag.query import DEEPEST, Query, seconds
from rag.quote import quote
from rag.ranking import Ranked, rank
from rag.records import Hit, SearchPage
from workspace.errors import Unavailable

PER_DOCUMENT = 2
SAME = 0.8  # share of common five-word runs from which two passages count as the same
NEAREST = 3  # titles named when nothing is relevant


@dataclass
class _Found:
    """A passage that may be shown, with its evidence."""

    passage: Passage
    score: float
    similarity: float | None
    words: list[str]  # of the query, found in the passage
    coverage: float
    also: list[str] = field(default_factory=list)
    shingles: frozenset[int] = frozenset()

    def is_evidence(self, floor: float) -> bool:
        """Near enough in meaning; or holding all words of the query; or two words and nearly near enough.

        One common word alone ("best", "return") is no evidence. On the starter shelf 20 questions about its subjects
        all keep their paper under this rule, and of 23 about something else 21 find nothing.
        """
        if self.similarity is None:  # found by words only, for now
            return self.coverage >= 0.5
        if self.similarity >= floor or self.coverage == 1.0:
            return True
        return len(self.words) >= 2 and self.similarity >= floor * (1.0 - self.coverage / 2)


class _Stores:
    """The generations that answer: the one being built, over the one it replaces (which knows words only)."""

    def __init__(self, generations: Generations) -> None:
        old = generations.serving
        self.new = generations.building.store
        self.all: list[Store] = [self.new] + ([old.store] if old is not None else [])

    def words(self, text: str, limit: int, narrowing: Narrowing) -> list[tuple[str, float]]:
        merged: dict[str, float] = {}
        for store in self.all:
            with contextlib.suppress(*([] if store is self.new else [Unavailable])):  # the old one is an extra
                for name, score in store.words(text, limit, narrowing):
                    merged.setdefault(name, score)
        return sorted(merged.items(), key=lambda pair: -pair[1])[:limit]

    def dense(self, vector: Sequence[float], limit: int, narrowing: Narrowing) -> list[tuple[str, float]]:
        return self.new.dense(vector, limit, narrowing)

    def vectors(self, ids: Sequence[str]) -> dict[str, list[float]]:
        return self.new.vectors(ids)

    def passages(self, ids: Sequence[str]) -> dict[str, Passage]:
        found: dict[str, Passage] = {}
        for store in reversed(self.all):
            with contextlib.suppress(*([] if store is self.new else [Unavailable])):
                found.update(store.passages(ids))
        return found


def search(query: Query, generations: Generations, embedder: Embedder | None, floor: float) -> SearchPage:
    """A page of hits. Without an embedder (it is still loading, or cannot be) by words only."""
    started = time.perf_counter()
    stores = _Stores(generations)
    narrowing = Narrowing(query.kinds, query.tags, seconds(query.since), seconds(query.until, after=True))
    vector = embedder.embed([query.text])[0].tolist() if embedder is not None else None
    ranked = rank(query.text, vector, stores, narrowing, floor)
    found = _Gatherer(query, stores, ranked, floor)
    kept = found.gather(query.offset + query.limit + 1)
    shown = kept[query.offset : query.offset + query.limit]
    end = query.offset + len(shown)
    return SearchPage(
        hits=[found.hit(one) for one in shown],
        next_cursor=query.cursor(end) if len(kept) > end and end < DEEPEST else None,
        note="" if shown else _nothing(query),
        nearest=[] if shown or query.offset else found.nearest(),
        milliseconds=round((time.perf_counter() - started) * 1000, 2),
    )


def _nothing(query: Query) -> str:
    if query.offset:
        return "no more hits"
    filters = any((query.kinds, query.tags, query.since, query.until))
    return "nothing relevant" + (" under these filters" if filters else "")


class _Gatherer:
    """Walks down the ranking and keeps what should be shown."""

    def __init__(self, query: Query, stores: _Stores, ranked: Ranked, floor: float) -> None:
        self.stores = stores
        self.ranked = ranked
        self.floor = floor
        self.tokens = stores.new.tokens
        self.words: dict[int, str] = {}  # the query's tokens, each with the word it came from
        for word in re.findall(r"[^\W_]+(?:['’.-][^\W_]+)*", query.text):
            for token in self.tokens(word):
                self.words.setdefault(token, word)
        self.weak: list[_Found] = []

    def gather(self, wanted: int) -> list[_Found]:
        kept: list[_Found] = []
        per_document: dict[str, int] = {}
        for one in self._candidates(self.ranked.order):
            if not one.is_evidence(self.floor):
                self.weak.append(one)
                continue
            twin = next((other for other in kept if _alike(one.shingles, other.shingles)), None)
            if twin is not None:
                if one.passage.document not in (twin.passage.document, *twin.also):
                    twin.also.append(one.passage.document)
                continue
            if per_document.get(one.passage.document, 0) >= PER_DOCUMENT:
                continue
            if len(kept) >= wanted:
                break
            per_document[one.passage.document] = per_document.get(one.passage.document, 0) + 1
            kept.append(one)
        return kept

    def _candidates(self, order: Sequence[str]) -> Iterator[_Found]:
        for begin in range(0, len(order), 25):
            names = order[begin : begin + 25]
            passages = self.stores.passages(names)
            for name in names:
                passage = passages.get(name)
                if passage is None:  # removed this moment
                    continue
                present = set(self.tokens(passage.searchable))
                words = [word for token, word in self.words.items() if token in present]
                coverage = len(words) / len(self.words) if self.words else 0.0
                shingles = _shingles(passage.text)
                similarity = self.ranked.similarity.get(name)
                yield _Found(passage, self.ranked.scores[name], similarity, words, coverage, shingles=shingles)

    def nearest(self) -> list[str]:
        self.weak.sort(key=lambda one: -(one.similarity or 0.0))
        return list(dict.fromkeys(one.passage.title for one in self.weak))[:NEAREST]

    def hit(self, one: _Found) -> Hit:
        passage = one.passage
        reasons = [f"similarity {one.similarity:.2f}"] if one.similarity is not None else []
        if one.words:
            reasons.append("words: " + ", ".join(dict.fromkeys(one.words[:8])))
        return Hit(
            id=passage.document,
            kind=passage.kind,
            title=passage.title,
            quote=quote(passage.text, frozenset(self.words), self.tokens),
            source=passage.source,
            page=passage.page,
            section=passage.section,
            date=passage.date,
            score=round(one.score, 4),
            why="; ".join(reasons),
            similarity=None if one.similarity is None else round(one.similarity, 4),
            tags=list(passage.tags),
            offsets=[passage.start, passage.end],
            also=one.also,
        )


def _shingles(text: str) -> frozenset[int]:
    words = re.findall(r"\w+", text.lower())
    return frozenset(hash(tuple(words[n : n + 5])) for n in range(max(1, len(words) - 4)))


def _alike(one: frozenset[int], other: frozenset[int]) -> bool:
    common = len(one & other)
    return common >= SAME * max(1, min(len(one), len(other))) and common >= 0.5 * max(len(one), len(other))
