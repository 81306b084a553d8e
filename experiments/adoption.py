"""A winner merged into the user's branch, when they say so: the one place where their branch, index and files change.

Only recipe/ is merged: three ways, between the recipe the experiment went back to, the one at HEAD and the winner's.
What is not committed is never touched: a file that would change must lie in the folder and in the index as it is at
HEAD (or already as it will be, after a kill). Files are written first, then the index, the branch last and only if it
has not moved, so that whoever runs it again after a kill completes it.

The winner's commit becomes a second parent only where it brings nothing but the lab's own commits along. One that grew
on another branch of the user's would make git believe that branch merged, its other files among it: then the merge has
one parent, and its trailer names the experiment.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from experiments import patches
from experiments.users_branch import UsersBranch
from training.config import RECIPE_NAME, load_recipe
from workspace import clock, durable
from workspace.errors import Refused, Unavailable

UNMEASURED = "The recipe joins changes of both sides: no run has measured it as it now is."
BUSY = ("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "rebase-merge", "rebase-apply")


def merge(lineage: UsersBranch, name: str, commit: str, base: str, message: str, *, dry_run: bool = False) -> list[str]:
    """Merge the recipe of `commit` into the branch at HEAD; the files of recipe/ that change, none where it is there.

    `base`: the tree of the recipe the experiment went back to. Raises `Refused`, with what to do, before anything
    is written.
    """
    branch, head = _branch(lineage)
    new = _merged(lineage, name, head, commit, base)
    before = lineage.recipe_blobs(head)
    changed = {file: new.get(file) for file in sorted({*before, *new}) if before.get(file) != new.get(file)}
    _only_committed(lineage, name, before, changed)
    joined = bool(changed) and new != lineage.recipe_blobs(commit)
    if joined:
        _only_readable(lineage, name, new)
    if dry_run or not changed:
        return sorted(changed)
    if joined:
        message = f"{message.rstrip()}\n\n{UNMEASURED}\n"
    files = {file: None if blob is None else lineage.content(blob, file) for file, blob in changed.items()}
    parents = [head, commit] if lineage.brings_nothing_else(commit, head) else [head]
    message = f"{message.rstrip()}\n\nLab-Experiment: {name}\n"
    merged = lineage.commit(head, files, message, clock.now(), merged=parents)
    for file, content in files.items():
        _write(lineage.workspace.recipe_dir / file, content)
    lineage.stage(changed)
    lineage.move(branch, merged, head, f"lab-mcp adopt {name}")
    return sorted(changed)


def _branch(lineage: UsersBranch) -> tuple[str, str]:
    """The branch that is checked out, and its commit."""
    branch, head = lineage.checked_out()
    if branch is None or head is None:
        raise Refused("no branch is checked out (HEAD is detached)", fix="git switch BRANCH, then adopt again")
    for file in BUSY:
        if lineage.git_file(file).exists():
            raise Refused("a merge or rebase of yours is under way", fix="finish or abort it, then adopt again")
    return branch, head


def _merged(lineage: UsersBranch, name: str, head: str, commit: str, base: str) -> dict[str, str]:
    """Blob by file of recipe/, after the merge."""
    ours, theirs, origin = lineage.recipe_blobs(head), lineage.recipe_blobs(commit), lineage.recipe_blobs(tree=base)
    found, conflicts = dict(ours), []
    for file in sorted({*ours, *theirs, *origin}):
        mine, wanted, was = ours.get(file), theirs.get(file), origin.get(file)
        if wanted in (mine, was):
            continue  # the same already, or not changed by the winner
        if mine == was:
            found.pop(file, None)
            if wanted is not None:
                found[file] = wanted
        elif mine is None or wanted is None or was is None or (blob := _three_way(lineage, mine, was, wanted)) is None:
            conflicts.append(file)
        else:
            found[file] = blob
    if conflicts:
        names = ", ".join(f"recipe/{file}" for file in conflicts)
        raise Refused(
            f"{names} was changed on your branch where {name} changes it, too",
            fix=f"git merge {lineage.prefix}/{name} and settle it by hand",
        )
    return found


def _three_way(lineage: UsersBranch, mine: str, was: str, wanted: str) -> str | None:
    """The blob of both changes together; None where they touch the same lines."""
    with tempfile.TemporaryDirectory(prefix="merge-", dir=lineage.workspace.cache_dir) as folder:
        files = []
        for name, blob in (("mine", mine), ("was", was), ("wanted", wanted)):
            files.append(Path(folder) / name)
            files[-1].write_bytes(lineage.blob(blob))
        try:
            return lineage.merge_files(*files)
        except Unavailable:  # binary content
            return None


def _only_committed(
    lineage: UsersBranch, name: str, before: Mapping[str, str], changed: Mapping[str, str | None]
) -> None:
    """Raises `Refused` when a file that would change holds work that is not committed, or that git ignores."""
    lying, staged = lineage.working_blobs(), lineage.staged_blobs()
    odd = [
        file
        for file, blob in changed.items()
        if any(where.get(file) not in (before.get(file), blob) for where in (lying, staged))
        or (file not in lying and lineage.lies_unseen(file, None if blob is None else lineage.content(blob, file)))
    ]
    if odd:
        names = ", ".join(f"recipe/{file}" for file in odd)
        raise Refused(
            f"{names} holds changes of yours that are not committed",
            fix=f"commit or stash them (git commit -m 'My recipe' -- recipe), then adopt again; or take {name}'s files "
            f"without a commit: lab-mcp adopt {name} --no-commit",
        )


def _only_readable(lineage: UsersBranch, name: str, blobs: Mapping[str, str]) -> None:
    """Raises `Refused` when what both sides together make of recipe/ is none."""
    contents = {file: lineage.content(blob, file) for file, blob in blobs.items()}
    try:
        patches.check_files({file: content for file, content in contents.items() if file in patches.FILES})
        with tempfile.TemporaryDirectory(prefix="merge-", dir=lineage.workspace.cache_dir) as folder:
            for file, content in contents.items():
                if file == RECIPE_NAME:
                    (Path(folder) / file).write_bytes(content)
            load_recipe(Path(folder))
    except Refused as error:
        raise Refused(
            f"your recipe and {name}'s changes together are no recipe: {error.problem}",
            fix=f"git merge {lineage.prefix}/{name} and settle it by hand",
        ) from error


def _write(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    durable.write_bytes(file, content, mode=(file.stat().st_mode & 0o777) if file.exists() else 0o644)
