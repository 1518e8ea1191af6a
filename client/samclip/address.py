"""The address of a service: gRPC's own, or that of its web site."""

import json
from urllib.parse import urlsplit

from samclip.files import download

DEFAULT = "127.0.0.1:9000"
HTTP_PORT = 8000
_OF_GRPC = ("dns", "unix", "unix-abstract", "xds")
"""Schemes that gRPC itself reads."""
TIMEOUT_S = 5.0  # of the site's answer, in which AsyncClient waits as well


def grpc_address(address: str) -> tuple[str, bool]:
    """Return HOST:PORT of gRPC, and whether a scheme asks for TLS.

    An http(s) address is asked for its gRPC port; one that does not know is taken as gRPC's own.
    Raises ValueError for another kind of address, TypeError if it is no text.
    """
    if not isinstance(address, str):
        raise TypeError(
            f"the address is {address!r}: expected HOST:PORT of gRPC as text, such as {DEFAULT!r}"
        )
    if address and ("://" not in address or address.partition("://")[0].lower() in _OF_GRPC):
        return address, False
    try:
        url = urlsplit(address)
        host, port = url.hostname or "", url.port
    except ValueError:
        host = ""
    if not host or url.scheme not in ("http", "https"):
        raise ValueError(
            f"{address!r} is no address of a service: expected HOST:PORT of gRPC, such as "
            f"{DEFAULT}, or http(s)://HOST:PORT of its web site"
        )
    if "@" in url.netloc:
        raise ValueError("the address has a name or a key before @: give a key apart (api_key)")
    host = f"[{host}]" if ":" in host else host
    port = _grpc_port(f"{url.scheme}://{url.netloc}") or port
    if port in (None, HTTP_PORT):
        raise ValueError(
            f"{address} does not say which port gRPC has: no service answers there, or not yet. "
            f"Start one (samclip serve), or name the port of gRPC, by default {host}:9000"
        )
    return f"{host}:{port}", url.scheme == "https"


def _grpc_port(site: str) -> int | None:
    """Ask a service's web site, which knows it for its playground."""
    try:
        about = json.loads(download(f"{site}/playground/service.json", TIMEOUT_S))
        return int(about["grpc_port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
