"""Where experiments live in git: their own commits on their own refs, made by plumbing.

The user's working tree, index, HEAD and branches are never touched: every command runs with an index file, an
identity and a configuration of its own, without hooks and without signing. The one exception is announced: a
repository without any commit gets an empty first one, because an experiment needs a parent.
"""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from experiments import patches, ref_locks
from experiments.plumbing import EMAIL, NAME, GitFailed, Plumbing
from experiments.record import Best
from workspace import durable
from workspace.clock import parse
from workspace.errors import Refused
from workspace.layout import Workspace

MAX_FILE_BYTES = 10_000_000
FIRST_COMMIT = (
    "The repository had no commit yet: the lab made an empty first one on {branch}, so that experiments have a parent."
)
SNAPSHOT = "recipe/ has changes that are not committed: the lab committed them on its own ref as the parent."


@dataclass(frozen=True)
class Parent:
    """What a candidate is compared with. `base` is the recipe in the user's folder it goes back to (a tree id)."""

    commit: str
    recipe: str  # tree id of recipe/ in `commit`; "" when there is none
    base: str
    notes: tuple[str, ...] = ()


class Lineage(Plumbing):
    """The lab's commits in the repository a workspace lies in."""

    def __init__(self, workspace: Workspace, prefix: str = "lab") -> None:
        super().__init__(workspace)
        self._wished = prefix
        self._laying_out = threading.Lock()  # two threads would take each other's temporary files for leftovers
        self._contents: dict[str, dict[str, tuple[bytes, bool]]] = {}  # commit -> recipe/, to spare asking git again

    # -- what there is ------------------------------------------------------------------------------------------------

    def parent(self, best: Best | None) -> Parent:
        """The parent of the next experiment: the best so far, unless the user has changed recipe/ since.

        A recipe/ with uncommitted changes is committed as it stands; a repository without a commit gets one.
        """
        notes: list[str] = []
        head = self._resolve("HEAD")
        if head is None:
            head, branch = self._first_commit()
            notes.append(FIRST_COMMIT.format(branch=branch))
        files = self._working_recipe()
        tree = self._tree_with_recipe(head, files)
        base = self.recipe_tree(tree)
        if best and self._resolve(best.commit) and base in (best.base, self.recipe_tree(best.commit)):
            return Parent(best.commit, self.recipe_tree(best.commit), best.base, tuple(notes))
        if tree == self._git("rev-parse", f"{head}^{{tree}}"):
            return Parent(head, base, base, tuple(notes))
        # dated like its parent, so that the same recipe is the same commit however often it is looked at
        when = self._git("show", "-s", "--format=%cI", head)
        snapshot = self._commit_tree(tree, [head], "Snapshot of recipe/ for an experiment\n", when)
        return Parent(snapshot, base, base, (*notes, SNAPSHOT))

    def materialise(self, commit: str) -> Path:
        """A folder that holds recipe/ exactly as committed (and nothing else but Python's caches)."""
        with self._laying_out:
            return self._materialise(commit)

    def _materialise(self, commit: str) -> Path:
        folder = self.workspace.worktrees_dir / commit / "recipe"
        folder.mkdir(parents=True, exist_ok=True)
        if commit not in self._contents:
            self._contents[commit] = {
                path: (self._content(blob, path), mode == "100755") for mode, blob, path in self._entries(commit)
            }
        wanted = {folder / path: content for path, content in self._contents[commit].items()}
        for present in sorted(folder.rglob("*")):
            if present.is_file() and "__pycache__" not in present.parts and present not in wanted:
                present.unlink()
        for file, (content, executable) in wanted.items():
            if not file.is_file() or file.read_bytes() != content:
                file.parent.mkdir(parents=True, exist_ok=True)
                durable.write_bytes(file, content, mode=0o755 if executable else 0o644)
        return folder

    def patched(self, parent: str, patch: str) -> dict[str, bytes | None]:
        """The files of recipe/ a patch (paths relative to the workspace) changes in `parent`; None = deleted.

        Raises `Refused` when it does not apply, or changes anything that is no plain file of the recipe.
        """
        patches.names(patch)
        text = patch if patch.endswith("\n") else patch + "\n"
        folder = self._recipe_path.removesuffix(self.workspace.recipe_dir.name)
        options = [f"--directory={folder}"] if folder else []
        with self._index() as index:
            self._git("read-tree", parent, index=index)
            try:
                self._bytes(
                    "apply", "--cached", "--recount", "--unidiff-zero", "--whitespace=nowarn", *options, "-",
                    feed=text.encode("utf-8", "replace"), index=index, top=True,
                )  # fmt: skip
            except GitFailed as error:
                if not error.problem.startswith("git apply failed"):
                    raise
                raise patches.explain(error) from error
            tree = self._git("write-tree", index=index)
        found: dict[str, bytes | None] = {}
        fields = self._bytes("diff-tree", "-r", "-z", "--raw", "--no-renames", parent, tree).split(b"\0")[:-1]
        for meta, raw_path in zip(fields[::2], fields[1::2], strict=True):
            path = raw_path.decode("utf-8", "replace")
            name = path.removeprefix(f"{self._recipe_path}/")
            mode, blob = meta.split()[1].decode(), meta.split()[3].decode()
            if name == path or name not in patches.FILES or mode not in ("100644", "000000"):
                raise patches.refused(f"touches {path[:100]!r}, which is no plain file of the recipe")
            found[name] = None if mode == "000000" else self._bytes("cat-file", "blob", blob)
        if not found:
            raise patches.refused("changes nothing")
        patches.check_files(found)
        return found

    def patch(self, parent: str, commit: str) -> str:
        """The difference of two commits inside recipe/, as a patch."""
        return self._bytes(
            "diff-tree", "-p", "--no-color", "--no-ext-diff", "--no-textconv", parent, commit, "--", self._recipe_path
        ).decode("utf-8", "replace")

    def exists(self, commit: str) -> bool:
        return self._resolve(commit) is not None

    def resolve(self, name: str) -> str | None:
        """The commit a ref below the lab's prefix points at."""
        return self._resolve(f"refs/heads/{self.prefix}/{name}")

    # -- what is written ----------------------------------------------------------------------------------------------

    def commit(
        self,
        parent: str,
        files: Mapping[str, bytes | None],
        message: str,
        when: str,
        *,
        merged: Sequence[str] | None = None,
    ) -> str:
        """A commit on `parent` with some files of recipe/ replaced (None: deleted). The same arguments give the same
        commit. The files are as they lie in a folder: what git's filters make of them is committed.

        `when` is its date, ISO 8601. Nothing points at it yet: see `point`. `merged`: all parents of a commit that is
        the user's own, by the name git knows them under.
        """
        with self._index() as index:
            self._git("read-tree", parent, index=index)
            lines = []
            for name, content in files.items():
                path = f"{self._recipe_path}/{name}"
                if content is None:
                    lines.append(f"0 {'0' * len(parent)}\t{path}\0")
                    continue
                blob = self._bytes("hash-object", "-w", "--stdin", f"--path={path}", feed=content, top=True)
                lines.append(f"100644 {blob.decode().strip()}\t{path}\0")
            self._git("update-index", "-z", "--index-info", feed="".join(lines).encode("utf-8"), index=index)
            tree = self._git("write-tree", index=index)
        if merged is not None:
            return self._commit_tree(tree, merged, message, when, self._user())
        return self._commit_tree(tree, [parent], message, when)

    def _user(self) -> dict[str, str]:
        """The identity git knows the user under; the lab's where it knows none."""
        name = self._run(["config", "user.name"]).stdout.decode("utf-8", "replace").strip() or NAME
        email = self._run(["config", "user.email"]).stdout.decode("utf-8", "replace").strip() or EMAIL
        return {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
                for what, value in (("NAME", name), ("EMAIL", email))}  # fmt: skip

    def reword(self, commit: str, parent: str, message: str, when: str) -> str:
        """The commit's tree on `parent` with another message. Nothing points at it yet."""
        return self._commit_tree(self._git("rev-parse", f"{commit}^{{tree}}"), [parent], message, when)

    def point(self, name: str, commit: str, *, only_if_free: bool = False) -> str | None:
        """Set the ref `<prefix>/name`; returns its full name, or None where a checkout of the user's is on it.

        With `only_if_free` a ref that somebody has checked out is left alone: moving it would show them changes
        they did not make.
        """
        ref = f"refs/heads/{self.prefix}/{name}"
        if only_if_free and ref in self._checked_out():
            return None
        if self._resolve(ref) != commit:
            move = ("update-ref", "--create-reflog", "-m", "lab-mcp", ref, commit)
            try:
                self._git(*move)
            except GitFailed as error:
                self._unlock(ref, error)
                self._git(*move)
        return ref

    def _unlock(self, ref: str, error: GitFailed) -> None:
        """Remove the lock a killed git left on a ref of ours. Raises `error`, or it with what to do, where there is
        none or somebody may hold it."""
        name = self._git("rev-parse", "--git-path", f"{ref}.lock")
        lock = self.workspace.root / name
        if not lock.exists():
            raise error
        listed = self._git("worktree", "list", "--porcelain").splitlines()
        folders = [line.removeprefix("worktree ") for line in listed if line.startswith("worktree ")]
        folders.append(self._git("rev-parse", "--git-common-dir"))
        if (why := ref_locks.remove(lock, [self.workspace.root / folder for folder in folders])) is not None:
            shown = name if not Path(name).is_absolute() else f"{ref}.lock in the git folder"
            raise GitFailed(error.problem, fix=f"{why}. If no git is at work in this repository, delete {shown}")

    @cached_property
    def prefix(self) -> str:
        """Our refs are refs/heads/<prefix>/...; another prefix than the wished one where the user owns that name."""
        file = self.workspace.lab_dir / "lineage.json"
        stored = durable.read_json(file)
        if isinstance(stored, dict) and stored.get("wished") == self._wished:
            return str(stored["prefix"])
        numbered = (f"{self._wished}-{n}" for n in range(2, 100))
        chosen = next(name for name in (self._wished, f"{self._wished}-mcp", *numbered) if self._is_free(name))
        durable.write_json(file, {"wished": self._wished, "prefix": chosen})
        return chosen

    def _is_free(self, prefix: str) -> bool:
        lines = self._git(
            "for-each-ref", "--format=%(refname)%00%(committeremail)", f"refs/heads/{prefix}", f"refs/heads/{prefix}/"
        )
        return all(
            line.split("\0")[0] != f"refs/heads/{prefix}" and line.split("\0")[1] == f"<{EMAIL}>"
            for line in lines.splitlines()
        )

    def _first_commit(self) -> tuple[str, str]:
        branch = self._git("symbolic-ref", "HEAD")
        with self._index() as index:
            self._git("read-tree", "--empty", index=index)
            tree = self._git("write-tree", index=index)
        commit = self._commit_tree(tree, [], "Empty first commit, made by lab-mcp\n", "1970-01-01T00:00:00Z")
        self._git("update-ref", "-m", "lab-mcp: empty first commit", branch, commit, "")
        return commit, branch.removeprefix("refs/heads/")

    # -- trees --------------------------------------------------------------------------------------------------------

    @cached_property
    def _recipe_path(self) -> str:
        """recipe/ as git names it: relative to the repository's root, which may lie above the workspace."""
        prefix = self._git("rev-parse", "--show-prefix")
        return f"{prefix}{self.workspace.recipe_dir.name}"

    def _working_recipe(self) -> list[tuple[str, str, str]]:
        """(mode, blob, path) of the files of recipe/ as they lie in the folder, those git ignores left out."""
        listed = self._bytes(
            "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", self.workspace.recipe_dir.name
        )
        names = sorted({name for name in listed.decode("utf-8", "surrogateescape").split("\0") if name})
        kept: list[tuple[str, str]] = []
        for name in names:
            try:
                status = (self.workspace.root / name).lstat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            if "__pycache__" in name:
                continue
            if not stat.S_ISREG(status.st_mode) or "\n" in name:
                raise Refused(f"{name!r} is not a plain file", fix="keep only plain files in recipe/, no links")
            if status.st_size > MAX_FILE_BYTES:
                raise Refused(f"{name} is larger than {MAX_FILE_BYTES // 10**6} MB", fix="keep data outside recipe/")
            kept.append((name, "100755" if status.st_mode & 0o100 else "100644"))
        if not kept:
            return []
        root = self._recipe_path[: -len(self.workspace.recipe_dir.name)]
        feed = "".join(f"{root}{name}\n" for name, _ in kept).encode("utf-8", "surrogateescape")
        blobs = self._bytes("hash-object", "-w", "--stdin-paths", feed=feed, top=True).decode().split()
        return [(mode, blob, root + name) for (name, mode), blob in zip(kept, blobs, strict=True)]

    def _tree_with_recipe(self, head: str, files: Sequence[tuple[str, str, str]]) -> str:
        with self._index() as index:
            self._git("read-tree", head, index=index)
            present = self._bytes("ls-files", "-z", "--", self._recipe_path, index=index, top=True)
            gone = [b"0 " + b"0" * len(head) + b"\t" + name + b"\0" for name in present.split(b"\0") if name]
            new = [f"{mode} {blob}\t{path}\0".encode("utf-8", "surrogateescape") for mode, blob, path in files]
            self._git("update-index", "-z", "--index-info", feed=b"".join(gone + new), index=index)
            return self._git("write-tree", index=index)

    def recipe_tree(self, commit: str) -> str:
        """The tree id of recipe/ in a commit (or tree); "" when it has none."""
        answer = self._run(["rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}:{self._recipe_path}"])
        return answer.stdout.decode().strip() if answer.returncode == 0 else ""

    def _content(self, blob: str, path: str) -> bytes:
        """A blob as it lies in a folder, through the user's filters (line ends, LFS)."""
        return self._bytes("cat-file", "--filters", f"--path={self._recipe_path}/{path}", blob, top=True)

    def _entries(self, commit: str) -> Iterator[tuple[str, str, str]]:
        recipe = self.recipe_tree(commit)
        return self._tree_entries(recipe) if recipe else iter(())

    def _tree_entries(self, tree: str) -> Iterator[tuple[str, str, str]]:
        """(mode, blob, path) of the plain files below a tree."""
        listed = self._bytes("ls-tree", "-r", "-z", "--full-tree", tree)
        for line in listed.decode("utf-8", "surrogateescape").split("\0"):
            if line:
                meta, path = line.split("\t", 1)
                mode, kind, blob = meta.split(" ")
                if kind == "blob" and mode.startswith("100"):
                    yield mode, blob, path

    def _commit_tree(
        self, tree: str, parents: Sequence[str], message: str, when: str, who: Mapping[str, str] | None = None
    ) -> str:
        date = f"@{int(parse(when).timestamp())} +0000"
        dates = {**(who or {}), "GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
        arguments = [part for parent in parents for part in ("-p", parent)]
        return self._git("commit-tree", tree, *arguments, "-F", "-", feed=message.encode("utf-8"), extra=dates)

    def _checked_out(self) -> set[str]:
        listed = self._git("worktree", "list", "--porcelain")
        return {line.removeprefix("branch ") for line in listed.splitlines() if line.startswith("branch ")}

    def _resolve(self, name: str) -> str | None:
        answer = self._run(["rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"])
        return answer.stdout.decode().strip() if answer.returncode == 0 else None
