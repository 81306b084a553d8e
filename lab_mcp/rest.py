"""The little the command line needs beyond the tools: the notebook's sessions, as JSON. Behind the same guard."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tools.lab import Lab
from tools.server import CONVERSATION_HEADER
from workspace.errors import LabError

Endpoint = Callable[[Request], Awaitable[Response]]


def routes(lab: Lab) -> list[Route]:
    """GET /api/sessions, GET and POST /api/sessions/..., GET /api/notebook."""

    async def listed(request: Request) -> Response:
        limit = int(request.query_params.get("limit", "20"))
        text = request.query_params.get("text") or None
        found = await anyio.to_thread.run_sync(lambda: lab.notebook.list(limit, text))
        return JSONResponse({"sessions": [asdict(session) for session in found]})

    async def page(request: Request) -> Response:
        text = await anyio.to_thread.run_sync(lab.notebook.read, request.path_params["session"])
        return JSONResponse({"page": text})

    async def new(request: Request) -> Response:
        body = await body_of(request)
        conversation = request.headers.get(CONVERSATION_HEADER, "command line")
        made = await anyio.to_thread.run_sync(lambda: lab.notebook.new(str(body.get("title", "")), conversation))
        return JSONResponse(asdict(made))

    async def close(request: Request) -> Response:
        closed = await anyio.to_thread.run_sync(lab.notebook.close, request.path_params["session"])
        return JSONResponse(asdict(closed))

    async def export(request: Request) -> Response:
        wanted = request.query_params.get("range", "all")
        form: Any = request.query_params.get("format", "md")
        return JSONResponse({"document": await anyio.to_thread.run_sync(lambda: lab.notebook.export(wanted, form))})

    async def amend(request: Request) -> Response:
        body = await body_of(request)
        changes, why = dict(body.get("changes") or {}), str(body.get("why") or "")
        name = request.path_params["experiment"]
        made = await anyio.to_thread.run_sync(lambda: lab.experiments.amend(name, changes, why))
        return JSONResponse({"experiment_id": made.id, "versions": len(made.versions) + 1})

    return [
        Route("/api/experiments/{experiment}/hypothesis", refusing(amend), methods=["POST"]),
        Route("/api/sessions", refusing(listed), methods=["GET"]),
        Route("/api/sessions", refusing(new), methods=["POST"]),
        Route("/api/sessions/{session}", refusing(page), methods=["GET"]),
        Route("/api/sessions/{session}/close", refusing(close), methods=["POST"]),
        Route("/api/notebook", refusing(export), methods=["GET"]),
    ]


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object a request carries. Raises ValueError when it is none."""
    body = await request.json()
    if not isinstance(body, dict):
        raise ValueError("its body is not a JSON object")
    return body


def refusing(endpoint: Endpoint) -> Endpoint:
    """A refusal becomes 400 with its words."""

    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request)
        except LabError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        except ValueError as error:
            return JSONResponse({"error": f"the request cannot be read: {error}"}, status_code=400)

    return answered
