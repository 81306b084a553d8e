"""The protocol's tasks extension (SEP-2663), for clients of the newer era that offer it.

A tool that begins long work answers such a client with a task, whose id is the run's or the experiment's own: the
client asks for its state, is told of its end, and can cancel it. There is no task besides the work, so none is lost
with the service, and a client that merely goes away stops nothing. Other clients get the same id as a plain result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio.to_thread
import mcp.types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.mcpserver import require_client_extension
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import decode_header_value
from mcp.types.version import MODERN_PROTOCOL_VERSIONS

from tools.handles import Handle, Work
from tools.lab import Lab
from tools.tool import no_lab
from workspace.errors import LabError, NotFound

IDENTIFIER = "io.modelcontextprotocol/tasks"
POLL_MS = 2_000
Context = ServerRequestContext[Any]


class TaskParams(types.RequestParams):
    task_id: str


class UpdateParams(TaskParams):
    input_responses: dict[str, Any] = {}


class Tasks:
    """The extension over `handles` (tool -> how its long work is found again) of one lab."""

    def __init__(self, lab: Lab | None, handles: Mapping[str, Handle]) -> None:
        self.lab = lab
        self.handles = handles

    def serve(self, server: Server[Any]) -> None:
        """Announce the extension and answer its methods."""
        server.extensions[IDENTIFIER] = {}
        server.add_request_handler("tasks/get", TaskParams, self.get)
        server.add_request_handler("tasks/cancel", TaskParams, self.cancel)
        server.add_request_handler("tasks/update", UpdateParams, self.update)

    async def begun(
        self, context: Context, call: types.CallToolRequestParams, content: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """The task for a call that began long work, or None where the plain result is to be given."""
        handle = self.handles.get(call.name)
        if handle is None or not _offered(context):
            return None
        task_id = handle.begun(call.arguments or {}, content)
        if task_id is None:
            return None
        return _wire(await anyio.to_thread.run_sync(handle.look, self.lab, task_id), "task")

    async def get(self, context: Context, params: TaskParams) -> dict[str, Any]:
        handle = self._handle(context, params.task_id)
        work = await self._asked(params.task_id, handle.look)
        return _wire(work, "complete")

    async def cancel(self, context: Context, params: TaskParams) -> dict[str, Any]:
        """Stop the work. What has ended stays as it is."""
        handle = self._handle(context, params.task_id)
        work = await self._asked(params.task_id, handle.look)
        if work.state == "working":
            await self._asked(params.task_id, handle.cancel)
        return {"resultType": "complete"}

    async def update(self, context: Context, params: UpdateParams) -> dict[str, Any]:
        """Answers to a task's questions; a run or an experiment asks none once it has begun."""
        handle = self._handle(context, params.task_id)
        await self._asked(params.task_id, handle.look)
        return {"resultType": "complete"}

    def _handle(self, context: Context, task_id: str) -> Handle:
        if self.lab is None:
            raise MCPError(types.INVALID_PARAMS, str(no_lab()))
        if context.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            raise MCPError(types.METHOD_NOT_FOUND, "tasks belong to the newer protocol")
        require_client_extension(context, IDENTIFIER)
        headers = getattr(context.request, "headers", None)
        if headers is not None and decode_header_value(headers.get("mcp-name")) != task_id:
            raise MCPError(types.HEADER_MISMATCH, "Mcp-Name does not match params.taskId")
        for handle in self.handles.values():
            if task_id.startswith(handle.prefix):
                return handle
        raise MCPError(types.INVALID_PARAMS, f"no task {task_id[:80]!r}: tasks have the ids of runs and experiments")

    async def _asked(self, task_id: str, work: Any) -> Any:
        try:
            return await anyio.to_thread.run_sync(work, self.lab, task_id)
        except NotFound as error:
            raise MCPError(types.INVALID_PARAMS, str(error)) from error
        except LabError as error:
            raise MCPError(types.INTERNAL_ERROR, str(error)) from error


def _offered(context: Context) -> bool:
    """Did this request's client say that it takes tasks?"""
    capabilities = context.session.client_capabilities
    extensions = (capabilities.extensions if capabilities else None) or {}
    return context.protocol_version in MODERN_PROTOCOL_VERSIONS and IDENTIFIER in extensions


def _wire(work: Work, result_type: str) -> dict[str, Any]:
    """A task as it crosses the wire: the acknowledgement of a call, or with its result as the answer to tasks/get."""
    task: dict[str, Any] = {
        "resultType": result_type,
        "taskId": work.id,
        "status": work.state,
        "statusMessage": work.message,
        "createdAt": work.created_at,
        "lastUpdatedAt": work.updated_at,
        "ttlMs": None,  # a run's record is kept
        "pollIntervalMs": POLL_MS,
    }
    if result_type == "complete" and work.state == "completed":
        content = work.answer.model_dump(mode="json", exclude_none=True)
        text = types.TextContent(type="text", text=work.message)
        result = types.CallToolResult(content=[text], structured_content=content)
        task["result"] = result.model_dump(by_alias=True, mode="json", exclude_none=True)
    return task
