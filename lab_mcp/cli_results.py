"""What came of it all: results read back and judged again, progress drawn, reports written, experiments reproduced."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from experiments.hypothesis import KNOWN_DIRECTIONS
from lab_mcp.cli_runs import JsonOption
from lab_mcp.terminal import console
from workspace.errors import Refused


def register(app: typer.Typer) -> None:
    app.command("import-results")(import_results)


def import_results(
    file: Annotated[Path, typer.Argument(help="a results.tsv of autoresearch, of one of its forks, or of this lab")],
    noise: Annotated[float | None, typer.Option(help="standard deviation of one run, where it is known")] = None,
    metric: Annotated[str | None, typer.Option(help="the score's column, if not one of bits per byte")] = None,
    direction: Annotated[str | None, typer.Option(help="lower or higher is better")] = None,
    error_budget: Annotated[float, typer.Option(help="chance of any false keep in the whole file")] = 0.05,
    as_json: JsonOption = False,
) -> None:
    """Judge somebody's night again: which keeps are more than noise. Reads the file; changes nothing."""
    from experiments.imported import read
    from experiments.rejudge import rejudge

    found = read(file, metric)
    known = KNOWN_DIRECTIONS.get(found.metric.lower(), "lower")
    if direction not in (None, "lower", "higher"):
        raise Refused(f"there is no direction {direction!r}", valid="lower, higher")
    night = rejudge(
        found, noise=noise, direction="higher" if (direction or known) == "higher" else "lower",
        error_budget=error_budget,
    )  # fmt: skip
    if as_json:
        print(night.model_dump_json(indent=1))
        return
    would = {kept.line for kept in night.would_keep}
    table = Table(box=None)
    for column, justify in (
        ("line", "right"), ("commit", "left"), (found.metric, "right"), ("gain", "right"), ("p, night", "right"),
        ("judged", "left"), ("would keep", "left"), ("description", "left"),
    ):  # fmt: skip
        table.add_column(column, justify="right" if justify == "right" else "left", no_wrap=column != "description")
    for kept in night.keeps:
        table.add_row(
            str(kept.line),
            escape(kept.commit[:9]),
            f"{kept.score:.6f}",
            f"{kept.gain:+.6f}",
            "?" if kept.p_night is None else f"{kept.p_night:.2g}",
            kept.call or "not judged",
            "yes" if kept.line in would else "",
            escape(kept.description[:120]),
        )
    console.print(table)
    for kept in night.would_keep:
        if kept.line not in {row.line for row in night.keeps}:
            console.print(f"line {kept.line} would have been kept as well: {escape(kept.description[:120])}")
    for text in night.statements:
        console.print(f"- {escape(text)}")
    for note in night.notes:
        console.print(f"note: {escape(note)}")
    for problem in night.problems:
        console.print(f"[yellow]set aside[/] {escape(problem)}")
