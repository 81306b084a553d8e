"""The sentences of a passage that answer a query, as a short quote."""

from __future__ import annotations

from collections.abc import Callable

from rag.documents.chunks import sentence_spans
from rag.documents.document import clean

LONGEST = 400  # characters
Tokens = Callable[[str], list[int]]


def quote(text: str, wanted: frozenset[int], tokens: Tokens) -> str:
    """The sentence with most of the `wanted` words, and its neighbours as far as they fit."""
    text = clean(text)
    spans = list(sentence_spans(text))
    if not spans:
        return ""
    scores = [len(wanted & frozenset(tokens(text[start:end]))) for start, end in spans]
    first = last = max(range(len(spans)), key=lambda n: (scores[n], -n))
    start, end = spans[first]
    if end - start > LONGEST:
        return _around(text[start:end], wanted, tokens)
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
    return _line(text[spans[first][0] : spans[last][1]])


def _around(sentence: str, wanted: frozenset[int], tokens: Tokens) -> str:
    """Part of a sentence too long to quote whole, from a little before the first wanted word."""
    words = sentence.split()
    hit = next((n for n, word in enumerate(words) if wanted & frozenset(tokens(word))), 0)
    begin = max(0, hit - 12)
    shown = ("… " if begin else "") + " ".join(words[begin:])
    if len(shown) > LONGEST:
        shown = shown[: LONGEST - 2].rsplit(" ", 1)[0][: LONGEST - 2] + " …"
    return shown


def _line(text: str) -> str:
    return " ".join(text.split())
