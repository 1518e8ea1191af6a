"""The connection to a service: the channel, its limits and retries, and the calls.

Methods are written once, as coroutines. Over a channel of ``grpc.aio`` they are awaited; over one
of ``grpc``, whose calls block, they end without suspending, and ``blocking`` calls them.
"""

import copy
import functools
import inspect
import json
import math
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import grpc
import grpc.aio

from samclip import heads, wire
from samclip.errors import KeyUnknown, from_rpc
from samclip.files import read_file
from samclip.rpcs import RPCS
from samclip.types import Model
from samclip.v1 import samclip_pb2 as pb
from samclip.v1 import samclip_pb2_grpc as pb_grpc

P = ParamSpec("P")
T = TypeVar("T")
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
    one file, for services that require one (mTLS). Raises OSError, ValueError for unreadable ones.
    """
    trusted = read_file(ca) if ca else None
    own = read_file(cert) if cert else None
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
        model: str = "",
    ) -> None:
        self.address = address
        self.named = _name(model)
        self._lent = False
        self.channel = (
            library.secure_channel(
                address, grpc.ssl_channel_credentials() if tls is True else tls, _OPTIONS
            )
            if tls
            else library.insecure_channel(address, _OPTIONS)
        )
        stubs = {
            service: getattr(pb_grpc, f"{service}Stub")(self.channel)
            for service in pb.DESCRIPTOR.services_by_name
        }
        # The request type names the RPC: SegmentTextRequest → SegmentText.
        self._rpcs = {
            f"{rpc}Request": getattr(stubs[method.containing_service.name], method.name)
            for rpc, method in RPCS.items()
        }
        self.headers = [("authorization", f"Bearer {api_key}")] if api_key else []
        if bulk:
            self.headers.append(("x-samclip-priority", "bulk"))
        self._timeout = timeout
        self.model: Model | None = None

    def using(self, model: str) -> Self:
        """Return a session of the same channel whose requests name a model. Raises TypeError."""
        made = copy.copy(self)
        made.named, made.model, made._lent = _name(model), None, True
        return made

    async def ask(self, request: Any, images: Sequence[tuple[pb.Image, str, bytes]] = ()) -> Any:
        """Send a request and return its reply; images as in ``stream``."""
        (reply,) = [message async for message in self.stream(request, images)]
        return reply

    async def stream(
        self, request: Any, images: Sequence[tuple[pb.Image, str, bytes]] = (), rpc: str = ""
    ) -> AsyncGenerator[Any, None]:
        """Send a request and yield the messages of its answer.

        images: (slot in the request, key, file) each. The keys are sent first; the files only if
        the service does not know the keys. rpc: its name, if the request's type does not have it.
        """
        deadline = time.monotonic() + self._timeout
        wire.name_model(request, self.named)
        for slot, key, _ in images:
            slot.key = key
        try:
            async for message in self._receive(request, rpc, deadline):
                yield message
            return
        except KeyUnknown:  # only ever before the first message
            if not images or not all(encoded for _, _, encoded in images):
                raise
        for slot, _, encoded in images:
            slot.encoded = encoded
        async for message in self._receive(request, rpc, deadline):
            yield message

    async def _receive(self, request: Any, rpc: str, deadline: float) -> AsyncGenerator[Any, None]:
        request_id = uuid.uuid4().hex
        call: Any = None
        try:
            call = self._rpcs[f"{rpc}Request" if rpc else type(request).__name__](
                request,
                timeout=None if deadline == math.inf else deadline - time.monotonic(),
                metadata=(
                    *(("x-request-id", request_id), *self.headers),
                    *heads.metadata(request),
                ),
            )
            async for message in _messages(call):
                if "model" in message.DESCRIPTOR.fields_by_name and message.HasField("model"):
                    self.model = wire.like(Model, message.model)
                yield message
        except grpc.RpcError as error:
            raise from_rpc(error, request_id, self.address) from error
        finally:
            if hasattr(call, "cancel"):
                call.cancel()  # if the caller wants no more; otherwise it does nothing

    async def close(self) -> None:
        """Close the channel, unless it is that of another session."""
        if self._lent:
            return
        closing = self.channel.close()
        if inspect.isawaitable(closing):
            await closing


def _name(model: str) -> str:
    if not isinstance(model, str):
        raise TypeError(f"model is {model!r:.60}: expected a name of client.models()")
    return model


async def _messages(call: Any) -> AsyncGenerator[Any, None]:
    """Yield the messages of a call, or of its answer: one or many, blocking or awaited."""
    if hasattr(call, "__aiter__"):
        async for message in call:
            yield message
    elif isinstance(call, Iterator):
        for message in call:
            yield message
    else:
        yield await call if inspect.isawaitable(call) else call


def blocking(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Any, P], T]:
    """Wrap a coroutine method for a blocking session, in which it ends without suspending."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            method(self, *args, **kwargs).send(None)
        except StopIteration as done:
            return done.value
        raise RuntimeError("a blocking call was suspended: its session is not a blocking one")

    return call


def blocking_stream(
    method: Callable[Concatenate[Any, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[Any, P], Iterator[T]]:
    """Wrap a method that yields for a blocking session, in which it never suspends."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        items = method(self, *args, **kwargs)
        try:
            while True:
                try:
                    items.__anext__().__await__().send(None)
                except StopIteration as done:
                    yield done.value
                except StopAsyncIteration:
                    return
        finally:
            with suppress(StopIteration):
                items.aclose().__await__().send(None)

    return call
