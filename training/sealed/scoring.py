"""Bits per byte of a checkpoint, from the logits its model returns in a process of its own.

Before the first score: the text and the tokenizer are those the run was started with, and what a model says of a token
does not depend on later tokens or on other rows. Log-softmax, the choice of text and the count of bytes are ours.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training import loader, score, tokenizer, tokens
from training.config import TrainingConfig
from training.corpus import DataProblem
from training.data import PreparedData, file_hash
from training.failure import NotANumber
from training.loader import IGNORED, Rows, evaluation_rows
from training.score import Evaluation
from training.sealed.model_process import Logits, ModelProcess, Shape
from workspace.errors import Refused

SEALED_FILES = ("validation.bin", "tokenizer.json")
LEAK = 0.01  # nats: the same products on the same tokens differ by less, whatever their format; seen answers move more
TOKENS_AT_ONCE = 512  # scored together: their logits stay near the cache
CUTS = 2  # at least: places at which the causality test replaces what follows
NO_NUMBERS = "the model's logits on the validation text are not all numbers"


@dataclass(frozen=True)
class Seal:
    """Hashes of what a score depends on besides the model: taken before a recipe's code runs, compared after."""

    files: dict[str, str]
    code: str

    @classmethod
    def take(cls, data: PreparedData) -> Seal:
        """Raises `DataProblem` when the files are not those that were prepared."""
        files = {name: file_hash(data.folder / name) for name in SEALED_FILES}
        changed = [name for name in SEALED_FILES if files[name] != data.meta["sha256"][name]]
        if changed:
            raise DataProblem(f"{changed[0]} is not as it was prepared", fix="delete .lab/cache/data and start again")
        return cls(files, evaluation_code())

    def check(self, data: PreparedData) -> None:
        """Raises `DataProblem` or `Refused` when something has changed since."""
        for name, expected in self.files.items():
            if file_hash(data.folder / name) != expected:
                raise DataProblem(
                    f"{name} changed during the run: it cannot be scored", fix="delete .lab/cache/data and start again"
                )
        if evaluation_code() != self.code:
            raise Refused("the evaluation's code changed during the run", fix="resume the run: it is then scored anew")


def evaluation_code() -> str:
    """Names the code that makes scores."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    files += [Path(str(module.__file__)) for module in (score, loader, tokens, tokenizer)]
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()[:16]


@dataclass(frozen=True)
class Candidate:
    """What is scored: a checkpoint with the recipe that made it."""

    checkpoint: Path
    recipe_dir: Path
    dtype: str
    config: TrainingConfig


def evaluate(candidate: Candidate, data: PreparedData, ids: NDArray[np.integer], expected_bytes: int) -> Evaluation:
    """Score `candidate` on the first documents of `ids`, `evaluation.bytes` of them. Raises `LabError`, `Told`.

    `expected_bytes` is the size of the text behind `ids`, from when it was prepared.
    """
    lengths = data.tokenizer.byte_lengths()
    if int(lengths[ids].sum()) != expected_bytes:
        raise DataProblem("the tokens do not stand for the bytes they were made of", fix="delete .lab/cache/data")
    config = candidate.config
    rows, _ = evaluation_rows(ids, lengths, config.data.context, data.tokenizer.bos, config.evaluation.bytes)
    shape = Shape.fitting(config.data.context, len(lengths), most=len(rows))
    with ModelProcess(candidate.checkpoint, candidate.recipe_dir, candidate.dtype, shape) as model:
        refuse_looking_ahead(model, rows)
        return score_rows(model, rows, lengths)


def score_rows(model: Any, rows: Rows, byte_lengths: NDArray[np.int32]) -> Evaluation:
    """Score `rows` (N, T + 1), of which IGNORED targets and tokens without bytes do not count.

    `model` has `shape` and `answers`; it is always asked for as many rows at once as the causality test has seen.
    Raises `NotANumber` when a logit is none.
    """
    at_once = model.shape.rows
    batches = [rows[start : start + at_once] for start in range(0, len(rows), at_once)]
    nats, count, size = 0.0, 0, 0
    answers = model.answers(_filled_up(np.maximum(batch[:, :-1], 0), at_once) for batch in batches)
    for batch, logits in zip(batches, answers, strict=True):
        targets = batch[:, 1:].reshape(-1)
        scored_bytes = np.where(targets == IGNORED, 0, byte_lengths[np.maximum(targets, 0)])
        each = nats_of(logits[: len(batch)].reshape(len(targets), -1), np.maximum(targets, 0))
        nats += float(each[scored_bytes > 0].sum())
        count += int((scored_bytes > 0).sum())
        size += int(scored_bytes.sum())
    if not math.isfinite(nats):
        raise NotANumber(NO_NUMBERS)
    return Evaluation.of(nats, count, size)


def _filled_up(tokens: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(n, T) -> (count, T): the rows again and again."""
    return tokens if len(tokens) == count else np.resize(tokens, (count, tokens.shape[1]))


def nats_of(logits: Logits, targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, V) and (N,) -> (N,): minus the log of the softmax at each target."""
    result = np.empty(len(targets))
    for start in range(0, len(targets), TOKENS_AT_ONCE):
        piece, target = logits[start : start + TOKENS_AT_ONCE], targets[start : start + TOKENS_AT_ONCE]
        top, log_z = _top_and_rest(piece)
        at_target = np.take_along_axis(piece, target[:, None], axis=1)[:, 0].astype(np.float64)
        with np.errstate(invalid="ignore"):
            result[start : start + TOKENS_AT_ONCE] = log_z + top[:, 0] - at_target
    return result


def _top_and_rest(logits: Logits) -> tuple[Logits, NDArray[np.float64]]:
    """(N, V) -> (N, 1) and (N,): the largest logit, and how far the log of the sum of all exponentials is above it."""
    top = logits.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", over="ignore"):
        return top, np.log(np.exp(logits - top).sum(axis=1, dtype=np.float64))


def refuse_looking_ahead(model: Any, rows: Rows) -> None:
    """Raises `Refused` when later tokens, or another row, change what a model says: it has seen the answers.

    A whole batch is asked for, as large as those that are scored; then again with another end in every second row, each
    from a place of its own, and other tokens in the rows between. Raises `NotANumber` as `score_rows` does.
    """
    shape = model.shape
    tokens = np.maximum(np.resize(rows[:, :-1], (shape.rows, shape.context)), 0)
    (answer,) = model.answers([tokens])
    before, kept = answer[::2].copy(), range(0, shape.rows, 2)
    draw = np.random.default_rng(0)
    for again in range(-(-CUTS // len(kept))):
        cuts = draw.integers(1, shape.context, len(kept))
        cuts[0] = cuts[0] if again else shape.context // 2
        changed = draw.integers(shape.vocab_size, size=tokens.shape)
        for row, cut in zip(kept, cuts, strict=True):
            changed[row, :cut] = tokens[row, :cut]
            changed[row, cut:] = (tokens[row, cut:] + 1 + draw.integers(shape.vocab_size - 1)) % shape.vocab_size
        (after,) = model.answers([changed])
        for number, (row, cut) in enumerate(zip(kept, map(int, cuts), strict=True)):
            moved = moved_by(before[number, :cut], after[row, :cut])
            if moved.any():
                changed_by = f"other tokens from {cut} on, or in another row,"
                raise Refused(
                    f"the model looks ahead: {changed_by} change what it predicts at {int(np.flatnonzero(moved)[0])}",
                    fix="mask attention (and what else goes over a row) so that a token sees itself and earlier ones",
                )


def moved_by(before: Logits, after: Logits) -> NDArray[np.bool_]:
    """(N, V) twice -> (N,): whether any probability is another one by more than `LEAK` nats.

    What all logits of a token have in common says nothing, so probabilities are compared. One that is 0 both times has
    not moved. Raises `NotANumber` when `before` has none.
    """
    result = np.empty(len(before), dtype=np.bool_)
    for start in range(0, len(before), TOKENS_AT_ONCE):
        first, second = (_log_softmax(logits[start : start + TOKENS_AT_ONCE]) for logits in (before, after))
        if np.isnan(first).any():
            raise NotANumber(NO_NUMBERS)
        with np.errstate(invalid="ignore"):
            same = (first == second) | (np.abs(first - second) <= LEAK)  # not for a NaN
        result[start : start + TOKENS_AT_ONCE] = ~same.all(axis=1)
    return result


def _log_softmax(logits: Logits) -> Logits:
    top, log_z = _top_and_rest(logits)
    with np.errstate(invalid="ignore"):
        found: Logits = logits - top - log_z[:, None].astype(np.float32)
    return found
