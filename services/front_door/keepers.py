"""Limits that hold across front doors: one of them counts the requests of a key with limits.

The other front doors pass such requests on to it, with the secret that nobody else knows. The key's
name chooses it, by a consistent hash; if it fails, another one takes over. Without ``front_doors``
in the settings, a front door is the only one and counts itself.
"""

import os
import socket
import tempfile
from contextlib import suppress

from services.settings import Settings

_BACKEND = """
backend keepers_{protocol} from plain
    balance hash var(txn.name)
    hash-type consistent
    default-server check inter 1s rise 1 init-addr none resolvers system{options}
"""


def backends(settings: Settings) -> str:
    """Return HAProxy's configuration of the front doors as servers for each other."""
    text = "resolvers system\n    parse-resolv-conf\n    hold valid 5s\n"
    ports = {"http": settings.keeper_http_port, "grpc": settings.keeper_grpc_port}
    for protocol, port in ports.items():
        text += _BACKEND.format(
            protocol=protocol, options=" proto h2" if protocol == "grpc" else ""
        )
        for number, name in enumerate(settings.front_doors or ()):
            text += f"    server door{number} {name}:{port}\n"
    return text


def address(settings: Settings) -> str:
    """Return where Serve's replicas reach this front door, to ask about keys of open streams."""
    host, port = settings.host, settings.keeper_grpc_port
    if not settings.front_doors or host in ("0.0.0.0", "::"):
        serve = settings.serve_host, settings.inner_grpc_port
        with suppress(OSError):  # HAProxy needs this name as well, and says that it is unknown
            family, kind, *_, target = socket.getaddrinfo(*serve, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, kind) as route:
                route.connect(target)  # sends nothing: it chooses this machine's address
                host = route.getsockname()[0]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def in_memory(text: str) -> int:
    """Return the descriptor of a file without a name, which HAProxy reads as /dev/fd/N."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode())
        file.seek(0)  # on macOS, whoever opens /dev/fd/N shares this position
        return os.dup(file.fileno())
