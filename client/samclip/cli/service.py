"""The service that a command asks: its address and credentials, or this process; and its state."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from samclip import __version__
from samclip.address import DEFAULT, grpc_address
from samclip.cli import formats, local
from samclip.cli.formats import Row
from samclip.cli.usage import Command, UsageError
from samclip.client import Client
from samclip.errors import ServiceError, from_rpc
from samclip.heads import ServedHead
from samclip.transport import credentials
from samclip.types import ServedModel
from samclip.v1 import samclip_pb2 as pb

VERSION = "x-samclip-version"
T = TypeVar("T")


def server() -> str:
    """Return the default of --server: SAMCLIP_SERVER, or where these settings have a service."""
    if given := os.environ.get("SAMCLIP_SERVER"):
        return given
    host, port = DEFAULT.split(":")
    host = os.environ.get("SAMCLIP_HOST") or host
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{host}:{os.environ.get('SAMCLIP_GRPC_PORT') or port}"


def add_service(parser: argparse.ArgumentParser, timeout: float = 60.0) -> None:
    """Add the options for the service's address, the model and authentication.

    timeout: of a request by default; commands over many pictures have none, and wait.
    """
    service = parser.add_argument_group("service")
    add_address(service, timeout, default=server())
    service.add_argument(
        "--model",
        default="",
        metavar="NAME",
        help="the model that answers, of those that samclip models --server lists; default: the "
        "service's own, for a collection the collection's",
    )


def add_address(service: argparse._ArgumentGroup, timeout: float, **of_server: Any) -> None:
    """Add the options for the service's address and for authentication."""
    service.add_argument(
        "--server",
        metavar="HOST:PORT",
        help=f"gRPC address, or the site's with http(s)://; default: $SAMCLIP_SERVER or {DEFAULT}",
        **of_server,
    )
    help = f"of each request ({'none' if timeout == math.inf else f'{timeout:g}'})"
    service.add_argument("--timeout", type=float, default=timeout, metavar="SECONDS", help=help)
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
        if args.model:
            raise UsageError(
                "--model names a model of a service: without one, name the checkpoint as --local="
                f"{args.model}"
            )
        return local.client(args.local, args.timeout, getattr(args, "spec", None) or "")
    return Client(api_key=args.api_key, bulk=bulk, **channel(args))


def channel(args: argparse.Namespace) -> dict[str, Any]:
    """Return all but the key of a client for the options of ``add_service``.

    Raises OSError if a file is missing, UsageError for an address that cannot be used.
    """
    try:
        address, tls_by_scheme = grpc_address(args.server)
    except ValueError as error:
        raise UsageError(f"--server: {error}") from error
    tls = credentials(args.ca, args.cert) if args.ca or args.cert else args.tls or tls_by_scheme
    model = getattr(args, "model", "")
    return {"address": address, "tls": tls, "timeout": args.timeout, "model": model}


def _add(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_status)


def _status(args: argparse.Namespace) -> int:
    with connect(args) as client:
        rows: list[Row] = [{"what": "client", "state": __version__}]
        version, states = _states(client, args.timeout)
        rows.append({"what": "service", "state": version or "unknown version"})
        rows += [{"what": name, "state": state} for name, state in states.items()]
        rows.append({"what": "model", "state": _model(client)})
        models = _listed(client.models)
        rows += [{"what": f"model {each.name}", "state": about(each)} for each in models]
        heads = _listed(client.heads)
        rows += [{"what": f"head {each.name}", "state": _about_head(each)} for each in heads]
    formats.print_rows(args, rows, client.model)
    failed = [each for each in models if each.state == "failed"] + [h for h in heads if h.reason]
    return 0 if set(states.values()) == {"ready"} and client.model and not failed else 1


def _states(client: Client, timeout: float) -> tuple[str, dict[str, str]]:
    """Return the service's version and the state of each of its parts."""
    states, version = {}, ""
    for name in pb.DESCRIPTOR.services_by_name:
        state, version = _check(client, f"samclip.v1.{name}", timeout)
        states[name] = state
    return version, states


def _check(client: Client, name: str, timeout: float) -> tuple[str, str]:
    """Return a part's state and the service's version. Raises ServiceError if nothing answers."""
    session = client._session
    try:
        reply, call = HealthStub(session.channel).Check.with_call(
            HealthCheckRequest(service=name), timeout=timeout, metadata=session.headers
        )
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.NOT_FOUND:
            return "not served here", ""
        raise from_rpc(error, "", client.address) from error
    trailing: dict[str, Any] = dict(call.trailing_metadata() or ())
    ready = reply.status == HealthCheckResponse.SERVING
    return "ready" if ready else "not ready", str(trailing.get(VERSION, ""))


def _model(client: Client) -> str:
    """Return the name, digest and precision of the model, or why it does not answer."""
    try:
        client.embed_text(["status"])
    except ServiceError as error:
        return str(error)
    model = client.model
    if not model:
        return "unknown"
    about = " uncalibrated" if model.uncalibrated else ""
    about += " without masks" if model.without_masks else ""
    return f"{model.name} {model.dtype} {model.digest[:12]}{about}"


def _listed(ask: Callable[[], list[T]]) -> list[T]:
    """Return the models or heads of the service; none if it does not answer."""
    try:
        return ask()
    except ServiceError:
        return []


def _about_head(head: ServedHead) -> str:
    """Return the first line of a head's description with its parameters, or why it has failed."""
    first, *_ = head.description.splitlines() or [""]
    names = ", ".join(head.parameters.get("properties", {}))
    return f"failed: {head.reason}" if head.reason else f"{first} ({names or 'no parameters'})"


def about(model: ServedModel) -> str:
    """Return a model's state and its special properties, in one line."""
    said = [
        model.state,
        *(["default"] if model.default else []),
        *([f"another name of {model.alias_of}"] if model.alias_of else []),
        *([f"{model.bytes / 1e6:,.0f} MB"] if model.bytes else []),
        *(["uncalibrated"] if model.uncalibrated else []),
        *(["without masks"] if model.without_masks else []),
    ]
    return ", ".join(said) + (f": {model.reason}" if model.reason else "")


STATUS = Command(
    "status",
    "show which service, models and heads answer",
    ["samclip status", "samclip status --server gpu-1:9000 --json"],
    _add,
    "[options]",
)
