"""Answering a query: ranked, what is not evidence left out, near-duplicates folded, quotes cut."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from rag.embedding.reranker import RERANKED, Reranker
from rag.index.generation import Generations
from rag.index.store import Narrowing, Passage, Range, Store
from rag.query import DEEPEST, Query, ranges, seconds
from rag.quote import quote
from rag.ranking import STEADY, Ranked, Wording, deepened, rank
from rag.records import Hit, SearchPage
from workspace.errors import Unavailable

PER_DOCUMENT = 2
SAME = 0.8  # share of common five-word runs from which two passages count as the same
NEAREST = 3  # titles named when nothing is relevant
BARREN = 30  # passages without evidence, after which none is looked for in the depth
RESULTS = {"run", "experiment"}  # each is found by itself, however alike their words are
AT_ONCE = 4  # passages fetched beyond those asked for: some are folded or no evidence
Embed = Callable[[str], list[float]]


@dataclass
class _Found:
    """A passage that may be shown, with its evidence."""

    passage: Passage
    score: float
    similarity: float | None
    words: list[str]  # of the query, found in the passage
    coverage: float
    tokens: frozenset[int]  # of the passage
    also: list[str] = field(default_factory=list)

    @cached_property
    def shingles(self) -> frozenset[tuple[str, ...]]:
        return _shingles(self.passage.text)

    def is_evidence(self, floor: float) -> bool:
        """Near enough in meaning; or holding all words of the query; or two words and nearly near enough.

        One common word alone ("best", "return") is no evidence. docs/memory.md tells the two error rates.
        """
        if self.similarity is None:  # found by words only, for now
            return self.coverage >= 0.5
        if self.similarity >= floor or self.coverage == 1.0:
            return True
        return len(self.words) >= 2 and self.similarity >= floor * (1.0 - self.coverage / 2)


class Stores:
    """The generations that answer: the one being built, over the one it replaces (which knows words only)."""

    def __init__(self, generations: Generations) -> None:
        old = generations.serving
        self.new = generations.building.store
        self.all: list[Store] = [self.new] + ([old.store] if old is not None else [])
        self._catalogue = generations.building.catalogue

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
        if len(self.all) > 1:  # nothing is taken out of the old one any more
            there = self._catalogue.present({passage.document for passage in found.values()})
            found = {name: passage for name, passage in found.items() if passage.document in there}
        return found


def narrowing_of(query: Query, metrics: Sequence[str]) -> Narrowing:
    """The query's filters for a store. Raises `Refused` for a condition on a field nothing has."""
    campaign, conditions = ranges(query.where, metrics)
    spans = tuple(
        Range(name, None if sign.startswith("<") else value, None if sign.startswith(">") else value, sign in "<>")
        for name, sign, value in conditions
    )
    since, until = seconds(query.since), seconds(query.until, after=True)
    return Narrowing(query.kinds, query.tags, since, until, campaign=campaign, ranges=spans)


def search(
    query: Query, generations: Generations, embed: Embed | None, floor: float, reranker: Reranker | None = None
) -> SearchPage:
    """A page of hits. Without `embed` (the model is still loading, or cannot be) by words only."""
    started = time.perf_counter()
    stores = Stores(generations)
    metrics = generations.building.catalogue.metrics() if query.where else []
    narrowing = narrowing_of(query, metrics)
    wordings = [Wording(text, embed(text) if embed else None) for text in (query.text, *query.variants)]
    ranked = rank(wordings, stores, narrowing, floor)
    if reranker is not None:
        ranked = _reranked(query.text, ranked, stores, reranker)
    found = _Gatherer(query, stores, narrowing, ranked, floor)
    kept = found.gather(query.offset + query.limit + 1)
    shown = kept[query.offset : query.offset + query.limit]
    end = query.offset + len(shown)
    return SearchPage(
        hits=[found.hit(one, query.cursor(n)) for n, one in enumerate(shown, query.offset + 1)],
        next_cursor=query.cursor(end) if len(kept) > end and end < DEEPEST else None,
        note="" if shown else _nothing(query),
        nearest=[] if shown or query.offset else found.nearest(),
        milliseconds=round((time.perf_counter() - started) * 1000, 2),
    )


def _nothing(query: Query) -> str:
    if query.offset:
        return "no more hits"
    return "nothing relevant" + (" under these filters" if query.narrowed else "")


def _reranked(text: str, ranked: Ranked, stores: Stores, reranker: Reranker) -> Ranked:
    """The best passages in a cross-encoder's order; the others after them as they were."""
    passages = stores.passages(ranked.order[:RERANKED])
    names = [name for name in ranked.order[:RERANKED] if name in passages]
    scores = dict(zip(names, reranker.scores(text, [passages[name].searchable for name in names]), strict=True))
    order = sorted(names, key=lambda name: -scores[name])
    placed = dict(zip(order, sorted((ranked.scores[name] for name in names), reverse=True), strict=True))
    rest = [name for name in ranked.order if name not in scores]
    return replace(ranked, order=[*order, *rest], scores={**ranked.scores, **placed})


class _Gatherer:
    """Walks down the ranking and keeps what should be shown."""

    def __init__(self, query: Query, stores: Stores, narrowing: Narrowing, ranked: Ranked, floor: float) -> None:
        self.query = query
        self.stores = stores
        self.narrowing = narrowing
        self.ranked = ranked
        self.floor = floor
        self.tokens = stores.new.tokens
        self.wordings = [self._words(text) for text in (query.text, *query.variants)]
        self.wanted = frozenset(token for words in self.wordings for token in words)
        self.weak: list[_Found] = []
        self.barren = 0  # passages without evidence since the last one with it

    def _words(self, text: str) -> dict[int, str]:
        """The tokens of a wording, each with the word it came from."""
        words: dict[int, str] = {}
        for word in re.findall(r"[^\W_]+(?:['’.-][^\W_]+)*", text):
            for token in self.tokens(word):
                words.setdefault(token, word)
        return words

    def gather(self, wanted: int) -> list[_Found]:
        kept: list[_Found] = []
        per_document: dict[str, int] = {}
        for one in self._candidates(wanted + AT_ONCE):
            if not one.is_evidence(self.floor):
                self.weak.append(one)
                self.barren += 1
                continue
            self.barren = 0
            twin = next((other for other in kept if _alike(one, other)), None)
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

    def _candidates(self, at_once: int) -> Iterator[_Found]:
        """Down the ranking; beyond its first part only as long as there is evidence now and then."""
        yield from self._those(self.ranked.order[:STEADY], at_once)
        if self.barren >= BARREN:
            return
        self.ranked = deepened(self.ranked, self.stores, self.narrowing)
        for one in self._those(self.ranked.order[STEADY:], at_once):
            yield one
            if self.barren >= BARREN:
                return

    def _those(self, order: Sequence[str], at_once: int) -> Iterator[_Found]:
        for begin in range(0, len(order), at_once):
            names = order[begin : begin + at_once]
            passages = self.stores.passages(names)
            similarities = self.ranked.similarities(names, self.stores)
            for name in names:
                passage = passages.get(name)
                if passage is not None:  # else removed this moment
                    yield self._found(passage, self.ranked.scores[name], similarities.get(name))

    def _found(self, passage: Passage, score: float, similarity: float | None) -> _Found:
        """With the words of whichever wording it covers best."""
        present = frozenset(self.tokens(passage.searchable))
        best: list[str] = []
        coverage = 0.0
        for wording in self.wordings:
            words = [word for token, word in wording.items() if token in present]
            if words and len(words) / len(wording) > coverage:
                best, coverage = words, len(words) / len(wording)
        return _Found(passage, score, similarity, best, coverage, present)

    def nearest(self) -> list[str]:
        self.weak.sort(key=lambda one: -(one.similarity or 0.0))
        return list(dict.fromkeys(one.passage.title for one in self.weak))[:NEAREST]

    def hit(self, one: _Found, cursor: str) -> Hit:
        passage = one.passage
        said = quote(passage.text, self.wanted, self.tokens)
        start, page = passage.place(said.start)
        last, page_end = passage.place(max(said.start, said.end - 1))
        reasons = [f"similarity {one.similarity:.2f}"] if one.similarity is not None else []
        if one.words:
            reasons.append("words: " + ", ".join(dict.fromkeys(one.words[:8])))
        return Hit(
            id=passage.document,
            kind=passage.kind,
            title=passage.title,
            quote=said.text,
            source=passage.source,
            page=page,
            section=passage.section,
            date=passage.date,
            score=round(one.score, 4),
            why="; ".join(reasons),
            similarity=None if one.similarity is None else round(one.similarity, 4),
            tags=list(passage.tags),
            offsets=[start, last + 1],
            also=one.also,
            cursor=cursor,
            page_end=page_end if page_end != page else None,
            passage=passage.text if self.query.whole else "",
        )


def _shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Its runs of five words, or the whole of a shorter text."""
    words = re.findall(r"\w+", text.lower())
    return frozenset(zip(*(words[n:] for n in range(5)), strict=False)) or frozenset([tuple(words)])


def _alike(one: _Found, other: _Found) -> bool:
    if one.passage.document != other.passage.document and {one.passage.kind, other.passage.kind} & RESULTS:
        return False  # two runs may differ in one number alone, and that is what was asked for
    if len(one.tokens & other.tokens) * 2 < min(len(one.tokens), len(other.tokens)):
        return False  # nearly every pair: their runs of words need not be looked at
    return _same(one.shingles, other.shingles)


def _same(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> bool:
    common = len(one & other)
    return common >= SAME * max(1, min(len(one), len(other))) and common >= 0.5 * max(len(one), len(other))
