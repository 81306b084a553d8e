"""What can be asked of experiments: repetitions, budgets, versions, cancelling, looking back, rebuilding."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from experiments_bench import BETTER, TINY, WORSE, Bench
from scripted_runs import fingerprint

from experiments.ports import Fingerprint
from training.config import TrainingConfig
from workspace.errors import NotFound, Refused, Unavailable


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "lab")


def test_a_repetition_names_what_came_of_it_and_must_be_meant(bench: Bench) -> None:
    first = bench.conclude(WORSE)
    again = bench.conclude(WORSE)
    assert again.verdict == "invalid" and first.id in (again.sentence or "") and "repeat_of" in (again.advice or "")
    meant = bench.conclude(WORSE | {"repeat_of": first.id})
    assert meant.verdict == "discard" and meant.duplicates[0].experiment in (first.id, again.id)
    with pytest.raises(NotFound):
        bench.lab.propose(WORSE | {"repeat_of": "exp-9999"})


def test_skipping_the_test_run_needs_a_reason_and_is_recorded(bench: Bench) -> None:
    with pytest.raises(Refused, match="reason"):
        bench.lab.propose(BETTER, skip_test_run="yes")
    record = bench.conclude(BETTER, skip_test_run="exp-0000 ran the same yesterday")
    assert record.verdict == "keep" and "exp-0001/test" not in bench.runs.order
    assert "No test run: exp-0000 ran the same yesterday" in record.notes


def test_a_budget_of_its_own_holds_for_both_arms(bench: Bench) -> None:
    record = bench.conclude(BETTER, budget={"kind": "steps", "amount": 40})
    budgets = {k: r.config.budget for k, r in bench.runs.requests.items()}  # type: ignore[union-attr]
    assert [b.amount for b in budgets.values()] == [8.0] + [40.0] * (len(budgets) - 1) and record.verdict == "keep"
    with pytest.raises(Refused, match="budget"):
        bench.lab.propose(BETTER, budget={"kind": "steps", "amount": -1})
    with pytest.raises(Refused, match="kind and amount"):
        bench.lab.propose(BETTER, budget={"seconds": 10})


def test_the_same_quality_in_half_the_time(bench: Bench) -> None:
    claim = BETTER | {
        "statement": "Half the budget.amount gives the same val_bpb within 0.01",
        "change": {"budget.amount": 30},
        "kind": "non_inferiority",
        "smallest_saving": 0.3,
    }
    record = bench.conclude(claim)
    assert record.verdict == "keep" and record.saving is not None and record.saving.effect == pytest.approx(0.5)


def test_what_an_experiment_waits_for_is_told(tmp_path: Path) -> None:
    away = [True]

    def sometimes(config: TrainingConfig, recipe_dir: Path) -> Fingerprint:
        if away[0]:
            raise Unavailable("the fingerprint could not be taken")
        return fingerprint(config, recipe_dir)

    bench = Bench(tmp_path / "lab", fingerprint=sometimes)
    bench.lab.propose(BETTER)
    for _ in range(3):
        bench.lab.tick()
    assert bench.lab.overview().queue[0].progress == "waits: the fingerprint could not be taken."
    assert bench.again().overview().queue[0].progress == "waits: the fingerprint could not be taken."
    away[0] = False
    bench.lab._pauses.clear()
    bench.lab.tick()
    assert bench.lab.overview().queue[0].progress is None


def test_what_is_missing_for_too_long_ends_an_experiment_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(config: TrainingConfig, recipe_dir: Path) -> Fingerprint:
        raise Unavailable("the fingerprint could not be taken")

    monkeypatch.setattr("experiments.lab.LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr("experiments.lab.FIRST_PAUSE_S", 0.01)
    bench = Bench(tmp_path / "lab", fingerprint=never)
    bench.lab.propose(BETTER)
    while bench.lab.busy():
        bench.again().tick()  # a restart does not begin to wait anew
        time.sleep(0.01)
    record = bench.lab.get("exp-0001")
    assert record.verdict == "invalid" and "it could not go on: the fingerprint" in str(record.sentence)


def test_a_later_wording_is_a_version_of_its_own_and_is_not_judged(bench: Bench) -> None:
    proposed = bench.lab.propose(BETTER)
    with pytest.raises(Refused, match="needs a reason"):
        bench.lab.amend(proposed.id, {"smallest_effect": 0.04}, "")
    bench.lab.amend(proposed.id, {"smallest_effect": 0.9}, "it was asked for too little")
    bench.finish()
    with pytest.raises(Refused, match="too vague"):
        bench.lab.amend(proposed.id, {"statement": "It got better"}, "hindsight knows")
    record = bench.lab.get(proposed.id)
    assert record.verdict == "keep" and record.hypothesis.smallest_effect == 0.01
    assert [(v.hypothesis.smallest_effect, v.state) for v in record.versions] == [(0.9, "proposed")]
    page = (bench.workspace.experiment_dir(record.id) / "report.md").read_text()
    assert "version 2" in page and "it was asked for too little" in page


def test_predictions_are_compared_with_what_was_measured(bench: Bench) -> None:
    bench.conclude(BETTER | {"predicted_effect": 0.05})
    bench.conclude(WORSE | {"predicted_effect": 0.02})
    (one,) = bench.lab.overview().calibration
    assert (one.proposer, one.predictions, one.right_direction) == ("assistant", 2, 0.5)
    assert one.mean_predicted == 0.035 and one.typical_error == pytest.approx(0.04, abs=0.02)


def test_what_was_tried_with_the_same_settings_is_named_at_once(bench: Bench) -> None:
    bench.conclude(WORSE)
    found, asked = bench.lab.similar(WORSE | {"change": {"model.depth": 5}})
    assert [(d.experiment, d.verdict, d.exact) for d in found] == [("exp-0001", "discard", False)]
    assert asked is not None and "exp-0001 (discard)" in asked
    assert bench.lab.similar(BETTER) == ([], None)


def test_cancelling(bench: Bench) -> None:
    record = bench.lab.propose(BETTER)
    for _ in range(4):
        bench.lab.tick()
    assert bench.lab.cancel(record.id, "ada").cancelled_by == "ada"
    bench.finish()
    record = bench.lab.get(record.id)
    assert record.verdict == "invalid" and "cancelled by ada" in (record.sentence or "")
    assert [run.state for run in bench.runs.records.values()] == ["cancelled"]
    assert bench.lab.cancel(record.id).verdict == "invalid"  # too late, and harmless


def test_wrong_settings_are_refused_at_once(bench: Bench) -> None:
    with pytest.raises(Refused, match=r"optimizer\.matrix_lr"):
        bench.lab.propose(BETTER | {"change": {"optimizer.matrix_rl": 0.02}})
    with pytest.raises(Refused, match="at most 128"):
        bench.lab.propose(WORSE | {"change": {"model.depth": 1000}})
    with pytest.raises(Refused, match="multiple"):
        bench.lab.propose(WORSE | {"change": {"model.width": 250}})
    assert bench.lab.list() == []


def test_the_same_key_is_the_same_experiment(bench: Bench) -> None:
    assert bench.lab.propose(BETTER, key="k").id == bench.lab.propose(BETTER, key="k").id == "exp-0001"
    assert bench.posted("experiment.proposed") == 1


def test_looking_back(bench: Bench) -> None:
    bench.conclude(WORSE)
    bench.conclude(BETTER)
    bench.conclude(TINY)
    lab = bench.lab
    assert [r.id for r in lab.list()] == ["exp-0003", "exp-0002", "exp-0001"]
    assert [r.id for r in lab.list(before="exp-0002")] == ["exp-0001"]
    assert [r.id for r in lab.list(verdict="keep")] == [r.id for r in lab.leaderboard().experiments] == ["exp-0002"]
    assert [r.id for r in lab.list(text="DEEPER depth")] == ["exp-0001"] and lab.list(text="100%") == []
    with pytest.raises(Refused, match="keep"):
        lab.list(verdict="kept")
    with pytest.raises(NotFound, match="exp-0003"):
        lab.get("exp-003")
    survey = lab.overview()
    assert survey.best is not None and survey.best.experiment == "exp-0002" and survey.best.score is not None
    assert [line.experiment for line in survey.last_learnt] == ["exp-0003", "exp-0002", "exp-0001"]
    assert survey.running == survey.queue == [] and survey.next and survey.counts["keep"] == 1
    proposed = lab.propose(WORSE | {"change": {"model.depth": 7}})
    assert [line.experiment for line in lab.overview().queue] == [proposed.id]


def test_memory_names_similar_experiments_and_its_absence_holds_nothing_up(tmp_path: Path) -> None:
    class Hit:
        id, similarity, kind, title, quote = "exp-0001", 0.9, "experiment", "Deeper", "A deeper model lowers it"

    class Memory:
        away = False

        def search(self, text: str, /, kinds: Any = None, limit: int = 8) -> Any:
            if self.away:
                raise Unavailable("memory is starting")
            return type("Page", (), {"hits": [Hit()]})()

    memory = Memory()
    bench = Bench(tmp_path / "lab", memory=memory)
    bench.conclude(WORSE)
    near = bench.conclude(WORSE | {"change": {"model.depth": 5}})
    assert [(d.experiment, d.verdict, d.exact) for d in near.duplicates] == [("exp-0001", "discard", False)]
    assert [(e.id, e.kind, e.cited) for e in near.evidence] == [("exp-0001", "experiment", False)]
    assert any("which assumption has changed since?" in note for note in near.notes)
    new = {"change": {"model.depth": 9}, "changed_assumption": "the schedule is longer now", "citations": ["exp-0001"]}
    told = bench.conclude(WORSE | new)
    assert told.evidence[0].cited and not any("which assumption" in note for note in told.notes)
    memory.away = True
    record = bench.conclude(WORSE | {"change": {"model.depth": 7}})
    assert record.verdict == "discard" and any("memory is starting" in note for note in record.notes)


def test_tabs_and_lines_do_not_break_the_table(bench: Bench) -> None:
    bench.conclude(WORSE | {"statement": "A deeper\tmodel.depth of 6\nlowers val_bpb"})
    assert len(bench.workspace.results_file.read_text().splitlines()) == 2
    assert bench.rows()[0]["description"] == "A deeper model.depth of 6 lowers val_bpb"


def test_the_ledger_is_rebuilt_from_the_folders(bench: Bench) -> None:
    kept, worse = bench.conclude(BETTER), bench.conclude(WORSE)
    bench.lab.propose(TINY)
    for _ in range(8):
        bench.lab.tick()
        bench.runs.step()
    table = bench.workspace.results_file.read_text()
    bench.database.close()
    for file in bench.workspace.state_dir.glob("lab.db*"):
        file.unlink()
    lab = bench.again()
    assert lab.get(kept.id) == kept and lab.get(worse.id) == worse
    assert lab.ledger.best() is not None and lab.overview().best.experiment == kept.id  # type: ignore[union-attr]
    bench.finish()  # and the open one goes on
    assert lab.get("exp-0003").verdict in ("discard", "inconclusive")
    assert bench.workspace.results_file.read_text().startswith(table)
    assert lab.propose(WORSE | {"change": {"model.depth": 8}}).id == "exp-0004"


def test_an_error_of_the_labs_own_ends_one_experiment_only(tmp_path: Path) -> None:
    def odd(config: TrainingConfig, folder: Path) -> Any:
        if config.model.depth == 6:
            raise ZeroDivisionError
        return fingerprint(config, folder)

    bench = Bench(tmp_path / "lab", fingerprint=odd)
    bad, good = bench.lab.propose(WORSE), bench.lab.propose(BETTER)
    bench.finish()
    assert bench.lab.get(bad.id).verdict == "invalid" and "ZeroDivisionError" in (bench.lab.get(bad.id).sentence or "")
    assert bench.lab.get(good.id).verdict == "keep"
