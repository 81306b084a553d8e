"""Twins of the memory, notebook and experiment tools: search, index, note, session, experiments, propose, overview."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from lab_mcp import connection
from lab_mcp.cli import WorkspaceOption
from lab_mcp.cli_client import call, conversation
from lab_mcp.cli_runs import JsonOption, setting
from lab_mcp.terminal import console
from workspace.layout import discover

session_app = typer.Typer(help="The lab notebook: list, show, new, close, export.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    for command in (search, index, note, experiments, propose, overview):
        app.command()(command)
    app.add_typer(session_app, name="session")


def search(
    query: Annotated[list[str], typer.Argument(help="a question or some words")],
    kind: Annotated[list[str] | None, typer.Option(help="paper, note, session, experiment or run (repeatable)")] = None,
    limit: Annotated[int, typer.Option(min=1, max=20)] = 6,
    since: Annotated[str | None, typer.Option(help="not older than YYYY-MM-DD")] = None,
    web: Annotated[bool, typer.Option("--web", help="also ask the web search of lab.toml")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search papers, notes, sessions, experiments and runs by meaning."""
    arguments: dict[str, Any] = {"query": " ".join(query), "limit": limit, "web": web}
    if kind:
        arguments["kinds"] = kind
    if since:
        arguments["since"] = since
    answer = call(discover(workspace), "rag_search", arguments)
    if as_json:
        print(json.dumps(answer, indent=1, ensure_ascii=False))
        return
    for number, hit in enumerate(answer["hits"], 1):
        place = ", ".join(
            str(part) for part in (hit["source"], hit.get("page") and f"page {hit['page']}", hit["date"]) if part
        )
        console.print(f"[bold]{number}. {escape(hit['title'])}[/]  [dim]{hit['kind']} {escape(hit['id'])}[/]")
        console.print(f"   {escape(hit['quote'])}")
        console.print(f"   [dim]{escape(place)} · {escape(hit['why'])}[/]")
    for found in answer.get("web", []):
        console.print(f"[bold]{escape(found['title'])}[/]  [dim]{escape(found['url'])}[/]")
        console.print(f"   {escape(found['snippet'])}")
    if not answer["hits"]:
        console.print(escape(answer.get("note") or "nothing relevant"))
        for title in answer["nearest"]:
            console.print(f"   nearest: {escape(title)}")
    if answer.get("partial"):
        console.print(f"[yellow]{escape(answer['partial'])}[/]")


def index(
    paths: Annotated[
        list[str] | None, typer.Argument(help="files or folders of the workspace; default papers/")
    ] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Take new and changed papers into memory."""
    found = discover(workspace)
    while True:
        answer = call(found, "rag_index", {"wait_s": 20.0, **({"paths": paths} if paths else {})})
        console.print(
            f"{answer['state']}: {answer['added']} added, {answer['changed']} changed, {answer['moved']} moved, "
            f"{answer['removed']} removed, {answer['unchanged']} unchanged, {answer['waiting']} waiting"
        )
        if answer["state"] == "done":
            break
    for problem in answer["failed"]:
        console.print(f"[yellow]not indexed[/] {escape(problem['source'])}: {escape(problem['reason'])}")


def note(
    text: Annotated[list[str], typer.Argument(help="what to write")],
    section: Annotated[
        str, typer.Option(help="Objective, Hypothesis, Method, Results, Analysis, Next steps")
    ] = "Results",
    session: Annotated[str | None, typer.Option(help="a session other than this terminal's")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Write in the lab notebook."""
    arguments = {"text": " ".join(text), "section": section, "author": "user"}
    if session:
        arguments["session_id"] = session
    answer = call(discover(workspace), "write_session_note", arguments)
    console.print(f"{answer['entry_id']} in {escape(answer['page'])}")


def experiments(
    experiment: Annotated[str | None, typer.Argument(help="one experiment whole")] = None,
    best: Annotated[bool, typer.Option("--best", help="the leaderboard of kept ones")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="wait for the verdict")] = False,
    limit: Annotated[int, typer.Option(min=1, max=50)] = 20,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Experiments with their verdicts; or one of them whole."""
    found = discover(workspace)
    arguments: dict[str, Any] = {"limit": limit, "best": best}
    if experiment:
        arguments = {"experiment_id": experiment, "wait_s": 20 if wait else 0}
    answer = call(found, "list_experiments", arguments)
    while experiment and wait and answer["experiments"][0]["state"] != "done":
        answer = call(found, "list_experiments", arguments)
    if as_json:
        print(json.dumps(answer, indent=1, ensure_ascii=False))
    elif experiment:
        console.print(Markdown(answer["report"]))
    else:
        table = Table(box=None)
        for column in ("experiment", "state", "verdict", "effect", "interval", "change"):
            table.add_column(column)
        for item in answer["experiments"]:
            interval = "" if not item.get("interval") else "{:+.4f} to {:+.4f}".format(*item["interval"])
            effect = "" if item.get("effect") is None else f"{item['effect']:+.4f}"
            table.add_row(
                item["experiment_id"],
                item["state"],
                item.get("verdict") or "",
                effect,
                interval,
                escape(item["change"]),
            )
        console.print(table)
        if best and answer.get("next"):
            console.print(escape(answer["next"]), soft_wrap=True)


def propose(
    statement: Annotated[str, typer.Argument(help="what is changed, and what it does to the metric")],
    change: Annotated[list[str], typer.Argument(help="settings, e.g. optimizer.matrix_lr=0.02")],
    smallest_effect: Annotated[float, typer.Option(help="smallest improvement worth having")],
    metric: Annotated[str, typer.Option()] = "val_bpb",
    direction: Annotated[str, typer.Option(help="lower or higher is better")] = "lower",
    why: Annotated[str, typer.Option()] = "",
    workspace: WorkspaceOption = None,
) -> None:
    """Propose an experiment; it runs by itself."""
    arguments = {
        "statement": statement,
        "change": dict(setting(text) for text in change),
        "metric": metric,
        "direction": direction,
        "smallest_effect": smallest_effect,
        "why": why,
    }
    answer = call(discover(workspace), "propose_and_run_experiment", arguments)
    console.print(f"{answer['experiment_id']} {answer['state']}")
    console.print(f"its verdict: lab-mcp experiments {answer['experiment_id']} --wait")


def overview(workspace: WorkspaceOption = None, as_json: JsonOption = False) -> None:
    """Where the lab stands: hardware, what runs, what is best, what was learnt, what next."""
    answer = call(discover(workspace), "lab_overview", {})
    if as_json:
        print(json.dumps(answer, indent=1, ensure_ascii=False))
        return
    console.print(escape(answer["hardware"]))
    console.print(f"running: {escape(', '.join(answer['running'])) or 'nothing'}")
    if best := answer.get("best"):
        console.print(
            f"best: {best['experiment']} {escape(best['change'])}, {best['metric']} {best.get('score') or '?'}"
        )
    for line in answer["experiments_running"] + answer["experiments_waiting"]:
        progress = line.get("progress") or "waits"
        console.print(f"{line['experiment']} {line['state']} ({escape(progress)}): {escape(line['change'])}")
    for line in answer["last_learnt"]:
        console.print(f"{line['experiment']}: {escape(line.get('sentence') or '')}")
    if answer.get("last_next_steps"):
        console.print(f"noted as next steps, {escape(answer['last_next_steps'])}")
    for text in answer["next"]:
        console.print(f"next: {escape(text)}")


def _ask(workspace: Path | None, method: str, path: str, body: Any = None) -> Any:
    endpoint = connection.ensure_service(discover(workspace))
    return connection.request(endpoint, method, path, body, headers={"Lab-Conversation": conversation()})


@session_app.command("list")
def session_list(
    text: Annotated[str, typer.Option(help="words to look for")] = "", workspace: WorkspaceOption = None
) -> None:
    """Sessions, newest first."""
    table = Table(box=None)
    for column in ("session", "title", "entries", "state", "page"):
        table.add_column(column)
    for item in _ask(workspace, "GET", f"/api/sessions?limit=50&text={quote(text)}")["sessions"]:
        state = "closed" if item["closed_at"] else "open"
        table.add_row(item["id"], escape(item["title"]), str(item["entries"]), state, f"docs/sessions/{item['page']}")
    console.print(table)


@session_app.command("show")
def session_show(session: str, workspace: WorkspaceOption = None) -> None:
    """A session's page."""
    print(_ask(workspace, "GET", f"/api/sessions/{quote(session, safe='')}")["page"])


@session_app.command("new")
def session_new(title: str, workspace: WorkspaceOption = None) -> None:
    """Begin a session; what this terminal writes from now on goes there."""
    made = _ask(workspace, "POST", "/api/sessions", {"title": title})
    console.print(f"{made['id']} docs/sessions/{escape(made['page'])}")


@session_app.command("close")
def session_close(session: str, workspace: WorkspaceOption = None) -> None:
    """End a session: its page gets a summary."""
    closed = _ask(workspace, "POST", f"/api/sessions/{quote(session, safe='')}/close")
    console.print(f"{closed['id']} closed, docs/sessions/{escape(closed['page'])}")


@session_app.command("export")
def session_export(
    sessions: Annotated[str, typer.Argument(help="all, a session, a day, or FROM..TO")] = "all",
    form: Annotated[str, typer.Option("--format", help="md or html")] = "md",
    workspace: WorkspaceOption = None,
) -> None:
    """One document of any range of sessions, on standard output."""
    print(_ask(workspace, "GET", f"/api/notebook?range={quote(sessions)}&format={quote(form)}")["document"])
