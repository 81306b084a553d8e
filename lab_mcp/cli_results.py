"""What came of it all: results read back and judged again, progress drawn, reports written, experiments reproduced."""

from __future__ import annotations

import http.client
import json
import re
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.table import Table

from experiments.hypothesis import KNOWN_DIRECTIONS
from lab_mcp import connection
from lab_mcp.cli import WorkspaceOption
from lab_mcp.cli_client import conversation
from lab_mcp.cli_runs import JsonOption
from lab_mcp.terminal import console
from workspace import durable
from workspace.errors import LabError, Refused, Unavailable
from workspace.layout import Workspace, discover

POLL_S = 1.0
Which = Annotated[
    str, typer.Argument(help="all, a campaign, exp-0003..exp-0010, a day, a session, or FROM..TO of days or sessions")
]


def register(app: typer.Typer) -> None:
    app.command("import-results")(import_results)
    app.command()(progress)
    app.command()(report)
    app.command()(reproduce)


def progress(
    of: Which = "all",
    out: Annotated[Path | None, typer.Option(help="progress.png, .svg or .html (interactive); default a PNG")] = None,
    metric: Annotated[str | None, typer.Option(help="where experiments were judged by several")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Draw the score over the experiments: the kept ones, the best so far, the noise."""
    from experiments.report import figures
    from experiments.report.progress import Progress

    found = discover(workspace)
    chosen = f"&metric={quote(metric, safe='')}" if metric else ""
    shown = Progress.model_validate(_ask(found, "GET", f"/api/progress?of={quote(of, safe='')}{chosen}"))
    file = out or _folder(found, of) / "progress.png"
    title = of if of != "all" else found.root.name
    draw: dict[str, Callable[[Progress, str], bytes | str]] = {
        ".png": figures.png,
        ".svg": figures.svg,
        ".html": figures.page,
    }
    if file.suffix.lower() not in draw:
        raise Refused(f"a figure cannot be written as {file.name!r}", valid="a file ending in .png, .svg or .html")
    picture = draw[file.suffix.lower()](shown, title)
    _write(file, picture if isinstance(picture, bytes) else picture.encode("utf-8"))
    for reason, number in shown.left_out.items():
        console.print(f"not shown, {reason}: {number}")
    console.print(_named(file, found), soft_wrap=True)


def report(
    of: Which = "all",
    out: Annotated[Path | None, typer.Option(help="a folder; default docs/reports/NAME of the workspace")] = None,
    show: Annotated[bool, typer.Option("--print", help="print it as Markdown and write nothing")] = False,
    workspace: WorkspaceOption = None,
) -> None:
    """Write the methods and results a paper would need: Markdown, and one HTML page that opens without a network."""
    from experiments.report import figures
    from experiments.report.blocks import Document, markdown
    from experiments.report.page import page
    from experiments.report.progress import Progress

    found = discover(workspace)
    answer = _ask(found, "GET", f"/api/report?of={quote(of, safe='')}")
    document = Document.model_validate(answer["document"])
    if show:
        print(markdown(document), end="")
        return
    folder = out or _folder(found, of)
    drawn = None if answer["progress"] is None else Progress.model_validate(answer["progress"])
    if drawn is not None:
        _write(folder / "progress.png", figures.png(drawn))
    text = markdown(document, "progress.png" if drawn is not None else None)
    _write(folder / "report.md", text.encode("utf-8"))
    _write(folder / "report.html", page(document, figures.svg(drawn) if drawn is not None else "").encode("utf-8"))
    console.print(_named(folder / "report.md", found), soft_wrap=True)
    console.print(_named(folder / "report.html", found), soft_wrap=True)


def reproduce(
    experiment: Annotated[str, typer.Argument(help="an experiment with a verdict, e.g. exp-0012")],
    pair: Annotated[bool, typer.Option("--pair", help="run its parent beside it, and compare the gain")] = False,
    same_seed: Annotated[bool, typer.Option("--same-seed", help="an old seed instead of a new one")] = False,
    wait: Annotated[bool, typer.Option(help="wait for the end")] = True,
    key: Annotated[str | None, typer.Option(help="the same key never starts a second reproduction")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run an experiment again and say whether it agrees within noise; exits with 0 only when it does.

    Commit and settings are those of then. Data, software and hardware are used as they are now, compared with what
    they were, and named where they differ; the old environment is not rebuilt.
    """
    found = discover(workspace)
    path = f"/api/experiments/{quote(experiment, safe='')}/reproductions"
    # a key of its own where none is given: the call may have to be made twice
    body = {"pair": pair, "same_seed": same_seed, "key": key or f"cli:{uuid.uuid4().hex}"}
    answer = _ask(found, "POST", path, body)
    position, told = answer["position"], None
    while wait and answer["outcome"] is None:
        if answer["runs"] != told:
            told = answer["runs"]
            runs = ", ".join(f"{run} ({role})" for role, run in told.items())
            console.print(f"running again: {runs or 'waits'}; Ctrl-C leaves it running")
        time.sleep(POLL_S)
        answer = _ask(found, "GET", f"{path}?position={position}")
    if as_json:
        print(json.dumps(answer, indent=1, ensure_ascii=False))
    elif answer["outcome"] is None:
        console.print(f"{experiment} runs again: {', '.join(answer['runs'].values()) or 'waits'}")
    else:
        console.print(escape(answer["sentence"]), soft_wrap=True)
        for difference in answer["differences"]:
            console.print(f"- {escape(difference)}")
    raise typer.Exit(int(wait and answer["outcome"] != "agrees"))


def _folder(workspace: Workspace, of: str) -> Path:
    return workspace.root / "docs" / "reports" / (re.sub(r"[^\w.-]+", "-", of).strip(".-") or "all")


def _write(file: Path, content: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        durable.write_bytes(file, content)
    except OSError as error:
        raise LabError(
            f"{file.name} cannot be written ({error.strerror})", fix="give another place with --out"
        ) from error


def _named(file: Path, workspace: Workspace) -> str:
    inside = file.resolve().is_relative_to(workspace.root)
    return escape(str(file.resolve().relative_to(workspace.root) if inside else file))


def _ask(workspace: Workspace, method: str, path: str, body: Any = None) -> Any:
    """One request; made again when the service dies meanwhile (a POST carries a key)."""
    headers = {"Lab-Conversation": conversation()}
    for attempt in (1, 2, 3):
        endpoint = connection.ensure_service(workspace)
        try:
            return connection.request(endpoint, method, path, body, headers=headers, timeout=300)
        except (OSError, http.client.HTTPException) as error:
            if attempt == 3:
                raise Unavailable(f"the service went away ({error})", fix="look at .lab/service.log") from error
    raise AssertionError("unreachable")


def import_results(
    file: Annotated[Path, typer.Argument(help="a results.tsv of autoresearch or of one of its forks")],
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
