"""Texts as BM25 vectors: word ids with weights, made the same way for every store.

`qdrant_edge` brings Qdrant's own model (stemmed, without stop words; the inverse document frequency is the store's
part). On a machine without its wheel a simpler one stands in, whose ids are not the same: an index is made with one of
them and made anew with the other.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

K, B, AVERAGE_TOKENS = 1.2, 0.75, 100.0
KEPT_WORDS, LONGEST_WORD = 20_000, 24  # whose ids are remembered: cutting quotes asks word by word; characters
Sparse = tuple[list[int], list[float]]  # word ids and weights
STOP_WORDS = frozenset(
    "a an and are as at be but by for from has have if in into is it its no not of on or that the their then there "
    "these they this to was were which will with".split()
)


class Words(Protocol):
    """Thread-safe."""

    name: str  # recorded with the index

    def document(self, text: str) -> Sparse: ...
    def query(self, text: str) -> Sparse: ...
    def tokens(self, text: str) -> Sequence[int]: ...  # word ids


@functools.cache
def words() -> Words:
    """The best there is on this machine."""
    try:
        return StemmedWords()
    except ImportError:
        return PlainWords()


class StemmedWords:
    """Qdrant's BM25. Raises ImportError where `qdrant_edge` cannot be had."""

    name = "stemmed"

    def __init__(self) -> None:
        import qdrant_edge as edge

        self._model = edge.Bm25(edge.Bm25Config(k=K, b=B, avg_len=AVERAGE_TOKENS))
        self._of_word = functools.lru_cache(KEPT_WORDS)(lambda word: tuple(self.query(word)[0]))

    def document(self, text: str) -> Sparse:
        vector = self._model.embed_document(text)
        return list(vector.indices), list(vector.values)

    def query(self, text: str) -> Sparse:
        vector = self._model.embed_query(text)
        return list(vector.indices), list(vector.values)

    def tokens(self, text: str) -> Sequence[int]:
        return self.query(text)[0] if len(text) > LONGEST_WORD else self._of_word(text)


class PlainWords:
    """Lower-case English words without stop words; of their endings only a plural's is taken off."""

    name = "plain"

    def document(self, text: str) -> Sparse:
        counts = Counter(self._ids(text))
        length = 1 - B + B * counts.total() / AVERAGE_TOKENS
        return list(counts), [n * (K + 1) / (n + K * length) for n in counts.values()]

    def query(self, text: str) -> Sparse:
        ids = self.tokens(text)
        return ids, [1.0] * len(ids)

    def tokens(self, text: str) -> list[int]:
        return list(dict.fromkeys(self._ids(text)))

    def _ids(self, text: str) -> list[int]:
        found = re.findall(r"[^\W_]+", text.lower())
        return [zlib.crc32(_singular(word).encode()) for word in found if word not in STOP_WORDS]


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
