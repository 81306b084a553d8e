"""Joining the two rankings of a search, by meaning and by words, into one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

RRF_K = 60
Ranking = Sequence[tuple[str, float]]  # (id, score), best first


def reciprocal_ranks(rankings: Iterable[Ranking], k: int = RRF_K) -> dict[str, float]:
    """Reciprocal rank fusion: the sum over rankings of 1 / (k + rank), rank from 1."""
    fused: dict[str, float] = {}
    for ranking in rankings:
        for rank, (name, _) in enumerate(ranking, 1):
            fused[name] = fused.get(name, 0.0) + 1.0 / (k + rank)
    return fused
