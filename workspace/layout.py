"""Where everything of one workspace lies, and how a workspace is found."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from workspace.errors import NotFound, Refused

SETTINGS_NAME = "lab.toml"
# file systems on which SQLite's and flock's locks cannot be trusted
NETWORK_FILE_SYSTEMS = frozenset(
    ["nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "lustre", "gpfs", "beegfs", "ceph", "afs", "fuse.sshfs", "fuse.s3fs"]
)


@dataclass(frozen=True)
class Workspace:
    """The folders and files of one workspace; `root` is absolute and resolved."""

    root: Path

    # what people read and edit
    @property
    def settings_file(self) -> Path:
        return self.root / SETTINGS_NAME

    @property
    def program_file(self) -> Path:
        return self.root / "program.md"

    @property
    def recipe_dir(self) -> Path:
        return self.root / "recipe"

    @property
    def papers_dir(self) -> Path:
        return self.root / "papers"

    @property
    def runs_dir(self) -> Path:
        return self.root / "runs"

    @property
    def experiments_dir(self) -> Path:
        return self.root / "experiments"

    @property
    def models_dir(self) -> Path:
        return self.root / "models"

    @property
    def sessions_dir(self) -> Path:
        return self.root / "docs" / "sessions"

    @property
    def journal_dir(self) -> Path:
        return self.sessions_dir / ".journal"

    @property
    def results_file(self) -> Path:
        return self.root / "results.tsv"

    # what the lab keeps for itself
    @property
    def lab_dir(self) -> Path:
        return self.root / ".lab"

    @property
    def service_file(self) -> Path:
        return self.lab_dir / "service.json"

    @property
    def service_log(self) -> Path:
        return self.lab_dir / "service.log"

    @property
    def cache_dir(self) -> Path:
        return self.lab_dir / "cache"

    @property
    def worktrees_dir(self) -> Path:
        return self.lab_dir / "worktrees"

    @cached_property
    def state_dir(self) -> Path:
        """Database, index and locks: `.lab`, or a local folder when the workspace is on a network file system."""
        if file_system(self.root) not in NETWORK_FILE_SYSTEMS:
            return self.lab_dir
        base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
        return Path(base) / "lab-mcp" / hashlib.sha256(str(self.root).encode()).hexdigest()[:16]

    @property
    def database_file(self) -> Path:
        return self.state_dir / "lab.db"

    @property
    def telemetry_file(self) -> Path:
        return self.state_dir / "telemetry.db"

    @property
    def index_dir(self) -> Path:
        return self.state_dir / "index"

    @property
    def locks_dir(self) -> Path:
        return self.state_dir / "locks"

    def run_dir(self, run_id: str) -> Path:
        return self.runs_dir / run_id

    def experiment_dir(self, experiment_id: str) -> Path:
        return self.experiments_dir / experiment_id

    def create_folders(self) -> None:
        """Make the folders the lab writes to. Those that hold bulky or private files ignore themselves in git."""
        for folder in (self.runs_dir, self.models_dir, self.lab_dir):
            folder.mkdir(parents=True, exist_ok=True)
            ignore = folder / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n", encoding="utf-8")
        self.lab_dir.chmod(0o700)
        for folder in (self.cache_dir, self.worktrees_dir, self.state_dir, self.locks_dir):
            folder.mkdir(parents=True, exist_ok=True)

    def confine(self, path: str | Path, *, what: str = "path") -> Path:
        """`path` (absolute, or relative to the root) resolved; `Refused` unless it lies inside the workspace."""
        text = str(path)
        if "\0" in text:
            raise Refused(f"{what} contains a NUL byte")
        try:
            resolved = (self.root / text).resolve()
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                resolved.lstat()  # a name that is too long is refused here, and surprises nobody later
        except (RuntimeError, OSError, UnicodeEncodeError) as error:  # a circle of links; a name no file can have
            raise Refused(f"{what} {text[:200]!a} cannot be followed", valid="a path inside the workspace") from error
        if resolved != self.root and self.root not in resolved.parents:
            raise Refused(
                f"{what} {text[:200]!r} lies outside the workspace",
                valid="a path inside the workspace folder, relative to it",
                fix="copy the file into the workspace, or give `repo` to run a script from another repository",
            )
        return resolved

    def relative(self, path: Path) -> str:
        """`path` as shown to a user: relative to the root when inside, else only its name."""
        try:
            return path.resolve().relative_to(self.root).as_posix()
        except ValueError:
            return path.name


def discover(
    explicit: str | Path | None = None, *, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Workspace:
    """The workspace named by `explicit`, `LAB_WORKSPACE`, `CLAUDE_PROJECT_DIR`, or the current folder and its parents.

    The first source that is set decides; a named folder must itself hold a `lab.toml`, `CLAUDE_PROJECT_DIR` and
    the current folder are searched upwards. Raises `NotFound` with the `lab-mcp init` to run.
    """
    environment = os.environ if environment is None else environment
    named = explicit or environment.get("LAB_WORKSPACE")
    if named:
        try:
            root = Path(named).expanduser().resolve()
        except RuntimeError as error:  # no such user's home, or a circle of links
            raise NotFound(f"the folder {str(named)!r} cannot be followed ({error})", valid="a path") from error
        if (root / SETTINGS_NAME).is_file():
            return Workspace(root)
        raise no_workspace(root)
    starts = [Path(environment["CLAUDE_PROJECT_DIR"])] if environment.get("CLAUDE_PROJECT_DIR") else []
    with contextlib.suppress(FileNotFoundError):  # the current folder may have been deleted
        starts.append(cwd or Path.cwd())
    if not starts:
        raise NotFound("the current folder does not exist any more", fix="change to a lab workspace's folder")
    for start in starts:
        resolved = start.resolve()
        for folder in (resolved, *resolved.parents):
            if (folder / SETTINGS_NAME).is_file():
                return Workspace(folder)
    raise no_workspace(starts[0].resolve())


def no_workspace(folder: Path) -> NotFound:
    return NotFound(
        f"{folder.name or folder} is not a lab workspace: it has no {SETTINGS_NAME}",
        fix=f"run `lab-mcp init {shlex.quote(str(folder))}` in a terminal, then try again",
    )


def file_system(path: Path) -> str:
    """The type of the file system `path` lies on (`ext4`, `nfs4`, ...), `unknown` where the system does not tell."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    target, best, found = str(path), -1, "unknown"
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        prefix = point.rstrip("/") + "/"
        if (target == point or target.startswith(prefix)) and len(point) >= best:
            best, found = len(point), fields[2]
    return found
