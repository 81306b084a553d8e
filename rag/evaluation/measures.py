"""Measures of one ranking against judgements: nDCG, recall, reciprocal rank. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

NDCG_DEPTH, RECALL_DEPTH = 10, 100


def ndcg(ranking: Sequence[str], relevant: Mapping[str, int], depth: int = NDCG_DEPTH) -> float:
    """Normalised discounted cumulative gain with linear gains, as trec_eval and BEIR have it; 0 to 1."""
    gain = sum(relevant.get(name, 0) / math.log2(rank + 2) for rank, name in enumerate(ranking[:depth]))
    best = sorted(relevant.values(), reverse=True)[:depth]
    return gain / sum(grade / math.log2(rank + 2) for rank, grade in enumerate(best))


def recall(ranking: Sequence[str], relevant: Mapping[str, int], depth: int = RECALL_DEPTH) -> float:
    """Share of the relevant documents among the first `depth`."""
    return len(set(ranking[:depth]) & relevant.keys()) / len(relevant)


def reciprocal_rank(ranking: Sequence[str], relevant: Mapping[str, int]) -> float:
    """1 over the rank of the first relevant document; 0 when there is none."""
    return next((1.0 / rank for rank, name in enumerate(ranking, 1) if name in relevant), 0.0)


MEASURES = {"ndcg@10": ndcg, "recall@100": recall, "mrr": reciprocal_rank}
