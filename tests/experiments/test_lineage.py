"""Commits of the lab's own, in a repository of the user's that stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from experiments_bench import BETTER, Bench
from users_repository import git, make, untouchable

from experiments.lineage import FIRST_COMMIT, SNAPSHOT, Lineage
from experiments.record import Best
from workspace.errors import Refused, Unavailable
from workspace.layout import Workspace

WHEN = "2026-01-02T03:04:05Z"


def test_commit_and_refs_leave_the_user_alone(tmp_path: Path) -> None:
    workspace = make(tmp_path / "lab")
    root = workspace.root
    (root / "notes.txt").write_text("staged\n")
    git(root, "add", "notes.txt")
    (root / "notes.txt").write_text("and edited again\n")
    (root / "recipe" / "model.py").write_text("def build_model(config): ...\n")  # untracked
    before = untouchable(root)

    lineage = Lineage(workspace)
    parent = lineage.parent(None)
    commit = lineage.commit(parent.commit, {"recipe.toml": b"[optimizer]\nmatrix_lr = 0.02\n"}, "exp-0001\n", WHEN)
    ref = lineage.point("exp-0001", commit)
    lineage.point("best", commit, only_if_free=True)

    assert untouchable(root) == before
    assert ref == "refs/heads/lab/exp-0001" and git(root, "rev-parse", ref) == commit
    assert (
        git(root, "show", "-s", "--format=%an %ae %cI %G?", commit)
        == "lab-mcp lab-mcp@localhost 2026-01-02T03:04:05+00:00 N"
    )
    assert git(root, "diff", "--name-only", parent.commit, commit) == "recipe/recipe.toml"
    # only recipe/ is taken from the folder: what the user staged elsewhere is not in the snapshot
    assert git(root, "show", f"{parent.commit}:notes.txt") == "mine"
    assert git(root, "diff", "--name-only", "HEAD", parent.commit) == "recipe/model.py"
    assert parent.notes == (SNAPSHOT,)
    git(root, "fsck", "--strict")


def test_a_clean_recipe_has_head_as_its_parent(tmp_path: Path) -> None:
    workspace = make(tmp_path / "lab")
    parent = Lineage(workspace).parent(None)
    assert parent.commit == git(workspace.root, "rev-parse", "HEAD") and parent.notes == ()


def test_snapshots_and_commits_are_functions_of_their_content(tmp_path: Path) -> None:
    workspace = make(tmp_path / "lab")
    (workspace.recipe_dir / "recipe.toml").write_text("seed = 3\n")
    first, again = Lineage(workspace).parent(None), Lineage(workspace).parent(None)
    assert first == again
    files = {"recipe.toml": b"seed = 4\n"}
    lineage = Lineage(workspace)
    assert lineage.commit(first.commit, files, "m\n", WHEN) == lineage.commit(first.commit, files, "m\n", WHEN)


def test_an_unborn_head_gets_one_announced_empty_commit(tmp_path: Path) -> None:
    workspace = make(tmp_path / "lab", commit=False)
    root = workspace.root
    git(root, "add", "notes.txt")
    before = untouchable(root)
    status = git(root, "status", "--porcelain")
    lineage = Lineage(workspace)
    parent = lineage.parent(None)
    assert FIRST_COMMIT.format(branch="main") in parent.notes
    assert lineage.parent(None).commit == parent.commit
    after = untouchable(root)
    assert {k: v for k, v in after.items() if k != "branches"} == {k: v for k, v in before.items() if k != "branches"}
    assert git(root, "rev-list", "--count", "main") == "1"
    assert git(root, "status", "--porcelain") == status  # what was staged is still staged, nothing else appears
    assert git(root, "show", f"{parent.commit}:recipe/recipe.toml").startswith("[optimizer]")


def test_materialised_is_exactly_what_is_committed(tmp_path: Path) -> None:
    workspace = make(tmp_path / "lab")
    script = workspace.recipe_dir / "model.py"
    script.write_bytes(b"x = 1\r\n# \xff\n")
    script.chmod(0o755)
    lineage = Lineage(workspace)
    parent = lineage.parent(None)
    commit = lineage.commit(parent.commit, {"recipe.toml": b"seed = 4\n"}, "m\n", WHEN)
    folder = lineage.materialise(commit)
    assert (folder / "recipe.toml").read_bytes() == b"seed = 4\n"
    assert (folder / "model.py").read_bytes() == b"x = 1\r\n# \xff\n" and (folder / "model.py").stat().st_mode & 0o100
    (folder / "recipe.toml").write_text("tampered")
    (folder / "extra.py").write_text("left over")
    assert lineage.materialise(commit) == folder
    assert sorted(f.name for f in folder.iterdir()) == ["model.py", "recipe.toml"]
    assert (folder / "recipe.toml").read_bytes() == b"seed = 4\n"


def test_a_workspace_without_a_recipe_gets_one_in_the_candidate(tmp_path: Path) -> None:
    workspace = make(tmp_path / "lab", recipe=None)
    lineage = Lineage(workspace)
    parent = lineage.parent(None)
    assert list(lineage.materialise(parent.commit).iterdir()) == []
    commit = lineage.commit(parent.commit, {"recipe.toml": b"seed = 4\n"}, "m\n", WHEN)
    assert "+seed = 4" in lineage.patch(parent.commit, commit)
    assert not workspace.recipe_dir.exists()


def test_a_workspace_below_the_root_of_its_repository(tmp_path: Path) -> None:
    make(tmp_path / "big")
    inner = tmp_path / "big" / "sub" / "lab"
    (inner / "recipe").mkdir(parents=True)
    (inner / "recipe" / "recipe.toml").write_text("seed = 1\n")
    workspace = Workspace(inner)
    workspace.create_folders()
    lineage = Lineage(workspace)
    parent = lineage.parent(None)
    commit = lineage.commit(parent.commit, {"recipe.toml": b"seed = 2\n"}, "m\n", WHEN)
    assert (lineage.materialise(commit) / "recipe.toml").read_text() == "seed = 2\n"
    assert git(inner, "diff", "--name-only", parent.commit, commit) == "sub/lab/recipe/recipe.toml"
    # the recipe of the repository around it is somebody else's
    assert git(inner, "show", f"{commit}:recipe/recipe.toml").startswith("[optimizer]")


def test_the_parent_follows_the_best_until_the_user_changes_the_recipe(tmp_path: Path) -> None:
    workspace = make(tmp_path / "lab")
    lineage = Lineage(workspace)
    first = lineage.parent(None)
    kept = lineage.commit(first.commit, {"recipe.toml": b"[optimizer]\nmatrix_lr = 0.02\n"}, "exp\n", WHEN)
    best = Best(experiment="exp-0001", commit=kept, base=first.base)
    assert lineage.parent(best).commit == kept
    (workspace.root / "notes.txt").write_text("elsewhere\n")
    assert lineage.parent(best).commit == kept
    (workspace.recipe_dir / "recipe.toml").write_text("[optimizer]\nmatrix_lr = 0.02\n")  # adopted
    assert lineage.parent(best).commit == kept
    (workspace.recipe_dir / "recipe.toml").write_text("[optimizer]\nmatrix_lr = 0.9\n")
    changed = lineage.parent(best)
    assert changed.commit not in (kept, first.commit) and changed.notes == (SNAPSHOT,)


@pytest.mark.parametrize("branch", ["lab", "lab/mine"])
def test_another_prefix_where_the_user_owns_the_name(tmp_path: Path, branch: str) -> None:
    workspace = make(tmp_path / "lab")
    git(workspace.root, "branch", branch)
    before = untouchable(workspace.root)["branches"], git(workspace.root, "rev-parse", branch)
    lineage = Lineage(workspace)
    assert lineage.point("exp-0001", lineage.parent(None).commit) == "refs/heads/lab-mcp/exp-0001"
    assert (untouchable(workspace.root)["branches"], git(workspace.root, "rev-parse", branch)) == before
    assert Lineage(workspace).prefix == "lab-mcp"  # and it stays so


def test_the_prefix_stays_when_a_branch_of_the_users_appears_below_it(tmp_path: Path) -> None:
    workspace = make(tmp_path / "lab")
    lineage = Lineage(workspace)
    lineage.point("exp-0001", lineage.parent(None).commit)
    git(workspace.root, "branch", "lab/mine")
    assert Lineage(workspace).prefix == "lab"


def test_a_ref_somebody_has_checked_out_is_left_alone(tmp_path: Path) -> None:
    workspace = make(tmp_path / "lab")
    lineage = Lineage(workspace)
    parent = lineage.parent(None)
    lineage.point("best", parent.commit)
    git(workspace.root, "worktree", "add", "-q", str(tmp_path / "elsewhere"), "lab/best")
    commit = lineage.commit(parent.commit, {"recipe.toml": b"seed = 2\n"}, "m\n", WHEN)
    assert lineage.point("best", commit, only_if_free=True) is None
    assert lineage.resolve("best") == parent.commit


def test_links_and_large_files_are_refused(tmp_path: Path) -> None:
    workspace = make(tmp_path / "lab")
    (workspace.recipe_dir / "data.bin").symlink_to("/etc/passwd")
    with pytest.raises(Refused, match="plain file"):
        Lineage(workspace).parent(None)


def test_without_a_repository_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path.resolve())
    workspace.create_folders()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nonsense"))  # the caller's git variables do not reach ours
    with pytest.raises(Unavailable, match="git init"):
        Lineage(workspace).parent(None)


def test_git_filters_make_no_change_of_their_own(tmp_path: Path) -> None:
    """With line ends translated, a recipe nobody touched is the commit's, and a change is one line."""
    workspace = make(tmp_path / "lab", commit=False)
    (workspace.root / ".gitattributes").write_text("*.toml text eol=crlf\n")
    (workspace.recipe_dir / "recipe.toml").write_bytes(b"[optimizer]\r\nmatrix_lr = 0.04\r\n")
    git(workspace.root, "add", ".gitattributes", "recipe", "lab.toml")
    git(workspace.root, "commit", "-q", "-m", "mine")
    lineage = Lineage(workspace)
    parent = lineage.parent(None)
    assert parent.commit == git(workspace.root, "rev-parse", "main") and parent.notes == ()
    text = (lineage.materialise(parent.commit) / "recipe.toml").read_bytes()
    assert text == b"[optimizer]\r\nmatrix_lr = 0.04\r\n"
    commit = lineage.commit(parent.commit, {"recipe.toml": text.replace(b"0.04", b"0.02")}, "x", WHEN)
    assert git(workspace.root, "diff", "--numstat", parent.commit, commit).split()[:2] == ["1", "1"]


def test_a_commit_of_the_users_that_leaves_the_recipe_alone_keeps_the_parent_current(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "lab")
    bench.lab.propose(BETTER)
    while bench.lab.list()[0].state != "ready":
        bench.lab.tick()
    (bench.workspace.root / "notes.txt").write_text("more\n")
    git(bench.workspace.root, "commit", "-q", "-m", "notes", "notes.txt")
    bench.finish()
    record = bench.lab.get("exp-0001")
    assert record.verdict == "keep" and all(step.name != "parent moved" for step in record.steps)
