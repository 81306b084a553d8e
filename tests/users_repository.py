"""A user's repository, and everything of it that the lab must not touch."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from workspace.layout import Workspace

USER = {
    "GIT_AUTHOR_NAME": "Ada", "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada", "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
    "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1",
}  # fmt: skip


def git(folder: Path, *arguments: str) -> str:
    answer = subprocess.run(
        ["git", "-c", "core.hooksPath=/dev/null", "-c", "commit.gpgsign=false", *arguments],
        cwd=folder, env={**os.environ, **USER}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return answer.stdout.strip("\n")


def make(
    root: Path, *, commit: bool = True, recipe: str | None = "[optimizer]\nmatrix_lr = 0.04  # tuned\n"
) -> Workspace:
    """A repository whose hooks fail, which wants signatures it cannot make, and which knows no user."""
    root.mkdir(parents=True, exist_ok=True)
    git(root, "init", "-q", "-b", "main")
    git(root, "config", "commit.gpgsign", "true")
    git(root, "config", "gpg.program", "/bin/false")
    for hook in ("pre-commit", "commit-msg", "reference-transaction", "post-index-change", "post-commit"):
        file = root / ".git" / "hooks" / hook
        file.parent.mkdir(exist_ok=True)
        file.write_text("#!/bin/sh\nexit 1\n")
        file.chmod(0o755)
    (root / "lab.toml").write_text("")
    (root / "notes.txt").write_text("mine\n")
    if recipe is not None:
        (root / "recipe").mkdir()
        (root / "recipe" / "recipe.toml").write_text(recipe)
    workspace = Workspace(root)
    workspace.create_folders()
    if commit:
        git(root, "add", "lab.toml", "notes.txt", *(["recipe"] if recipe is not None else []))
        git(root, "commit", "-q", "-m", "mine")
    return workspace


def untouchable(root: Path) -> dict[str, str]:
    """Hashes of the index, HEAD, the configuration, the user's refs, and every file outside the lab's own places."""
    state = {"refs": git(root, "for-each-ref", "--format=%(refname) %(objectname)", "refs/tags", "refs/remotes")}
    branches = git(root, "for-each-ref", "--format=%(refname) %(objectname)", "refs/heads").splitlines()
    state["branches"] = "\n".join(line for line in branches if not line.startswith("refs/heads/lab"))
    for name in ("index", "HEAD", "config"):
        file = root / ".git" / name
        state[name] = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else "absent"
    own = ("experiments", "runs", ".lab", ".git", "results.tsv", "docs")
    for file in sorted(root.rglob("*")):
        inside = file.relative_to(root)
        if file.is_file() and inside.parts[0] not in own:
            state[str(inside)] = hashlib.sha256(file.read_bytes()).hexdigest() + oct(file.stat().st_mode)
    return state
