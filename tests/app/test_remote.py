"""Other machines: TLS or nothing, the token always, only by the names of the certificate."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
from tests_support import kill_service

from lab_mcp import connection
from workspace.errors import LabError
from workspace.layout import Workspace


def make_certificate(folder: Path, san: str = "DNS:localhost") -> tuple[Path, Path]:
    certificate, key = folder / "lab.pem", folder / "lab.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    more = [
        "-keyout",
        key,
        "-out",
        certificate,
        "-subj",
        "/CN=lab",
        *(["-addext", f"subjectAltName={san}"] if san else []),
    ]
    subprocess.run([*command, *more], check=True, capture_output=True)
    key.chmod(0o600)
    return certificate, key


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def configure(lab: Workspace, **service: str | int) -> None:
    lines = [f"{name} = {json.dumps(str(v) if isinstance(v, Path) else v)}" for name, v in service.items()]
    lab.settings_file.write_text("\n".join(["[service]", *lines]) + "\n")


@pytest.fixture
def remote(lab: Workspace, tmp_path: Path) -> tuple[int, Path, connection.Endpoint]:
    """A lab that other machines may reach: port, certificate, the local endpoint."""
    certificate, key = make_certificate(tmp_path)
    port = free_port()
    configure(lab, remote_host="127.0.0.1", remote_port=port, certificate=certificate, key=key)
    return port, certificate, connection.ensure_service(lab)


def ask(port: int, certificate: Path, path: str, *, body: object = None, **headers: str) -> tuple[int, str]:
    link = http.client.HTTPSConnection(
        "localhost", port, timeout=10, context=ssl.create_default_context(cafile=str(certificate))
    )
    sent = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", **headers}
    link.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body), sent)
    answer = link.getresponse()
    found = answer.status, answer.read().decode()
    link.close()
    return found


def test_over_tls_with_the_token_everything_is_there(remote, lab: Workspace) -> None:
    port, certificate, endpoint = remote
    right = {"Authorization": f"Bearer {endpoint.token}"}
    assert ask(port, certificate, "/healthz", **right)[0] == 200
    status, text = ask(port, certificate, "/api/tools/lab_overview", body={}, **right)
    assert status == 200 and "experiments_running" in text
    hello = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    status, text = ask(port, certificate, "/mcp", body=hello, **right)
    assert status == 200 and "lab-mcp" in text
    assert connection.request(endpoint, "GET", "/healthz")["status"] == "ok", "the loopback address stays as it is"


def test_without_token_or_by_another_name_or_without_tls_nothing_is_there(remote) -> None:
    port, certificate, endpoint = remote
    right = {"Authorization": f"Bearer {endpoint.token}"}
    assert ask(port, certificate, "/healthz")[0] == 401
    assert ask(port, certificate, "/healthz", Authorization="Bearer wrong")[0] == 401
    assert ask(port, certificate, "/healthz", Host=f"evil.example:{port}", **right)[0] == 421
    assert ask(port, certificate, "/healthz", Host=f"127.0.0.1:{port}", **right)[0] == 421, "not in the certificate"
    assert ask(port, certificate, "/healthz", Origin="https://evil.example", **right)[0] == 403
    plain = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with pytest.raises((http.client.HTTPException, OSError)):
        plain.request("GET", "/healthz", headers=right)
        plain.getresponse()


def test_a_wildcard_of_the_certificate_stands_for_one_label(lab: Workspace, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "DNS:*.lab.example,DNS:localhost")
    port = free_port()
    configure(lab, remote_host="127.0.0.1", remote_port=port, certificate=certificate, key=key)
    right = {"Authorization": f"Bearer {connection.ensure_service(lab).token}"}
    for host, status in {
        "gpu1.lab.example": 200,
        "a.b.lab.example": 421,
        ".lab.example": 421,
        "*.x.example": 421,
    }.items():
        assert ask(port, certificate, "/healthz", Host=f"{host}:{port}", **right)[0] == status, host


def test_a_killed_service_comes_back_on_the_same_address(remote, lab: Workspace) -> None:
    port, certificate, endpoint = remote
    kill_service(lab)
    again = connection.ensure_service(lab)
    assert again.token == endpoint.token
    assert ask(port, certificate, "/healthz", Authorization=f"Bearer {again.token}")[0] == 200


@pytest.mark.parametrize("broken", ["no certificate", "no key", "open key", "foreign key", "no name", "port in use"])
def test_it_does_not_start_half_secured(lab: Workspace, tmp_path: Path, broken: str) -> None:
    certificate, key = make_certificate(tmp_path, "" if broken == "no name" else "DNS:localhost")
    service: dict[str, str | int] = {"remote_host": "127.0.0.1", "remote_port": free_port()}
    if broken != "no certificate":
        service |= {"certificate": str(certificate), "key": str(key)}
    with socket.socket() as taken:
        if broken == "no key":
            key.unlink()
        elif broken == "open key":
            key.chmod(0o644)
        elif broken == "foreign key":
            other = tmp_path / "other"
            other.mkdir()
            make_certificate(other)[1].replace(key)
        elif broken == "port in use":
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            service["remote_port"] = taken.getsockname()[1]
        configure(lab, **service)
        told = {
            "no certificate": "TLS",
            "no key": "cannot be read",
            "open key": "chmod 600",
            "foreign key": "do not fit",
            "no name": "names no host",
            "port in use": "choose another",
        }
        with pytest.raises(LabError, match=told[broken]):
            connection.ensure_service(lab)
