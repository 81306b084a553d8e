"""A client that costs nothing: one line of JSON to the bridge's input, one line from its output.

A client library checks and copies every answer, which for a small call takes longer than the lab does; what is measured
here is the lab alone, from the line that is written to the line that is read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import TracebackType
from typing import Any

from workspace.layout import Workspace

ERAS = ("2025-11-25", "2026-07-28")
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
INITIALIZE = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}


def bridge_command() -> list[str]:
    return [sys.executable, "-P", "-m", "lab_mcp", "mcp"]


def environment(workspace: Workspace) -> dict[str, str]:
    return {**os.environ, "LAB_WORKSPACE": str(workspace.root)}


class Conversation:
    """`with Conversation(workspace) as lab: lab.call("gpu_status")`; it begins when the first reply has come."""

    def __init__(self, workspace: Workspace, era: str = ERAS[1]) -> None:
        self.workspace = workspace
        self.newer = era == ERAS[1]
        self._sent = 0

    def __enter__(self) -> Conversation:
        self._bridge = subprocess.Popen(
            bridge_command(),
            env=environment(self.workspace),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        if self.newer:
            self.request("server/discover", {})
        else:
            self.request("initialize", INITIALIZE)
            self._write({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._bridge.stdin is not None and self._bridge.stdout is not None
        self._bridge.stdin.close()
        self._bridge.wait()
        self._bridge.stdout.close()

    def request(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """The result of one request."""
        self._sent += 1
        parameters = {**parameters, "_meta": META} if self.newer else parameters
        self._write({"jsonrpc": "2.0", "id": self._sent, "method": method, "params": parameters})
        assert self._bridge.stdout is not None
        while (answer := json.loads(self._bridge.stdout.readline())).get("id") != self._sent:
            pass  # a notification
        assert "result" in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The structured content of a tool's answer."""
        result = self.request("tools/call", {"name": tool, "arguments": arguments})
        assert not result.get("isError"), result
        content: dict[str, Any] = result["structuredContent"]
        return content

    def _write(self, message: dict[str, Any]) -> None:
        assert self._bridge.stdin is not None
        self._bridge.stdin.write(json.dumps(message).encode() + b"\n")
        self._bridge.stdin.flush()
