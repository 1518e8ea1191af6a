"""Calls from the front door to the services and between services.

Their secret, addresses, channels and errors. Other users of the machine, and other machines of a
cluster, can reach Serve's ports, which answer only requests with the secret
(``services.front_door.inner_ports``). The front door removes its header from incoming requests.
"""

import hmac
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import grpc
from google.protobuf.message import Message
from samclip.rpcs import RPCS
from samclip.v1 import samclip_pb2_grpc as pb_grpc

from samclip_core import guarded
from samclip_core.errors import Unauthenticated, Unavailable
from services.observability import tracing
from services.request import status
from services.request.context import RequestContext
from services.request.routes import HEAD, MODULES, of_application
from services.settings import PREFIX, Settings, SettingsError

Header = tuple[str, str]

SECRET_HEADER = "x-samclip-front-door"
SECRET_VARIABLE = PREFIX + "FRONT_DOOR_SECRET"
REFUSAL = (
    "this port answers only what comes through the front door; use the service's public address"
)
ERROR_KIND = "x-samclip-error"
"""Trailing metadata with the class of the error, for other services."""

UNLIMITED = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)
"""gRPC's default limit of 4 MiB is less than one embedding; the settings limit the images."""

_RETRY = (
    '{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 4, "initialBackoff": "0.05s",'
    ' "maxBackoff": "1s", "backoffMultiplier": 3, "retryableStatusCodes": ["UNAVAILABLE"]}}]}'
)
"""Services only query each other, so a call to a replica that is stopping is repeated."""

_NETWORK = (
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
"""A connection that is silent for this long during a call is dropped; TCP alone would wait for many
minutes. A service that comes back is found within a second."""


def admitted(headers: Mapping[str, str]) -> bool:
    """Return whether a request came through the front door, from its headers or gRPC metadata.

    Names are in lower case. Without a secret in the environment, no request is admitted.
    """
    secret = os.environ.get(SECRET_VARIABLE, "")
    shown = headers.get(SECRET_HEADER, "")
    return bool(secret) and hmac.compare_digest(shown.encode(), secret.encode())


def check(headers: Mapping[str, str]) -> None:
    """Raise Unauthenticated unless a request came through the front door."""
    if not admitted(headers):
        raise Unauthenticated(REFUSAL)


def applications(settings: Settings) -> list[str]:
    """Return the applications that run here: all, except a backbone that runs elsewhere."""
    elsewhere = {"backbone"} if settings.backbone_address else set()
    own = (HEAD + name for name in settings.own_heads)
    return [*(name for name in MODULES if name not in elsewhere), *own]


def connect(address: str, ca: Path | None = None) -> grpc.aio.Channel:
    """Open a channel. ``ca`` is a PEM file with the certificates to trust; it turns TLS on."""
    options = [
        *UNLIMITED,
        *_NETWORK,
        ("grpc.service_config", _RETRY),
        ("grpc.per_rpc_retry_buffer_size", 64 * 2**20),
    ]
    if ca is None:
        return grpc.aio.insecure_channel(address, options=options)
    try:
        trusted = guarded.read(ca)
    except (OSError, ValueError) as error:
        raise SettingsError(f"backbone_ca_file cannot be read: {error}") from error
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(trusted), options)


def failure(error: grpc.aio.AioRpcError, peer: str) -> Exception:
    """Return the error that a call ended with, as the other service raised it.

    ``peer`` names the other side in the messages of errors that it did not raise itself.
    """
    trailer: Any = error.trailing_metadata() or {}
    kind = trailer.get(ERROR_KIND)
    if kind is not None:
        return status.rebuild(error.code(), str(kind), error.details() or "")
    if error.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED):
        return status.rebuild(error.code(), "", f"{peer} is too busy: try again later")
    return Unavailable(f"{peer} does not answer ({error.code().name}): try again")


class Peer:
    """A service at an address; ``metadata`` are sent with every call.

    ``ca`` is a PEM file with the certificates to trust; it turns TLS on.
    """

    def __init__(
        self, application: str, address: str, metadata: Sequence[Header], ca: Path | None = None
    ):
        self.address, self.metadata = address, tuple(metadata)
        here = application != "backbone"
        self.name = f"the application {application}" if here else f"the backbone at {address}"
        self._application, self._ca = application, ca

    @classmethod
    def of(cls, settings: Settings, application: str) -> Self:
        """Return an application at Serve's inner port, past the front door, or a far backbone."""
        if application == "backbone" and settings.backbone_address:
            key = [("x-api-key", settings.backbone_api_key)] if settings.backbone_api_key else []
            return cls(application, settings.backbone_address, key, settings.backbone_ca_file)
        metadata = ("application", application), (SECRET_HEADER, os.environ[SECRET_VARIABLE])
        return cls(application, f"127.0.0.1:{settings.inner_grpc_port}", metadata)

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        return connect(self.address, self._ca)

    @cached_property
    def _stubs(self) -> dict[str, Any]:
        services = of_application(self._application).services
        return {name: getattr(pb_grpc, f"{name}Stub")(self._channel) for name in services}

    async def call(self, rpc: str, request: Message, context: RequestContext, *more: Header) -> Any:
        """Return the reply to one request. Raises the service's errors, and Unavailable."""
        with tracing.span(self._application, tracing.CLIENT):
            metadata = (*self.metadata, *context.headers(), *tracing.headers(), *more)
            left_s = context.priority.time_left()
            method = RPCS[rpc]
            call = getattr(self._stubs[method.containing_service.name], method.name)
            try:
                return await call(request, timeout=left_s, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                raise failure(error, self.name) from error

    async def close(self) -> None:
        await self._channel.close(None)
