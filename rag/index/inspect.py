"""A look at an index without opening it: for `doctor`, also while the worker has it. Standard library only."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from workspace import durable

CURRENT = "current.json"


@dataclass(frozen=True)
class IndexState:
    """The generation that answers. `problem` is empty when its catalogue is whole."""

    model: str
    schema: int
    documents: int
    failed: int
    problem: str = ""


def index_state(folder: Path) -> IndexState | None:
    """None when nothing was indexed yet."""
    current = durable.read_json(folder / CURRENT)
    if current is None:
        return None
    about = current.get("about") or {}
    model, schema = str(about.get("model", "unknown")), int(about.get("schema", 0))
    file = folder / str(current.get("folder", "")) / "catalogue.db"
    if not file.is_file():
        return IndexState(model, schema, 0, 0, "its catalogue is missing")
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=1.0)) as catalogue:
            told = str(catalogue.execute("PRAGMA quick_check(1)").fetchone()[0])
            states = dict(catalogue.execute("SELECT state, count(*) FROM documents GROUP BY state"))
    except sqlite3.DatabaseError as error:
        return IndexState(model, schema, 0, 0, f"its catalogue cannot be read ({error})")
    failed = states.pop("failed", 0)
    return IndexState(model, schema, sum(states.values()), failed, "" if told == "ok" else told)


def work_waits(folder: Path) -> bool:
    """Whether documents are still to be indexed or removed, or places to be looked at. Not known counts as yes: the
    process that opens the index says what is wrong with it."""
    documents = "SELECT 1 FROM documents WHERE state IN ('pending', 'written', 'removing') LIMIT 1"
    try:
        current = durable.read_json(folder / CURRENT)
        if current is None or len(list(folder.glob("generation-*"))) > 1:  # the first one, or a new one, is being made
            return True
        file = folder / str(current["folder"]) / "catalogue.db"
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=1.0)) as catalogue:
            return any(catalogue.execute(query).fetchone() for query in (documents, "SELECT 1 FROM looks LIMIT 1"))
    except (sqlite3.Error, OSError, ValueError, KeyError):
        return True
