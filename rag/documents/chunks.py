"""Passages: whole sentences of one section, of a length the embedder reads completely. Standard library only."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rag.documents.document import Block

TARGET = 1000  # characters; with its title some 230 word pieces, the packaged model reads 256
LONGEST = 1300
SHORTEST = 250  # a last passage shorter than this joins the one before when both fit
ABBREVIATIONS = frozenset(
    "e.g i.e cf vs etc al fig figs eq eqs sec secs tab ref refs no vol pp dr prof mr mrs ms st approx resp ca".split()
)
BOUNDARY = re.compile(r"""[.!?]["'”’)\]]*\s+(?=["'“‘(\[]?[A-Z0-9])|\n\s*\n|\n(?=\s*(?:[-*+|>#]|\d+[.)])\s?)|[。！？]""")


Mark = tuple[int, int, int | None]


@dataclass(frozen=True)
class Chunk:
    """A passage. `start` and `end` are offsets as in `Block`; `pages` first and last page from 1, or None.

    `marks` tell where its text stands: from this offset in it on, at that offset as in `Block`, on that page.
    """

    text: str
    section: str
    pages: tuple[int, int] | None
    start: int
    end: int
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class _Sentence:
    text: str
    block: Block
    start: int  # in the block
    opens: bool  # first of its block

    @property
    def end(self) -> int:
        return self.block.start + self.start + len(self.text)


def sentence_spans(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each sentence of `text`, surrounding white space left out."""
    begin = 0
    for match in BOUNDARY.finditer(text):
        word = re.search(r"([A-Za-z.]+)\.$", text[max(0, match.start() - 20) : match.start() + 1])
        if word and (word.group(1).lower().lstrip(".") in ABBREVIATIONS or re.fullmatch(r"[A-Z]", word.group(1))):
            continue
        yield from _trimmed(text, begin, match.end())
        begin = match.end()
    yield from _trimmed(text, begin, len(text))


def _trimmed(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    part = text[begin:end]
    stripped = part.strip()
    if stripped:
        start = begin + part.index(stripped[0])
        yield start, start + len(stripped)


def cut(blocks: Iterable[Block]) -> Iterator[Chunk]:
    """The passages of a document in order. Lazy: a long document is never held whole."""
    pending: list[_Sentence] = []  # a full passage waiting to see whether a short rest follows
    current: list[_Sentence] = []
    for sentence in _sentences(blocks):
        if current and sentence.block.section != current[0].block.section:
            yield from _last(pending, current)
            pending, current = [], []
        elif current and _length(current) + len(sentence.text) > TARGET:
            if pending:
                yield _chunk(pending)
            pending, current = current, []
        current.append(sentence)
    yield from _last(pending, current)


def _last(pending: list[_Sentence], current: list[_Sentence]) -> Iterator[Chunk]:
    """The last passages of a section; a short rest joins its predecessor."""
    if pending and current and _length(current) < SHORTEST and _length(pending) + _length(current) <= LONGEST:
        yield _chunk(pending + current)
        return
    for group in (pending, current):
        if group:
            yield _chunk(group)


def _length(sentences: list[_Sentence]) -> int:
    return sum(len(sentence.text) + 1 for sentence in sentences)


def _sentences(blocks: Iterable[Block]) -> Iterator[_Sentence]:
    for block in blocks:
        opens = True
        for start, end in sentence_spans(block.text):
            while end - start > TARGET:  # no sentence: a table, code, or text without punctuation
                space = block.text.rfind(" ", start + TARGET // 2, start + TARGET)
                newline = block.text.rfind("\n", start + TARGET // 2, start + TARGET)
                split = max(space, newline) if max(space, newline) > 0 else start + TARGET
                yield _Sentence(block.text[start:split], block, start, opens)
                opens, start = False, split
            if text := block.text[start:end]:
                yield _Sentence(text, block, start, opens)
            opens = False


def _chunk(sentences: list[_Sentence]) -> Chunk:
    parts = [sentences[0].text]
    marks = [_mark(0, sentences[0])]
    length = len(parts[0])
    for before, sentence in itertools.pairwise(sentences):
        ended = before.text.rstrip()[-1:] in ".!?:。！？"
        same = sentence.block is before.block
        gap = sentence.block.text[before.start + len(before.text) : sentence.start] if same else ""
        parts.append("\n" if "\n" in gap else " " if same or not ended else "\n\n")
        length += len(parts[-1])
        mark, last_mark = _mark(length, sentence), marks[-1]
        if (mark[1] - mark[0], mark[2]) != (last_mark[1] - last_mark[0], last_mark[2]):
            marks.append(mark)
        parts.append(sentence.text)
        length += len(sentence.text)
    first, last = sentences[0], sentences[-1]
    pages = (first.block.page, last.block.page)
    known = (pages[0], pages[1]) if pages[0] is not None and pages[1] is not None else None
    start = first.block.start + first.start
    return Chunk("".join(parts), first.block.section, known, start, last.end, tuple(marks))


def _mark(offset: int, sentence: _Sentence) -> Mark:
    return offset, sentence.block.start + sentence.start, sentence.block.page
