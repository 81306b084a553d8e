"""Rows of tokens in a seeded order, resumable exactly; and the fixed rows an evaluation reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.corpus import DataProblem

Rows = NDArray[np.int64]
IGNORED = -1  # a target that is not scored


@dataclass
class LoaderState:
    epoch: int = 0
    position: int = 0  # rows of this epoch already given out


class TrainingLoader:
    """Endless rows of context + 1 ids, each starting with BOS.

    The token stream is cut every `context` tokens, from an offset that differs by epoch; a row that would start inside
    a document gets BOS in front, so no text is dropped or padded. The order of the rows is drawn anew every epoch.
    """

    def __init__(self, ids: NDArray[np.integer], context: int, bos: int, seed: int) -> None:
        self.ids, self.context, self.bos, self.seed = ids, context, bos, seed
        if len(ids) < 2 * context + 2:
            raise DataProblem(
                f"the training text is too short: {len(ids)} tokens for rows of {context}",
                fix="add text, or lower data.context",
            )
        self.state = LoaderState()
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        draw = np.random.default_rng([self.seed, self.state.epoch])
        offset = int(draw.integers(self.context)) if self.state.epoch else 0
        starts = np.arange(offset, len(self.ids) - self.context, self.context)
        self._starts = draw.permutation(starts)

    def next(self, count: int) -> Rows:
        """The next `count` rows, (count, context + 1)."""
        rows = np.empty((count, self.context + 1), dtype=np.int64)
        for i in range(count):
            if self.state.position >= len(self._starts):
                self.state = LoaderState(self.state.epoch + 1)
                self._begin_epoch()
            start = int(self._starts[self.state.position])
            if self.ids[start] == self.bos:
                rows[i] = self.ids[start : start + self.context + 1]
            else:
                rows[i, 0] = self.bos
                rows[i, 1:] = self.ids[start : start + self.context]
            self.state.position += 1
        return rows

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.state.epoch, "position": self.state.position, "seed": self.seed, "length": len(self.ids)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state` was taken. Raises `DataProblem` when the text or the seed is another."""
        if (state["seed"], state["length"]) != (self.seed, len(self.ids)):
            raise DataProblem("the corpus or the seed changed since the checkpoint", fix="start a new run")
        self.state = LoaderState(state["epoch"], state["position"])
        self._begin_epoch()


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
