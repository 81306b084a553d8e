"""`lab-mcp arxiv` and `lab-mcp ask`: papers from outside, and answers from what the lab remembers."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.markup import escape

from lab_mcp import connection
from lab_mcp.cli import WorkspaceOption
from lab_mcp.cli_client import call
from lab_mcp.cli_runs import JsonOption
from lab_mcp.terminal import console
from workspace import settings
from workspace.layout import discover

ASKED_WITH = 8  # passages


def register(app: typer.Typer) -> None:
    app.command()(arxiv)
    app.command()(ask)


def arxiv(
    wanted: Annotated[list[str], typer.Argument(help="ids (fetched with their PDFs), or words to look for")],
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch papers from arXiv into papers/, or find some: [network] arxiv = true must stand in lab.toml."""
    answer = call(discover(workspace), "rag_index", {"arxiv": " ".join(wanted), "wait_s": 20.0})
    if as_json:
        print(json.dumps(answer["arxiv"], indent=1, ensure_ascii=False))
        return
    for paper in answer["arxiv"]:
        console.print(f"[bold]{escape(paper['title'])}[/]  [dim]arXiv:{paper['id']} {paper['date']}[/]")
        console.print(f"   {escape(', '.join(paper['authors']))}")
        console.print(f"   {escape(paper['file'] or paper['problem'] or 'abstract only; the id fetches the PDF')}")
    if not answer["arxiv"]:
        console.print("arXiv has nothing for these words")


def ask(
    question: Annotated[list[str], typer.Argument(help="a question")],
    kind: Annotated[list[str] | None, typer.Option(help="only paper, note, session, experiment or run")] = None,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from papers and past work, citing them; without a model ([ask] in lab.toml) show the passages.

    The model is asked by this command, not by the service: its key may stay in this terminal's environment.
    """
    from rag import ask as asking

    found = discover(workspace)
    configured = settings.load(found.settings_file).ask
    text = " ".join(question)
    asked = {"query": text, "limit": ASKED_WITH, "kinds": kind}
    endpoint = connection.ensure_service(found)
    answer = connection.request(endpoint, "POST", "/api/memory/passages", asked, timeout=60.0)
    quotes = {hit["id"]: hit["quote"] for hit in reversed(answer["hits"])}
    sources = [asking.Source(hit["id"], hit["title"], hit["passage"], _where(hit)) for hit in answer["hits"]]
    model = asking.model_of(configured)
    said = asking.answer(text, sources, model, configured.answer_tokens) if model and sources else None
    shown = [source for source in sources if said is None or not said.relevant or source.id in said.cited]
    if as_json:
        content = {"answer": vars(said) if said else None, "passages": [vars(source) for source in shown]}
        print(json.dumps(content, indent=1, ensure_ascii=False))
        return
    if said is not None:
        console.print(escape(said.text) if said.relevant else "The passages do not answer that. Nearest:")
        console.print()
    for source in shown:
        console.print(f"[bold]\\[{escape(source.id)}][/] {escape(source.title)}  [dim]{escape(source.where)}[/]")
        console.print(f"   {escape(quotes[source.id])}")
    if not sources:
        console.print(escape(answer.get("note") or "nothing relevant"))
        for title in answer.get("nearest", []):
            console.print(f"   nearest: {escape(title)}")
    if answer.get("partial"):
        console.print(f"[yellow]{escape(answer['partial'])}[/]")


def _where(hit: dict[str, Any]) -> str:
    page = f"page {hit['page']}" if hit.get("page") else ""
    page = f"pages {hit['page']} to {hit['page_end']}" if hit.get("page_end") else page
    return ", ".join(part for part in (hit["source"], page, hit.get("section", ""), hit.get("date", "")) if part)
