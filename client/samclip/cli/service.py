"""Which service a command asks: its address, credentials, or the model in this process."""

import argparse
import json
import os
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from samclip.cli import local
from samclip.cli.usage import UsageError
from samclip.client import Client
from samclip.transport import credentials

DEFAULT = "127.0.0.1:9000"
HTTP_PORT = 8000
ADDRESS_HINT = (
    "Is a service running at {0}? Start one: samclip serve. "
    "--server takes its gRPC address, port 9000 by default."
)


def server() -> str:
    """Return the address of --server where it is not given."""
    return os.environ.get("SAMCLIP_SERVER") or DEFAULT


def add_service(parser: argparse.ArgumentParser) -> None:
    """Add the options for the service's address and for authentication."""
    service = parser.add_argument_group("service")
    service.add_argument(
        "--server",
        default=server(),
        metavar="HOST:PORT",
        help=f"gRPC address, or the site's with http(s)://; default: $SAMCLIP_SERVER or {DEFAULT}",
    )
    service.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="of each request (60)"
    )
    service.add_argument(
        "--api-key",
        default=os.environ.get("SAMCLIP_API_KEY"),
        metavar="KEY",
        help="default: $SAMCLIP_API_KEY",
    )
    service.add_argument("--tls", action="store_true", help="use TLS with the system's CAs")
    service.add_argument("--ca", type=Path, metavar="FILE", help="use TLS with this CA (PEM)")
    service.add_argument(
        "--cert",
        type=Path,
        metavar="FILE",
        help="use TLS with this client certificate and key (PEM)",
    )


def add_local(parser: argparse.ArgumentParser) -> None:
    """Add the option that answers without a service."""
    parser.add_argument(
        "--local",
        nargs="?",
        const="edge",
        metavar="CHECKPOINT",
        help="answer in this process, without a service; a bundled name or a directory (edge)",
    )


def connect(args: argparse.Namespace, bulk: bool = False) -> Client:
    """Return a client for the options of ``add_service``, or for --local.

    Raises OSError if a file is missing, UsageError for an address that cannot be used.
    """
    if getattr(args, "local", None):
        return local.client(args.local)
    return Client(api_key=args.api_key, bulk=bulk, **channel(args))


def channel(args: argparse.Namespace) -> dict[str, Any]:
    """Return the address, TLS and timeout of a client for the options of ``add_service``.

    Raises OSError if a file is missing, UsageError for an address that cannot be used.
    """
    address, tls_by_scheme = grpc_address(args.server)
    tls = credentials(args.ca, args.cert) if args.ca or args.cert else args.tls or tls_by_scheme
    return {"address": address, "tls": tls, "timeout": args.timeout}


def grpc_address(server: str) -> tuple[str, bool]:
    """Return HOST:PORT of gRPC, and whether a scheme asks for TLS.

    An http(s) address is asked for its gRPC port; one that does not know is taken as gRPC's own.
    Raises UsageError.
    """
    if "://" not in server:
        return server, False
    url = urlsplit(server)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UsageError(f"--server is {server!r}: expected HOST:PORT of gRPC, such as {DEFAULT}")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    port = _grpc_port(f"{url.scheme}://{url.netloc}") or url.port
    if port in (None, HTTP_PORT):
        raise UsageError(
            f"{server} is an address for browsers, and does not say which port gRPC has: name it, "
            f"by default it is --server {host}:9000"
        )
    return f"{host}:{port}", url.scheme == "https"


def _grpc_port(site: str) -> int | None:
    """Ask a service's web site, which knows it for its playground."""
    try:
        with urllib.request.urlopen(f"{site}/playground/service.json", timeout=5) as reply:
            return int(json.load(reply)["grpc_port"])
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return None
