"""`lab-mcp init`: makes a folder a lab's workspace. Writes what is missing, overwrites nothing, ever."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from lab_mcp import registration as registered
from lab_mcp.templates import PAPERS_README, PROGRAM
from workspace import durable, settings
from workspace.errors import Refused, Unavailable
from workspace.layout import SETTINGS_NAME, Workspace

RECIPE = "recipe/recipe.toml"


class InitReport(BaseModel):
    """What `init` did; paths are relative to the workspace."""

    model_config = ConfigDict(frozen=True)

    root: str
    written: list[str] = Field(description="files and folders that were not there before")
    kept: list[str] = Field(description="what was there already and stays as it is")
    notes: list[str] = []
    register_command: str = Field(description="the one line that registers the lab with Claude Code")

    @property
    def changed(self) -> bool:
        return bool(self.written)


def init(directory: str | Path) -> InitReport:
    """Make `directory` a workspace. A second call changes nothing and says so.

    Raises `LabError` (nothing written stays behind) for a folder that cannot be written, a file in the place of a
    folder, an `.mcp.json` that is no JSON, or when git is missing.
    """
    root = Path(directory).expanduser().resolve()
    try:
        _check_place(root)
    except OSError as error:  # e.g. a folder on the way that this user may not enter
        raise _unwritable(root, error) from error
    registration = registered.claude_code(registered.claude_code_file(root), root)
    recipe_note, files = _files()
    notes = []
    if registration.outcome == "another entry":
        notes.append(
            f".mcp.json has another server named {registered.SERVER_NAME!r}; it was kept. Remove that entry and run "
            "`lab-mcp init` again to have this lab registered there"
        )
    written: list[str] = []
    kept: list[str] = []
    with _all_or_nothing(root) as created:
        root.mkdir(parents=True, exist_ok=True)
        notes += _repository(root, created, written)
        for name, text in files.items():
            path = root / name
            if path.exists():
                kept.append(name)
                continue
            _make_parents(path.parent, created)
            created.append(path)
            durable.write_text(path, text)
            written.append(name)
        _folders(root, created, written, kept)
        path = registered.claude_code_file(root)
        if registration.text is None:
            kept.append(path.name)
        else:
            new = not path.exists()
            if new:
                created.append(path)
            durable.write_text(path, registration.text)
            added = f"{path.name} (server {registered.SERVER_NAME!r} added, the rest as it was)"
            written.append(path.name if new else added)
    if RECIPE in written:
        notes.append(recipe_note)
    if not written:
        notes.insert(0, "this is a lab workspace already; nothing was changed")
    return InitReport(
        root=str(root), written=written, kept=kept, notes=notes, register_command=registered.register_command(root)
    )


def _files() -> tuple[str, dict[str, str]]:
    """What is written where, and a word on what the recipe was fitted to."""
    from training.config import default_recipe_toml, suggest
    from training.hardware import devices

    status = devices.detect()
    usable = status.usable_devices()
    device = next(iter(usable), None)
    memory = device.memory_total_bytes if device else None
    size = f" with {memory / 2**30:.0f} GiB" if memory else ""
    fitted = f"the recipe is fitted to {device.name}{size}" if device else "the recipe is fitted to the CPU"
    return fitted, {
        SETTINGS_NAME: settings.default_toml(),
        "program.md": PROGRAM,
        RECIPE: default_recipe_toml(suggest(status.backend, memory, max(1, len(usable)))),
        "papers/README.md": PAPERS_README,
    }


def _check_place(root: Path) -> None:
    """Refuse early what would fail half-way."""
    if root.exists() and not root.is_dir():
        raise Refused(f"{root.name} is a file, not a folder", fix="name a folder, new or existing")
    for name in ("recipe", "papers", "runs", "models", ".lab"):
        if (root / name).exists() and not (root / name).is_dir():
            raise Refused(
                f"{name} in {root.name} is a file; the lab needs a folder of that name", fix=f"move {name} away"
            )
    nearest = next(folder for folder in (root, *root.parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise Unavailable(
            f"{nearest.name or nearest} cannot be written by this user, so no workspace can be made in it",
            fix="choose another folder, or change its permissions",
        )


def _repository(root: Path, created: list[Path], written: list[str]) -> list[str]:
    """Make sure that `root` lies in a git repository; returns what a user should know about it."""
    try:
        import git
    except ImportError as error:  # GitPython says so when there is no git program
        raise Unavailable("git is not installed, and a lab keeps its recipes in git", fix="install git") from error
    try:
        found = git.Repo(root, search_parent_directories=True)
    except (git.InvalidGitRepositoryError, git.NoSuchPathError):
        found = None
    notes: list[str] = []
    if found is not None and found.bare:
        raise Refused(f"{root.name} is a bare git repository, which has no files", fix="name a folder beside it")
    if found is not None and Path(found.working_dir).resolve() != root:
        with found:
            outer, ignored = Path(found.working_dir).name, _ignored(found, root)
        if not ignored:
            return [f"the workspace is part of the git repository {outer!r}; the lab keeps its own refs there"]
        notes.append(f"the repository {outer!r} around it ignores this folder, so it got its own")
        found = None
    if found is None:
        created.append(root / ".git")
        try:
            git.Repo.init(root, initial_branch="main").close()
        except git.GitCommandError as error:
            words = str(error.stderr).strip().strip("'").splitlines() or ["no message"]
            raise Unavailable(
                f"git could not make a repository here: {words[-1].strip()[:200]}", fix="`lab-mcp doctor` says more"
            ) from error
        written.append(".git (a new repository, branch main)")
        return notes
    with found:
        if not found.head.is_valid():
            notes.append("the repository has no commit yet; the lab makes a first one, announced, when it needs it")
    return notes


def _ignored(repository: Any, root: Path) -> bool:
    import git

    try:
        return bool(repository.ignored(str(root)))
    except git.GitCommandError:
        return False


def _folders(root: Path, created: list[Path], written: list[str], kept: list[str]) -> None:
    workspace = Workspace(root)
    for folder in (workspace.runs_dir, workspace.models_dir, workspace.lab_dir):
        name = f"{folder.name}/"
        if folder.exists():
            kept.append(name)
        else:
            created.append(folder)
            written.append(name)
    workspace.create_folders()


def _make_parents(folder: Path, created: list[Path]) -> None:
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    created.extend(reversed(missing))
    folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _all_or_nothing(root: Path) -> Iterator[list[Path]]:
    """Yields a list of what is being created; when the block fails, all of it is removed again."""
    created = [f for f in (root, *root.parents) if not f.exists()][::-1]
    try:
        yield created
    except BaseException as error:
        for path in reversed(created):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
        if isinstance(error, OSError):
            raise _unwritable(root, error) from error
        raise


def _unwritable(root: Path, error: OSError) -> Unavailable:
    return Unavailable(
        f"the workspace {root.name!r} could not be written ({error.strerror or error}); nothing was left behind",
        fix="check permissions and free space, then run `lab-mcp init` again",
    )


def text(report: InitReport) -> str:
    """The report as `lab-mcp init` prints it."""
    lines = [f"Workspace: {report.root}"]
    lines += [f"  written  {name}" for name in report.written]
    lines += [f"  kept     {name}" for name in report.kept]
    lines += [f"  note     {note}" for note in report.notes]
    lines += ["", "Register it with Claude Code (or start Claude Code in this folder: .mcp.json is there):"]
    lines += [f"  {report.register_command}"]
    return "\n".join(lines)
