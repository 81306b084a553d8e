"""Git that fails for ever at the end of an experiment: what was measured is recorded, and the next ones go on."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from campaigns_bench import CampaignBench
from experiments_bench import BETTER, WORSE, Bench
from users_repository import git

from experiments import lab, ref_locks
from experiments.lineage import Lineage
from experiments.plumbing import ABSOLUTE, GitFailed
from experiments.record import ExperimentRecord
from tools.experiments import view

LOCK = Path(".git/refs/heads/lab/exp-0001.lock")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Without pauses between tries."""
    monkeypatch.setattr("experiments.lab.FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr("experiments.lab.LONGEST_PAUSE_S", 0.0)
    return Bench(tmp_path / "lab")


def until(bench: Bench, state: str, experiment: str = "exp-0001") -> ExperimentRecord:
    for _ in range(100):
        if (record := bench.lab.get(experiment)).state == state:
            return record
        bench.lab.tick()
        bench.runs.step()
    raise AssertionError(f"never {state}")


def left_by_a_killed_git(root: Path, age_s: float) -> Path:
    """The lock as git makes it: before its process is killed it has written the new commit into it."""
    lock = root / LOCK
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text(git(root, "rev-parse", "HEAD") + "\n")
    os.utime(lock, (time.time() - age_s, time.time() - age_s))
    return lock


def in_the_way(bench: Bench, name: str) -> None:
    """A folder where the ref should be, a branch of the user's in it: nobody, root neither, can write a file there."""
    assert bench.lab.lineage.prefix == "lab", "chosen before; else the lab would take another"
    git(bench.workspace.root, "branch", f"lab/{name}/mine")


def written(bench: Bench, record: ExperimentRecord) -> None:
    """Verdict, row, note and report are there, once."""
    rows = [row for row in bench.rows() if row["experiment"] == record.id]
    assert len(rows) == 1 and rows[0]["verdict"] == record.verdict and record.state == "done"
    assert bench.notes(record.id) == 1
    report = (bench.workspace.experiment_dir(record.id) / "report.md").read_text()
    assert str(record.sentence) in report and all(note in report for note in record.notes)


def test_a_lock_left_by_a_killed_git_is_taken_away(bench: Bench) -> None:
    lock = left_by_a_killed_git(bench.workspace.root, ref_locks.STALE_S + 1)
    record = bench.conclude(BETTER)
    assert not lock.exists() and record.ref == "refs/heads/lab/exp-0001"
    assert git(bench.workspace.root, "rev-parse", "lab/exp-0001", "lab/best").split() == [record.commit] * 2
    assert record.notes == [] and record.waits_for is None


def test_a_lock_that_may_be_held_is_waited_for_in_sight_and_the_others_go_on(bench: Bench) -> None:
    root = bench.workspace.root
    lock = left_by_a_killed_git(root, 0)
    bench.lab.propose(BETTER)
    bench.lab.propose(WORSE)
    until(bench, "record")
    for _ in range(3):
        bench.lab.tick()
    (line,) = [line for line in bench.lab.overview().running if line.experiment == "exp-0001"]
    assert str(line.progress).startswith("waits: git update-ref failed") and "exp-0001.lock is" in str(line.progress)
    assert "delete .git/refs/heads/lab/exp-0001.lock" in str(line.progress)
    assert view(bench.lab.list()[1]).waiting_for == str(line.progress).removeprefix("waits: ")
    bench.finish()
    record, other = bench.lab.get("exp-0001"), bench.lab.get("exp-0002")
    assert lock.exists(), "it is too young for anybody to say that nobody holds it"
    assert record.verdict == "keep" and record.ref is None and record.commit is not None
    assert any(f"`git update-ref refs/heads/lab/exp-0001 {record.commit}`" in note for note in record.notes)
    written(bench, record)
    assert other.verdict == "discard" and other.parent is not None and other.parent.experiment == record.id
    assert git(root, "rev-parse", "lab/best", "lab/exp-0002").split() == [record.commit, other.commit]
    lock.unlink()
    git(root, "update-ref", "refs/heads/lab/exp-0001", str(record.commit))  # what the note says


def test_a_lock_is_left_while_git_works_in_the_repository(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "lab")
    root = bench.workspace.root
    lock = left_by_a_killed_git(root, 10 * ref_locks.STALE_S)
    elsewhere = tmp_path / "other"
    for place, held in ((root, True), (elsewhere, False)):
        place.mkdir(exist_ok=True)
        git(place, "init", "-q")
        with subprocess.Popen(["git", "cat-file", "--batch"], cwd=place, stdin=subprocess.PIPE) as process:
            found = ref_locks.remove(lock, [root, root / ".git"])
            assert process.stdin is not None
            process.stdin.close()
        assert lock.exists() == held and (found is not None) == held
        assert not held or found == f"exp-0001.lock may be held by git, process {process.pid}"


def test_only_a_lock_of_the_ref_itself_is_taken_away(bench: Bench) -> None:
    bench.conclude(WORSE)
    root, lineage = bench.workspace.root, bench.lab.lineage
    commit = git(root, "rev-parse", "HEAD")
    other = left_by_a_killed_git(root, 10 * ref_locks.STALE_S)
    lineage.point("exp-0002", commit)
    assert other.exists()
    packed = root / ".git" / "packed-refs.lock"
    packed.touch()
    mine = root / ".git" / "refs" / "heads" / "main.lock"
    mine.touch()
    lineage.point("exp-0001", commit)
    assert not other.exists() and packed.exists() and mine.exists()
    left_by_a_killed_git(root, 0)
    with pytest.raises(GitFailed, match=r"refs/heads/lab/exp-0001.*exp-0001\.lock is \d+ s old"):
        lineage.point("exp-0001", str(bench.lab.get("exp-0001").commit))


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("fatal: Unable to create '/home/ada/my lab/.git/index.lock': File exists.",
         "fatal: Unable to create ...: File exists."),
        ("fatal: cannot lock 'refs/heads/lab/best': '/home/o'neil/a b/x' is there",
         "fatal: cannot lock 'refs/heads/lab/best': ... is there"),
        ("warning: unable to access \"/home/ada/my lab\": denied; see '/etc/a' and '/etc/b c'",
         "warning: unable to access ...: denied; see ... and ..."),
        ("error: /home/ada/.gitconfig is bad, recipe/a.py is not", "error: ... is bad, recipe/a.py is not"),
        ("fatal: '/home/ada/not closed", "fatal: ... closed"),
    ],
)  # fmt: skip
def test_absolute_paths_are_masked_whole(said: str, shown: str) -> None:
    assert ABSOLUTE.sub("...", said) == shown


def test_a_workspace_with_a_space_in_its_name_is_not_named(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "my own lab")
    bench.conclude(WORSE)
    left_by_a_killed_git(bench.workspace.root, 0)
    with pytest.raises(GitFailed) as failed:
        bench.lab.lineage.point("exp-0001", git(bench.workspace.root, "rev-parse", "HEAD"))
    assert "own lab" not in str(failed.value) and "refs/heads/lab/exp-0001" in str(failed.value)


@pytest.mark.parametrize("name", ["exp-0001", "best"])
def test_a_ref_that_can_never_be_written_is_told_and_the_rest_recorded(bench: Bench, name: str) -> None:
    root = bench.workspace.root
    in_the_way(bench, name)
    record = bench.conclude(BETTER)
    assert record.verdict == "keep" and record.is_best and record.commit is not None
    assert [f"The branch lab/{name} was not moved" in note for note in record.notes] == [True]
    written(bench, record)
    there = {"exp-0001": "best", "best": "exp-0001"}[name]
    assert git(root, "rev-parse", f"lab/{there}") == record.commit
    after = bench.conclude(WORSE)
    assert after.verdict == "discard" and after.parent is not None and after.parent.experiment == "exp-0001"


def test_a_commit_that_can_never_be_made_leaves_verdict_row_and_note(bench: Bench) -> None:
    """The user deletes the lab's branch and throws away what nothing points at: the candidate's commit is gone."""
    root = bench.workspace.root
    bench.lab.propose(BETTER)
    record = until(bench, "verdict")
    git(root, "update-ref", "-d", "refs/heads/lab/exp-0001")
    git(root, "gc", "-q", "--prune=now")
    waiting = bench.lab.propose(WORSE)
    bench.lab.tick()
    assert str(bench.lab.get(record.id).waits_for).startswith("git rev-parse failed")
    bench.finish()
    record = bench.lab.get(record.id)
    assert (record.verdict, record.commit, record.ref, record.is_best) == ("keep", None, None, False)
    assert "Its commit could not be made (git rev-parse failed" in record.notes[0]
    assert "the best recipe is the one before" in record.notes[1] and "repeat_of = exp-0001" in str(record.advice)
    written(bench, record)
    other = bench.lab.get(waiting.id)
    assert other.verdict == "discard" and other.parent is not None and other.parent.experiment is None
    again = bench.conclude(BETTER | {"repeat_of": record.id})
    assert again.verdict == "keep" and again.is_best


def test_a_winner_whose_commit_is_there_stays_the_best(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full for longer than git is tried: only the message with the verdict could not be written."""

    def full(*arguments: Any) -> None:
        raise GitFailed("git commit-tree failed: No space left on device")

    bench.lab.propose(BETTER)
    until(bench, "verdict")
    with monkeypatch.context() as patch:
        patch.setattr(Lineage, "reword", full)
        record = until(bench, "record")
    bench.finish()
    record = bench.lab.get(record.id)
    assert record.verdict == "keep" and record.is_best and record.candidate is not None
    assert record.commit == record.candidate.commit and "whose message has no verdict" in record.notes[0]
    assert record.advice is None or "repeat_of" not in record.advice
    best = bench.lab.ledger.best()
    assert best is not None and (best.experiment, best.commit) == (record.id, record.commit)
    assert git(bench.workspace.root, "rev-parse", "lab/exp-0001", "lab/best").split() == [record.commit] * 2
    written(bench, record)
    after = bench.conclude(WORSE)
    assert after.parent is not None and after.parent.experiment == record.id, "the next starts from it"


def test_git_that_cannot_even_be_asked_gives_no_commit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*arguments: Any) -> Any:
        raise GitFailed("git is not installed")

    bench.lab.propose(BETTER)
    until(bench, "verdict")
    with monkeypatch.context() as patch:
        patch.setattr(Lineage, "_run", lambda *arguments, **named: away())
        record = until(bench, "record")
    bench.finish()
    assert (record.verdict, record.commit, record.is_best) == ("keep", None, False)


def test_git_has_all_its_tries_whatever_failed_before(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*arguments: Any, **named: Any) -> Any:
        raise OSError(5, "runs/ is away")

    real, calls = Lineage.reword, list[int]()

    def once(self: Lineage, *arguments: Any) -> str:
        calls.append(1)
        if len(calls) == 1:
            raise GitFailed("git commit-tree took longer than 120 s")
        return real(self, *arguments)

    bench.lab.propose(BETTER)
    until(bench, "verdict")
    with monkeypatch.context() as patch:
        patch.setattr(type(bench.runs), "list", away)
        for _ in range(2 * lab.GIT_TRIES):
            bench.lab.tick()
    stored = bench.lab.get("exp-0001")
    assert str(stored.waits_for).endswith("(OSError)") and stored.waits_tries == 0
    monkeypatch.setattr(Lineage, "reword", once)
    bench.lab.tick()
    assert bench.lab.get("exp-0001").waits_tries == 1
    bench.finish()
    record = bench.lab.get("exp-0001")
    assert len(calls) == 2 and record.notes == [] and record.is_best
    assert record.candidate is not None and record.commit != record.candidate.commit


def test_tries_are_counted_over_restarts(bench: Bench) -> None:
    in_the_way(bench, "exp-0001")
    bench.lab.propose(BETTER)
    until(bench, "record")
    tries = 0
    while bench.lab.busy():
        bench.database.close()
        bench.again().tick()
        tries += 1
    assert tries == lab.GIT_TRIES - bench.lab.get("exp-0001").waits_tries


def test_tries_last_longer_than_a_lock_is_let_be() -> None:
    pauses = [min(lab.FIRST_PAUSE_S * 2**n, lab.LONGEST_PAUSE_S) for n in range(lab.GIT_TRIES - 1)]
    assert sum(pauses) > ref_locks.STALE_S + lab.LONGEST_PAUSE_S


def test_what_other_failure_holds_up_the_end_is_in_sight(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    bench.lab.propose(BETTER)
    until(bench, "record")
    with monkeypatch.context() as patch:
        patch.setattr("experiments.results.Results.write", full)
        for _ in range(2 * lab.GIT_TRIES):
            bench.lab.tick()
    assert bench.lab.get("exp-0001").waits_for == "the lab failed at record (OSError)"
    bench.finish()
    assert bench.lab.get("exp-0001").state == "done" and bench.lab.get("exp-0001").ref is not None


def test_a_campaign_goes_on_and_says_what_it_waits_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.lab.FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr("experiments.lab.LONGEST_PAUSE_S", 0.0)
    bench = CampaignBench(tmp_path / "lab")
    in_the_way(bench, "exp-0001")
    bench.start(2)
    said = set()
    while bench.campaigns.busy() or bench.lab.busy():
        bench.step()
        said.add(str(bench.campaigns.look("camp-0001").waiting_for))
    assert any(text.startswith("exp-0001, which waits: git update-ref failed") for text in said)
    assert bench.campaigns.look("camp-0001").waiting_for is None
    assert [bench.lab.get(f"exp-000{n}").state for n in (1, 2)] == ["done", "done"]
    assert bench.lab.get("exp-0002").ref is not None
