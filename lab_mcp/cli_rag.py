"""Commands about how well memory finds, and about what is in it: rag-eval, rag-label, memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from lab_mcp import connection
from lab_mcp.cli import WorkspaceOption
from lab_mcp.cli_client import call
from lab_mcp.cli_runs import JsonOption
from lab_mcp.terminal import console
from workspace import settings as settings_module
from workspace.errors import LabError, Refused
from workspace.layout import Workspace, discover

METHODS = {
    "words": "words (BM25)",
    "dense": "dense",
    "fusion": "plain fusion (k = 60)",
    "default": "default",
    "shown": "what a search shows",
}
memory_app = typer.Typer(help="What is in memory: list, remove, reindex.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.command("rag-eval")(rag_eval)
    app.command("rag-label")(rag_label)
    app.add_typer(memory_app, name="memory")


def rag_eval(
    folders: Annotated[list[Path] | None, typer.Argument(help="collections in the BEIR layout")] = None,
    mine: Annotated[bool, typer.Option("--mine", help="on your own judgements, in this workspace's index")] = False,
    history: Annotated[bool, typer.Option("--history", help="what --mine has shown so far")] = False,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """How well search finds: nDCG@10, recall@100, MRR with 95 % intervals, for four ways of ranking."""
    if history:
        _show_history(_ask(workspace, "GET", "history")["evaluations"], as_json)
        return
    if mine == bool(folders):
        raise Refused("name one or more folders, or --mine", fix="lab-mcp rag-eval DIR, or lab-mcp rag-eval --mine")
    results = [_ask(workspace, "POST", "evaluate")] if mine else _evaluate(folders or [], _workspace(workspace))
    if as_json:
        print(json.dumps(results, indent=1, ensure_ascii=False))
        return
    for result in results:
        _show(result)


def _workspace(given: Path | None) -> Workspace | None:
    """The workspace whose settings and cache are used; evaluating a collection needs none."""
    try:
        return discover(given)
    except LabError:
        if given is not None:
            raise
        return None


def _evaluate(folders: list[Path], workspace: Workspace | None) -> list[dict[str, Any]]:
    from rag.embedding.embedder import user_cache
    from rag.evaluation import collection, evaluate

    rag = settings_module.load(workspace.settings_file if workspace else Path("lab.toml.absent")).rag
    scratch = (workspace.cache_dir if workspace else user_cache()) / "evaluation"
    found = [collection.read(folder) for folder in folders]
    evaluations = []
    with Progress(console=console, transient=True) as bar:
        for one in found:
            task = bar.add_task(f"indexing {escape(one.name)}", total=None)

            def indexed(count: int, total: int, task: TaskID = task) -> None:
                bar.update(task, completed=count, total=total)

            done = evaluate.evaluate(one, scratch, rag.model, rag.floor, rag.reranker, indexed)
            evaluations.append(done)
            bar.remove_task(task)
    if len(evaluations) > 1:
        evaluations.append(evaluate.pooled(evaluations))
    return [one.as_json() for one in evaluations]


def _show(result: dict[str, Any]) -> None:
    table = Table(box=None, title=escape(f"{result['name']}: {result['queries']} queries, {result['documents']:,} "
                                         f"documents, {result['passages']:,} passages"))  # fmt: skip
    for column in ("", "nDCG@10", "recall@100", "MRR", "nDCG@10 over plain fusion", "ms"):
        table.add_column(column, justify="left" if not column else "right")
    for name, label in METHODS.items():
        measures = result["methods"][name]
        gain = result["ndcg@10 over fusion"].get(name)
        cells = [_interval(measures[measure]) for measure in ("ndcg@10", "recall@100", "mrr")]
        time = result["milliseconds"].get(name)
        table.add_row(label, *cells, _interval(gain, signed=True) if gain else "", f"{time:.1f}" if time else "")
    console.print(table)


def _interval(value: dict[str, float], *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{value['mean']:{sign}.3f} ({value['low']:{sign}.3f} to {value['high']:{sign}.3f})"


def _show_history(evaluations: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(evaluations, indent=1, ensure_ascii=False))
        return
    table = Table(box=None)
    for column in ("when", "model", "queries", "documents", "nDCG@10", "recall@100", "MRR", "over plain fusion"):
        table.add_column(column)
    for one in evaluations:
        measures = one["methods"]["default"]
        cells = [_interval(measures[measure]) for measure in ("ndcg@10", "recall@100", "mrr")]
        gain = _interval(one["ndcg@10 over fusion"]["default"], signed=True)
        table.add_row(*(one["at"][:16], escape(one["model"]), str(one["queries"]), str(one["documents"])), *cells, gain)
    console.print(table if evaluations else "nothing was evaluated yet: lab-mcp rag-eval --mine")


def rag_label(
    query: Annotated[list[str], typer.Argument(help="a question you asked, or would ask")],
    grade: Annotated[
        list[str] | None, typer.Option(help="ID=0, 1 or 2 instead of being asked: no answer, helps, answers")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=20, help="results to judge")] = 10,
    workspace: WorkspaceOption = None,
) -> None:
    """Judge the results of a search: kept in docs/search/, measured by `rag-eval --mine`."""
    text = " ".join(query)
    grades = dict(_grade(one) for one in grade or ())
    if not grades:
        answer = call(discover(workspace), "rag_search", {"query": text, "limit": limit})
        for hit in {hit["id"]: hit for hit in answer["hits"]}.values():
            console.print(f"[bold]{escape(hit['title'])}[/]  [dim]{hit['kind']} {escape(hit['id'])}[/]")
            console.print(f"   {escape(hit['quote'])}")
            given = typer.prompt("2 answers, 1 helps, 0 does not, s skips, q ends", default="s").strip().lower()
            if given == "q":
                break
            if given in ("0", "1", "2"):
                grades[hit["id"]] = int(given)
        if not answer["hits"]:
            console.print("nothing relevant was found; what should have been: lab-mcp rag-label QUERY --grade ID=2")
    if grades:
        judged = _ask(workspace, "POST", "labels", {"query": text, "grades": grades})["judged"]
        console.print(f"{judged} judged; lab-mcp rag-eval --mine measures search with them")


def _grade(text: str) -> tuple[str, int]:
    name, _, value = text.rpartition("=")
    if not name or value not in ("0", "1", "2"):
        raise Refused(f"--grade {text!r} is not ID=0, ID=1 or ID=2", fix="for example --grade exp-0003=2")
    return name, int(value)


def _ask(workspace: Path | None, method: str, path: str, body: Any = None) -> Any:
    endpoint = connection.ensure_service(discover(workspace))
    return connection.request(endpoint, method, f"/api/memory/{path}", body, timeout=600.0)


@memory_app.command("list")
def memory_list(
    kind: Annotated[list[str] | None, typer.Option(help="paper, note, session, experiment or run (repeatable)")] = None,
    text: Annotated[str, typer.Option(help="words in id, title, source or tags")] = "",
    after: Annotated[str, typer.Option(help="an id: the page after it")] = "",
    limit: Annotated[int, typer.Option(min=1, max=200)] = 50,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Documents in memory, with how far each has got."""
    asked = urlencode({"kind": kind or [], "text": text, "after": after, "limit": limit}, doseq=True)
    answer = _ask(workspace, "GET", f"documents?{asked}")
    if as_json:
        print(json.dumps(answer, indent=1, ensure_ascii=False))
        return
    table = Table(box=None)
    for column in ("id", "kind", "title", "date", "passages", "state", "source"):
        table.add_column(column)
    for one in answer["documents"]:
        state = one["state"] + (f": {one['reason']}" if one["reason"] else "")
        cells = (one["id"], one["kind"], one["title"][:70], one["date"], str(one["passages"]), state, one["source"])
        table.add_row(*map(escape, cells))
    console.print(table)
    more = f"; more: --after {answer['next_cursor']}" if answer["next_cursor"] else ""
    console.print(escape(f"{answer['total']} documents{more}"))


@memory_app.command("remove")
def memory_remove(documents: list[str], workspace: WorkspaceOption = None) -> None:
    """Forget documents. One that was read from a file comes back when the file is indexed again."""
    for name in documents:
        _ask(workspace, "DELETE", f"documents/{quote(name, safe='')}")
        console.print(f"{escape(name)} removed")


@memory_app.command("reindex")
def memory_reindex(
    documents: Annotated[list[str] | None, typer.Argument(help="ids; default all")] = None,
    workspace: WorkspaceOption = None,
) -> None:
    """Read, cut and embed documents again; searches go on meanwhile."""
    count = _ask(workspace, "POST", "reindex", {"ids": documents or None})["documents"]
    console.print(f"{count} documents are indexed again in the background: lab-mcp index shows what waits")
