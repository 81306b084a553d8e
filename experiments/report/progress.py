"""The score over the experiments, in order: what the progress figure shows. Plain data; drawing is in `figures`."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict, Field

from experiments.hypothesis import Direction
from experiments.patches import touched
from experiments.record import ExperimentRecord, VerdictName
from sessions.text import clean
from workspace.errors import NotFound

# the words and units of the numbers a run reports
METRICS = {
    "val_bpb": "Validation score (bits per byte)",
    "val_loss": "Validation loss (nats per token)",
    "perplexity": "Validation perplexity",
    "train_loss": "Training loss (nats per token)",
    "training_seconds": "Training time (s)",
    "total_seconds": "Time of the run (s)",
    "peak_memory_bytes": "Peak memory (bytes)",
    "parameters.total": "Parameters",
    "flops_per_token": "FLOPs per token",
    "tokens_per_s": "Tokens per second",
    "mfu": "Model FLOPs utilisation (fraction)",
}
LONGEST_LABEL = 26  # characters


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Point(Frozen):
    """One experiment. `place`: its position among those shown, from 1."""

    place: int
    experiment: str
    verdict: VerdictName
    score: float | None = Field(description="mean of the candidate's runs; None: no run gave one")
    runs: int = Field(description="candidate runs behind the score")
    effect: float | None = Field(None, description="gain over its own control, positive = better")
    low: float | None = None
    high: float | None = None
    label: str = Field(description="the change, short")
    change: str
    sentence: str = ""


class Progress(Frozen):
    """`best`: (place, score) at each of which the best recipe so far changes; the first is the starting recipe."""

    metric: str
    words: str = Field(description="the metric with its unit, for an axis")
    direction: Direction
    points: list[Point]
    best: list[tuple[int, float]]
    noise_sd: float | None = Field(description="median of the measured noise of one run")
    left_out: dict[str, int] = Field({}, description="experiments that cannot be shown on this axis, by reason")


def progress(records: Iterable[ExperimentRecord], metric: str | None = None) -> Progress:
    """The experiments that have a verdict and were judged by one metric, measured alike, oldest first.

    `metric`: default the one most experiments use. Raises `NotFound` when there is nothing to show.
    """
    ended = [record for record in records if record.verdict is not None and record.state in ("record", "done")]
    if metric is None:
        metric = _commonest([record.hypothesis.metric for record in ended])
    chosen = [record for record in ended if record.hypothesis.metric == metric]
    if not chosen or metric is None:
        metrics = ", ".join(sorted({record.hypothesis.metric for record in ended}))
        raise NotFound(
            f"no experiment{f' judged by {metric[:80]}' if metric else ''} has a verdict yet",
            valid=metrics or None, fix="wait for the first verdict: lab-mcp experiments",
        )  # fmt: skip
    yardstick = _commonest([record.yardstick for record in chosen if record.scores])
    left_out = Counter[str]()
    if len(chosen) < len(ended):
        left_out["judged by another metric"] = len(ended) - len(chosen)
    shown = []
    for record in chosen:
        if record.scores and record.yardstick != yardstick:
            left_out["measured with another budget, text or evaluation"] += 1
        else:
            shown.append(record)
    points = [_point(place, record) for place, record in enumerate(shown, 1)]
    noises = [record.numbers.noise_sd for record in shown if record.numbers and record.numbers.noise_sd > 0]
    return Progress(
        metric=metric, words=METRICS.get(metric, clean(metric)[:60]), direction=chosen[0].hypothesis.direction,
        points=points, best=_best(shown), noise_sd=statistics.median(noises) if noises else None,
        left_out=dict(left_out),
    )  # fmt: skip


def _commonest(values: Sequence[str | None]) -> str | None:
    """The value most have; of equals the one seen last."""
    counts = Counter(values)
    return max(reversed(list(counts)), key=lambda value: counts[value], default=None)


def _point(place: int, record: ExperimentRecord) -> Point:
    numbers, verdict = record.numbers, record.verdict
    assert verdict is not None
    return Point(
        place=place, experiment=record.id, verdict=verdict, score=_score(record),
        runs=numbers.n_candidate if numbers else len(record.scored("candidate")),
        effect=numbers.effect if numbers else None, low=numbers.low if numbers else None,
        high=numbers.high if numbers else None, label=label(record), change=record.hypothesis.describe_change(),
        sentence=record.sentence or "",
    )  # fmt: skip


def _score(record: ExperimentRecord) -> float | None:
    """The mean the verdict rests on; without a verdict from numbers, the mean of what was run."""
    return record.numbers.candidate_mean if record.numbers else record.mean()


def _best(records: Sequence[ExperimentRecord]) -> list[tuple[int, float]]:
    """Where the best recipe changes: at first the control of the first measured experiment, then every new best."""
    found: list[tuple[int, float]] = []
    for place, record in enumerate(records, 1):
        if record.numbers is None:
            continue
        if not found:
            found.append((min(place, 1), record.numbers.control_mean))
        score = _score(record)
        if record.verdict == "keep" and record.is_best and score is not None:
            found.append((place, score))
    return found


def label(record: ExperimentRecord) -> str:
    """`matrix_lr = 0.02`, or `patch of model.py`; of several changes the first, and how many more."""
    changes = [
        f"{key.rsplit('.', 1)[-1]} = {json.dumps(value, ensure_ascii=False)}"
        for key, value in record.hypothesis.change.items()
    ]
    if record.hypothesis.patch is not None:
        files = touched(record.hypothesis.patch) or ["recipe/"]
        changes += [f"patch of {file.removeprefix('recipe/')}" for file in files]
    text, more = clean(changes[0]), f" +{len(changes) - 1}" if len(changes) > 1 else ""
    longest = LONGEST_LABEL - len(more)
    return (text if len(text) <= longest else text[: longest - 1] + "…") + more
