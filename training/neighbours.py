"""Which services answer on this machine, and the containers it runs: asked in their own protocol.

Loopback only, but for what lab.toml names under [services].
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

import psutil
from pydantic import BaseModel, ConfigDict, Field

from workspace.errors import Refused

TIMEOUT_S = 1.0
MAX_BODY = 65536
LOOPBACK = "127.0.0.1"


class Neighbour(BaseModel):
    """One service that listens, or that lab.toml names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    port: int
    healthy: bool = Field(description="it answers the way this service answers, not only the port is open")
    detail: str = Field(description="version or models, or what was odd")
    latency_ms: float
    owner: str | None = Field(None, description="process that listens; None when this user may not see it")
    host: str | None = Field(None, description="None = this machine")


@dataclass(frozen=True)
class Known:
    """A service, its usual port, a cheap request, and how its answer is recognised."""

    name: str
    port: int
    path: str
    recognise: Callable[[Any], str | None]  # parsed JSON (or text) -> detail, None when it is something else


def _versioned(body: Any) -> str | None:
    return f"version {body['version']}" if isinstance(body, dict) and body.get("version") else None


def _qdrant(body: Any) -> str | None:
    return _versioned(body) if isinstance(body, dict) and "qdrant" in str(body.get("title")).lower() else None


def _tensorboard(body: Any) -> str | None:
    return _versioned(body) if isinstance(body, dict) and "data_location" in body else None


def _anythingllm(body: Any) -> str | None:
    return "online" if isinstance(body, dict) and body.get("online") is True else None


def _ollama(body: Any) -> str | None:
    return _names(body.get("models"), "name") if isinstance(body, dict) else None


def _served_by(owner: str) -> Callable[[Any], str | None]:
    """The list of models of OpenAI's interface, where each says who serves it."""

    def recognise(body: Any) -> str | None:
        entries = body.get("data") if isinstance(body, dict) else None
        if not isinstance(entries, list) or any(_of(entry, "owned_by") != owner for entry in entries):
            return None
        return _names(entries, "id")

    return recognise


def _names(entries: Any, key: str) -> str | None:
    if not isinstance(entries, list):
        return None
    names = [str(_of(entry, key)) for entry in entries]
    return f"{len(names)} models" + (f": {', '.join(names[:5])}" if names else "")


def _of(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, dict) else None


KNOWN = [
    Known("Qdrant", 6333, "/", _qdrant),
    Known("Ollama", 11434, "/api/tags", _ollama),
    Known("llama.cpp", 8080, "/v1/models", _served_by("llamacpp")),
    Known("vLLM", 8000, "/v1/models", _served_by("vllm")),
    Known("AnythingLLM", 3001, "/api/ping", _anythingllm),
    Known("TensorBoard", 6006, "/data/environment", _tensorboard),
]


def probe(services: Mapping[str, str] | None = None, known: list[Known] | None = None) -> list[Neighbour]:
    """Ask every known service and those of `services` (name -> url) at once; takes at most about two seconds.

    A known one whose port is closed is left out; a named one is not, because somebody expects it there.
    Raises `Refused` for a url that is none.
    """
    asked = [_named(name, url) for name, url in (services or {}).items()]
    named = {url.port for _, url in asked if is_local(url)}
    candidates = [service for service in (KNOWN if known is None else known) if service.port not in named]
    owners = listeners()
    with ThreadPoolExecutor(max_workers=len(candidates) + len(asked) or 1) as pool:
        usual = pool.map(lambda service: _ask_known(service, owners), candidates)
        own = pool.map(lambda item: _ask_named(item[0], item[1], owners), asked)
        return [*own, *(found for found in usual if found is not None)]


def _named(name: str, url: str) -> tuple[str, SplitResult]:
    example = 'for example labels = "http://127.0.0.1:8501/healthz", or tcp://127.0.0.1:5432 for an open port'
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https", "tcp") and parts.hostname and (parts.port or parts.scheme != "tcp")
    except ValueError:
        usable = False
    if not usable:
        raise Refused(f"[services] {name} = {url[:80]!r} is not a url", valid=example, fix="mend lab.toml")
    return name, parts


def is_local(url: SplitResult) -> bool:
    """Whether a url stays on this machine."""
    host = url.hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def elsewhere(services: Mapping[str, str]) -> list[str]:
    """The names of those that are not on this machine."""
    return [name for name, url in services.items() if not is_local(urlsplit(url))]


# -- asking ------------------------------------------------------------------------------------------------------------


def _ask_known(service: Known, owners: Mapping[int, str]) -> Neighbour | None:
    started = time.perf_counter()
    connection = http.client.HTTPConnection(LOOPBACK, service.port, timeout=TIMEOUT_S)
    try:
        status, body = _get(connection, service.path)
    except ConnectionRefusedError:
        return None
    except (OSError, http.client.HTTPException) as error:
        healthy, detail = False, f"the port is open, but: {_trouble(error)}"
    else:
        found = service.recognise(body) if status < 400 else None
        healthy, detail = found is not None, found or f"something else answers on this port (HTTP {status})"
    return Neighbour(
        name=service.name,
        port=service.port,
        healthy=healthy,
        detail=detail[:200],
        latency_ms=_since(started),
        owner=owners.get(service.port),
    )


def _ask_named(name: str, url: SplitResult, owners: Mapping[int, str]) -> Neighbour:
    started = time.perf_counter()
    host, local = url.hostname or LOOPBACK, is_local(url)
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        healthy, detail = _health(url, host, port)
    except (OSError, http.client.HTTPException) as error:
        healthy, detail = False, _trouble(error)
    return Neighbour(
        name=name,
        port=port,
        healthy=healthy,
        detail=detail[:200],
        latency_ms=_since(started),
        owner=owners.get(port) if local else None,
        host=None if local else host,
    )


def _health(url: SplitResult, host: str, port: int) -> tuple[bool, str]:
    """Whether it answers well, and what it says. Raises OSError and HTTPException."""
    if url.scheme == "tcp":
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()
        return True, "the port is open"
    secure = url.scheme == "https"
    connection: http.client.HTTPConnection
    if secure:
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=ssl.create_default_context())
    else:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    status, body = _get(connection, (url.path or "/") + (f"?{url.query}" if url.query else ""))
    said = f", {_versioned(body)}" if _versioned(body) else ""
    return status < 400, f"HTTP {status}{said}"


def _get(connection: http.client.HTTPConnection, path: str) -> tuple[int, Any]:
    """Status and body, parsed when it is JSON. Raises OSError and HTTPException."""
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read(MAX_BODY).decode("utf-8", "replace")
    finally:
        connection.close()
    try:
        return response.status, json.loads(text)
    except ValueError:
        return response.status, text


def _trouble(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, http.client.HTTPException):
        return f"it does not speak HTTP ({type(error).__name__})"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 1)


def listeners() -> dict[int, str]:
    """Listening port -> "name (pid 12)", of the processes this user may see."""
    found = {}
    try:
        connections = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):  # macOS gives this to root only
        return {}
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.pid:
            try:
                found[connection.laddr.port] = f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.Error:
                continue
    return found
