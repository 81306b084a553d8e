"""A repository's files for one run: cloned apart from everybody's tree, at a known commit.

A repository is mirrored once under `.lab/cache/git/` and fetched before each use; a run gets a clone of its own from
there. A fetch that takes long goes on in the background, for the next call to find it done. Hooks, templates and
credentials prompts are off; submodules and large files (LFS) are not fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workspace.errors import NotFound, Refused, Unavailable, unknown
from workspace.layout import Workspace
from workspace.secrets import mask

CLONE_LIMIT_S = 600.0
CLONE_WAIT_S = 20.0  # of one call; assistants give up on an answer after a minute
LIST_LIMIT_S = 60.0
_URL = re.compile(r"^(https?|ssh|git)://\S+$|^[\w.-]+@[\w.-]+:\S+$")
_CREDENTIALS = re.compile(r"(?<=^http://)[^/@]*@|(?<=^https://)[^/@]*@")
_COMMIT = re.compile(r"^[0-9a-f]{7,40}$")
_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_SSH_COMMAND": "ssh -o BatchMode=yes -o ConnectTimeout=30 -o ServerAliveInterval=15",
    "GIT_HTTP_LOW_SPEED_LIMIT": "1",  # bytes a second: a server that went silent
    "GIT_HTTP_LOW_SPEED_TIME": "60",
    "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",  # not ext::, which runs commands
    "GIT_LFS_SKIP_SMUDGE": "1",
    "GIT_CONFIG_COUNT": "2",
    "GIT_CONFIG_KEY_0": "core.hooksPath",
    "GIT_CONFIG_VALUE_0": os.devnull,
    "GIT_CONFIG_KEY_1": "init.templateDir",
    "GIT_CONFIG_VALUE_1": "",
}
_one_at_a_time: dict[str, threading.Lock] = defaultdict(threading.Lock)  # per mirror
_fetches: dict[tuple[str, str | None], _Fetch] = {}  # those under way
_fetches_guard = threading.Lock()


@dataclass(frozen=True)
class Checkout:
    """A clone lying in `folder`, which the run folder takes over."""

    folder: Path
    repo: str
    branch: str | None
    commit: str

    def as_json(self) -> dict[str, Any]:
        return {"repo": self.repo, "branch": self.branch, "commit": self.commit}

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def check_out(repo: str, branch: str | None, workspace: Workspace, *, network: bool) -> Checkout:
    """Clone `repo` at `branch` (branch, tag or commit; None: its default branch) into a folder under `.lab/cache/`.

    Raises `Refused` (not a repository address, network not allowed), `NotFound` (no such repository or branch, the
    closest named) or `Unavailable` (no git, no answer, no space; or not done yet, then the fetch goes on). Nothing but
    the mirror is left behind then.
    """
    address, shown = _address(repo, workspace, network=network)
    if branch is not None and (not branch.strip() or branch.startswith("-") or re.search(r"[\s\0~^:?*\[\\]", branch)):
        raise Refused(f"branch {branch[:80]!r} is no branch, tag or commit name")
    mirror = workspace.cache_dir / "git" / (hashlib.sha256(address.encode()).hexdigest()[:20] + ".git")
    staging = workspace.cache_dir / "staging" / uuid.uuid4().hex
    with _git_errors(shown):
        wanted = _fetch(mirror, address, branch, shown)
        commit = _resolve(mirror, wanted or branch or "HEAD", branch, shown)
        staging.parent.mkdir(parents=True, exist_ok=True)
        try:
            _git(staging.parent, CLONE_LIMIT_S, "clone", "--quiet", "--no-checkout", "--", str(mirror), staging.name)
            _git(staging, CLONE_LIMIT_S, "checkout", "--quiet", "--detach", commit)
            # a run folder is copied and shared: a password or token in the address stays out of it
            origin = _CREDENTIALS.sub("", address)
            _git(staging, LIST_LIMIT_S, "remote", "set-url", "origin", "--", origin)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    return Checkout(staging, shown, branch, commit)


class _Fetch(threading.Thread):
    """Brings a mirror up to date. Waited for as long as a call may take; whoever comes later waits for the same one."""

    def __init__(self, mirror: Path, address: str, branch: str | None, shown: str) -> None:
        super().__init__(name="git fetch", daemon=True)
        self.arguments = (mirror, address, branch, shown)
        self.wanted: str | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        mirror, address, branch, shown = self.arguments
        try:
            with _one_at_a_time[str(mirror)]:
                self.wanted = _remote_ref(address, branch, shown)
                _refresh(mirror, address)
        except BaseException as error:  # noqa: BLE001  raised where it is waited for
            self.error = error
        with _fetches_guard:
            _fetches.pop((str(mirror), branch), None)


def _fetch(mirror: Path, address: str, branch: str | None, shown: str) -> str | None:
    """The mirror, up to date; the full name of `branch` there. Raises `Unavailable` while that takes too long."""
    with _fetches_guard:
        fetch = _fetches.get((str(mirror), branch))
        if fetch is None:
            fetch = _fetches[str(mirror), branch] = _Fetch(mirror, address, branch, shown)
            fetch.start()
    fetch.join(CLONE_WAIT_S)
    if fetch.is_alive():
        raise Unavailable(
            f"{shown} is still being cloned after {CLONE_WAIT_S:g} s; that goes on in the background",
            fix="make the same call again in a minute",
        )
    if fetch.error is not None:
        raise fetch.error
    return fetch.wanted


def _address(repo: str, workspace: Workspace, *, network: bool) -> tuple[str, str]:
    """What git is given, and how it is shown (without credentials)."""
    text = repo.strip()
    if not text or "\0" in text or text.startswith("-"):
        raise Refused(f"repo {repo[:80]!r} is no git URL or path", valid="https://..., user@host:path, or a path")
    text = text.removeprefix("file://")
    if _URL.match(text):
        if not network:
            raise Refused(
                "cloning from a URL is switched off here",
                valid="a path on this machine",
                fix="the user can set git = true under [network] in lab.toml",
            )
        return text, mask(text)
    if "::" in text or "://" in text:
        raise Refused(f"repo {mask(text)[:80]!r} uses an unknown protocol", valid="https, http, ssh, git, file, a path")
    try:
        path = (workspace.root / Path(text).expanduser()).resolve()
        found = path.is_dir()
    except (OSError, RuntimeError) as error:  # a name too long, a circle of links, no such user's home
        raise Refused(f"repo {text[:80]!r} cannot be followed", valid="a git URL, or a path") from error
    if not found:
        raise NotFound(f"there is no folder {text[:200]!r}", valid="a git URL, or the path of a git repository")
    return str(path), workspace.relative(path)


def _remote_ref(address: str, branch: str | None, shown: str) -> str | None:
    """The full name of `branch` at the remote, None for a commit or the default branch. `NotFound` with the closest."""
    if branch is None:
        return None
    listing = _git(None, LIST_LIMIT_S, "ls-remote", "--quiet", "--heads", "--tags", "--", address)
    names = [line.split("\t", 1)[1] for line in listing.splitlines() if "\t" in line]
    for full in (f"refs/heads/{branch}", f"refs/tags/{branch}"):
        if full in names:
            return full
    if _COMMIT.match(branch):
        return None
    known = [name.split("/", 2)[2] for name in names if not name.endswith("^{}")]
    raise unknown("branch or tag", branch, known, fix=f"name a branch, tag or commit of {shown}")


def _refresh(mirror: Path, address: str) -> None:
    """The mirror, as the remote is now. A half-made one is made again."""
    if (mirror / "HEAD").exists() and (mirror / "complete").exists():
        head = _git(None, LIST_LIMIT_S, "ls-remote", "--symref", "--", address, "HEAD")
        _git(mirror, CLONE_LIMIT_S, "fetch", "--quiet", "--prune", "--tags", "--force", "--", address, "+refs/*:refs/*")
        default = re.search(r"^ref: (\S+)\tHEAD$", head, re.MULTILINE)
        if default:
            _git(mirror, LIST_LIMIT_S, "symbolic-ref", "HEAD", default.group(1))
        return
    shutil.rmtree(mirror, ignore_errors=True)
    mirror.parent.mkdir(parents=True, exist_ok=True)
    try:
        _git(mirror.parent, CLONE_LIMIT_S, "clone", "--quiet", "--mirror", "--", address, mirror.name)
        (mirror / "complete").touch()
    except BaseException:
        shutil.rmtree(mirror, ignore_errors=True)
        raise


def _resolve(mirror: Path, name: str, branch: str | None, shown: str) -> str:
    import git

    try:
        return _git(mirror, LIST_LIMIT_S, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
    except git.GitCommandError as error:
        if branch is None:
            raise NotFound(f"{shown} has no commit yet", fix="commit something there first") from error
        raise NotFound(f"{shown} has no commit {branch!r}", valid="a branch, a tag, or a commit it holds") from error


def _git(folder: Path | None, limit_s: float, *arguments: str) -> str:
    import git

    runner = git.Git(str(folder) if folder else os.sep)
    runner.update_environment(**_ENVIRONMENT)
    output = runner.execute(["git", *arguments], kill_after_timeout=limit_s)
    assert isinstance(output, str)
    return output


@contextlib.contextmanager
def _git_errors(shown: str) -> Iterator[None]:
    """git's failures as errors of ours."""
    try:
        import git
    except ImportError as error:  # GitPython looks for the git program when it is imported
        raise Unavailable("git is not installed", fix="install git, or copy the script into the workspace") from error
    try:
        yield
    except git.GitCommandError as error:
        text = str(error.stderr)
        said = " ".join(mask(re.sub(r"^\s*stderr:\s*'|'\s*$", "", text)).split())[:300]
        said = re.sub(r"/[^\s']*/", "", said)
        if "No space left" in text:
            raise Unavailable("there is no space left on the disk", fix="free some space") from error
        if "Timeout" in text:
            raise Unavailable(f"{shown} took too long to clone", fix="clone it yourself and give the path") from error
        if re.search(r"not appear to be a git repo|not a git repo|not found|does not exist|Repository not found", text):
            raise NotFound(f"{shown} is no git repository that can be read: {said}") from error
        raise Unavailable(f"git could not clone {shown}: {said}", fix="try the same with git in a terminal") from error
