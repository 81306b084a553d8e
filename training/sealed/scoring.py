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
LEAK = 1e-3  # of the largest logit: the same products on the same tokens differ by less, seen answers move more
TOKENS_AT_ONCE = 512  # scored together: their logits stay near the cache
CUTS = 2  # places at which the causality test replaces what follows


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
    shape = Shape.fitting(config.data.context, len(lengths))
    with ModelProcess(candidate.checkpoint, candidate.recipe_dir, candidate.dtype, shape) as model:
        refuse_looking_ahead(model, rows)
        return score_rows(model, rows, lengths)


def score_rows(model: Any, rows: Rows, byte_lengths: NDArray[np.int32]) -> Evaluation:
    """Score `rows` (N, T + 1), of which IGNORED targets and tokens without bytes do not count.

    `model` has `shape` and `answers`. Raises `NotANumber` when a logit is none.
    """
    batches = [rows[start : start + model.shape.rows] for start in range(0, len(rows), model.shape.rows)]
    nats, count, size = 0.0, 0, 0
    answers = model.answers(np.maximum(batch[:, :-1], 0) for batch in batches)
    for batch, logits in zip(batches, answers, strict=True):
        targets = batch[:, 1:].reshape(-1)
        scored_bytes = np.where(targets == IGNORED, 0, byte_lengths[np.maximum(targets, 0)])
        each = nats_of(logits.reshape(len(targets), -1), np.maximum(targets, 0))
        nats += float(each[scored_bytes > 0].sum())
        count += int((scored_bytes > 0).sum())
        size += int(scored_bytes.sum())
    if not math.isfinite(nats):
        raise NotANumber("the model's logits on the validation text are not all numbers")
    return Evaluation.of(nats, count, size)


def nats_of(logits: Logits, targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """(N, V) and (N,) -> (N,): minus the log of the softmax at each target."""
    result = np.empty(len(targets))
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(targets), TOKENS_AT_ONCE):
            piece, target = logits[start : start + TOKENS_AT_ONCE], targets[start : start + TOKENS_AT_ONCE]
            top = piece.max(axis=1, keepdims=True)
            log_z = np.log(np.exp(piece - top).sum(axis=1, dtype=np.float64))
            at_target = np.take_along_axis(piece, target[:, None], axis=1)[:, 0].astype(np.float64)
            result[start : start + TOKENS_AT_ONCE] = log_z + top[:, 0] - at_target
    return result


def refuse_looking_ahead(model: Any, rows: Rows) -> None:
    """Raises `Refused` when later tokens, or another row, change what a model says: it has seen the answers.

    Two rows are asked for; then again with the end of the first and the whole second one replaced.
    """
    shape = model.shape
    tokens = np.maximum(np.resize(rows[:, :-1], (2, shape.context)), 0)
    draw = np.random.default_rng(0)
    (answer,) = model.answers([tokens])
    before = answer[0].copy()
    largest = max(float(np.abs(before).max()), 1e-6)
    cuts = [shape.context // 2, *draw.integers(1, shape.context, CUTS - 1)]
    for cut in map(int, cuts):
        changed = tokens.copy()
        changed[0, cut:] = (changed[0, cut:] + 1 + draw.integers(shape.vocab_size - 1)) % shape.vocab_size
        changed[1] = draw.integers(shape.vocab_size, size=shape.context)
        (after,) = model.answers([changed])
        moved = np.abs(before[:cut] - after[0, :cut]).max(axis=1) > LEAK * largest
        if moved.any():
            at = int(np.flatnonzero(moved)[0])
            problem = f"the model looks ahead: other tokens from {cut} on, or in another row, change what it predicts"
            fix = "mask attention (and anything else over a row) so that a token sees only itself and earlier ones"
            raise Refused(f"{problem} at {at}", fix=fix)
