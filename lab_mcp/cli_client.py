"""One call of a tool from the command line, through the service."""

from __future__ import annotations

import getpass
import http.client
import os
import uuid
from typing import Any

from lab_mcp import connection
from workspace.errors import Unavailable
from workspace.layout import Workspace


def conversation() -> str:
    """Calls from one terminal belong to one conversation."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such user, no HOME: a container
        user = "user"
    return f"terminal-{user}-{os.getsid(0)}"


def call(workspace: Workspace, tool: str, arguments: dict[str, Any], *, timeout: float = 700.0) -> dict[str, Any]:
    """The tool's result. Starts the service when needed; when it dies meanwhile, the same call is made once more.

    Raises `LabError` with the tool's own words when it refuses.
    """
    headers = {"Lab-Conversation": conversation(), "Lab-Request-Key": f"cli:{uuid.uuid4().hex}"}
    for attempt in (1, 2, 3):
        endpoint = connection.ensure_service(workspace)
        try:
            answer: dict[str, Any] = connection.request(
                endpoint, "POST", f"/api/tools/{tool}", arguments, headers=headers, timeout=timeout
            )
        except (OSError, http.client.HTTPException) as error:
            if attempt == 3:
                raise Unavailable(
                    f"the service went away during {tool} ({error})", fix="look at .lab/service.log"
                ) from error
        else:
            return answer
    raise AssertionError("unreachable")
