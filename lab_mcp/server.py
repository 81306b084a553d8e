"""The lab service of one workspace: MCP and a small JSON interface over loopback HTTP. The only writer of lab.db."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import uvicorn
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from lab_mcp import compose, pages, remote, rest, rest_memory, rest_results, rest_runs
from lab_mcp.connection import FATAL, keep_keeper, read_endpoint
from lab_mcp.doors import Doors
from lab_mcp.guard import LOOPBACK, Guard
from lab_mcp.keeper import ENDED, REFUSED_TO_START, SERVING, say
from lab_mcp.service_log import bound_log
from rag.client import Memory
from tools.lab import Lab
from tools.server import CONVERSATION_HEADER, KEY_HEADER, build_server
from tools.tool import Caller, Tools
from workspace import clock, durable, process
from workspace.errors import LabError
from workspace.layout import Workspace

MCP_PATH, HEALTH_PATH = "/mcp", "/healthz"
TICK_S = 0.5
WARM_UP_AFTER_S, UNASKED_S = 0.3, 3.0  # memory is brought up: after the first answer, or with nobody asking
KEEPER_CHECK_S = 5.0
HEARTBEAT_S = 30.0
GRACEFUL_SHUTDOWN_S = 2  # open event streams would block SIGTERM for ever otherwise
LATEST_END_S = 12.0  # after this it ends with calls unanswered: a clone may hang for minutes, and is asked for again
SESSION_IDLE_S = 3600.0  # of a session whose client went without a word; a living bridge always listens
CALL_THREADS = 200  # calls that wait for a clone or the memory hold one each
ROUND_THREADS = 10  # the background's own, so that no number of calls holds up the queue
SAME_FAILURE_S = 60.0  # how often a failure that repeats itself is logged
log = logging.getLogger("lab_mcp")


class Service:
    """One served workspace: the lab, its HTTP application, its background work, its end."""

    def __init__(
        self, lab: Lab, tools: Tools, token: str, port: int, held: int, beyond: remote.Remote | None = None
    ) -> None:
        self.lab = lab
        self.tools = tools
        self.token = token
        self.port = port
        self.held = held  # the service's lock
        self.ended_said = False
        self.beyond = beyond  # the address for other machines
        self.remote_server: uvicorn.Server | None = None
        self.doors = Doors(f"{port}")
        self.last_used = time.monotonic()
        self.open_requests = 0
        self.server: uvicorn.Server | None = None
        self.mcp = build_server(tools, lab)
        lab.changed = lambda uri: anyio.from_thread.run(self.mcp.tell, uri)  # its callers are the rounds' threads
        self.started_in = _inode(lab.workspace.lab_dir)
        self.round_threads: anyio.CapacityLimiter | None = None
        self.keeper_check_at = self.heartbeat_at = 0.0  # monotonic seconds of the next
        self.answered = anyio.Event()  # somebody's first question
        self.failures: dict[object, tuple[str, float]] = {}  # part -> what failed last, when that was logged

    def application(self) -> Any:
        """The ASGI application: /mcp, /api/..., pages, /healthz, all behind the guard."""
        self.mcp.streamable_http_app(
            session_idle_timeout=SESSION_IDLE_S,
            # Host and Origin are the guard's to check, which knows the names of the remote address, too
            transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
        )

        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            anyio.to_thread.current_default_thread_limiter().total_tokens = CALL_THREADS
            self.round_threads = anyio.CapacityLimiter(ROUND_THREADS)
            async with self.mcp.session_manager.run(), anyio.create_task_group() as group:
                group.start_soon(self._background)
                yield
                group.cancel_scope.cancel()

        routes = [
            Route(HEALTH_PATH, self._health, methods=["GET"]),
            Route("/api/tools/{name}", self._call, methods=["POST"]),
            Route("/api/shutdown", self._shutdown, methods=["POST"]),
            Route("/api/browser-link", self._browser_link, methods=["POST"]),
            *pages.routes(self.lab, self.doors),
            *rest.routes(self.lab),
            *rest_results.routes(self.lab),
            *rest_memory.routes(self.lab),
            *rest_runs.routes(self.lab),
        ]
        app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={Exception: _crashed})
        served = _Front(app, self)
        if self.beyond is not None:
            guarded = Guard(served, self.token, self.beyond.names, self.doors)
            self.remote_server = self.beyond.server(guarded)
        return Guard(served, self.token, LOOPBACK, self.doors)

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

    async def _browser_link(self, request: Request) -> JSONResponse:
        return JSONResponse({"path": self.doors.link()})

    async def _shutdown(self, request: Request) -> JSONResponse:
        self.stop("asked to shut down")
        return JSONResponse({"status": "stopping"})

    def stop(self, why: str) -> None:
        if self.server is not None and not self.server.should_exit:
            log.info("stopping: %s", why)
            self.say_ended()
            self.server.should_exit = True
            last = threading.Timer(LATEST_END_S, os._exit, (0,))
            last.daemon = True
            last.start()

    def say_ended(self) -> None:
        """Write down that the end is meant, once: what is asked for later finds a service that has gone."""
        if not self.ended_said:
            self.ended_said = True
            say(self.held, ENDED)

    async def _background(self) -> None:
        """Everything that happens without being asked: queue, outbox, idle rule, keeper, heartbeat."""
        async with anyio.create_task_group() as group:
            for work in compose.rounds(self.lab):
                group.start_soon(self._round, work)
            group.start_soon(self._warm_up)
            group.start_soon(self._end_subscriptions)
            if self.remote_server is not None and self.beyond is not None:
                group.start_soon(self.remote_server.serve, [self.beyond.listener])
            upkeep: compose.Round = [self._look_after]
            group.start_soon(self._round, upkeep)

    async def _end_subscriptions(self) -> None:
        """When the service ends: a stream that is cut instead leaves a traceback in the log."""
        while True:
            await anyio.sleep(TICK_S)
            if self.server is not None and self.server.should_exit:
                self.mcp.end_subscriptions()
                if self.remote_server is not None:
                    self.remote_server.should_exit = True

    async def _warm_up(self) -> None:
        """What makes the first search quick, where it was not begun beside the imports (`lab_mcp.service`).

        Before the first answers of a cold start it would take a core from what a client is waiting for; the moment
        after them is the earliest that costs nobody anything.
        """
        with anyio.move_on_after(UNASKED_S):
            await self.answered.wait()
            await anyio.sleep(WARM_UP_AFTER_S)
        await anyio.to_thread.run_sync(self.lab.memory.start)

    async def _round(self, work: compose.Round) -> None:
        while True:
            for part in work:
                try:
                    await anyio.to_thread.run_sync(part, abandon_on_cancel=True, limiter=self.round_threads)
                except Exception as error:  # noqa: BLE001  one part must not stop the others; it is tried again
                    self._complain(part, error)
            await anyio.sleep(TICK_S)

    def _complain(self, part: Callable[[], object], error: Exception) -> None:
        """Log a failure; one that comes back with every round (a full disk) only now and then."""
        text = f"{type(error).__name__}: {error}"
        last, at = self.failures.get(part, ("", 0.0))
        if text != last or time.monotonic() - at > SAME_FAILURE_S:
            self.failures[part] = (text, time.monotonic())
            log.error("background work failed", exc_info=error)

    def _look_after(self) -> None:
        """The service's own upkeep: its workspace, keeper, heartbeat, log, and whether it is needed."""
        workspace, now = self.lab.workspace, time.monotonic()
        if _inode(workspace.lab_dir) != self.started_in:
            # what is written from now on would be lost, and a service of the new place must be able to start
            self.stop("the workspace was moved or deleted")
            return
        if now > self.keeper_check_at:
            self.keeper_check_at = now + KEEPER_CHECK_S
            keep_keeper(workspace)  # the next kill of the service is to be noticed
        if now > self.heartbeat_at:
            self.heartbeat_at = now + HEARTBEAT_S
            with contextlib.suppress(OSError):  # a full or read-only disk shows elsewhere, in words
                os.utime(workspace.service_file)
            with contextlib.suppress(OSError):
                bound_log(workspace.service_log)
        idle_s = self.lab.settings.service.idle_minutes * 60
        if idle_s and not self.open_requests and now - self.last_used > idle_s and not compose.is_busy(self.lab):
            self.stop(f"idle for {idle_s / 60:.0f} minutes")


async def _crashed(request: Request, error: Exception) -> JSONResponse:
    """A fault of ours, in words; Starlette raises it again, which puts it into the service's log."""
    text = f"the lab itself failed here ({type(error).__name__}); .lab/service.log says where"
    return JSONResponse({"error": text}, status_code=500)


class _Front:
    """Sends MCP its own way, and counts open requests, so that the idle rule sees a client that only listens."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.service.open_requests += 1
        # a call passes no router and no middleware that it has no use for
        app = self.service.mcp.session_manager.handle_request if scope["path"] == MCP_PATH else self.app
        try:
            await app(scope, receive, send)
        finally:
            self.service.open_requests -= 1
            if scope["path"] != HEALTH_PATH:
                self.service.answered.set()
            self.service.last_used = time.monotonic()


def serve(workspace: Workspace, held: int, memory: Memory | None) -> int:
    """Serve until stopped; the exit code tells the keeper whether to try again.

    `held` is the descriptor of the service's lock; `memory` that of the workspace, if it was started already.
    """
    started_at = clock.now()
    about = {"pid": os.getpid(), "url": "", "started_at": started_at, "version": version("lab-mcp")}
    try:
        lab = compose.build_lab(workspace, about, memory)
        listener = remote.bind("127.0.0.1", lab.settings.service.port)
        beyond = remote.prepare(lab.settings.service, workspace.root)
    except (LabError, OSError) as error:
        print(f"{FATAL}{error}", file=sys.stderr, flush=True)
        return REFUSED_TO_START
    port = listener.getsockname()[1]
    about["url"] = f"http://127.0.0.1:{port}"
    say(held, SERVING)
    previous = read_endpoint(workspace)
    token = previous.token if previous else secrets.token_urlsafe(32)
    service = Service(lab, compose.all_tools(), token, port, held, beyond)
    config = uvicorn.Config(
        service.application(),
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
        timeout_keep_alive=75,
        ws="none",
        proxy_headers=False,  # nothing in front of it is to be believed about who is asking
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
        if beyond is not None:
            log.info("other machines: https port %d as %s", beyond.port, ", ".join(sorted(beyond.names)))
        # uvicorn ends in good order on TERM and then raises it again, which the keeper would take for a crash
        signal.signal(signal.SIGTERM, lambda *_: log.info("ended by SIGTERM"))
        service.server.run(sockets=[listener])
        service.say_ended()
    except KeyboardInterrupt:
        service.say_ended()
        raise
    finally:
        compose.stop(lab)
    log.info("ended")
    return 0


def _inode(folder: Path) -> tuple[int, int] | None:
    """Which folder this is, wherever it is moved to; None when there is none."""
    try:
        found = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino
