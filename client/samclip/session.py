"""The connection to a service: the channel, its limits and retries, and the call headers."""

import inspect
import json
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc

from samclip import wire
from samclip.errors import DeadlineExceeded, KeyUnknown, Unavailable, from_rpc
from samclip.stream import AsyncStream, Stream
from samclip.types import Model
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as pb_grpc

MAX_MESSAGE_BYTES = 64 * 2**20
_RETRY = {  # all calls are idempotent
    "maxAttempts": 5,  # time enough for a process to restart
    "initialBackoff": "0.2s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_reconnect_backoff_ms", 4_000),
    ("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": _RETRY}]})),
]


def credentials(ca: Path | str | None = None, cert: Path | str | None = None) -> Any:
    """Return TLS credentials for ``Client(tls=…)`` from PEM files.

    ca: the CA to trust; None means the system's. cert: the client's certificate and private key in
    one file, for services that require one (mTLS). Raises OSError if a file cannot be read.
    """
    trusted = Path(ca).read_bytes() if ca else None
    own = Path(cert).read_bytes() if cert else None
    return grpc.ssl_channel_credentials(trusted, own, own)


class Session:
    """A channel with its stubs, whose calls block (``grpc``) or are awaited (``grpc.aio``)."""

    def __init__(
        self,
        library: ModuleType,
        address: str,
        api_key: str | None,
        tls: bool | grpc.ChannelCredentials,
        timeout: float,
        bulk: bool,
    ) -> None:
        self.channel = (
            library.secure_channel(
                address, grpc.ssl_channel_credentials() if tls is True else tls, _OPTIONS
            )
            if tls
            else library.insecure_channel(address, _OPTIONS)
        )
        # The request type names the RPC: SegmentTextRequest → SegmentText.
        self._rpcs = {
            f"{rpc}Request": call
            for service in pb.DESCRIPTOR.services_by_name
            for rpc, call in vars(getattr(pb_grpc, f"{service}Stub")(self.channel)).items()
        }
        self.headers = [("authorization", f"Bearer {api_key}")] if api_key else []
        if bulk:
            self.headers.append(("x-samclip-priority", "bulk"))
        self._timeout = timeout
        self._stream = Stream if library is grpc else AsyncStream
        self.model: Model | None = None

    async def ask(self, request: Any, images: Sequence[tuple[pb.Image, str, bytes]] = ()) -> Any:
        """Send a request and return its reply. images: (slot in the request, key, file) each.

        The keys are sent first; the files only if the service does not know the keys.
        """
        deadline = time.monotonic() + self._timeout
        for slot, key, _ in images:
            slot.key = key
        try:
            return await self._send(request, deadline)
        except KeyUnknown:
            if not images or not all(encoded for _, _, encoded in images):
                raise
        for slot, _, encoded in images:
            slot.encoded = encoded
        return await self._send(request, deadline)

    def open_stream(self, request: str) -> Stream | AsyncStream:
        """Open the call that takes messages of this type, each of which has one answer."""
        headers = [("x-request-id", uuid.uuid4().hex), *self.headers]
        return self._stream(self._rpcs[request], headers, self._timeout)

    async def exchange(self, stream: Stream | AsyncStream, message: Any) -> Any:
        """Send a message in a stream and return its answer."""
        try:
            reply = await stream.ask(message)
        except TimeoutError as error:
            late = f"no answer within {self._timeout:g} s"
            raise DeadlineExceeded(grpc.StatusCode.DEADLINE_EXCEEDED, late, stream.id) from error
        except grpc.RpcError as error:
            raise from_rpc(error, stream.id) from error
        if reply is None:
            over = "the service has ended the session"
            raise Unavailable(grpc.StatusCode.UNAVAILABLE, over, stream.id)
        self.model = wire.model(reply.model)
        return reply

    async def _send(self, request: Any, deadline: float) -> Any:
        request_id = uuid.uuid4().hex
        try:
            reply = self._rpcs[type(request).__name__](
                request,
                timeout=deadline - time.monotonic(),
                metadata=(("x-request-id", request_id), *self.headers),
            )
            reply = await reply if inspect.isawaitable(reply) else reply
        except grpc.RpcError as error:
            raise from_rpc(error, request_id) from error
        if "model" in reply.DESCRIPTOR.fields_by_name:
            self.model = wire.model(reply.model)
        return reply

    async def stream(
        self, rpc: str, request: Any, images: Sequence[tuple[pb.Image, str, bytes]]
    ) -> AsyncGenerator[Any, None]:
        """Send a request and yield the messages of its answer; images as in ``ask``."""
        deadline = time.monotonic() + self._timeout
        for slot, key, _ in images:
            slot.key = key
        try:
            async for message in self._receive(rpc, request, deadline):
                yield message
            return
        except KeyUnknown:  # only ever before the first message
            if not all(encoded for _, _, encoded in images):
                raise
        for slot, _, encoded in images:
            slot.encoded = encoded
        async for message in self._receive(rpc, request, deadline):
            yield message

    async def _receive(self, rpc: str, request: Any, deadline: float) -> AsyncGenerator[Any, None]:
        request_id = uuid.uuid4().hex
        call = self._rpcs[f"{rpc}Request"](
            request,
            timeout=deadline - time.monotonic(),
            metadata=(("x-request-id", request_id), *self.headers),
        )
        try:
            if hasattr(call, "__aiter__"):
                async for message in call:
                    yield message
            else:
                for message in call:
                    yield message
        except grpc.RpcError as error:
            raise from_rpc(error, request_id) from error
        finally:
            call.cancel()  # if the caller wants no more; otherwise it does nothing

    async def close(self) -> None:
        closing = self.channel.close()
        if inspect.isawaitable(closing):
            await closing
