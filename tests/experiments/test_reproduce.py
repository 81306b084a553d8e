"""An experiment run again: rebuilt exactly, once per key, through a kill, and compared within noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from experiments_bench import BETTER, Bench
from scripted_runs import healthy
from users_repository import git

from experiments.record import ExperimentRecord
from experiments.reproduce import MOST, Reproduction, Reproductions
from training.config import TrainingConfig
from training.runs.records import GIVEN_UP, RunRequest
from workspace.errors import LabError, NotFound, Refused, Unavailable

SUMMARY = {
    "versions": {"torch": "2.13.0", "python": "3.11.7"},
    "backend": {"kind": "cpu", "device": "A Processor"},
    "data": {"key": "ab12", "sha256": {"validation.bin": "e" * 64}},
}


class Scene:
    """A kept experiment, and what shall be different from now on."""

    def __init__(self, root: Path) -> None:
        self.changes: dict[str, Any] = {}
        self.shift = 0.0
        self.course: dict[str, Any] | None = None
        self.bench = Bench(root, self.script)
        self.record: ExperimentRecord = self.bench.conclude(BETTER, conversation="chat-1")
        assert self.record.verdict == "keep"
        self.again()

    def script(self, request: RunRequest, key: str) -> dict[str, Any]:
        course = healthy(request, key)
        course["summary"] = {**course["summary"], **SUMMARY}
        if "reproduction" in key:
            if self.course is not None:
                return self.course
            course["summary"] |= self.changes
            course["summary"]["val_bpb"] += self.shift
        return course

    def again(self) -> Reproductions:
        """A new service on the same workspace."""
        lab = self.bench.again()
        self.it = Reproductions(self.bench.workspace, lab.ledger, lab.lineage, self.bench.runs, self.bench.notebook)
        return self.it

    def finish(self) -> Reproduction:
        for _ in range(20):
            self.bench.runs.step()
            self.it.tick()
            if not self.it.busy():
                return self.it.get(self.record.id)
        raise AssertionError("not finished")

    def asked(self) -> list[str]:
        return [key for key in self.bench.runs.order if "reproduction" in key]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "lab")


def test_the_same_commit_settings_and_a_new_seed(scene: Scene) -> None:
    record = scene.record
    started = scene.it.start(record.id)
    assert started.outcome is None and scene.asked() == [f"{record.id}/reproduction-1/candidate"]
    request = scene.bench.runs.requests[started.runs["candidate"]]
    assert request.purpose == "replicate" and request.experiment == record.id
    assert isinstance(request.config, TrainingConfig) and record.candidate is not None
    settings = request.config.model_dump(mode="json")
    assert {**settings, "seed": 0} == {**record.candidate.settings, "seed": 0}
    assert settings["seed"] not in {score.seed for score in record.scores}
    assert request.recipe_dir is not None
    assert (request.recipe_dir / "recipe.toml").read_text() == "[optimizer]\nmatrix_lr = 0.02  # tuned\n"
    ended = scene.finish()
    assert ended.outcome == "agrees" and not ended.differences, ended.sentence
    assert f"{record.id} is reproduced: val_bpb" in (ended.sentence or "") and "95% of such" in (ended.sentence or "")
    stored = scene.bench.workspace.experiment_dir(record.id) / "reproduction-1.json"
    assert Reproduction.model_validate_json(stored.read_text()) == ended
    assert scene.bench.lab.get(record.id) == record, "the experiment's own record stays as it was"


def test_the_old_seed_gives_the_old_score(scene: Scene) -> None:
    scene.it.start(scene.record.id, same_seed=True)
    (check,) = scene.finish().checks
    assert check.found in {score.value for score in scene.record.scored("candidate").values()}


def test_a_score_beyond_noise_differs_and_says_what_may_be_why(scene: Scene) -> None:
    scene.shift = 0.03
    scene.it.start(scene.record.id)
    ended = scene.finish()
    assert ended.outcome == "differs" and "--pair" in (ended.sentence or "")
    scene.changes = {"versions": {"torch": "2.11.0", "python": "3.11.7"}, "backend": {"kind": "cpu", "device": "B"}}
    scene.it.start(scene.record.id)
    ended = scene.finish()
    assert ended.differences == ["versions.torch: 2.11.0, then 2.13.0", "backend.device: B, then A Processor"]
    assert "2.11.0, then 2.13.0" in (ended.sentence or "")


def test_other_data_make_it_incomparable_not_wrong(scene: Scene) -> None:
    scene.changes = {"data": {"key": "ff00", "sha256": {"validation.bin": "d" * 64}}}
    scene.it.start(scene.record.id)
    ended = scene.finish()
    assert ended.outcome == "not comparable" and "data.key: ff00, then ab12" in (ended.sentence or "")


def test_beside_its_parent_drift_cancels(scene: Scene) -> None:
    scene.shift = 0.03  # the whole machine has drifted
    scene.it.start(scene.record.id, pair=True)
    assert scene.asked() == [f"{scene.record.id}/reproduction-1/{role}" for role in ("control", "candidate")]
    ended = scene.finish()
    score, gain = ended.checks
    assert not score.inside and gain.inside and ended.outcome == "agrees"
    assert "gain +0.0" in (ended.sentence or "")


def test_a_pair_on_devices_of_two_kinds_is_not_compared(scene: Scene) -> None:
    """With the device of each run for itself: that of the parent's is another one."""
    plain = scene.bench.runs.script

    def script(request: RunRequest, key: str) -> dict[str, Any]:
        course = plain(request, key)
        if key.endswith("reproduction-1/control"):
            course["summary"] |= {"backend": {"kind": "cpu", "device": "Another Processor"}}
        return course

    scene.bench.runs.script = script
    scene.it.start(scene.record.id, pair=True)
    ended = scene.finish()
    assert ended.outcome == "not comparable"
    assert "backend.device: A Processor in the candidate, Another Processor in the control" in (ended.sentence or "")


def test_a_key_makes_it_once_and_a_restart_goes_on(scene: Scene) -> None:
    first = scene.it.start(scene.record.id, key="mine")
    assert scene.again().start(scene.record.id, key="mine") == first
    scene.again()
    ended = scene.finish()
    assert ended.outcome == "agrees" and len(scene.asked()) == 1
    assert scene.again().start(scene.record.id, key="mine") == ended
    notes = sum(f.read_text().count("reproduction-1/ended") for f in scene.bench.workspace.journal_dir.glob("*.jsonl"))
    assert notes == 1
    assert scene.it.start(scene.record.id, key="another").position == 2


def test_killed_between_asking_and_starting(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*arguments: object, **named: object) -> None:
        raise Unavailable("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(scene.bench.runs, "start", gone)
        asked = scene.it.start(scene.record.id, key="mine")
        assert asked.runs == {} and asked.outcome is None and scene.it.tick() == 1
    scene.again()
    assert scene.finish().outcome == "agrees"


def test_a_run_that_was_lost_is_made_again_and_one_that_failed_is_told(scene: Scene) -> None:
    scene.course = {"state": "lost"}
    scene.it.start(scene.record.id)
    scene.bench.runs.step()
    scene.course = None
    assert scene.finish().outcome == "agrees" and len(scene.asked()) == 2
    scene.course = {"state": "lost", "reason": f"enough (by user); {GIVEN_UP}"}
    scene.it.start(scene.record.id)
    ended = scene.finish()
    assert ended.outcome == "failed" and "enough" in (ended.sentence or "") and len(scene.asked()) == 3, "a person's"
    scene.course = {"state": "failed", "failure_class": "oom", "reason": "out of memory"}
    scene.it.start(scene.record.id)
    ended = scene.finish()
    assert ended.outcome == "failed" and "out of memory" in (ended.sentence or "")


def test_what_cannot_be_rebuilt_is_refused_with_the_reason(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = scene.bench
    with pytest.raises(NotFound, match="exp-0001"):
        scene.it.start("exp-0007")
    proposed = bench.lab.propose(BETTER | {"change": {"optimizer.matrix_lr": 0.03}})
    with pytest.raises(Refused, match="no verdict yet"):
        scene.it.start(proposed.id)
    bench.lab.cancel(proposed.id)
    bench.finish()
    with pytest.raises(Refused, match="no score to compare"):
        scene.it.start(proposed.id)

    def missing(*arguments: object, **named: object) -> None:
        raise NotFound("data.files: there is no 'text.txt' in the workspace")

    with monkeypatch.context() as patched:
        patched.setattr(bench.runs, "start", missing)
        with pytest.raises(NotFound, match=r"text\.txt"):
            scene.it.start(scene.record.id)
    assert not scene.it.busy() and not scene.it.of(scene.record.id)
    root = bench.workspace.root
    for ref in git(root, "for-each-ref", "--format=%(refname)", "refs/heads/lab").split():
        git(root, "update-ref", "-d", ref)
    git(root, "reflog", "expire", "--expire=now", "--all")
    git(root, "gc", "--prune=now", "--quiet")
    with pytest.raises(LabError, match="no longer in the repository"):
        scene.it.start(scene.record.id)


def test_seeds_are_never_used_twice(scene: Scene) -> None:
    seeds = {score.seed for score in scene.record.scores}
    for _ in range(4):
        seed = scene.it.start(scene.record.id).seed
        assert seed not in seeds
        seeds.add(seed)
    assert scene.record.rule.min_controls + scene.record.rule.max_pairs < MOST, "the two ends of the block stay apart"
