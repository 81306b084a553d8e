"""How a client of the service finds it, starts it when it is not there, and talks to it. Standard library only."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab_mcp.keeper import ended_since, lock
from workspace import durable, interpreter, process
from workspace.errors import LabError, Refused, Unavailable
from workspace.layout import Workspace

START_TIMEOUT_S = 30.0
KEEPER_LOOK_S = 0.5


@dataclass(frozen=True)
class Endpoint:
    """What `service.json` (mode 0600) tells: where the service listens and the token it asks for."""

    port: int
    token: str
    identity: process.ProcessIdentity
    version: str
    started_at: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def read_endpoint(workspace: Workspace) -> Endpoint | None:
    """The last service that wrote itself down, alive or not; None when there is none or the file is not readable."""
    try:
        content: Any = durable.read_json(workspace.service_file)
    except (OSError, ValueError):
        return None
    try:
        identity = process.ProcessIdentity.from_json(content["process"])
        return Endpoint(
            int(content["port"]), str(content["token"]), identity, content["version"], content["started_at"]
        )
    except (KeyError, TypeError, ValueError):  # absent, or written by something else
        return None


def live_endpoint(workspace: Workspace) -> Endpoint | None:
    """The service when its process runs here and answers. Raises `Refused` when another host's service is alive."""
    endpoint = read_endpoint(workspace)
    if endpoint is None:
        return None
    if endpoint.identity.host != process.host_name() and _heartbeat_fresh(workspace):
        raise Refused(
            f"this workspace is served by another machine, {endpoint.identity.host}",
            fix=f"work on {endpoint.identity.host}, or run `lab-mcp shutdown` there first",
        )
    if not process.is_alive(endpoint.identity):
        return None
    try:
        request(endpoint, "GET", "/healthz", timeout=5.0)
    except (OSError, http.client.HTTPException, LabError):
        return None
    return endpoint


def _heartbeat_fresh(workspace: Workspace) -> bool:
    """A live service touches its service.json every 30 s, which is how another host sees that it lives."""
    try:
        return time.time() - workspace.service_file.stat().st_mtime < 120
    except OSError:
        return False


def spawn_keeper(workspace: Workspace, asked_at: float | None = None) -> None:
    """Start a keeper for the workspace, detached; a second keeper ends by itself.

    So does one for which the service was shut down after `asked_at` (Unix time in s; default now).
    """
    log = os.open(workspace.service_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        subprocess.Popen(
            interpreter.python_command("lab_mcp.keeper", str(workspace.root), str(asked_at or time.time())),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=interpreter.service_environment() | interpreter.passed_variables(_passed(workspace)),
            start_new_session=True,
        )
    finally:
        os.close(log)


def _passed(workspace: Workspace) -> list[str]:
    """`runs.environment`, read without the settings' library, which would cost the first answer of a cold start.

    What cannot be read gives the default; the service says what is wrong with it.
    """
    given: object = os.environ.get("LAB_RUNS__ENVIRONMENT")
    try:
        if isinstance(given, str):
            given = json.loads(given)
        else:
            given = tomllib.loads(workspace.settings_file.read_text(encoding="utf-8"))["runs"]["environment"]
    except (OSError, ValueError, KeyError, TypeError):
        given = None
    return [str(name) for name in given] if isinstance(given, list) else list(interpreter.PASSED_VARIABLES)


def keep_keeper(workspace: Workspace, asked_at: float | None = None) -> None:
    """Start a keeper when there is none. Raises OSError."""
    free = lock(workspace.locks_dir / "keeper.lock")
    if free is not None:
        os.close(free)
        spawn_keeper(workspace, asked_at)


def wake_service(workspace: Workspace, asked_at: float) -> None:
    """See that there is a service, unless one was shut down after `asked_at` (Unix time in s).

    Raises OSError where the workspace cannot be written; a service that does not come up says why in its log.
    """
    workspace.create_folders()
    deadline = time.monotonic() + START_TIMEOUT_S
    while live_endpoint(workspace) is None and time.monotonic() < deadline:
        if ended_since(workspace.locks_dir / "service.lock", asked_at):
            return
        keep_keeper(workspace, asked_at)
        time.sleep(KEEPER_LOOK_S)


def ensure_service(workspace: Workspace, *, timeout: float = START_TIMEOUT_S) -> Endpoint:
    """The live service, started when there is none.

    Raises `Unavailable` with the last lines of the service's log when it does not come up within `timeout` seconds.
    """
    endpoint = live_endpoint(workspace)
    if endpoint is not None:
        return endpoint
    try:
        workspace.create_folders()
        position = workspace.service_log.stat().st_size if workspace.service_log.exists() else 0
        spawn_keeper(workspace)
    except OSError as error:
        raise Unavailable(
            f"the lab's service cannot be started here: {error.strerror or error}",
            fix="make the workspace writable and free some space (`lab-mcp doctor` says more)",
        ) from error
    deadline = time.monotonic() + timeout
    look_at = time.monotonic() + KEEPER_LOOK_S
    while time.monotonic() < deadline:
        time.sleep(0.02)
        if time.monotonic() > look_at:  # ours ended at once when that of a service just ending was still there
            look_at = time.monotonic() + KEEPER_LOOK_S
            with contextlib.suppress(OSError):
                keep_keeper(workspace)
        endpoint = live_endpoint(workspace)
        if endpoint is not None:
            return endpoint
        if fatal := _fatal(workspace.service_log, position):
            raise Unavailable(f"the lab's service does not start: {fatal}", fix="run `lab-mcp doctor`")
    raise Unavailable(
        f"the lab's service did not answer within {timeout:.0f} s", fix="look at .lab/service.log, run `lab-mcp doctor`"
    )


FATAL = "lab-mcp cannot serve: "


def _fatal(log: Path, position: int) -> str:
    """The reason a service gave for refusing to start, from what was logged since `position`."""
    try:
        with log.open("rb") as file:
            file.seek(position if position <= log.stat().st_size else 0)  # it may have been emptied since
            lines = file.read(65536).decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ""
    return next((line.split(FATAL, 1)[1] for line in lines if FATAL in line), "")


def request(
    endpoint: Endpoint,
    method: str,
    path: str,
    body: Any = None,
    *,
    headers: dict[str, str] | None = None,
    timeout: float = 120.0,
) -> Any:
    """One JSON request to the service.

    Raises `LabError` for a refusal, OSError when nobody answers, HTTPException when the answer broke off.
    """
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=timeout)
    try:
        payload = None if body is None else json.dumps(body).encode()
        sent = {"Authorization": f"Bearer {endpoint.token}", "Content-Type": "application/json", **(headers or {})}
        connection.request(method, path, body=payload, headers=sent)
        response = connection.getresponse()
        content = json.loads(response.read() or b"null")
    except ValueError as error:  # it was ending, and cut the call short
        raise http.client.HTTPException("the answer was not JSON") from error
    finally:
        connection.close()
    if response.status >= 400:
        text = content.get("error", "") if isinstance(content, dict) else ""
        raise LabError(text.rstrip(".") or f"the service answered {response.status}")
    return content
