"""results.tsv: one row per experiment with a verdict, autoresearch's columns first. A view of the ledger."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from experiments.record import ExperimentRecord
from workspace import durable
from workspace.layout import Workspace

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
    scores = [s.values["val_bpb"] for s in record.scores if s.role == "candidate" and "val_bpb" in s.values]
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
}


def escape(text: str) -> str:
    """One cell: a backslash, tab or line break is written as two characters, other control characters are dropped."""
    text = text.replace("\\", "\\\\").replace("\t", "\\t").replace("\r", "\\r").replace("\n", "\\n")
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", "", text)


def render(records: Iterable[ExperimentRecord]) -> str:
    lines = ["\t".join(COLUMNS)]
    lines += ["\t".join(escape(column(record)) for column in COLUMNS.values()) for record in records]
    return "\n".join(lines) + "\n"


def write(workspace: Workspace, records: Iterable[ExperimentRecord]) -> None:
    """Replace results.tsv."""
    durable.write_text(workspace.results_file, render(records))
