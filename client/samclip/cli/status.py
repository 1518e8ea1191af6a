"""``samclip status``: which services are ready at an address, and with which model."""

import argparse
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from samclip import __version__
from samclip.cli import formats
from samclip.cli.formats import Row
from samclip.cli.service import connect
from samclip.cli.usage import Command
from samclip.client import Client
from samclip.errors import ServiceError, from_rpc
from samclip.v1 import samclip_pb2 as pb

VERSION = "x-samclip-version"


def _add(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_status)


def _status(args: argparse.Namespace) -> int:
    with connect(args) as client:
        rows: list[Row] = [{"what": "client", "state": __version__}]
        version, states = _states(client, args.timeout)
        rows.append({"what": "service", "state": version or "unknown version"})
        rows += [{"what": name, "state": state} for name, state in states.items()]
        rows.append({"what": "model", "state": _model(client)})
    formats.print_rows(args, rows, client.model)
    return 0 if set(states.values()) == {"ready"} and client.model else 1


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
        raise from_rpc(error, "") from error
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
    return f"{model.name} {model.dtype} {model.digest[:12]}" if model else "unknown"


COMMAND = Command(
    "status",
    "show which service and model answer",
    ["samclip status", "samclip status --server gpu-1:9000 --json"],
    _add,
)
