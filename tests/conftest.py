"""Fixtures: a real workspace, and real clients of its real service, all cleaned up afterwards."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from tests_support import end_all

from workspace.layout import Workspace


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test sees the user's settings or takes their device leases."""
    for name in list(os.environ):
        if name.startswith("LAB_") and name != "LAB_BENCH_DATA":
            monkeypatch.delenv(name)
    for name in ("CLAUDE_PROJECT_DIR", "CLAUDE_CODE_SESSION_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LAB_LEASE_DIR", str(tmp_path_factory.getbasetemp() / "leases"))


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Workspace]:
    """An initialised workspace, in a folder with a space and non-ASCII letters in its name."""
    from lab_mcp.initialise import init

    workspace = Workspace(Path(init(tmp_path / "mein Labor ü").root))
    yield workspace
    end_all(workspace.root)


Connect = Callable[..., contextlib.AbstractAsyncContextManager[Client]]


@pytest.fixture
def connect(lab: Workspace, monkeypatch: pytest.MonkeyPatch) -> Connect:
    """`async with connect(mode) as client`: a real client over a real bridge, as Claude Code starts it."""
    # on a machine that is busy a cold start takes longer than the client waits before it takes the older protocol
    monkeypatch.setattr("mcp.client.session.DISCOVER_TIMEOUT_SECONDS", 120.0)

    @contextlib.asynccontextmanager
    async def opened(
        mode: str = "auto", *, conversation: str | None = None, **client_options: Any
    ) -> AsyncIterator[Client]:
        environment = {**os.environ, "LAB_WORKSPACE": str(lab.root)}
        if conversation:
            environment["CLAUDE_CODE_SESSION_ID"] = conversation
        server = StdioServerParameters(
            command=sys.executable, args=["-P", "-m", "lab_mcp", "mcp"], env=environment, cwd=str(lab.root)
        )
        async with Client(stdio_client(server), mode=mode, **client_options) as client:
            yield client

    return opened


@pytest.fixture
def command(lab: Workspace) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`command("gpu")`: the real command line in the workspace."""

    def run(
        *arguments: str, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lab_mcp", *arguments],
            cwd=cwd or lab.root,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
