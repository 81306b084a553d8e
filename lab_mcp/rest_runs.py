"""Cleaning and pins for the command line, as JSON. Behind the same guard as everything else."""

from __future__ import annotations

from dataclasses import asdict

import anyio.to_thread
from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lab_mcp.rest import body_of, refusing
from tools.lab import Lab
from tools.server import CONVERSATION_HEADER
from training.runs.retention import Rules


def routes(lab: Lab) -> list[Route]:
    """POST /api/clean with the fields of `Rules` and `act`; POST and DELETE /api/runs/{run}/pin."""

    async def clean(request: Request) -> Response:
        body = await body_of(request)
        act = body.pop("act", False) is True
        try:
            rules = Rules(**body)
            rules = TypeAdapter(Rules).validate_python(asdict(rules))
        except TypeError as error:
            raise ValueError(str(error)) from error
        plan = await anyio.to_thread.run_sync(lambda: lab.runs.retention.clean(rules, needed(lab), act=act))
        return JSONResponse(plan.as_json())

    async def pin(request: Request) -> Response:
        run_id, by = request.path_params["run"], request.headers.get(CONVERSATION_HEADER, "command line")
        await anyio.to_thread.run_sync(lab.runs.retention.pin, run_id, by)
        return JSONResponse({"run": run_id, "pinned": True})

    async def unpin(request: Request) -> Response:
        run_id = request.path_params["run"]
        await anyio.to_thread.run_sync(lab.runs.retention.unpin, run_id)
        return JSONResponse({"run": run_id, "pinned": False})

    return [
        Route("/api/clean", refusing(clean), methods=["POST"]),
        Route("/api/runs/{run}/pin", refusing(pin), methods=["POST"]),
        Route("/api/runs/{run}/pin", refusing(unpin), methods=["DELETE"]),
    ]


def needed(lab: Lab) -> dict[str, str]:
    """run -> which experiment cannot do without it: an open one, or the best so far."""
    found: dict[str, str] = {}
    best = [record for record in lab.experiments.list(1000, verdict="keep") if record.is_best]
    for record in [*best, *lab.experiments.ledger.open()]:
        whole = lab.experiments.get(record.id)
        why = f"{record.id} is open" if record.open else f"{record.id} is the best so far"
        found |= dict.fromkeys([*whole.runs, *(score.run for score in whole.scores)], why)
        if record.open:
            found |= {run.id: why for run in lab.runs.list(experiment=record.id, limit=1000)}
    return found
