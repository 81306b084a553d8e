"""The order of passages for a query: by meaning and by words, joined, with one round of pseudo-relevance feedback.

1. Each ranking's scores become standard scores over its best `DEPTH`, so that a passage far ahead of the others counts
   for more than the first of many alike; a passage that a ranking does not hold gets nothing from it.
2. The vectors of the `FEEDBACK` best passages steer the query's vector, which gives a third ranking.
3. Words count `WORDS_SHARE`; the query's own vector and the steered one share the rest.
4. After the first `STEADY` passages, which few ever page to, reciprocal ranks over deeper rankings decide as well:
   there a passage that both rankings hold far down is worth more than one that only one of them holds.

Chosen on seven collections together, so that nowhere is worse than reciprocal rank fusion (k = 60), which
`reciprocal_ranks` keeps for comparison: `lab-mcp rag-eval` repeats it for any collection. What it gains there, what it
costs and how much of the gain is left on a collection it was not tuned on is in docs/benchmarks.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from rag.index.store import Narrowing

DEPTH = 100  # passages taken from each ranking
WORDS_SHARE = 0.45
FEEDBACK = 2
RRF_K = 60
STEADY = 60
DEEP = 400  # passages of a deeper ranking, also of those the default is compared with: enough for a hundred documents
SIGMAS = 6.0  # standard deviations a scaled score of 1 stands for; 3 below the mean is 0
LEAST_SAMPLE = 10
Scored = Sequence[tuple[str, float]]  # (id, score), best first


class Searchable(Protocol):
    """The part of a store that ranking needs."""

    def dense(self, vector: Sequence[float], limit: int, narrowing: Narrowing) -> list[tuple[str, float]]: ...
    def words(self, query: str, limit: int, narrowing: Narrowing) -> list[tuple[str, float]]: ...
    def vectors(self, ids: Sequence[str]) -> dict[str, list[float]]: ...


@dataclass(frozen=True)
class Wording:
    """One way of asking: the text, and its vector where there is an embedder."""

    text: str
    vector: Sequence[float] | None


@dataclass(frozen=True)
class Ranked:
    """Passage ids, best first, with the joined score (1 for the best)."""

    order: list[str]
    scores: dict[str, float]
    wordings: Sequence[Wording]
    known: Sequence[dict[str, float]]  # of each wording, its cosines to passages met so far

    def similarities(self, names: Sequence[str], store: Searchable) -> dict[str, float]:
        """The cosine of each passage to the wording nearest to it; asked for as they are needed, most never are."""
        nearest: dict[str, float] = {}
        for wording, known in zip(self.wordings, self.known, strict=True):
            missing = tuple(name for name in names if name not in known)
            if wording.vector is not None and missing:
                known.update(store.dense(wording.vector, len(missing), Narrowing(ids=missing)))
            for name in names:
                if name in known:
                    nearest[name] = max(known[name], nearest.get(name, -1.0))
        return nearest


def scaled_words(ranking: Scored) -> dict[str, float]:
    """Standard scores. Passages that match no word have 0, and count: a rare word's only passage stands out."""
    scores = [score for _, score in ranking]
    return _scaled(ranking, scores + [0.0] * (DEPTH - len(scores)))


def scaled_dense(ranking: Scored) -> dict[str, float]:
    """Standard scores. A ranking that ends early holds everything there is; its better half is then the measure."""
    scores = [score for _, score in ranking]
    return _scaled(ranking, scores if len(scores) >= DEPTH else scores[: max(LEAST_SAMPLE, len(scores) // 2)])


def _scaled(ranking: Scored, sample: Sequence[float]) -> dict[str, float]:
    if not ranking:
        return {}
    mean = sum(sample) / len(sample)
    deviation = math.sqrt(sum((score - mean) ** 2 for score in sample) / len(sample))
    if deviation < 1e-9:
        return {name: 0.5 for name, _ in ranking}
    return {name: max(0.0, 0.5 + (score - mean) / (SIGMAS * deviation)) for name, score in ranking}


def join(parts: Sequence[tuple[dict[str, float], float]]) -> dict[str, float]:
    """The weighted mean of scaled rankings; one that is empty does not count."""
    total = sum(weight for scores, weight in parts if scores) or 1.0
    joined: dict[str, float] = {}
    for scores, weight in parts:
        for name, score in scores.items():
            joined[name] = joined.get(name, 0.0) + score * weight / total
    return joined


def reciprocal_ranks(*rankings: Scored) -> list[str]:
    """Plain reciprocal rank fusion, the common default elsewhere; for comparison."""
    scores: dict[str, float] = {}
    for one in rankings:
        for rank, (name, _) in enumerate(one, 1):
            scores[name] = scores.get(name, 0.0) + 1.0 / (RRF_K + rank)
    return sorted(scores, key=lambda name: (-scores[name], name))


def rank(wordings: Sequence[Wording], store: Searchable, narrowing: Narrowing, floor: float) -> Ranked:
    """Rank for a query and the other wordings of it that were given; the query counts as much as all others together.

    Only passages with a cosine of `floor` or more give feedback: what is not about the query must not steer it.
    """
    each = [_one(wording, store, narrowing, floor) for wording in wordings]
    scores = each[0][0]
    if len(each) > 1:
        others = 1.0 / (len(each) - 1)
        scores = join([(scores, 1.0 if n == 0 else others) for n, (scores, _) in enumerate(each)])
    order = sorted(scores, key=lambda name: (-scores[name], name))
    best = (scores[order[0]] if order else 0.0) or 1.0
    return Ranked(order, {name: score / best for name, score in scores.items()}, wordings, [known for _, known in each])


def deepened(ranked: Ranked, store: Searchable, narrowing: Narrowing) -> Ranked:
    """With what comes after the first `STEADY`, in an order of its own; the first stay as they are."""
    if len(ranked.order) <= STEADY:
        return ranked  # there is no more
    rankings: list[Scored] = [[(name, ranked.scores[name]) for name in ranked.order]]
    for wording in ranked.wordings:
        rankings += [_words(wording, store, narrowing), _dense(wording, store, narrowing)]
    first = ranked.order[:STEADY]
    tail = [name for name in reciprocal_ranks(*rankings) if name not in set(first)]
    least = ranked.scores[first[-1]]
    below = {name: least * (1 - n / (len(tail) + 1)) for n, name in enumerate(tail, 1)}
    return replace(ranked, order=[*first, *tail], scores=ranked.scores | below)


def _one(
    wording: Wording, store: Searchable, narrowing: Narrowing, floor: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Joined scores for one wording, and the cosines to it that were met on the way."""
    words = scaled_words(store.words(wording.text, DEPTH, narrowing))
    vector = wording.vector
    if vector is None:
        return join([(words, 1.0)]), {}
    found = store.dense(vector, DEPTH, narrowing)
    similarity, dense = dict(found), scaled_dense(found)
    rest = 1.0 - WORDS_SHARE
    scores = join([(words, WORDS_SHARE), (dense, rest)])
    best = sorted(scores, key=lambda name: (-scores[name], name))[:FEEDBACK]
    models = [name for name in best if similarity.get(name, 0.0) >= floor]
    examples = list(store.vectors(models).values()) if models else []
    if examples:  # a passage may be taken out of the index while it is searched
        again = scaled_dense(store.dense(_toward(vector, examples), DEPTH, narrowing))
        scores = join([(words, WORDS_SHARE), (dense, rest / 2), (again, rest / 2)])
    return scores, similarity


def _toward(vector: Sequence[float], examples: Sequence[Sequence[float]]) -> list[float]:
    """`vector` and the mean direction of `examples`, added."""
    mean = [sum(column) for column in zip(*examples, strict=True)]
    length = math.sqrt(sum(value * value for value in mean)) or 1.0
    return [own + value / length for own, value in zip(vector, mean, strict=True)]


Method = Callable[[Wording, Searchable, Narrowing, float], list[str]]


def _fused(wording: Wording, store: Searchable, narrowing: Narrowing, floor: float) -> list[str]:
    return reciprocal_ranks(_words(wording, store, narrowing), _dense(wording, store, narrowing))


def _words(wording: Wording, store: Searchable, narrowing: Narrowing) -> Scored:
    return store.words(wording.text, DEEP, narrowing)


def _dense(wording: Wording, store: Searchable, narrowing: Narrowing) -> Scored:
    return [] if wording.vector is None else store.dense(wording.vector, DEEP, narrowing)


METHODS: dict[str, Method] = {  # what evaluation compares; the lab's searches use "default"
    "words": lambda wording, store, narrowing, floor: [name for name, _ in _words(wording, store, narrowing)],
    "dense": lambda wording, store, narrowing, floor: [name for name, _ in _dense(wording, store, narrowing)],
    "fusion": _fused,
    "default": lambda wording, store, narrowing, floor: (
        deepened(rank([wording], store, narrowing, floor), store, narrowing).order
    ),
}
