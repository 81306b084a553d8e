"""What old runs hold on disk, and removing it: checkpoints, logs or whole folders, never what is still of use.

Kept are live runs and what they resume from, pinned runs, promoted ones, the best, the latest, and whatever the caller
names (the runs of open experiments). A removed run keeps its row: its id is never given out again, and its record says
what is gone.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from training.promote import promoted
from training.runs.place import read
from training.runs.store import value
from workspace import clock, durable
from workspace.database import Database
from workspace.errors import Refused, unknown
from workspace.layout import Workspace

What = Literal["checkpoints", "logs", "folders"]
PIN = "pin.json"
REMOVING = ".removing-"
LOGS = ("train.log", "supervisor.log")
DAY_S = 86400.0
GB = 1e9
USAGE_S = 10.0
TABLES = [
    """
    CREATE TABLE cleaned (
      run TEXT NOT NULL, what TEXT NOT NULL, at TEXT NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY (run, what)
    );
    """
]


@dataclass(frozen=True)
class Rules:
    """Which runs may be cleaned: ended `older_than_days` ago; with `down_to_gb` (10^9 bytes) the oldest first, only as
    many as it takes until all runs together hold no more than that.
    """

    what: What = "checkpoints"
    older_than_days: float = 14.0
    keep_latest: int = 10
    down_to_gb: float | None = None


@dataclass(frozen=True)
class Removal:
    run: str
    name: str
    ended_at: str
    bytes: int


@dataclass
class Plan:
    """What would be, or was, removed. `kept`: why each run that is old enough stays. Sizes in bytes."""

    what: What
    held_bytes: int  # by all runs
    removals: list[Removal] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    done: bool = False

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"freed_bytes": sum(removal.bytes for removal in self.removals)}


class Retention:
    """The run folders of a workspace as things that take space."""

    def __init__(self, workspace: Workspace, database: Database) -> None:
        self.workspace = workspace
        self.database = database
        self._cleaning = threading.Lock()
        self._usage: dict[str, tuple[float, tuple[int, ...], dict[str, int]]] = {}  # measured at, look of it, bytes
        database.migrate("retention", TABLES)

    # -- pins ----------------------------------------------------------------------------------------------------------

    def pin(self, run_id: str, by: str) -> None:
        """Keep this run whatever is cleaned. Raises `NotFound`, or `Refused` when its folder is gone."""
        folder = self._folder(run_id)
        if not folder.is_dir():
            raise Refused(f"the folder of {run_id} is gone: there is nothing left to keep")
        if not (folder / PIN).exists():
            durable.write_json(folder / PIN, {"at": clock.now(), "by": by})

    def unpin(self, run_id: str) -> None:
        """Raises `NotFound`."""
        (self._folder(run_id) / PIN).unlink(missing_ok=True)

    def pinned(self, run_id: str) -> bool:
        return (self.workspace.run_dir(run_id) / PIN).exists()

    def _folder(self, run_id: str) -> Path:
        if self.database.one("SELECT id FROM runs WHERE id = ?", (run_id,)) is None:
            known = [row["id"] for row in self.database.query("SELECT id FROM runs ORDER BY number")]
            raise unknown("run", run_id, known, fix="list_runs shows the runs there are")
        return self.workspace.run_dir(run_id)

    # -- space ---------------------------------------------------------------------------------------------------------

    def usage(self, run_id: str) -> dict[str, int]:
        """Bytes on disk of a run: `checkpoints`, `logs`, `total`.

        A folder may hold any number of files: it is walked again when what lies directly in it or in its checkpoints
        has changed, at most every USAGE_S seconds.
        """
        folder = self.workspace.run_dir(run_id)
        look = tuple(_changed(path) for path in (folder, folder / "checkpoints", folder / "train.log"))
        measured, seen, usage = self._usage.get(run_id, (0.0, (), {}))
        if not usage or (look != seen and time.monotonic() - measured > USAGE_S):
            logs = sum(_allocated(folder / name) for name in LOGS)
            usage = {"checkpoints": size_of(folder / "checkpoints"), "logs": logs, "total": size_of(folder)}
            self._usage[run_id] = time.monotonic(), look, usage
        return dict(usage)

    def cleaned(self, run_id: str) -> list[str]:
        """What was removed of a run, and when."""
        rows = self.database.query("SELECT * FROM cleaned WHERE run = ? ORDER BY at", (run_id,))
        return [f"{row['what']} ({row['bytes'] / GB:.2f} GB) removed {row['at'][:10]}" for row in rows]

    # -- cleaning ------------------------------------------------------------------------------------------------------

    def clean(self, rules: Rules, needed: Mapping[str, str], *, act: bool) -> Plan:
        """What `rules` remove; with `act` it is removed. `needed`: run -> why it must stay, beyond what is known here.

        Each removal is written down before it is made, so that a kill in between leaves nothing that looks whole.
        """
        _check(rules)
        with self._cleaning:  # two at once would each take what the other is taking
            return self._clean(rules, needed, act=act)

    def _clean(self, rules: Rules, needed: Mapping[str, str], *, act: bool) -> Plan:
        self._finish_removals()
        rows = self.database.query("SELECT * FROM runs ORDER BY number")
        reasons = self._reasons(rows, rules) | dict(needed)
        plan = Plan(rules.what, sum(size_of(self.workspace.run_dir(row["id"])) for row in rows))
        held: float = plan.held_bytes
        now = clock.now()
        for row in rows:
            if rules.down_to_gb is not None and held <= rules.down_to_gb * GB:
                break
            too_young = row["ended_at"] and clock.seconds_between(row["ended_at"], now) < rules.older_than_days * DAY_S
            if too_young and rules.down_to_gb is None:
                continue
            size = sum(size_of(path) for path in self._paths(row["id"], rules.what))
            if not size:
                continue
            if row["id"] in reasons:
                plan.kept[row["id"]] = reasons[row["id"]]
                continue
            removal = Removal(row["id"], row["name"], row["ended_at"], size)
            if act:
                self._remove(removal, rules.what)
            plan.removals.append(removal)
            held -= size
        plan.done = act
        return plan

    def _reasons(self, rows: Sequence[sqlite3.Row], rules: Rules) -> dict[str, str]:
        """run -> why it stays."""
        ended = [row["id"] for row in rows if row["ended_at"]]
        latest = ended[max(0, len(ended) - rules.keep_latest) :]
        found = dict.fromkeys(latest, f"one of the latest {rules.keep_latest}")
        best = min(rows, key=_score, default=None)
        if best is not None and _score(best) < float("inf"):
            found[best["id"]] = "the best val_bpb of all runs"
        for run_id in ended:
            folder = self.workspace.run_dir(run_id)
            if folder.is_symlink():
                found[run_id] = "its folder is a link"
            elif self.pinned(run_id):
                found[run_id] = "pinned"
        found |= {str(model.get("run")): f"promoted as {model['name']}" for model in promoted(self.workspace)}
        for row in rows:
            if not row["ended_at"]:
                found[row["id"]] = row["state"]
                source = str(read(self.workspace.run_dir(row["id"]) / "run.json").get("resume_from") or "")
                found |= {run_id: f"{row['id']} goes on from it" for run_id in ended if f"{run_id}/" in f"{source}/"}
        return found

    def _paths(self, run_id: str, what: What) -> list[Path]:
        folder = self.workspace.run_dir(run_id)
        if what == "folders":
            return [folder]
        return [folder / "checkpoints"] if what == "checkpoints" else [folder / name for name in LOGS]

    def _remove(self, removal: Removal, what: What) -> None:
        with self.database.transaction() as tx:
            tx.execute(
                "INSERT OR REPLACE INTO cleaned VALUES (?, ?, ?, ?)", (removal.run, what, clock.now(), removal.bytes)
            )
        for path in self._paths(removal.run, what):
            if path.is_symlink() or path.is_file():
                path.unlink(missing_ok=True)
            elif path.is_dir():
                aside = self.workspace.runs_dir / f"{REMOVING}{removal.run}-{path.name}"
                path.rename(aside)  # gone at once for everybody, whatever happens to us meanwhile
                shutil.rmtree(aside, ignore_errors=True)
        self._usage.pop(removal.run, None)

    def _finish_removals(self) -> None:
        for left in self.workspace.runs_dir.glob(f"{REMOVING}*"):
            shutil.rmtree(left, ignore_errors=True)


def size_of(path: Path) -> int:
    """Bytes a file or folder takes on disk, holes not counted; links are not followed."""
    if not path.is_dir() or path.is_symlink():
        return _allocated(path)
    total = 0
    for folder, _, names in os.walk(path):
        total += _allocated(Path(folder)) + sum(_allocated(Path(folder, name)) for name in names)
    return total


def _changed(path: Path) -> int:
    try:
        return path.lstat().st_mtime_ns
    except OSError:
        return 0


def _allocated(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except OSError:  # gone meanwhile
        return 0


def _score(row: sqlite3.Row) -> float:
    summary = value(row["summary"])
    found = summary.get("val_bpb") if row["state"] == "succeeded" and isinstance(summary, dict) else None
    return float(found) if isinstance(found, int | float) else float("inf")


def _check(rules: Rules) -> None:
    if rules.what not in ("checkpoints", "logs", "folders"):
        raise Refused(f"there is nothing called {rules.what!r} to clean", valid="checkpoints, logs, folders")
    if rules.older_than_days < 0 or rules.keep_latest < 0 or (rules.down_to_gb or 0) < 0:
        raise Refused("ages, numbers and sizes are 0 or more")
