"""Killed anywhere, an experiment ends with one row, one commit, one note, and the verdict it would have had."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest
from experiments_bench import BETTER, TINY, WORSE, Bench, Bomb, Killed
from scripted_runs import healthy
from users_repository import git, untouchable

from training.config import TrainingConfig
from training.runs.records import RunRequest

CLAIMS = {"keep": BETTER, "discard": WORSE, "undecided": TINY}


def by_place(request: RunRequest, key: str) -> dict[str, Any]:
    """As `healthy`, with noise that follows from the place of a run in its experiment: seeds follow from the number
    of the experiment, and a kill may use one up."""
    assert isinstance(request.config, TrainingConfig)
    config = request.config.model_copy(update={"seed": zlib.crc32(key.partition("/")[2].encode())})
    return healthy(request.model_copy(update={"config": config}), key)


def outcome(bench: Bench) -> dict[str, Any]:
    """What must be the same whatever was killed. An id given out in a transaction that was killed is not used again."""
    (record,) = bench.lab.list()
    whole = bench.lab.get(record.id)
    (row,) = bench.rows()
    return {
        "verdict": whole.verdict,
        "numbers": whole.numbers,
        "scores": [(s.role, s.index, s.value) for s in sorted(whole.scores, key=lambda s: (s.role, s.index))],
        "looks": [step.name for step in whole.steps],
        "runs": sorted(key.removeprefix(record.id) for key in bench.runs.keys),
        "row": {k: v for k, v in row.items() if k not in ("commit", "ended_at", "experiment")},
        "commits": git(bench.workspace.root, "rev-list", "--count", f"main..lab/{record.id}"),
        "told": (bench.posted("experiment.proposed"), bench.posted("experiment.ended"), bench.notes(record.id)),
        "ref": git(bench.workspace.root, "rev-parse", f"lab/{record.id}") == whole.commit,
        "folder": bench.workspace.experiment_dir(record.id).joinpath("results.json").exists(),
    }


def run_killed_at(root: Path, claim: dict[str, Any], at: int) -> tuple[Bench, int]:
    """Run to the end, killed once at effect number `at` (0 = never); returns the bench and the effects counted."""
    bench = Bench(root, by_place)
    with pytest.MonkeyPatch.context() as patch:
        bomb = Bomb(patch, at)
        try:
            bench.lab.propose(claim, key="k", conversation="chat")
            bench.finish()
        except Killed:
            bench.database.close()
            bench.again()
            bench.lab.propose(claim, key="k", conversation="chat")  # the client asks again with its key
            bench.finish()
    return bench, bomb.count


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_new_service_after_every_step(tmp_path: Path, kind: str) -> None:
    twin, _ = run_killed_at(tmp_path / "twin", CLAIMS[kind], 0)
    bench = Bench(tmp_path / "lab", by_place)
    before = untouchable(bench.workspace.root)
    bench.lab.propose(CLAIMS[kind], key="k", conversation="chat")
    while bench.lab.busy():
        bench.database.close()
        bench.again()
        bench.lab.tick()
        bench.runs.step()
    assert outcome(bench) == outcome(twin)
    assert untouchable(bench.workspace.root) == before


def test_killed_at_some_effects(tmp_path: Path) -> None:
    twin, effects = run_killed_at(tmp_path / "twin", BETTER, 0)
    expected = outcome(twin)
    for at in range(1, effects, effects // 9):
        bench, _ = run_killed_at(tmp_path / f"at-{at}", BETTER, at)
        assert outcome(bench) == expected, at


@pytest.mark.slow
def test_killed_at_every_effect(tmp_path: Path) -> None:
    twin, effects = run_killed_at(tmp_path / "twin", BETTER, 0)
    expected = outcome(twin)
    for at in range(1, effects + 1):
        bench, _ = run_killed_at(tmp_path / f"at-{at}", BETTER, at)
        assert outcome(bench) == expected, at
        bench.database.close()
