"""What the service says first, remembered by the bridge: a client is answered while the service is still starting.

Claude Code waits three seconds for the answer to `server/discover` and then takes the older protocol, without tasks; a
busy machine needs longer than that to start a service, and any machine longer than a person should wait. The answer is
the same for every service of a version.
"""

from __future__ import annotations

import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workspace import durable, process
from workspace.layout import Workspace

DISCOVER = "server/discover"


def recall(workspace: Workspace, protocol: str) -> dict[str, Any] | None:
    """The result of `server/discover` for this protocol and version of the lab, if it was ever given."""
    try:
        kept: Any = durable.read_json(_file(workspace))
        result = kept["result"] if [kept["version"], kept["protocol"]] == [version("lab-mcp"), protocol] else None
    except (OSError, ValueError, KeyError, TypeError):  # never given, or written by something else
        return None
    return result if isinstance(result, dict) else None


def keep(workspace: Workspace, protocol: str, result: dict[str, Any]) -> None:
    """Raises OSError."""
    if recall(workspace, protocol) != result:
        durable.write_json(
            _file(workspace), {"version": version("lab-mcp"), "protocol": protocol, "result": result}, mode=0o600
        )


def waited_s() -> float:
    """How long ago this process was started, in seconds; 0 where only its date is known (not Linux)."""
    started = process.start_time(os.getpid()) or ""
    if not started.isdecimal():
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(started) / os.sysconf("SC_CLK_TCK")


def _file(workspace: Workspace) -> Path:
    return workspace.cache_dir / "greeting.json"
