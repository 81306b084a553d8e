"""Changes as patches: a unified diff of files under recipe/, checked before anything is built from it."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Mapping

from training.config import RECIPE_NAME
from workspace.errors import LabError, Refused

# what a recipe consists of, and the function each code file has to define
FILES: dict[str, str | None] = {RECIPE_NAME: None, "model.py": "build_model", "optim.py": "build_optimizer"}
LONGEST = 100_000  # characters
VALID = (
    "a unified diff of recipe/recipe.toml, recipe/model.py or recipe/optim.py against the parent, with the lines "
    "'--- a/recipe/optim.py' and '+++ b/recipe/optim.py' ('--- /dev/null' for a new file) and lines of context"
)
FORBIDDEN = {
    "GIT binary patch": "is binary",
    "Binary files ": "is binary",
    "rename from ": "renames a file",
    "copy from ": "copies a file",
    "old mode ": "changes a file's mode",
    "new file mode 12": "makes a link",
    "new file mode 16": "adds a repository",
    "new file mode 100755": "makes a file executable",
}


def refused(problem: str) -> Refused:
    return Refused(f"the patch {problem}", valid=VALID)


def names(patch: str) -> list[str]:
    """The files of recipe/ a patch says it touches. Raises `Refused` for any other file, and for what is no patch.

    Only for early, plain words: what an applied patch really changed is looked at again in git.
    """
    if len(patch) > LONGEST or "\0" in patch:
        raise refused(f"is larger than {LONGEST} characters or holds a NUL character")
    for line in patch.splitlines():
        for mark, what in FORBIDDEN.items():
            if line.startswith(mark):
                raise refused(f"{what}, which a recipe does not need")
    found = []
    for old, new in re.findall(r"^--- (\S[^\t\n]*).*\n\+\+\+ (\S[^\t\n]*)", patch, re.MULTILINE):
        for path in (old.strip(), new.strip()):
            if path == "/dev/null":
                continue
            name = re.sub(r"^[ab]/", "", path).removeprefix("recipe/")
            if name not in FILES or not re.match(r"^([ab]/)?recipe/", path):
                raise refused(f"touches {path[:100]!r}, which is outside the recipe")
            found.append(name)
    if not found:
        raise refused("is no unified diff")
    return sorted(set(found))


def summary(patch: str) -> str:
    """`patch of recipe/model.py (+12 -3)`."""
    lines = patch.splitlines()
    added = sum(line.startswith("+") and not line.startswith("+++ ") for line in lines)
    removed = sum(line.startswith("-") and not line.startswith("--- ") for line in lines)
    return f"patch of {', '.join(touched(patch)) or 'recipe/'} (+{added} -{removed})"


def touched(patch: str) -> list[str]:
    """The files a patch names: `recipe/model.py`, ..."""
    return sorted(set(re.findall(r"^(?:---|\+\+\+) [ab]/(recipe/[\w.]+)", patch, re.MULTILINE)))


def check_files(files: Mapping[str, bytes | None]) -> None:
    """Do the files a patch leaves behind parse, and define what the trainer calls? Raises `Refused` with the line."""
    for name, content in files.items():
        if content is None:
            continue
        try:
            text = content.decode("utf-8")
            if name == RECIPE_NAME:
                tomllib.loads(text)
                continue
            tree = ast.parse(text)
        except UnicodeDecodeError as error:
            raise refused(f"leaves recipe/{name} with bytes that are no UTF-8") from error
        except tomllib.TOMLDecodeError as error:
            raise refused(f"leaves recipe/{name} that is no TOML: {error}") from error
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            where = f" line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else f": {error}"
            raise refused(f"leaves recipe/{name} that does not parse,{where}") from error
        wanted = FILES[name]
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assigned = {
            target.id for node in tree.body if isinstance(node, ast.Assign)
            for target in node.targets if isinstance(target, ast.Name)
        }  # fmt: skip
        imported = {
            alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        if wanted is not None and wanted not in defined | assigned | imported:
            raise refused(f"leaves recipe/{name} without {wanted}(...), which the trainer calls")


def explain(error: LabError) -> Refused:
    """git's words about a patch that does not apply."""
    words = re.sub(r"^git apply failed: |error: ", "", error.problem).strip()
    return refused(f"does not apply to the parent ({' '.join(words.split())[:200]})")
