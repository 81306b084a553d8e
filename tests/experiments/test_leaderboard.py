"""The leaderboard: scores that can be compared, best first, and how many kept ones are not among them."""

from __future__ import annotations

from pathlib import Path

from made_up_night import night

from experiments.leaderboard import leaderboard
from experiments.ledger import Ledger
from experiments.record import ExperimentRecord
from workspace.database import Database
from workspace.layout import Workspace


def kept(count: int) -> list[ExperimentRecord]:
    found = [record for record in night(80, share_of_gains=0.5) if record.verdict == "keep"]
    assert len(found) >= count
    return found[:count]


def judged_by(record: ExperimentRecord, metric: str, direction: str) -> ExperimentRecord:
    claim = record.hypothesis.model_copy(update={"metric": metric, "direction": direction})
    return record.model_copy(update={"hypothesis": claim})


def test_only_what_was_measured_as_the_newest_keep_was(tmp_path: Path) -> None:
    ledger = Ledger(Database(Workspace(tmp_path).database_file))
    assert leaderboard(ledger, 10) == ([], None)
    records = kept(6)
    cheap = [record.model_copy(update={"yardstick": "x" * 64}) for record in records[:2]]  # a larger budget, later
    other = judged_by(records[2], "accuracy", "higher")
    ledger.restore([*cheap, other, *records[3:]])
    found = leaderboard(ledger, 10)
    assert {record.id for record in found.experiments} == {record.id for record in records[3:]}
    scores = [record.mean() or 0.0 for record in found.experiments]
    assert scores == sorted(scores)
    assert found.left_out is not None
    assert "2 kept experiments measured with another budget, text or evaluation" in found.left_out
    assert "1 kept experiment not judged by val_bpb" in found.left_out
    assert len(leaderboard(ledger, 1).experiments) == 1


def test_a_metric_that_is_better_when_higher_is_the_default_where_it_was_kept_last(tmp_path: Path) -> None:
    ledger = Ledger(Database(Workspace(tmp_path).database_file))
    records = kept(4)
    ledger.restore([records[0], *(judged_by(record, "accuracy", "higher") for record in records[1:])])
    scores = [record.mean() or 0.0 for record in leaderboard(ledger, 10).experiments]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    assert [record.id for record in leaderboard(ledger, 10, "val_bpb").experiments] == [records[0].id]
