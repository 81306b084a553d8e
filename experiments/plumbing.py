"""Git commands of the lab's own: no hooks, no signing, an identity and an index file of its own."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from workspace.errors import Unavailable
from workspace.interpreter import service_environment
from workspace.layout import Workspace

NAME, EMAIL = "lab-mcp", "lab-mcp@localhost"
CONFIGURATION = {
    "core.hooksPath": os.devnull,
    "commit.gpgSign": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "core.fsync": "loose-object,reference",
    "core.fsyncMethod": "fsync",
    "core.quotePath": "false",
}
# absolute paths, as git's messages name them: a quoted one to its closing quote, with the spaces in it
ABSOLUTE = re.compile(r"""(?<![\w.])(?:'/.*?'(?!\w)|"/.*?"(?!\w)|['"]?/[^\s'"]*)""")
TIMEOUT_S = 120  # for one command; it is killed then


class GitFailed(Unavailable):
    """A git command did not do what it was asked for."""


class Plumbing:
    """Runs git in the repository a workspace lies in. Raises `GitFailed`."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    @cached_property
    def _top(self) -> Path:
        return Path(self._git("rev-parse", "--show-toplevel"))

    @contextlib.contextmanager
    def _index(self) -> Iterator[Path]:
        """The path of an index file of our own, removed afterwards."""
        self.workspace.cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="index-", dir=self.workspace.cache_dir) as folder:
            yield Path(folder) / "index"

    def _git(
        self,
        *arguments: str,
        feed: bytes | None = None,
        index: Path | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> str:
        answer = self._bytes(*arguments, feed=feed, index=index, extra=extra)
        return answer.decode("utf-8", "surrogateescape").strip("\n")

    def _bytes(
        self,
        *arguments: str,
        feed: bytes | None = None,
        index: Path | None = None,
        extra: Mapping[str, str] | None = None,
        top: bool = False,
    ) -> bytes:
        answer = self._run(arguments, feed=feed, index=index, extra=extra, top=top)
        if answer.returncode != 0:
            text = answer.stderr.decode("utf-8", "replace").strip()
            if "not a git repository" in text:
                raise GitFailed("this workspace is not in a git repository", fix="run `git init` in it")
            text = ABSOLUTE.sub("...", " ".join(text.split()))[:300]
            raise GitFailed(f"git {arguments[0]} failed: {text or f'exit code {answer.returncode}'}")
        return answer.stdout

    def _run(
        self,
        arguments: Sequence[str],
        *,
        feed: bytes | None = None,
        index: Path | None = None,
        extra: Mapping[str, str] | None = None,
        top: bool = False,
    ) -> subprocess.CompletedProcess[bytes]:
        environment = service_environment() | {
            "GIT_AUTHOR_NAME": NAME, "GIT_AUTHOR_EMAIL": EMAIL,
            "GIT_COMMITTER_NAME": NAME, "GIT_COMMITTER_EMAIL": EMAIL,
            "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_LITERAL_PATHSPECS": "1", "LC_ALL": "C",
        }  # fmt: skip
        environment.update(extra or {})
        if index is not None:
            environment["GIT_INDEX_FILE"] = str(index)
        options = [part for key, value in CONFIGURATION.items() for part in ("-c", f"{key}={value}")]
        folder = self.workspace.root
        if top:
            folder = self._top
        try:
            return subprocess.run(
                ["git", *options, *arguments],
                cwd=folder,
                env=environment,
                input=feed if feed is not None else b"",
                capture_output=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError as error:
            raise GitFailed("git is not installed", fix="install git") from error
        except subprocess.TimeoutExpired as error:
            raise GitFailed(f"git {arguments[0]} took longer than {TIMEOUT_S} s") from error
