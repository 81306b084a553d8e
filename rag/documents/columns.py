"""Two columns that were drawn across, line by line, put in reading order. Standard library only.

Most writers draw one column after the other, and pdfium keeps that order; then nothing is done here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LEAST = 6  # lines of each column
CROSSINGS = 0.5  # changes of side per line of the shorter column from which on a page counts as drawn across
MIDDLE = (0.35, 0.65)  # part of the page's width in which the gap between columns is looked for
STEPS = 60
LINE = 0.2  # of the page's width: lines of text fill their column, cells of a table do not


@dataclass(frozen=True)
class Piece:
    """A run of text on one line, in points from the lower left corner of the page; `top` is over `bottom`."""

    left: float
    bottom: float
    right: float
    top: float


def drawn_across(pieces: Sequence[Piece], width: float) -> float | None:
    """Where the gap between two columns is, when the page goes from one to the other line by line; else None."""
    if not _alternates([piece.left > 0.4 * width for piece in pieces]):
        return None  # nearly every page: decided at once
    gap = _gap(pieces, width)
    if gap is None:
        return None
    beside = [piece for piece in pieces if piece.right <= gap or piece.left >= gap]
    widths = sorted(piece.right - piece.left for piece in beside)
    text = widths[len(widths) // 2] >= LINE * width
    return gap if text and _alternates([piece.left >= gap for piece in beside]) else None


def _alternates(sides: list[bool]) -> bool:
    shorter = min(sides.count(True), sides.count(False))
    changes = sum(before != after for before, after in itertools.pairwise(sides))
    return shorter >= LEAST and changes > CROSSINGS * shorter


def _gap(pieces: Sequence[Piece], width: float) -> float | None:
    """The place near the middle that the fewest pieces cross, when both sides hold a column."""
    best, fewest = None, len(pieces)
    for step in range(STEPS + 1):
        x = width * (MIDDLE[0] + (MIDDLE[1] - MIDDLE[0]) * step / STEPS)
        crossed = sum(piece.left < x < piece.right for piece in pieces)
        left = sum(piece.right <= x for piece in pieces)
        right = sum(piece.left >= x for piece in pieces)
        if crossed < fewest and min(left, right) >= LEAST and crossed <= 0.3 * (left + right):
            best, fewest = x, crossed
    return best


def in_order(pieces: Sequence[Piece], gap: float) -> Iterator[list[Piece]]:
    """The lines of a page drawn across: above and below what spans both columns, left column before right."""
    spanning = [piece for piece in pieces if piece.left < gap < piece.right]
    rest = [piece for piece in pieces if not piece.left < gap < piece.right]
    borders = sorted(_lines(spanning), key=lambda line: -line[0].top)
    for border in [*borders, None]:
        floor = float("-inf") if border is None else border[0].top - 1
        above = [piece for piece in rest if piece.bottom >= floor]
        rest = [piece for piece in rest if piece.bottom < floor]
        for column in ([p for p in above if p.right <= gap], [p for p in above if p.left >= gap]):
            yield from _lines(column)
        if border is not None:
            yield border


def _lines(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces that stand beside each other, from left to right; lines from top to bottom."""
    lines: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: (-(piece.top + piece.bottom), piece.left)):
        middle = (piece.top + piece.bottom) / 2
        if lines and lines[-1][0].bottom <= middle <= lines[-1][0].top:
            lines[-1].append(piece)
        else:
            lines.append([piece])
    return [sorted(line, key=lambda piece: piece.left) for line in lines]
