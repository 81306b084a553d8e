"""Errors that teach: what was wrong, what is valid, what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LabError(Exception):
    """A refusal a person or an assistant can act on.

    `problem` says what was wrong, `valid` what would have been right, `fix` what to do next.
    `str(error)` joins the three; it never carries a secret or a path outside the workspace.
    """

    may_have_worked: bool = False  # what was asked for may have been done (and be paid for) all the same

    def __init__(self, problem: str, *, valid: str | None = None, fix: str | None = None) -> None:
        self.problem = problem
        self.valid = valid
        self.fix = fix
        parts = [problem.rstrip(".") + "."]
        if valid:
            parts.append(f"Valid: {valid.rstrip('.')}.")
        if fix:
            parts.append(f"Next: {fix.rstrip('.')}.")
        super().__init__(" ".join(parts))


class NotFound(LabError):
    """Something named does not exist; `valid` names the closest that do."""


class Refused(LabError):
    """The request is understood and not allowed, or makes no sense as stated; nothing was changed."""


class Unavailable(LabError):
    """Something the request needs (a network, a device, a package, disk space) is not there now."""

    wait_s: float | None = None  # how long it asks to be left alone, where it said so


def closest(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """The names in `known` most like `name`, best first (may be empty)."""
    candidates = list(known)
    found = difflib.get_close_matches(name, candidates, n=limit, cutoff=0.5)
    if not found and name:
        found = [c for c in candidates if c.startswith(name) or name.startswith(c)][:limit]
    return found


def unknown(kind: str, name: str, known: Iterable[str], *, fix: str | None = None) -> NotFound:
    """A `NotFound` for `name` that names the closest known ones, or a few when none is close."""
    names = list(known)
    near = closest(name, names)
    if near:
        valid = "closest " + ", ".join(near)
    elif names:
        shown = ", ".join(names[-5:])
        valid = shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
    else:
        valid = f"there is no {kind} yet"
    return NotFound(f"no {kind} {name[:120]!r}", valid=valid, fix=fix)
