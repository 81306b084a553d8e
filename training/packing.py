"""Documents into rows, best fit: a row is filled with the largest pieces that fit, so few documents are cut.

As in karpathy/nanochat, but what is cut off comes in a later row instead of being dropped: every row is full and every
token is in exactly one row. What begins inside a document gets BOS in front, so every row begins with BOS.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable
from typing import NamedTuple


class Piece(NamedTuple):
    """`length` ids of the text from `start` on; `cut` when it begins inside a document and costs a BOS more."""

    start: int
    length: int
    cut: bool

    @property
    def cost(self) -> int:
        return self.length + self.cut

    def split(self, room: int) -> tuple[Piece, Piece]:
        """The part that fills `room`, less than the cost, and the rest."""
        taken = room - self.cut
        return Piece(self.start, taken, self.cut), Piece(self.start + taken, self.length - taken, self.cut or taken > 0)


Row = tuple[Piece, ...]


def pack(pieces: Iterable[Piece], room: int) -> tuple[list[Row], list[Piece]]:
    """Rows of exactly `room` ids, and the pieces that are left: together they would not fill another row."""
    rows: list[Row] = []
    pool: list[tuple[int, Piece]] = []  # by cost
    left = 0
    for piece in pieces:
        rest = piece
        while rest.cost >= room:
            if rest.cost == room:
                full, rest = rest, Piece(rest.start + rest.length, 0, False)
            else:
                full, rest = rest.split(room)
            rows.append((full,))
        if rest.length:
            pool.append((rest.cost, rest))
            left += rest.cost
    pool.sort()
    while left >= room:
        row, gap = [], room
        while gap:
            at = bisect_right(pool, gap, key=lambda entry: entry[0])
            if at:
                cost, piece = pool.pop(at - 1)
                left -= cost
            else:  # nothing fits: the smallest is cut
                cost, piece = pool.pop(0)
                piece, rest = piece.split(gap)
                insort(pool, (rest.cost, rest))
                left += rest.cost - cost
            row.append(piece)
            gap -= piece.cost
        rows.append(tuple(row))
    return rows, [piece for _, piece in pool]
