"""Which well-known local services answer on this machine: a protocol-level look, loopback only."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

TIMEOUT_S = 1.0
MAX_BODY = 65536


class Neighbour(BaseModel):
    """One service that was found listening."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    port: int
    healthy: bool = Field(description="it answers the way this service answers, not only the port is open")
    detail: str = Field(description="version or models, or what was odd")
    latency_ms: float


@dataclass(frozen=True)
class Known:
    """A service, its usual port, a cheap request, and how its answer is recognised."""

    name: str
    port: int
    path: str
    recognise: Callable[[Any], str | None]  # parsed JSON (or text) -> detail, None when it is something else


def _field(name: str, label: str) -> Callable[[Any], str | None]:
    return lambda body: f"{label} {body[name]}" if isinstance(body, dict) and name in body else None


def _models(body: Any) -> str | None:
    entries = body.get("data", body.get("models")) if isinstance(body, dict) else None
    if not isinstance(entries, list):
        return None
    names = [str(e.get("id") or e.get("name")) for e in entries if isinstance(e, dict)]
    return f"{len(names)} models" + (f": {', '.join(names[:5])}" if names else "")


KNOWN = [
    Known("Qdrant", 6333, "/", _field("version", "version")),
    Known("Ollama", 11434, "/api/tags", _models),
    Known("llama.cpp", 8080, "/v1/models", _models),
    Known("vLLM", 8000, "/v1/models", _models),
    Known("AnythingLLM", 3001, "/api/ping", _field("online", "online")),
    Known("TensorBoard", 6006, "/data/environment", _field("version", "version")),
]


def probe(known: list[Known] | None = None) -> list[Neighbour]:
    """Ask every known service at once; those whose port is closed are left out. Takes at most about a second."""
    candidates = KNOWN if known is None else known
    with ThreadPoolExecutor(max_workers=len(candidates) or 1) as pool:
        return [found for found in pool.map(_ask, candidates) if found is not None]


def _ask(service: Known) -> Neighbour | None:
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", service.path)
        response = connection.getresponse()
        text = response.read(MAX_BODY).decode("utf-8", "replace")
    except ConnectionRefusedError:
        return None
    except (OSError, http.client.HTTPException) as error:
        return _neighbour(service, started, healthy=False, detail=f"the port is open, but: {type(error).__name__}")
    finally:
        connection.close()
    try:
        body = json.loads(text)
    except ValueError:
        body = text
    detail = service.recognise(body) if response.status < 400 else None
    if detail is None:
        return _neighbour(
            service, started, healthy=False, detail=f"something else answers on this port (HTTP {response.status})"
        )
    return _neighbour(service, started, healthy=True, detail=detail[:200])


def _neighbour(service: Known, started: float, *, healthy: bool, detail: str) -> Neighbour:
    latency = round((time.perf_counter() - started) * 1000, 1)
    return Neighbour(name=service.name, port=service.port, healthy=healthy, detail=detail, latency_ms=latency)
