"""What the command line needs of memory beyond the tools: documents, judgements, evaluation. Behind the same guard."""

from __future__ import annotations

from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lab_mcp.rest import body_of, refusing
from rag.evaluation import evaluate
from rag.evaluation.labels import Labels
from tools.lab import Lab
from workspace.errors import NotFound, Refused


def routes(lab: Lab) -> list[Route]:
    """GET and DELETE /api/memory/documents..., POST /api/memory/{passages,reindex,labels,evaluate}, GET
    /api/memory/history."""
    labels = Labels(lab.workspace)

    async def listed(request: Request) -> Response:
        given = request.query_params
        kinds, limit = given.getlist("kind"), int(given.get("limit", "50"))
        found = await anyio.to_thread.run_sync(
            lambda: lab.memory.documents(kinds, given.get("text", ""), given.get("after", ""), limit)
        )
        return JSONResponse(found.as_json())

    async def passages(request: Request) -> Response:
        body = await body_of(request)
        kinds, limit = body.get("kinds"), int(body.get("limit", 8))
        page = await anyio.to_thread.run_sync(
            lambda: lab.memory.search(str(body.get("query", "")), kinds, limit, whole=True)
        )
        return JSONResponse(page.as_json())

    async def remove(request: Request) -> Response:
        name = request.path_params["document"]
        if not await anyio.to_thread.run_sync(lab.memory.remove, name):
            raise NotFound(f"no document {name[:120]!r}", fix="`lab-mcp memory list` shows what there is")
        return JSONResponse({"removed": name})

    async def reindex(request: Request) -> Response:
        ids = (await body_of(request)).get("ids")
        count = await anyio.to_thread.run_sync(lab.memory.reindex, ids)
        return JSONResponse({"documents": count})

    async def label(request: Request) -> Response:
        body = await body_of(request)
        count = await anyio.to_thread.run_sync(labels.add, str(body.get("query", "")), body.get("grades") or {})
        return JSONResponse({"judged": count})

    async def measured(request: Request) -> Response:
        return JSONResponse(await anyio.to_thread.run_sync(lambda: measure(lab, labels)))

    async def history(request: Request) -> Response:
        return JSONResponse({"evaluations": await anyio.to_thread.run_sync(labels.history)})

    return [
        Route("/api/memory/documents", refusing(listed), methods=["GET"]),
        Route("/api/memory/documents/{document:path}", refusing(remove), methods=["DELETE"]),
        Route("/api/memory/passages", refusing(passages), methods=["POST"]),
        Route("/api/memory/reindex", refusing(reindex), methods=["POST"]),
        Route("/api/memory/labels", refusing(label), methods=["POST"]),
        Route("/api/memory/evaluate", refusing(measured), methods=["POST"]),
        Route("/api/memory/history", refusing(history), methods=["GET"]),
    ]


def measure(lab: Lab, labels: Labels) -> dict[str, Any]:
    """Evaluate the lab's own index on the judgements made here, and keep the figures."""
    relevant = labels.relevant()
    if not relevant:
        raise Refused("nothing was judged yet", fix='judge results first: lab-mcp rag-label "a question you asked"')
    found = lab.memory.rankings(list(relevant))
    status = lab.memory.status()
    evaluation = evaluate.summarise(
        "own judgements",
        list(relevant.values()),
        found.documents,
        documents=sum(status.documents.values()),
        passages=status.passages,
        milliseconds=found.milliseconds,
    )
    result = {**evaluation.as_json(), "model": status.model}
    labels.record(result)
    return result
