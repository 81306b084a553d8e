"""The second way in: other machines reach the lab over TLS, on an address of its own, with the same token.

The loopback address stays as it is; what the bridge and the command line use never crosses a network.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from workspace.errors import Refused, Unavailable
from workspace.settings import ServiceSettings

GRACEFUL_SHUTDOWN_S = 2


@dataclass(frozen=True)
class Remote:
    """An address that is bound already, so that a port in use is refused before anything is served."""

    listener: socket.socket
    port: int
    names: frozenset[str]  # under which the certificate lets it be called; *.lab.example stands for one label
    certificate: Path
    key: Path

    def server(self, application: Any) -> uvicorn.Server:
        return _Server(
            uvicorn.Config(
                application,
                ssl_certfile=str(self.certificate),
                ssl_keyfile=str(self.key),
                log_config=None,
                access_log=False,
                lifespan="off",  # the lab's parts are brought up once, by the loopback server
                timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
                ws="none",
                proxy_headers=False,
            )
        )


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The loopback server has them."""
        yield


def prepare(settings: ServiceSettings, root: Path) -> Remote | None:
    """The address of `[service] remote_host`, or None when there is none.

    Raises `Refused` without a certificate and key that fit and are private, `Unavailable` when it cannot be bound.
    """
    if not settings.remote_host:
        return None
    if not settings.certificate or not settings.key:
        raise Refused(
            "serving other machines needs TLS",
            valid="[service] certificate and key, two PEM files",
            fix="name them, or keep remote_host empty and use an SSH tunnel (docs/clients.md)",
        )
    certificate, key = root / settings.certificate, root / settings.key  # an absolute path stays what it is
    names = _names(certificate)
    _private(key)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise Refused(f"certificate and key do not fit together ({error})", fix="check the two files") from error
    listener = bind(settings.remote_host, settings.remote_port)
    return Remote(listener, listener.getsockname()[1], names, certificate, key)


def _names(certificate: Path) -> frozenset[str]:
    """The names and addresses a certificate is for; a request must call the lab by one of them."""
    from cryptography import x509

    try:
        loaded = x509.load_pem_x509_certificate(certificate.read_bytes())
        found = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except OSError as error:
        raise Refused(
            f"the certificate {certificate.name} cannot be read ({error.strerror})", fix="check the path"
        ) from error
    except ValueError as error:
        raise Refused(f"{certificate.name} is no PEM certificate", valid="-----BEGIN CERTIFICATE-----") from error
    except x509.ExtensionNotFound as error:
        raise Refused(
            f"the certificate {certificate.name} names no host",
            valid="one with a subject alternative name, as every client asks for",
        ) from error
    hosts = set(found.get_values_for_type(x509.DNSName))
    for address in found.get_values_for_type(x509.IPAddress):
        hosts.add(f"[{address}]" if isinstance(address, ipaddress.IPv6Address) else str(address))
    return frozenset(hosts)


def _private(key: Path) -> None:
    try:
        mode = key.stat().st_mode
    except OSError as error:
        raise Refused(f"the key {key.name} cannot be read ({error.strerror})", fix="check the path") from error
    if stat.S_IMODE(mode) & 0o077:
        raise Refused(f"the key {key.name} can be read by others", fix=f"chmod 600 {key.name}")


def bind(host: str, port: int) -> socket.socket:
    """A listening address; port 0 is any free one. Raises `Unavailable`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # named TCP, or asyncio leaves Nagle's algorithm on and every answer waits 40 ms for an acknowledgement
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Unavailable(
            f"{host} port {port} cannot be served ({error.strerror})",
            fix="choose another [service] port or remote_port in lab.toml",
        ) from error
    return listener
