"""Reports, progress and reproductions for the command line, as JSON. Behind the same guard as everything else."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lab_mcp.rest import body_of, refusing
from tools.lab import Lab
from tools.server import CONVERSATION_HEADER
from workspace.errors import NotFound


def routes(lab: Lab) -> list[Route]:
    """GET /api/report and /api/progress, both with ?of=all|CAMPAIGN|SESSIONS|EXPERIMENTS; POST and GET
    /api/experiments/{id}/reproductions; POST /api/campaigns/{id}/audit."""

    async def report(request: Request) -> Response:
        return JSONResponse(await anyio.to_thread.run_sync(_report, lab, request.query_params.get("of", "all")))

    async def progress(request: Request) -> Response:
        of, metric = request.query_params.get("of", "all"), request.query_params.get("metric")
        return JSONResponse(await anyio.to_thread.run_sync(_progress, lab, of, metric))

    async def reproduce(request: Request) -> Response:
        body = await body_of(request)
        experiment: str = request.path_params["experiment"]
        conversation = request.headers.get(CONVERSATION_HEADER, "command line")
        started = await anyio.to_thread.run_sync(
            lambda: lab.reproductions.start(
                experiment,
                same_seed=bool(body.get("same_seed")),
                pair=bool(body.get("pair")),
                key=str(body["key"])[:100] if body.get("key") else None,
                conversation=conversation,
            )
        )
        return JSONResponse(started.model_dump(mode="json"))

    async def reproduction(request: Request) -> Response:
        wanted = request.query_params.get("position")
        position = int(wanted) if wanted else None
        found = await anyio.to_thread.run_sync(
            lambda: lab.reproductions.get(request.path_params["experiment"], position)
        )
        return JSONResponse(found.model_dump(mode="json"))

    async def audit(request: Request) -> Response:
        found = await anyio.to_thread.run_sync(lab.campaigns.audit, request.path_params["campaign"])
        return JSONResponse({"campaign_id": found.id, "audit": found.audit.sentence() if found.audit else None})

    return [
        Route("/api/campaigns/{campaign}/audit", refusing(audit), methods=["POST"]),
        Route("/api/experiments/{experiment}/reproductions", refusing(reproduce), methods=["POST"]),
        Route("/api/experiments/{experiment}/reproductions", refusing(reproduction), methods=["GET"]),
        Route("/api/report", refusing(report), methods=["GET"]),
        Route("/api/progress", refusing(progress), methods=["GET"]),
    ]


def _report(lab: Lab, of: str) -> dict[str, Any]:
    from experiments.report.gather import gather
    from experiments.report.methods import build
    from experiments.report.progress import progress

    material = gather(lab, of, version("lab-mcp"))
    try:
        shown = progress(material.records).model_dump(mode="json")
    except NotFound:  # no verdict yet: there is a report, but nothing to draw
        shown = None
    return {"document": build(material).model_dump(mode="json"), "progress": shown}


def _progress(lab: Lab, of: str, metric: str | None) -> dict[str, Any]:
    from experiments.report.gather import choose
    from experiments.report.progress import progress

    ledger = lab.experiments.ledger
    records = [record for name in choose(lab, of) if (record := ledger.get(name)) is not None]
    return progress(records, metric).model_dump(mode="json")
