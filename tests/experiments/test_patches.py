"""Changes as patches: applied to the parent by git's plumbing, refused outside the recipe, adopted on demand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from experiments_bench import BETTER, WORSE, Bench, Killed
from users_repository import git, untouchable

from experiments.hypothesis import Hypothesis
from experiments.users_branch import UsersBranch
from lab_mcp.cli_adopt import as_measured, hand_over, merge_winner
from workspace.errors import Refused

CODE = "def build_optimizer(model, config):\n    return None\n"
NEW_FILE = """\
--- /dev/null
+++ b/recipe/optim.py
@@ -0,0 +1,2 @@
+def build_optimizer(model, config):
+    return None
"""
SETTING = """\
diff --git a/recipe/recipe.toml b/recipe/recipe.toml
--- a/recipe/recipe.toml
+++ b/recipe/recipe.toml
@@ -1,2 +1,2 @@
 [optimizer]
-matrix_lr = 0.04  # tuned
+matrix_lr = 0.02
"""


def claim(patch: str, **more: Any) -> dict[str, Any]:
    plain = {key: value for key, value in BETTER.items() if key != "change"}
    return plain | {"statement": "This optimizer lowers val_bpb by at least 0.01", "patch": patch} | more


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "lab")


def test_a_patch_becomes_a_commit_of_its_own_and_the_users_tree_is_left_alone(bench: Bench) -> None:
    root = bench.workspace.root
    before = untouchable(root)
    record = bench.conclude(claim(NEW_FILE, change={"optimizer.matrix_lr": 0.02}))
    assert record.verdict == "keep", (record.sentence, record.advice)
    assert untouchable(root) == before
    assert git(root, "show", f"lab/{record.id}:recipe/optim.py") + "\n" == CODE
    assert "matrix_lr = 0.02  # tuned" in git(root, "show", f"lab/{record.id}:recipe/recipe.toml")
    assert git(root, "diff", "--name-only", "main", f"lab/{record.id}").split() == [
        "recipe/optim.py", "recipe/recipe.toml"
    ]  # fmt: skip
    written = (bench.workspace.experiment_dir(record.id) / "change.patch").read_text()
    assert "+def build_optimizer" in written
    assert "patch of recipe/optim.py (+2 -0)" in bench.rows()[0]["change"]
    assert [note[:28] for note in record.notes] == ["2 things change at once: whi"], "several changes are flagged"


def test_a_discarded_patch_stays_reachable(bench: Bench) -> None:
    worse = SETTING.replace("+matrix_lr = 0.02", "+matrix_lr = 0.04\n+[model]\n+depth = 6")
    record = bench.conclude(claim(worse))
    assert record.verdict == "discard", record.sentence
    assert "depth = 6" in git(bench.workspace.root, "show", f"lab/{record.id}:recipe/recipe.toml")


def test_a_patch_that_changes_nothing_the_recipe_uses_has_no_effect(bench: Bench) -> None:
    comment = SETTING.replace("+matrix_lr = 0.02", "+matrix_lr = 0.04  # well tuned")
    assert bench.conclude(claim(comment)).verdict == "no_effect"


@pytest.mark.parametrize(
    ("patch", "problem"),
    [
        ("make it faster", "no unified diff"),
        (NEW_FILE.replace("recipe/optim.py", "notes.txt"), "outside the recipe"),
        (NEW_FILE.replace("recipe/optim.py", "recipe/../notes.txt"), "outside the recipe"),
        (NEW_FILE.replace("recipe/optim.py", "recipe/data/optim.py"), "outside the recipe"),
        (NEW_FILE.replace("b/recipe/optim.py", "/etc/optim.py"), "outside the recipe"),
        (SETTING.replace("--- a/recipe/recipe.toml", "--- a/notes.txt"), "outside the recipe"),
        ("diff --git a/recipe/optim.py b/recipe/optim.py\nnew file mode 120000\n" + NEW_FILE, "makes a link"),
        ("diff --git a/recipe/optim.py b/recipe/optim.py\nnew file mode 100755\n" + NEW_FILE, "executable"),
        ("diff --git a/notes.txt b/recipe/optim.py\nrename from notes.txt\nrename to recipe/optim.py\n", "renames"),
        ("diff --git a/recipe/optim.py b/recipe/optim.py\nnew file mode 100644\nGIT binary patch\n", "binary"),
        ("diff --git a/recipe/recipe.toml b/recipe/recipe.toml\nold mode 100644\nnew mode 100755\n", "mode"),
        (SETTING.replace("-matrix_lr = 0.04  # tuned", "-matrix_lr = 0.05"), "does not apply to the parent"),
        (NEW_FILE.replace("return None", "return ("), r"does not parse, line 2"),
        (NEW_FILE.replace("build_optimizer", "make_optimizer"), r"without build_optimizer"),
        (SETTING.replace("+matrix_lr = 0.02", "+matrix_lr = = 2"), "is no TOML"),
        (SETTING.replace("+matrix_lr = 0.02", "+matrix_rl = 0.02"), r"matrix_lr"),
        (SETTING.replace("+matrix_lr = 0.02", "+matrix_lr = 0.04\n+[evaluation]\n+bytes = 200000"), "measured alike"),
        (SETTING.replace("+matrix_lr = 0.02", "+matrix_lr = 0.04\n+[budget]\n+amount = 600.0"), "more budget"),
        (NEW_FILE.replace("model, config", "model\0config"), "NUL"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_change_of_the_recipe_is_refused(bench: Bench, patch: str, problem: str) -> None:
    before = untouchable(bench.workspace.root)
    with pytest.raises(Refused, match=problem):
        bench.lab.propose(claim(patch))
    assert bench.lab.list() == [] and untouchable(bench.workspace.root) == before


def test_git_has_the_last_word_on_what_a_patch_touched(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that our own reading does not understand changes nothing."""
    monkeypatch.setattr("experiments.patches.names", lambda patch: ["optim.py"])
    link = (
        "diff --git a/recipe/optim.py b/recipe/optim.py\nnew file mode 120000\n--- /dev/null\n+++ b/recipe/optim.py\n"
        "@@ -0,0 +1 @@\n+../notes.txt\n\\ No newline at end of file\n"
    )
    for patch in (link, NEW_FILE.replace("recipe/optim.py", "notes2.txt")):
        with pytest.raises(Refused, match="no plain file of the recipe"):
            bench.lab.propose(claim(patch))
    with pytest.raises(Refused, match="does not apply"):
        bench.lab.propose(claim(NEW_FILE.replace("b/recipe/optim.py", "b/recipe/../../optim.py")))


def test_a_patch_in_a_workspace_below_the_repositorys_root(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "lab")
    git(tmp_path, "init", "-q", "-b", "main")
    shutil.rmtree(tmp_path / "lab" / ".git")
    git(tmp_path, "add", "lab/recipe", "lab/lab.toml")
    git(tmp_path, "commit", "-q", "-m", "mine")
    bench.again()
    record = bench.conclude(claim(SETTING))
    assert record.verdict == "keep", record.sentence
    assert "matrix_lr = 0.02" in git(tmp_path, "show", f"lab/{record.id}:lab/recipe/recipe.toml")


def test_the_hash_of_an_older_hypothesis_stays() -> None:
    """Frozen by the version before patches came."""
    assert Hypothesis(**BETTER).digest() == OLD_DIGEST


OLD_DIGEST = "8355bd5d840f3b681433057a9308fc30abc09f2f2bc5cb510ac41010c3a280bd"


# -- adopting ---------------------------------------------------------------------------------------------------------


def test_the_winner_is_handed_over_only_when_asked_for(bench: Bench) -> None:
    root = bench.workspace.root
    record = bench.conclude(claim(NEW_FILE, change={"optimizer.matrix_lr": 0.02}))
    (root / "notes.txt").write_text("mine, not committed\n")
    before = untouchable(root)
    assert hand_over(bench.workspace, record, anyway=False, dry_run=True) == ["optim.py", "recipe.toml"]
    assert untouchable(root) == before
    hand_over(bench.workspace, record, anyway=False)
    assert (root / "recipe" / "optim.py").read_text() == CODE
    after = untouchable(root)
    assert {key for key in after if before.get(key) != after[key]} == {"recipe/optim.py", "recipe/recipe.toml"}
    assert hand_over(bench.workspace, record, anyway=False) == []
    # what was adopted is what the next experiment starts from
    following = bench.conclude(WORSE)
    assert following.parent is not None and following.parent.experiment == record.id


def test_changes_of_the_users_own_are_not_overwritten(bench: Bench) -> None:
    record = bench.conclude(BETTER)
    file = bench.workspace.recipe_dir / "recipe.toml"
    file.write_text(file.read_text() + "weight_decay = 0.1\n")
    before = untouchable(bench.workspace.root)
    with pytest.raises(Refused, match=r"recipe/recipe\.toml holds changes of yours"):
        hand_over(bench.workspace, record, anyway=False)
    assert untouchable(bench.workspace.root) == before
    (bench.workspace.recipe_dir / "mine.py").write_text("# a new file of mine\n")
    file.write_text("[optimizer]\nmatrix_lr = 0.04  # tuned\n")
    assert hand_over(bench.workspace, record, anyway=False) == ["recipe.toml"]
    assert (bench.workspace.recipe_dir / "mine.py").exists()


def test_what_was_not_kept_is_adopted_only_anyway(bench: Bench) -> None:
    record = bench.conclude(WORSE)
    with pytest.raises(Refused, match="was not kept"):
        hand_over(bench.workspace, record, anyway=False)
    assert hand_over(bench.workspace, record, anyway=True) == ["recipe.toml"]


# -- merging into the user's branch -----------------------------------------------------------------------------------


def test_a_winner_is_merged_into_the_users_branch_and_nothing_else_is_touched(bench: Bench) -> None:
    root = bench.workspace.root
    record = bench.conclude(claim(NEW_FILE, change={"optimizer.matrix_lr": 0.02}))
    (root / "notes.txt").write_text("mine, staged\n")
    git(root, "add", "notes.txt")
    (root / "notes.txt").write_text("mine, not committed\n")
    before, head = untouchable(root), git(root, "rev-parse", "HEAD")
    assert merge_winner(bench.workspace, record, anyway=False, dry_run=True) == ["optim.py", "recipe.toml"]
    assert untouchable(root) == before
    merge_winner(bench.workspace, record, anyway=False)
    assert git(root, "rev-list", "--parents", "-n1", "HEAD").split()[1:] == [head, record.commit]
    assert git(root, "status", "--porcelain", "-uno").splitlines() == ["MM notes.txt"], "what was theirs is as it was"
    assert git(root, "show", ":notes.txt") == "mine, staged"
    assert (root / "recipe" / "optim.py").read_text() == CODE == git(root, "show", "HEAD:recipe/optim.py") + "\n"
    assert git(root, "show", "-s", "--format=%s", "HEAD").startswith(f"Adopt {record.id}: ")
    merged = git(root, "rev-parse", "HEAD")
    assert merge_winner(bench.workspace, record, anyway=False) == []
    assert git(root, "rev-parse", "HEAD") == merged, "once is enough"


def test_a_merge_that_would_touch_uncommitted_work_is_refused(bench: Bench) -> None:
    root, file = bench.workspace.root, bench.workspace.recipe_dir / "recipe.toml"
    committed = file.read_text()
    record = bench.conclude(BETTER)
    for change in (lambda: file.write_text(committed + "# mine\n"), lambda: (git(root, "add", "recipe"),
                   file.write_text(committed)), file.unlink):  # fmt: skip
        change()
        before = untouchable(root)
        with pytest.raises(Refused, match=r"not committed.*git commit.*--no-commit"):
            merge_winner(bench.workspace, record, anyway=False)
        assert untouchable(root) == before
    git(root, "checkout", "-f", "HEAD", "--", "recipe")
    git(root, "checkout", "-q", "--detach")
    with pytest.raises(Refused, match="no branch is checked out"):
        merge_winner(bench.workspace, record, anyway=False)


def test_what_both_changed_is_merged_by_lines_or_refused(bench: Bench) -> None:
    root, file = bench.workspace.root, bench.workspace.recipe_dir / "recipe.toml"
    file.write_text("[optimizer]\nmatrix_lr = 0.04\n" + "# a\n" * 8 + "[schedule]\nwarmdown = 0.4\n")
    git(root, "commit", "-qam", "room")
    record = bench.conclude(BETTER)
    file.write_text(file.read_text().replace("warmdown = 0.4", "warmdown = 0.3"))
    git(root, "commit", "-qam", "another line")
    merge_winner(bench.workspace, record, anyway=False)
    assert "matrix_lr = 0.02" in file.read_text() and "warmdown = 0.3" in file.read_text()
    assert git(root, "status", "--porcelain", "-uno") == ""
    assert "no run has measured it" in git(root, "show", "-s", "--format=%B", "HEAD")
    assert not as_measured(bench.workspace, record)
    git(root, "reset", "-q", "--hard", "HEAD~1")
    file.write_text(file.read_text().replace("0.04", "0.05"))
    git(root, "commit", "-qam", "the same line")
    before = untouchable(root)
    with pytest.raises(Refused, match=rf"git merge lab/{record.id}"):
        merge_winner(bench.workspace, record, anyway=False)
    assert untouchable(root) == before


@pytest.mark.parametrize("dies", ["stage", "move"])
def test_a_merge_that_was_killed_is_completed(bench: Bench, monkeypatch: pytest.MonkeyPatch, dies: str) -> None:
    root = bench.workspace.root
    record = bench.conclude(BETTER)
    with monkeypatch.context() as patch, pytest.raises(Killed):

        def killed(*arguments: object) -> None:
            raise Killed(dies)

        patch.setattr(UsersBranch, dies, killed)
        merge_winner(bench.workspace, record, anyway=False)
    merge_winner(bench.workspace, record, anyway=False)
    assert git(root, "status", "--porcelain", "-uno") == "" and "0.02" in git(root, "show", "HEAD:recipe/recipe.toml")


def test_what_grew_on_another_branch_is_not_taken_for_merged(bench: Bench) -> None:
    """Otherwise a later merge of that branch is "already up to date", and its files never arrive."""
    root = bench.workspace.root
    git(root, "switch", "-q", "-c", "feature")
    (root / "feature.txt").write_text("work\n")
    git(root, "add", "feature.txt")
    git(root, "commit", "-qm", "feature")
    record = bench.conclude(BETTER)
    git(root, "switch", "-q", "main")
    merge_winner(bench.workspace, record, anyway=False)
    assert len(git(root, "rev-list", "--parents", "-n1", "HEAD").split()) == 2
    trailer = git(root, "show", "-s", "--format=%(trailers:key=Lab-Experiment,valueonly)", "HEAD").strip()
    assert trailer == record.id and as_measured(bench.workspace, record)
    git(root, "merge", "-q", "--no-edit", "feature")
    assert (root / "feature.txt").read_text() == "work\n" and "0.02" in git(root, "show", "HEAD:recipe/recipe.toml")


def test_a_file_that_git_ignores_is_not_overwritten(bench: Bench) -> None:
    root, mine = bench.workspace.root, bench.workspace.recipe_dir / "optim.py"
    record = bench.conclude(claim(NEW_FILE, change={"optimizer.matrix_lr": 0.02}))
    (root / ".gitignore").write_text("recipe/optim.py\n")
    mine.write_text("# my own optimizer, kept out of git\n")
    for hand in (merge_winner, hand_over):
        with pytest.raises(Refused, match=r"recipe/optim\.py holds changes of yours"):
            hand(bench.workspace, record, anyway=False)
        assert mine.read_text().startswith("# my own") and "0.04" in (root / "recipe" / "recipe.toml").read_text()
    mine.write_text(CODE)
    assert merge_winner(bench.workspace, record, anyway=False) == ["optim.py", "recipe.toml"]


def test_a_merge_of_lines_that_is_no_recipe_is_refused(bench: Bench) -> None:
    """Lines that do not touch each other can still be nonsense together."""
    root, file = bench.workspace.root, bench.workspace.recipe_dir / "recipe.toml"
    before = "[optimizer]\nmatrix_lr = 0.04\n" + "# a\n" * 8
    file.write_text(before)
    git(root, "commit", "-qam", "room")
    record = bench.conclude(BETTER)
    file.write_text(before + "[optimizer.x]\n")
    git(root, "commit", "-qam", "a section nobody knows")
    head = git(root, "rev-parse", "HEAD")
    with pytest.raises(Refused, match=r"together are no recipe.*settle it by hand"):
        merge_winner(bench.workspace, record, anyway=False)
    assert git(root, "rev-parse", "HEAD") == head and git(root, "status", "--porcelain", "-uno") == ""


def test_a_file_is_taken_away_in_a_repository_of_long_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DEFAULT_HASH", "sha256")
    bench = Bench(tmp_path / "lab")
    root = bench.workspace.root
    (bench.workspace.recipe_dir / "optim.py").write_text(CODE)
    git(root, "add", "recipe")
    git(root, "commit", "-qm", "an optimizer")
    lines = "".join(f"-{line}\n" for line in CODE.splitlines())
    gone = f"--- a/recipe/optim.py\n+++ /dev/null\n@@ -1,2 +0,0 @@\n{lines}"
    record = bench.conclude(claim(gone, change={"optimizer.matrix_lr": 0.02}))
    merge_winner(bench.workspace, record, anyway=False)
    assert not (bench.workspace.recipe_dir / "optim.py").exists()
    assert git(root, "status", "--porcelain", "-uno") == "" and len(git(root, "rev-parse", "HEAD")) == 64
