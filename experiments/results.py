"""results.tsv: one row per experiment with a verdict, autoresearch's columns first. A view of the ledger.

A row is rendered once, when its experiment has a verdict, and kept in lab.db: replacing the file then costs little
more than writing it, however many experiments there are.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

from experiments.ledger import Ledger
from experiments.record import ExperimentRecord
from workspace import durable
from workspace.ids import number
from workspace.layout import Workspace

FORMAT = 3  # raise when a column or a cell changes: every row is then rendered anew
TABLES = [
    """
    CREATE TABLE results_rows (
      experiment TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, format INTEGER NOT NULL, row TEXT NOT NULL
    );
    CREATE INDEX results_rows_format ON results_rows (format, experiment)
    """
]
GIBI = 2**30
STATUS = {"keep": "keep", "crash": "crash"}  # autoresearch knows keep, discard, crash


def _number(value: float | None, digits: int = 6) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def _peak(record: ExperimentRecord) -> float:
    """Largest memory of the candidate's runs, in GiB; 0 when unknown."""
    peaks = [s.values.get("peak_memory_bytes", 0.0) for s in record.scores if s.role == "candidate"]
    return max(peaks, default=0.0) / GIBI


def _val_bpb(record: ExperimentRecord) -> float:
    """Mean of the candidate's runs; 0 without a score, as autoresearch writes it."""
    scores = [s.values["val_bpb"] for s in record.decisive() if "val_bpb" in s.values]
    return sum(scores) / len(scores) if scores else 0.0


COLUMNS: dict[str, Callable[[ExperimentRecord], str]] = {
    "commit": lambda r: (r.commit or "")[:7],
    "val_bpb": lambda r: f"{_val_bpb(r):.6f}",
    "memory_gb": lambda r: f"{_peak(r):.1f}",
    "status": lambda r: STATUS.get(r.verdict or "", "discard"),
    "description": lambda r: r.hypothesis.statement,
    "experiment": lambda r: r.id,
    "verdict": lambda r: r.verdict or "",
    "metric": lambda r: r.hypothesis.metric,
    "effect": lambda r: _number(r.numbers.effect if r.numbers else None),
    "low": lambda r: _number(r.numbers.low if r.numbers else None),
    "high": lambda r: _number(r.numbers.high if r.numbers else None),
    "smallest_effect": lambda r: _number(r.hypothesis.smallest_effect),
    "noise_sd": lambda r: _number(r.numbers.noise_sd if r.numbers else None),
    "n_control": lambda r: str(r.numbers.n_control) if r.numbers else "0",
    "n_candidate": lambda r: str(r.numbers.n_candidate) if r.numbers else "0",
    "p": lambda r: _number(r.numbers.p if r.numbers else None, 4),
    "change": lambda r: r.hypothesis.describe_change(),
    "parent": lambda r: r.parent.commit[:7] if r.parent else "",
    "seconds": lambda r: f"{r.seconds:.0f}",
    "ended_at": lambda r: r.ended_at or "",
    "hypothesis_hash": lambda r: r.hypothesis_hash[:16],
    "sentence": lambda r: r.sentence or "",
    "level": lambda r: _number(r.numbers.level if r.numbers else None, 6),
    "campaign": lambda r: r.campaign or "",
    "proposer": lambda r: r.proposer,
}


def escape(text: str) -> str:
    """One cell: a backslash, tab or line break is written as two characters, other control characters are dropped."""
    text = text.replace("\\", "\\\\").replace("\t", "\\t").replace("\r", "\\r").replace("\n", "\\n")
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", "", text)


def row(record: ExperimentRecord) -> str:
    """One experiment's line, without its end."""
    return "\t".join(escape(column(record)) for column in COLUMNS.values())


class Results:
    """results.tsv of a workspace."""

    def __init__(self, workspace: Workspace, ledger: Ledger) -> None:
        self.file = workspace.results_file
        self.ledger = ledger
        self.database = ledger.database
        self.database.migrate("results", TABLES)
        self._writing = threading.Lock()  # whoever reads the rows last must also write them last

    def write(self) -> None:
        """Replace the file, atomically and durably, with a row for every experiment that has a verdict."""
        with self._writing:
            self._render()
            rows = self.database.query("SELECT row FROM results_rows ORDER BY number")
            lines = ["\t".join(COLUMNS), *(found["row"] for found in rows)]
            durable.write_text(self.file, "\n".join(lines) + "\n")

    def _render(self) -> None:
        """Bring the kept rows up to date; usually that is the one of the experiment that has just ended."""
        missing = self.database.query(
            "SELECT id FROM experiments WHERE state IN ('record', 'done')"
            " AND id NOT IN (SELECT experiment FROM results_rows WHERE format = ?)",
            (FORMAT,),
        )
        for start in range(0, len(missing), 500):
            records = [self.ledger.get(found["id"]) for found in missing[start : start + 500]]
            with self.database.transaction() as tx:
                tx.executemany(
                    "INSERT OR REPLACE INTO results_rows VALUES (?, ?, ?, ?)",
                    [(r.id, number(r.id, "exp"), FORMAT, row(r)) for r in records if r is not None],
                )
