"""`lab-mcp adopt exp-0012`: hand a winner's recipe to the user's own files. Only this command ever writes there."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from experiments import folder
from experiments.record import ExperimentRecord
from lab_mcp.cli import WorkspaceOption
from lab_mcp.terminal import console
from workspace import durable, settings
from workspace.errors import Refused, unknown
from workspace.layout import Workspace, discover


def register(app: typer.Typer) -> None:
    app.command()(adopt)


def adopt(
    experiment: Annotated[str, typer.Argument(help="experiment id, e.g. exp-0012")],
    commit: Annotated[
        bool, typer.Option("--commit/--no-commit", help="merge into your branch, or only write the files")
    ] = True,
    anyway: Annotated[bool, typer.Option("--anyway", help="although its verdict is not keep")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show what would be written")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Merge an experiment's recipe into the branch you are on. Work that is not committed is never touched."""
    found = discover(workspace)
    record = experiment_of(found, experiment)
    hand = merge_winner if commit else hand_over
    written = hand(found, record, anyway=anyway, dry_run=dry_run)
    for name in written:
        console.print(f"{'would write' if dry_run else 'wrote'} recipe/{escape(name)}")
    if not written:
        console.print(f"nothing of {record.id} is missing in recipe/")
    elif not dry_run and commit:
        console.print(f"merged {record.id} into your branch; to undo it: git reset --keep HEAD~1")
    elif not dry_run:
        console.print(f"commit it when you like: git commit -m 'Adopt {record.id}' -- recipe")
    if written and not dry_run and not as_measured(found, record):
        console.print(f"recipe/ is not that of {record.id} alone: no run has measured it as it now is")


def merge_winner(workspace: Workspace, record: ExperimentRecord, *, anyway: bool, dry_run: bool = False) -> list[str]:
    """Merge the experiment's commit into the user's branch; the files of recipe/ that changed. Raises `Refused`."""
    from experiments import adoption
    from experiments.users_branch import UsersBranch

    commit, base = _adoptable(record, anyway)
    lineage = UsersBranch(workspace, settings.load(workspace.settings_file).git.prefix)
    message = f"Adopt {record.id}: {record.hypothesis.statement}\n\n{record.sentence or ''}\n"
    return adoption.merge(lineage, record.id, commit, base, message, dry_run=dry_run)


def as_measured(workspace: Workspace, record: ExperimentRecord) -> bool:
    """Whether recipe/ is now the very one that was measured."""
    from experiments.users_branch import UsersBranch

    lineage = UsersBranch(workspace, settings.load(workspace.settings_file).git.prefix)
    return lineage.working_blobs() == lineage.recipe_blobs(record.commit or "")


def _adoptable(record: ExperimentRecord, anyway: bool) -> tuple[str, str]:
    """Its commit, and the recipe it went back to. Raises `Refused` for a verdict other than keep (unless `anyway`)."""
    if record.commit is None or record.parent is None:
        raise Refused(f"{record.id} has no recipe to adopt ({record.verdict or 'no verdict yet'})")
    if record.verdict != "keep" and not anyway:
        raise Refused(
            f"{record.id} was not kept ({record.verdict}): {record.sentence}",
            fix=f"lab-mcp adopt {record.id} --anyway, if you know better",
        )
    return record.commit, record.parent.base


def hand_over(workspace: Workspace, record: ExperimentRecord, *, anyway: bool, dry_run: bool = False) -> list[str]:
    """Make recipe/ what the experiment's commit holds; returns the files that were written or deleted.

    All is checked before anything is written. Raises `Refused` for a verdict other than keep (unless `anyway`), for
    one without a commit, and where the user's file is neither what the experiment began with nor what it ended with.
    """
    from experiments.users_branch import UsersBranch

    commit, base = _adoptable(record, anyway)
    lineage = UsersBranch(workspace, settings.load(workspace.settings_file).git.prefix)
    write, conflicts = lineage.against(commit, base)
    if conflicts:
        names = ", ".join(f"recipe/{name}" for name in conflicts)
        raise Refused(
            f"{names} holds changes of yours that {record.id} did not start from",
            fix=f"set them aside, or merge by hand: git diff {base[:12]} {lineage.recipe_tree(commit)[:12]}",
        )
    if not dry_run:
        for name, content in write.items():
            file = workspace.recipe_dir / name
            if content is None:
                file.unlink(missing_ok=True)
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                durable.write_bytes(file, content, mode=(file.stat().st_mode & 0o777) if file.exists() else 0o644)
    return sorted(write)


def experiment_of(workspace: Workspace, experiment: str) -> ExperimentRecord:
    """As its folder describes it: that is enough, and needs no service."""
    for record in folder.read_all(workspace):
        if record.id == experiment:
            return record
    names = [path.name for path in workspace.experiments_dir.glob("exp-*")]
    raise unknown("experiment", experiment, sorted(names))
