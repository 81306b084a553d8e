"""What an experiment is compared with: the parent, the controls of its session, the noise learnt before."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from experiments_bench import BETTER, WORSE, Bench

from experiments.controls import SESSION_HOURS
from experiments.record import Score
from workspace import clock


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "lab")


def test_controls_of_the_same_session_are_shared_and_its_winners_are_not(bench: Bench) -> None:
    bench.conclude(WORSE)
    second = bench.conclude(WORSE | {"change": {"model.depth": 8}})
    assert [key for key in bench.runs.order if key.startswith("exp-0002/")] == ["exp-0002/test", "exp-0002/candidate/1"]
    assert second.numbers is not None and second.numbers.n_control == 4 and second.scored("control") == {}
    kept = bench.conclude(BETTER)
    assert kept.verdict == "keep"
    after = bench.conclude(WORSE | {"change": {"model.depth": 5}})
    assert after.parent is not None and after.parent.experiment == kept.id
    assert list(after.scored("control")) == [0, 1, 2, 3]  # the new parent is measured anew
    seeds = [score.seed for score in (*kept.scores, *after.scores)]
    pairs = len(kept.scored("candidate")) - 1
    assert len(set(seeds)) == len(seeds) - pairs - 1, "runs repeat to the bit: with old seeds nothing would be measured"
    assert after.numbers is not None and after.numbers.df > 3  # how much earlier controls scattered counts


def age(bench: Bench, hours: float) -> None:
    """Every run so far was made so many hours earlier."""
    with bench.database.transaction() as tx:
        for row in tx.execute("SELECT rowid, document FROM scores").fetchall():
            score = Score.model_validate_json(row["document"])
            earlier = clock.stamp(clock.parse(score.at) - timedelta(hours=hours))
            older = score.model_copy(update={"at": earlier, "started_at": None})
            tx.execute(
                "UPDATE scores SET at = ?, document = ? WHERE rowid = ?",
                (earlier, older.model_dump_json(), row["rowid"]),
            )


def test_an_earlier_session_tells_of_the_noise_and_not_of_the_level(bench: Bench) -> None:
    bench.conclude(WORSE)
    age(bench, SESSION_HOURS + 1)
    after = bench.conclude(WORSE | {"change": {"model.depth": 5}})
    assert list(after.scored("control")) == [0, 1, 2, 3], "the level is of today"
    assert after.numbers is not None and (after.numbers.n_control, after.numbers.df) == (4, 6.0), "3 df of each session"


def test_controls_of_before_a_pause_are_stale(bench: Bench) -> None:
    bench.conclude(WORSE)
    age(bench, 1.5)
    after = bench.conclude(WORSE | {"change": {"model.depth": 5}})
    assert list(after.scored("control")) == [0] and after.numbers is not None
    assert (after.numbers.n_control, after.numbers.df) == (5, 3.0), "the new one is no neighbour of those"


def test_one_experiment_measures_at_a_time_and_the_next_starts_from_the_new_best(bench: Bench) -> None:
    first, second = bench.lab.propose(BETTER), bench.lab.propose(WORSE)
    for _ in range(6):
        bench.lab.tick()
    assert bench.lab.get(second.id).state == "ready" and bench.lab.get(first.id).state in ("test_run", "gate")
    bench.finish()
    kept, other = bench.lab.get(first.id), bench.lab.get(second.id)
    assert kept.verdict == "keep" and other.parent is not None and other.parent.commit == kept.commit
    assert "parent moved" in [step.name for step in other.steps]
    assert any("parent has changed" in note for note in other.notes)


def test_the_users_edit_of_the_recipe_makes_a_new_parent(bench: Bench) -> None:
    kept = bench.conclude(BETTER)
    (bench.workspace.recipe_dir / "recipe.toml").write_text("[optimizer]\nmatrix_lr = 0.03\n")
    record = bench.conclude(WORSE)
    assert record.parent is not None and record.parent.commit != kept.commit and record.parent.experiment is None
    assert record.control is not None and record.control.settings["optimizer"]["matrix_lr"] == 0.03
