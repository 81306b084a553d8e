"""Which services answer: real little servers that speak as each of them does, and some that do not."""

from __future__ import annotations

import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import permutations
from pathlib import Path
from typing import Any

import psutil
import pytest

from training import containers as docker
from training.neighbours import KNOWN, Known, elsewhere, probe
from workspace.errors import Refused

ANSWERS: dict[str, dict[str, Any]] = {
    "Qdrant": {"/": {"title": "qdrant - vector search engine", "version": "1.16.0", "commit": "ab"}},
    "Ollama": {"/api/tags": {"models": [{"name": "qwen3:8b", "size": 5}]}},
    "llama.cpp": {"/v1/models": {"object": "list", "data": [{"id": "gemma.gguf", "owned_by": "llamacpp"}]}},
    "vLLM": {"/v1/models": {"object": "list", "data": [{"id": "Qwen/Qwen3-8B", "owned_by": "vllm"}]}},
    "AnythingLLM": {"/api/ping": {"online": True}},
    "TensorBoard": {"/data/environment": {"version": "2.21.0", "data_location": "./logs", "window_title": ""}},
}
Serve = Callable[[dict[str, Any]], int]


@contextmanager
def served(server: socketserver.BaseServer) -> Iterator[Any]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server.server_address
    finally:
        server.shutdown()
        server.server_close()


def handler(answers: dict[str, Any]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.path in answers
            body = json.dumps(answers[self.path] if known else {"detail": "Not Found"}).encode()
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "test"

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@pytest.fixture
def serve() -> Iterator[Serve]:
    """`serve({"/path": answer})`: a server on a free port."""
    with ExitStack() as stack:
        yield lambda answers: stack.enter_context(served(ThreadingHTTPServer(("127.0.0.1", 0), handler(answers))))[1]


def on(service: str, port: int) -> Known:
    known = next(known for known in KNOWN if known.name == service)
    return Known(known.name, port, known.path, known.recognise)


def free_port() -> int:
    with socket.socket() as probe_socket:
        probe_socket.bind(("127.0.0.1", 0))
        return int(probe_socket.getsockname()[1])


@pytest.mark.parametrize("service", ANSWERS)
def test_each_service_is_known_by_its_own_answer(serve: Serve, service: str) -> None:
    (found,) = probe({}, [on(service, serve(ANSWERS[service]))])
    assert found.healthy and found.name == service and found.latency_ms > 0
    assert found.owner == f"{psutil.Process().name()} (pid {os.getpid()})"
    words = {"Qdrant": "1.16.0", "Ollama": "qwen3:8b", "vLLM": "Qwen3-8B", "TensorBoard": "2.21.0"}
    assert words.get(service, "") in found.detail


@pytest.mark.parametrize(("service", "other"), permutations(ANSWERS, 2))
def test_another_service_on_its_port_is_not_taken_for_it(serve: Serve, service: str, other: str) -> None:
    (found,) = probe({}, [on(service, serve(ANSWERS[other]))])
    assert not found.healthy and "something else answers on this port" in found.detail


def test_a_closed_port_is_left_out_and_a_named_service_is_not(serve: Serve) -> None:
    port = free_port()
    assert probe({}, [on("Qdrant", port)]) == []
    (found,) = probe({"mine": f"http://127.0.0.1:{port}/healthz"}, [])
    assert (found.healthy, found.detail, found.owner) == (False, "nothing listens there", None)


def test_a_port_that_accepts_and_never_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        known, named = probe({"mine": f"http://localhost:{port}/"}, [])[0], probe({}, [on("Ollama", port)])[0]
    assert known.detail == "no answer within 1 s" and named.detail == "the port is open, but: no answer within 1 s"
    assert not known.healthy and not named.healthy


def test_a_port_that_speaks_something_else() -> None:
    class Greeter(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1024)
            self.request.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

    with served(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Greeter)) as (_, port):
        (known,) = probe({}, [on("vLLM", port)])
        (as_tcp,) = probe({"shell": f"tcp://127.0.0.1:{port}"}, [])
    assert not known.healthy and "does not speak HTTP" in known.detail
    assert as_tcp.healthy and as_tcp.detail == "the port is open"


def test_named_services(serve: Serve) -> None:
    port = serve({"/healthz": {"version": "7"}, "/ready?deep=1": {}})
    named = {
        "good": f"http://127.0.0.1:{port}/healthz",
        "query": f"http://localhost:{port}/ready?deep=1",
        "bad": f"http://127.0.0.1:{port}/other",
    }
    good, query, bad = probe(named, [on("Qdrant", port)])  # a port somebody named is not guessed at as well
    assert good.healthy and good.detail == "HTTP 200, version 7" and good.host is None
    assert query.healthy and not bad.healthy and bad.detail == "HTTP 404"
    assert elsewhere(named | {"far": "https://labels.example.org/", "v6": "http://[::1]:80/"}) == ["far"]


@pytest.mark.parametrize("url", ["labels", "ftp://127.0.0.1/", "tcp://127.0.0.1", "http://", "http://127.0.0.1:x/"])
def test_what_is_no_url_is_refused_by_name(url: str) -> None:
    with pytest.raises(Refused, match=r"\[services\] labels"):
        probe({"labels": url}, [])


# -- containers --------------------------------------------------------------------------------------------------------

LISTED = [
    {
        "Id": "f00", "Names": ["/open-webui"], "Image": "ghcr.io/open-webui/open-webui:main", "State": "running",
        "Status": "Up 2 hours (healthy)", "Ports": [
            {"IP": "0.0.0.0", "PrivatePort": 8080, "PublicPort": 3000, "Type": "tcp"},
            {"IP": "::", "PrivatePort": 8080, "PublicPort": 3000, "Type": "tcp"},
            {"PrivatePort": 9000, "Type": "tcp"},
        ],
    },
    {"Id": "0123456789abcdef", "Names": [], "Image": "qdrant/qdrant", "State": "running", "Status": "Up", "Ports": []},
]  # fmt: skip


class UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


def test_containers_of_a_docker_socket(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with served(UnixServer(str(path), handler({"/containers/json": LISTED}))):
        found, obstacle = docker.containers([tmp_path / "absent.sock", path])
    assert obstacle is None
    assert [(c.name, c.ports) for c in found] == [("open-webui", ["3000->8080"]), ("0123456789ab", [])]
    assert found[0].status == "Up 2 hours (healthy)"


def test_a_socket_that_is_not_docker_says_so(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with served(UnixServer(str(path), handler({"/containers/json": {"message": "page not found"}}))):
        found, obstacle = docker.containers([path])
    assert found == [] and obstacle == "docker.sock does not answer as Docker does (ValueError)"
    assert docker.containers([tmp_path / "absent.sock"]) == ([], None)
    (tmp_path / "dead.sock").unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    assert docker.containers([tmp_path / "dead.sock"])[1] is not None


def test_docker_host_is_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/mine.sock")
    assert docker.sockets()[0] == Path("/run/mine.sock")
    monkeypatch.setenv("DOCKER_HOST", "tcp://10.0.0.1:2375")  # not on this machine
    assert docker.sockets()[0] == Path("/var/run/docker.sock")
