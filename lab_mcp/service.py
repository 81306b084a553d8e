"""The lab service of one workspace: MCP and a small JSON interface over loopback HTTP. The only writer of lab.db."""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from lab_mcp import compose, rest
from lab_mcp.connection import FATAL, read_endpoint, spawn_keeper
from lab_mcp.guard import Guard
from lab_mcp.keeper import ANOTHER_SERVICE, REFUSED_TO_START, lock
from tools.lab import Lab
from tools.server import CONVERSATION_HEADER, KEY_HEADER, build_server
from tools.tool import Caller, Tools
from workspace import clock, durable, process
from workspace.errors import LabError
from workspace.layout import Workspace

TICK_S = 0.5
WARM_UP_AFTER_S = 3.0
KEEPER_CHECK_S = 5.0
HEARTBEAT_S = 30.0
GRACEFUL_SHUTDOWN_S = 2  # open event streams would block SIGTERM for ever otherwise
LOG_BYTES = 5_000_000
log = logging.getLogger("lab_mcp")


class Service:
    """One served workspace: the lab, its HTTP application, its background work, its end."""

    def __init__(self, lab: Lab, tools: Tools, token: str, port: int) -> None:
        self.lab = lab
        self.tools = tools
        self.token = token
        self.port = port
        self.last_used = time.monotonic()
        self.open_requests = 0
        self.server: uvicorn.Server | None = None
        self.mcp = build_server(tools, lab)

    def application(self) -> Any:
        """The ASGI application: /mcp, /api/tools/NAME, /healthz, /api/shutdown, all behind the guard."""
        inner = self.mcp.streamable_http_app(session_idle_timeout=None)

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            async with self.mcp.session_manager.run(), anyio.create_task_group() as group:
                group.start_soon(self._background)
                yield
                group.cancel_scope.cancel()

        routes = [
            Route("/healthz", self._health, methods=["GET"]),
            Route("/api/tools/{name}", self._call, methods=["POST"]),
            Route("/api/shutdown", self._shutdown, methods=["POST"]),
            *rest.routes(self.lab),
            Mount("/", app=inner),
        ]
        return Guard(_Busy(Starlette(routes=routes, lifespan=lifespan), self), self.token, self.port)

    async def _health(self, request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "version": version("lab-mcp"), "pid": os.getpid()})

    async def _call(self, request: Request) -> JSONResponse:
        """A tool call as plain JSON, for the CLI and scripts: 200 with the result, 400 with {"error": text}."""
        try:
            arguments = json.loads(await request.body() or b"{}")
        except ValueError as error:
            return JSONResponse({"error": f"the body is not JSON: {error}"}, status_code=400)
        caller = Caller(request.headers.get(CONVERSATION_HEADER, "command line"), request.headers.get(KEY_HEADER))
        try:
            return JSONResponse(await self.tools.call(self.lab, request.path_params["name"], arguments, caller))
        except LabError as error:
            return JSONResponse({"error": str(error)}, status_code=400)

    async def _shutdown(self, request: Request) -> JSONResponse:
        self.stop("asked to shut down")
        return JSONResponse({"status": "stopping"})

    def stop(self, why: str) -> None:
        log.info("stopping: %s", why)
        if self.server is not None:
            self.server.should_exit = True

    async def _background(self) -> None:
        """Everything that happens without being asked: queue, outbox, idle rule, keeper, heartbeat."""
        async with anyio.create_task_group() as group:
            for work in compose.rounds(self.lab):
                group.start_soon(self._round, work)
            group.start_soon(self._warm_up)
            last_keeper_check = last_heartbeat = time.monotonic()
            while True:
                await anyio.sleep(TICK_S)
                now = time.monotonic()
                if now - last_keeper_check > KEEPER_CHECK_S:
                    last_keeper_check = now
                    await anyio.to_thread.run_sync(self._keep_keeper)
                if now - last_heartbeat > HEARTBEAT_S:
                    last_heartbeat = now
                    with contextlib.suppress(OSError):  # a full or read-only disk shows elsewhere, in words
                        os.utime(self.lab.workspace.service_file)
                idle_s = self.lab.settings.service.idle_minutes * 60
                if (
                    idle_s
                    and not self.open_requests
                    and now - self.last_used > idle_s
                    and not compose.is_busy(self.lab)
                ):
                    self.stop(f"idle for {idle_s / 60:.0f} minutes")
                    return

    async def _warm_up(self) -> None:
        """What makes the first search quick, once the first answers of a cold start are out."""
        await anyio.sleep(WARM_UP_AFTER_S)
        await anyio.to_thread.run_sync(self.lab.memory.start)

    async def _round(self, work: compose.Round) -> None:
        while True:
            for part in work:
                try:
                    await anyio.to_thread.run_sync(part, abandon_on_cancel=True)
                except Exception:  # one part's failure must not stop the others; it is logged and tried again
                    log.exception("background work failed")
            await anyio.sleep(TICK_S)

    def _keep_keeper(self) -> None:
        """A keeper that was killed is started again, so that the next kill of the service is noticed."""
        free = lock(self.lab.workspace.locks_dir / "keeper.lock")
        if free is not None:
            os.close(free)
            spawn_keeper(self.lab.workspace)


class _Busy:
    """Counts open requests, so that the idle rule sees a client that only listens."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.service.open_requests += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.service.open_requests -= 1
            self.service.last_used = time.monotonic()


def serve(workspace: Workspace) -> int:
    """Serve until stopped; the exit code tells the keeper whether to try again."""
    try:
        workspace.create_folders()
    except OSError as error:
        print(f"{FATAL}the workspace is not writable ({error.strerror})", file=sys.stderr, flush=True)
        return REFUSED_TO_START
    held = lock(workspace.locks_dir / "service.lock")
    if held is None:
        print("lab-mcp: this workspace already has a running service (`lab-mcp status`)", file=sys.stderr, flush=True)
        return ANOTHER_SERVICE
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    started_at = clock.now()
    about = {
        "pid": os.getpid(),
        "url": f"http://127.0.0.1:{port}",
        "started_at": started_at,
        "version": version("lab-mcp"),
    }
    try:
        lab = compose.build_lab(workspace, about)
    except (LabError, OSError) as error:
        print(f"{FATAL}{error}", file=sys.stderr, flush=True)
        return REFUSED_TO_START
    previous = read_endpoint(workspace)
    token = previous.token if previous else secrets.token_urlsafe(32)
    service = Service(lab, compose.all_tools(), token, port)
    config = uvicorn.Config(
        service.application(),
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
        timeout_keep_alive=75,
        ws="none",
    )
    service.server = uvicorn.Server(config)
    compose.start(lab)
    try:
        durable.write_json(
            workspace.service_file,
            {
                "port": port,
                "token": token,
                "process": process.this_process().as_json(),
                "version": about["version"],
                "started_at": started_at,
            },
            mode=0o600,
        )
        log.info("serving %s on port %d", workspace.root, port)
        service.server.run(sockets=[listener])
    finally:
        compose.stop(lab)
    log.info("ended")
    return 0


def set_up_logging(workspace: Workspace) -> None:
    """The service's log, rotated once so that it stays bounded; uvicorn's own lines included."""
    file = workspace.service_log
    with contextlib.suppress(FileNotFoundError):
        if file.stat().st_size > LOG_BYTES:
            file.replace(file.with_suffix(".log.1"))
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    logging.getLogger("mcp").setLevel(logging.WARNING)
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def main(root: str) -> int:
    workspace = Workspace(Path(root))
    set_up_logging(workspace)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return serve(workspace)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
