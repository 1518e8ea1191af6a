"""Another application's gRPC service, and how this process calls it."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import grpc
from google.protobuf.message import Message
from samclip.v1 import samclip_pb2_grpc as pb_grpc

from services.observability import tracing
from services.request import admission, channel
from services.request.context import RequestContext
from services.request.routes import APPLICATIONS
from services.settings import Settings

Header = tuple[str, str]


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
        """Return an application at Serve's inner port, or the backbone where it runs."""
        if application != "backbone":
            return cls(application, *admission.inside(settings, application))
        ca = settings.backbone_ca_file if settings.backbone_address else None
        return cls(application, *admission.backbone(settings), ca)

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        return channel.connect(self.address, self._ca)

    @cached_property
    def _stub(self) -> Any:
        return getattr(pb_grpc, f"{APPLICATIONS[self._application].service}Stub")(self._channel)

    async def call(self, rpc: str, request: Message, context: RequestContext, *more: Header) -> Any:
        """Return the reply to one request. Raises the service's errors, and Unavailable."""
        with tracing.span(self._application, tracing.CLIENT):
            metadata = (*self.metadata, *context.headers(), *tracing.headers(), *more)
            left_s = context.priority.time_left()
            try:
                return await getattr(self._stub, rpc)(request, timeout=left_s, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                raise channel.failure(error, self.name) from error

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close(None)
