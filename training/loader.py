"""Rows of tokens in a seeded order, resumable exactly; and the fixed rows an evaluation reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.corpus import DataProblem
from training.packing import Piece, pack

Rows = NDArray[np.int64]
IGNORED = -1  # a target that is not scored
GROUP_TOKENS = 2**21  # packed at once: a fifth of a second's work when documents have 100 tokens, less when more


@dataclass(frozen=True)
class LoaderState:
    epoch: int = 0
    group: int = 0  # documents of this epoch before those that are packed now
    position: int = 0  # rows of these already given out
    over: tuple[Piece, ...] = ()  # what the documents before left, also those of the epoch before


class TrainingLoader:
    """Endless rows of context + 1 ids, each starting with BOS: documents packed best-fit (`training.packing`).

    The order of documents and rows, and where a long document is cut, are drawn anew every epoch. Documents are packed
    in groups, so that a large text is not gone through before the first row.
    """

    def __init__(self, ids: NDArray[np.integer], context: int, bos: int, seed: int) -> None:
        self.ids, self.context, self.bos, self.seed = ids, context, bos, seed
        if len(ids) < 2 * context + 2:
            raise DataProblem(
                f"the training text is too short: {len(ids)} tokens for rows of {context}",
                fix="add text, or lower data.context",
            )
        starts = np.flatnonzero(ids == bos)
        self._starts = starts if len(starts) and starts[0] == 0 else np.concatenate([[0], starts])
        self._ends = np.append(self._starts[1:], len(ids))
        self._order = self._order_of(0)
        self.state = LoaderState()  # of what was given out
        self._ahead: tuple[Rows, LoaderState] | None = None  # rows made already, and the state when they are given out
        self._pack_group(self.state)

    def _order_of(self, epoch: int) -> tuple[int, NDArray[np.int64]]:
        return epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self._starts))

    def _pack_group(self, state: LoaderState) -> None:
        """Pack the documents from `state.group` on; what is then left over waits for the next group or epoch."""
        self._packed, room = replace(state, position=0), self.context + 1
        if self._order[0] != state.epoch:
            self._order = self._order_of(state.epoch)
        order = self._order[1]
        ahead = order[state.group : state.group + GROUP_TOKENS]  # a document has a token at least
        count = int(np.searchsorted(np.cumsum(self._ends[ahead] - self._starts[ahead]), GROUP_TOKENS)) + 1
        draw = np.random.default_rng([self.seed, state.epoch, state.group])
        pieces = list(state.over)
        for document in order[state.group : state.group + count]:
            start, length = int(self._starts[document]), int(self._ends[document] - self._starts[document])
            piece = Piece(start, length, bool(self.ids[start] != self.bos))
            shift = int(draw.integers(room)) if state.epoch else 0
            if piece.cut < shift < piece.cost > room:
                first, piece = piece.split(shift)
                pieces.append(first)
            pieces.append(piece)
        rows, left = pack(pieces, room)
        self._rows = [rows[i] for i in draw.permutation(len(rows))]
        following = state.group + count
        if following < len(order):
            self._next = LoaderState(state.epoch, following, 0, tuple(left))
        else:
            self._next = LoaderState(state.epoch + 1, over=tuple(left))

    def next(self, count: int) -> Rows:
        """The next `count` rows, (count, context + 1)."""
        if self._ahead is not None and len(self._ahead[0]) != count:
            self._go_to(self.state)
        rows, self.state = self._ahead or self._make(count)
        self._ahead = None
        return rows

    def read_ahead(self, count: int) -> None:
        """Make the rows that `next(count)` will give, while a device computes; until then `state` is what it was."""
        if self._ahead is None:
            self._ahead = self._make(count)

    def _make(self, count: int) -> tuple[Rows, LoaderState]:
        """The rows after those given out, and the state after them."""
        rows = np.empty((count, self.context + 1), dtype=np.int64)
        state, position = self.state, self.state.position
        for i in range(count):
            while position >= len(self._rows):
                state, position = self._next, 0
                self._pack_group(state)
            at = 0
            for start, length, cut in self._rows[position]:
                if cut:
                    rows[i, at] = self.bos
                    at += 1
                rows[i, at : at + length] = self.ids[start : start + length]
                at += length
            position += 1
        return rows, replace(state, position=position)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self.state) | {"seed": self.seed, "length": len(self.ids)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state` was taken. Raises `DataProblem` when the text or the seed is another."""
        if (state["seed"], state["length"]) != (self.seed, len(self.ids)):
            raise DataProblem("the corpus or the seed changed since the checkpoint", fix="start a new run")
        if "group" not in state:
            raise DataProblem("the checkpoint's rows were packed by an older version", fix="start a new run")
        over = tuple(Piece(*piece) for piece in state["over"])
        self._go_to(LoaderState(state["epoch"], state["group"], state["position"], over))

    def _go_to(self, state: LoaderState) -> None:
        self.state, self._ahead = state, None
        if replace(state, position=0) != self._packed:
            self._pack_group(state)


def evaluation_rows(
    ids: NDArray[np.integer], byte_lengths: NDArray[np.int32], context: int, bos: int, max_bytes: int
) -> tuple[Rows, int]:
    """Rows (N, context + 1) in which every token of the first documents is a target once, and their bytes.

    Whole documents are taken until they hold `max_bytes`, so the text scored does not depend on the vocabulary. A row
    starts with BOS; what fills up the last row is IGNORED.
    """
    starts = np.flatnonzero(ids == bos)
    ends = np.append(starts[1:], len(ids))
    total = np.cumsum(byte_lengths[ids])
    up_to = total[ends - 1]
    taken = int(np.searchsorted(up_to, max_bytes)) + 1
    stream = np.asarray(ids[: ends[min(taken, len(ends)) - 1]], dtype=np.int64)
    rows: list[Rows] = []
    position = 0
    while position < len(stream):
        begins = stream[position] == bos
        take = stream[position : position + context + int(begins)]
        row = np.full(context + 1, IGNORED, dtype=np.int64)
        row[: int(not begins)] = bos
        row[int(not begins) : int(not begins) + len(take)] = take
        rows.append(row)
        position += len(take)
    return np.stack(rows), int(byte_lengths[stream].sum())
