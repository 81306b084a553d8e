"""The containers of this machine, from a Docker or Podman socket this user may read."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

TIMEOUT_S = 1.0
MAX_BODY = 4 * 1024 * 1024
MOST = 30


class Container(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    image: str
    state: str  # running, exited, ...
    status: str  # in words, with its health check where it has one: "Up 2 hours (healthy)"
    ports: list[str] = []  # "8080->80"


class _SocketConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def sockets() -> list[Path]:
    """Where a socket may be: DOCKER_HOST, Docker's own, rootless Docker's, Podman's."""
    named = os.environ.get("DOCKER_HOST", "")
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    places = [Path(named.removeprefix("unix://"))] if named.startswith("unix://") else []
    return [*places, Path("/var/run/docker.sock"), runtime / "docker.sock", runtime / "podman" / "podman.sock"]


def containers(paths: Iterable[Path] | None = None) -> tuple[list[Container], str | None]:
    """The running containers of the first socket there is, and what kept us from asking."""
    for path in sockets() if paths is None else paths:
        try:
            if not path.is_socket():
                continue
            return _ask(path), None
        except PermissionError:
            return [], f"{path.name} is not readable for this user (group docker)"
        except (OSError, ValueError, http.client.HTTPException) as error:
            return [], f"{path.name} does not answer as Docker does ({type(error).__name__})"
    return [], None


def _ask(path: Path) -> list[Container]:
    """Raises OSError, HTTPException, and ValueError for an answer that is none."""
    connection = _SocketConnection(path)
    try:
        connection.request("GET", "/containers/json")
        response = connection.getresponse()
        listed = json.loads(response.read(MAX_BODY))
    finally:
        connection.close()
    if response.status != 200 or not isinstance(listed, list):
        raise ValueError(f"HTTP {response.status}")
    return [_container(entry) for entry in listed[:MOST] if isinstance(entry, dict)]


def _container(entry: dict[str, Any]) -> Container:
    names = entry.get("Names") or [str(entry.get("Id", ""))[:12]]
    ports = {
        f"{p['PublicPort']}->{p.get('PrivatePort')}": None for p in entry.get("Ports") or [] if p.get("PublicPort")
    }
    return Container(
        name=str(names[0]).removeprefix("/"),
        image=str(entry.get("Image", "")),
        state=str(entry.get("State", "")),
        status=str(entry.get("Status", "")),
        ports=list(ports),
    )
