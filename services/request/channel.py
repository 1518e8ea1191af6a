"""gRPC channels between services, and the errors of calls over them."""

from pathlib import Path
from typing import Any

import grpc

from samclip_core.errors import Unavailable
from services.request import status

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
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(ca.read_bytes()), options)


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
