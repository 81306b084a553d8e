"""One thing `lab-mcp doctor` found."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Level = Literal["ok", "note", "warn", "error"]
GIB = 2**30


class Finding(BaseModel):
    """`error`: something will not work. `warn`: it will bite. `note`: worth knowing. `ok`: looked at and good."""

    model_config = ConfigDict(frozen=True)

    level: Level
    what: str
    why: str = ""
    fix: str = ""


def ok(what: str) -> Finding:
    return Finding(level="ok", what=what)


def note(what: str, why: str = "", fix: str = "") -> Finding:
    return Finding(level="note", what=what, why=why, fix=fix)


def warn(what: str, why: str, fix: str) -> Finding:
    return Finding(level="warn", what=what, why=why, fix=fix)


def error(what: str, why: str, fix: str) -> Finding:
    return Finding(level="error", what=what, why=why, fix=fix)
