"""A pause in the middle of an experiment: what was measured before it is not compared with what is measured after."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from experiments_bench import BETTER, WORSE, Bench, Bomb, Killed
from scripted_runs import healthy

from experiments.record import ExperimentRecord
from training.runs.records import RunRequest
from workspace import clock
from workspace.clock import stamp

RUN = 10.0  # minutes a run takes: a pause of more than forty is a long one
LONG, SHORT = 180.0, 30.0
CLEAN = [
    "control/1", "control/2", "control/3", "control/4", "candidate/1",
    "control/5", "candidate/5", "candidate/6", "control/6", "control/7", "candidate/7",
]  # fmt: skip


class Day:
    """The clock of the lab, on which a run takes `RUN` minutes and some begin after a pause. It survives a kill."""

    def __init__(self, patch: pytest.MonkeyPatch, pause: Callable[[str], float]) -> None:
        self.minutes, self.pause = 0.0, pause
        patch.setattr(clock, "now", self.now)
        patch.setattr("experiments.controls.now", self.now)

    def now(self) -> str:
        return stamp(datetime.now(UTC) + timedelta(minutes=self.minutes))

    def script(self, request: RunRequest, key: str) -> dict[str, Any]:
        self.minutes += self.pause(key)
        started_at = self.now()
        self.minutes += RUN
        return healthy(request, key) | {"started_at": started_at, "ended_at": self.now(), "elapsed_s": 60 * RUN}


def bench_with(root: Path, patch: pytest.MonkeyPatch, pauses: dict[str, float]) -> Bench:
    """`pauses`: minutes before the first run of a name, such as exp-0001/candidate/5."""
    return Bench(root, Day(patch, lambda key: pauses.get(key, 0.0)).script)


def order(bench: Bench, experiment: str = "exp-0001") -> list[str]:
    """Its full runs, as they were started."""
    return [k.removeprefix(f"{experiment}/") for k in bench.runs.order if k.startswith(experiment) and "test" not in k]


def looks(record: ExperimentRecord) -> list[str]:
    return [step.name for step in record.steps if step.name.startswith("look")]


def run_of(bench: Bench, record: ExperimentRecord, role: Any, number: int) -> str:
    """The key of the run whose score counts."""
    run = record.scored(role)[number - 1].run
    return next(key for key, made in bench.runs.keys.items() if made == run).removeprefix(f"{record.id}/")


@pytest.mark.parametrize(
    ("younger", "older"), [("candidate/5", "control/5"), ("control/6", "candidate/6"), ("candidate/7", "control/7")]
)
def test_the_older_run_of_a_pair_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, younger: str, older: str
) -> None:
    bench = bench_with(tmp_path / "lab", monkeypatch, {f"exp-0001/{younger}": LONG})
    record = bench.conclude(BETTER)
    after = CLEAN.index(younger) + 1
    assert order(bench) == [*CLEAN[:after], f"{older}/anew", *CLEAN[after:]]
    assert record.verdict == "keep" and looks(record) == [f"look {n}" for n in range(1, 6)]
    role, number = older.split("/")
    assert run_of(bench, record, role, int(number)) == f"{older}/anew"
    assert [step.data["void"] for step in record.steps if step.name == "pause"] == [[older]]
    (note,) = record.notes
    assert note.startswith("The machine did something else for 3.0 hours between run-") and older in note
    file = bench.workspace.experiment_dir(record.id) / "results.json"
    assert ExperimentRecord.model_validate_json(file.read_text()) == record == bench.again().get(record.id)
    assert len(record.runs) == len(CLEAN) + 2, "what was voided is counted: it used the machine"


def test_a_short_pause_and_one_between_pairs_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = {"exp-0001/candidate/5": SHORT, "exp-0001/candidate/1": SHORT, "exp-0001/candidate/6": LONG}
    bench = bench_with(tmp_path / "lab", monkeypatch, pauses)
    record = bench.conclude(BETTER)
    assert order(bench) == CLEAN and record.verdict == "keep" and record.notes == []


def test_controls_from_before_a_pause_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_with(tmp_path / "lab", monkeypatch, {"exp-0001/candidate/1": LONG})
    record = bench.conclude(BETTER)
    anew = [f"control/{n}/anew" for n in range(1, 5)]
    assert order(bench) == [*CLEAN[:5], *anew, *CLEAN[5:]]
    assert record.verdict == "keep" and looks(record) == [f"look {n}" for n in range(1, 6)]
    assert "hours before the pairs: control/1, control/2, control/3, control/4 measured anew" in record.notes[0]


def test_a_pause_before_the_control_beside_it_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_with(tmp_path / "lab", monkeypatch, {"exp-0001/control/5": LONG})
    record = bench.conclude(BETTER)
    assert set(order(bench)) == {*CLEAN, *(f"{name}/anew" for name in CLEAN[:6])}
    assert record.verdict == "keep" and looks(record) == [f"look {n}" for n in range(1, 6)], "each look once"
    assert run_of(bench, record, "candidate", 1) == "candidate/1/anew"


def test_what_the_session_knew_is_as_old_as_its_controls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second experiment needs no control of its own: those of the first are enough, until there is a pause."""
    claims = WORSE, WORSE | {"change": {"model.depth": 8}}
    for pause, made in ((SHORT, ["candidate/1"]), (LONG, ["candidate/1", "control/1"])):
        bench = bench_with(tmp_path / f"{pause:g}", monkeypatch, {"exp-0002/candidate/1": pause})
        bench.conclude(claims[0])
        second = bench.conclude(claims[1])
        assert order(bench, "exp-0002") == made and second.verdict == "discard"
        assert (second.notes == []) == (pause == SHORT)


@pytest.mark.parametrize("where", ["5", "1"])
def test_a_machine_that_is_interrupted_again_and_again_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Every run of the first pair, or every run before the pairs, begins after a pause."""

    def pause(key: str) -> float:
        number = key.split("/")[2] if key.count("/") > 1 else ""
        return LONG if (number == where == "5" or (where == "1" and number)) else 0.0

    bench = Bench(tmp_path / "lab", Day(monkeypatch, pause).script)
    record = bench.conclude(BETTER)
    assert record.verdict == "invalid" and "interrupted again and again (the machine did something else for 3.0" in str(
        record.sentence
    )
    assert "stays awake" in str(record.advice) and len(order(bench)) <= 16
    assert len(bench.rows()) == bench.notes(record.id) == 1
    after = bench.lab.propose(WORSE)
    assert bench.lab.get(after.id).state == "proposed", "and the next can be asked for"


def test_a_run_slowed_before_a_pause_and_after_it_was_not_slowed_twice_in_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slowed, made anew, made void by a pause, slowed: between the two it was not."""
    day = Day(monkeypatch, lambda key: LONG if key == "exp-0001/candidate/5" else 0.0)

    def script(slow: tuple[str, ...]) -> Callable[[RunRequest, str], dict[str, Any]]:
        def course(request: RunRequest, key: str) -> dict[str, Any]:
            made = day.script(request, key)
            rate = 50.0 if key.removeprefix("exp-0001/") in slow else 100.0
            canary = {"matmul_gflops": {"float32": rate}, "bandwidth_gb_s": 10.0, "seconds": 2.0}
            return made | {"summary": made["summary"] | {"canary": canary}}

        return course

    apart = Bench(tmp_path / "apart", script(("control/5", "control/5/anew-2")))
    record = apart.conclude(BETTER)
    names = [s.name for s in record.steps if s.name in ("void control/5", "pause")]
    assert names == ["void control/5", "pause", "void control/5"]
    assert record.verdict == "keep" and run_of(apart, record, "control", 5) == "control/5/anew-3"
    in_a_row = Bench(tmp_path / "in-a-row", script(("control/5", "control/5/anew-2", "control/5/anew-3")))
    record = in_a_row.conclude(BETTER)
    assert record.verdict == "invalid" and "slowed, twice in a row" in str(record.sentence)


def killed_at(root: Path, at: int) -> tuple[Bench, int]:
    """With a pause in the first pair and one before it, killed once at effect number `at` (0: never)."""
    with pytest.MonkeyPatch.context() as patch:
        bench = Bench(root, Day(patch, lambda k: LONG * k.endswith(("/candidate/1", "/candidate/5"))).script)
        bench.lab.propose(BETTER)
        bomb = Bomb(patch, at)
        try:
            bench.finish()
        except Killed:
            bench.database.close()
            bench.again()
            bench.finish()
    return bench, bomb.count


def outcome(bench: Bench) -> dict[str, Any]:
    (record,) = (bench.lab.get(found.id) for found in bench.lab.list())
    return {
        "verdict": (record.verdict, record.numbers),
        "scores": sorted((s.role, s.index, s.value) for s in record.scores),
        "steps": [step.name for step in record.steps],
        "void": [step.data.get("void") for step in record.steps],
        "runs": sorted(key.removeprefix(record.id) for key in bench.runs.keys),
        "told": (bench.posted("experiment.ended"), bench.notes(record.id), len(bench.rows()), len(record.notes)),
    }


def test_killed_at_some_effects(tmp_path: Path) -> None:
    twin, effects = killed_at(tmp_path / "twin", 0)
    expected = outcome(twin)
    assert "/control/5/anew" in expected["runs"] and "/control/1/anew" in expected["runs"]
    for at in range(3, effects, effects // 8):
        bench, _ = killed_at(tmp_path / f"at-{at}", at)
        assert outcome(bench) == expected, at
        bench.database.close()


@pytest.mark.slow
def test_killed_at_every_effect(tmp_path: Path) -> None:
    twin, effects = killed_at(tmp_path / "twin", 0)
    expected = outcome(twin)
    for at in range(1, effects + 1):
        bench, _ = killed_at(tmp_path / f"at-{at}", at)
        assert outcome(bench) == expected, at
        bench.database.close()
