"""The sentences of a passage that answer a query, as a short quote."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rag.documents.chunks import sentence_spans

LONGEST = 400  # characters
Tokens = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Quote:
    """`text` in one line; it is what stands from `start` to `end` in the passage."""

    text: str
    start: int
    end: int


def quote(text: str, wanted: frozenset[int], tokens: Tokens) -> Quote:
    """The sentence with most of the `wanted` words, and its neighbours as far as they fit."""
    spans = list(sentence_spans(text))
    if not spans:
        return Quote("", 0, 0)
    scores = [len(wanted.intersection(tokens(text[start:end]))) for start, end in spans]
    first = last = max(range(len(spans)), key=lambda n: (scores[n], -n))
    start, end = spans[first]
    if end - start > LONGEST:
        return _around(text, start, end, wanted, tokens)
    while True:
        sides = []
        if last + 1 < len(spans) and spans[last + 1][1] - spans[first][0] <= LONGEST:
            sides.append((scores[last + 1], 1))
        if first > 0 and spans[last][1] - spans[first - 1][0] <= LONGEST:
            sides.append((scores[first - 1], 0))
        if not sides:
            break
        if max(sides)[1]:
            last += 1
        else:
            first -= 1
    start, end = spans[first][0], spans[last][1]
    return Quote(" ".join(text[start:end].split()), start, end)


def _around(text: str, start: int, end: int, wanted: frozenset[int], tokens: Tokens) -> Quote:
    """Part of a sentence too long to quote whole, from a little before the first wanted word."""
    words = list(re.compile(r"\S+").finditer(text, start, end))
    hit = next((n for n, word in enumerate(words) if not wanted.isdisjoint(tokens(word.group()))), 0)
    begin = max(0, hit - 12)
    before = "… " if begin else ""
    whole = before + " ".join(word.group() for word in words[begin:])
    if len(whole) <= LONGEST:
        return Quote(whole, words[begin].start(), end)
    shown, last = before, words[begin].start()
    for word in words[begin:]:
        more = shown + word.group()
        if len(more) > LONGEST - 2:
            break
        shown, last = f"{more} ", word.end()
    if last == words[begin].start():  # a word as long as a quote
        last += LONGEST - 4
        shown = before + text[words[begin].start() : last]
    return Quote(f"{shown.rstrip()} …", words[begin].start(), last)
