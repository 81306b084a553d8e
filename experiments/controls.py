"""Controls of the same session: runs of the parent that were made lately on this machine need not be made again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from experiments.ledger import Ledger
from experiments.record import ExperimentRecord, Score
from experiments.verdict import seed_of
from workspace.clock import stamp

# Scores drift between days far more than they scatter within one (throttling, other load, updates): controls older
# than this are measured anew.
SESSION_HOURS = 6


def _since() -> str:
    return stamp(datetime.now(UTC) - timedelta(hours=SESSION_HOURS))


def borrowed_controls(ledger: Ledger, record: ExperimentRecord, machine: str) -> list[Score]:
    """Controls of the very same recipe, budget, machine and session, the newest of each seed.

    Only controls: a kept candidate's own scores were selected for being good and would make the next parent look
    better than it is.
    """
    assert record.control is not None and record.yardstick is not None and record.parent is not None
    hypothesis, rule, generation = record.hypothesis, record.rule, record.parent.generation
    needed = {hypothesis.metric} | ({hypothesis.cost_metric} if hypothesis.kind == "non_inferiority" else set())
    found: dict[int, Score] = {}
    for recipe, experiment, score in ledger.controls(record.yardstick, machine, _since(), record.id):
        fits = score.index < rule.max_pairs and score.seed == seed_of(rule, generation, score.index)
        if recipe == record.control.digest and fits and needed <= score.values.keys():
            update = {"borrowed_from": experiment, "value": score.values[hypothesis.metric]}
            found[score.index] = score.model_copy(update=update)
    return [found[index] for index in sorted(found)]


def noise_history(ledger: Ledger, record: ExperimentRecord, machine: str) -> list[list[float]]:
    """Groups of controls of other parents measured alike in this session: they sharpen the size of the noise."""
    assert record.control is not None and record.yardstick is not None
    groups: dict[str, list[float]] = {}
    for recipe, _, score in ledger.controls(record.yardstick, machine, _since(), record.id):
        if recipe != record.control.digest and record.hypothesis.metric in score.values:
            groups.setdefault(recipe, []).append(score.values[record.hypothesis.metric])
    return [group for group in groups.values() if len(group) >= 2]
