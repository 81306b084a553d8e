"""The branch, index and recipe of the user, for adopting alone: everything else only reads them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from experiments.lineage import Lineage
from experiments.plumbing import EMAIL
from workspace.errors import Unavailable


class UsersBranch(Lineage):
    """The repository with what the lab may do to it when the user says so."""

    def checked_out(self) -> tuple[str | None, str | None]:
        """The branch HEAD is on (None: detached) and the commit there."""
        answer = self._run(["symbolic-ref", "--quiet", "HEAD"])
        return answer.stdout.decode().strip() or None, self._resolve("HEAD")

    def git_file(self, name: str) -> Path:
        """A file of git's own, such as MERGE_HEAD."""
        return self.workspace.root / self._git("rev-parse", "--git-path", name)

    def recipe_blobs(self, commit: str = "", *, tree: str = "") -> dict[str, str]:
        """Blob by file of recipe/ in a commit, or in a tree of recipe/ alone."""
        entries = self._tree_entries(tree) if tree else self._entries(commit) if commit else ()
        return {path: blob for _, blob, path in entries}

    def working_blobs(self) -> dict[str, str]:
        """The same of recipe/ as it lies in the folder."""
        return {path.removeprefix(f"{self._recipe_path}/"): blob for _, blob, path in self._working_recipe()}

    def staged_blobs(self) -> dict[str, str]:
        """The same of the user's index."""
        listed = self._bytes("ls-files", "-s", "-z", "--", self._recipe_path, top=True).decode("utf-8", "replace")
        lines = [line.split("\t", 1) for line in listed.split("\0") if line]
        return {path.removeprefix(f"{self._recipe_path}/"): meta.split()[1] for meta, path in lines}

    def brings_nothing_else(self, commit: str, head: str) -> bool:
        """Whether a merge of `commit` into `head` would bring along commits of the lab's own only."""
        new = self._git("log", "--format=%H %ce", commit, f"^{head}").splitlines()
        elsewhere = ["--not", f"--exclude={self.prefix}/*", "--branches"]
        unseen = self._git("rev-list", commit, f"^{head}", *elsewhere).splitlines()
        return len(unseen) == len(new) and all(line.split(" ", 1)[1] == EMAIL for line in new)

    def blob(self, blob: str) -> bytes:
        return self._bytes("cat-file", "blob", blob)

    def content(self, blob: str, file: str) -> bytes:
        """A blob as it lies in recipe/, through the user's filters."""
        return self._content(blob, file)

    def merge_files(self, mine: Path, was: Path, wanted: Path) -> str | None:
        """The blob of two changes of one file; None where they touch the same lines. Raises `Unavailable`."""
        answer = self._run(["merge-file", "-p", "-q", str(mine), str(was), str(wanted)])
        if answer.returncode < 0 or answer.returncode > 127:
            raise Unavailable("git merge-file cannot merge these files")
        if answer.returncode:
            return None
        return self._bytes("hash-object", "-w", "--stdin", feed=answer.stdout).decode().strip()

    def against(self, commit: str, base: str) -> tuple[dict[str, bytes | None], list[str]]:
        """What to write into the user's recipe/ so that it is as in `commit` (None: delete), and the files that cannot
        be: changed by the user, neither as in `base` (the tree the experiment went back to) nor as in `commit`."""
        root = self._recipe_path + "/"
        theirs = {path: blob for _, blob, path in self._entries(commit)}
        before = {path: blob for _, blob, path in self._tree_entries(base)} if base else {}
        mine = {path.removeprefix(root): blob for _, blob, path in self._working_recipe()}
        write: dict[str, bytes | None] = {}
        conflicts = []
        for name in sorted({*theirs, *before, *mine}):
            if mine.get(name) == theirs.get(name) or (name not in theirs and name not in before):
                continue
            wanted = self._content(theirs[name], name) if name in theirs else None
            if mine.get(name) != before.get(name) or (name not in mine and self.lies_unseen(name, wanted)):
                conflicts.append(name)
            else:
                write[name] = wanted
        return write, conflicts

    def lies_unseen(self, name: str, wanted: bytes | None) -> bool:
        """Whether something else than `wanted` lies in recipe/ under a name that git does not list: it is ignored."""
        file = self.workspace.recipe_dir / name
        if not os.path.lexists(file):
            return False
        return not file.is_file() or file.is_symlink() or file.read_bytes() != wanted

    def stage(self, blobs: Mapping[str, str | None]) -> None:
        """Put files of recipe/ into the user's index as they are in a merge of theirs."""
        nothing = "0" * len(self._git("rev-parse", "HEAD"))  # longer in a repository of SHA-256
        lines = [
            f"0 {nothing}\t{self._recipe_path}/{file}\0"
            if blob is None
            else f"100644 {blob}\t{self._recipe_path}/{file}\0"
            for file, blob in blobs.items()
        ]
        self._git("update-index", "-z", "--add", "--index-info", feed="".join(lines).encode("utf-8"))

    def move(self, branch: str, commit: str, before: str, why: str) -> None:
        """Move the user's branch, if it is still at `before`."""
        self._git("update-ref", "-m", why, branch, commit, before)
