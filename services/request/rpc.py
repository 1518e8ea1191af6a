"""The wrappers of all rpcs: request id, admission, deadline, metrics and error status.

``rpc`` wraps a method with one answer; ``stream_rpc`` wraps one that yields answers, to one request
or, in a session, to a stream of messages. A failed method sets the status on the context, and
returns an empty message if its rpc has one answer: Ray Serve would send the text of an exception,
stack trace included, to the caller.
"""

import functools
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager, nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, get_type_hints

from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import Unauthenticated, Unavailable
from services.observability import logs, metrics, tracing
from services.request import admission, json_bodies, request_log, sessions, status, stream_key
from services.request.callers import Caller
from services.request.channel import ERROR_KIND
from services.request.context import RequestContext, time_limit
from services.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Method = Callable[[Any, Request, RequestContext], Awaitable[Response]]
Messages = AsyncIterator[Any]
"""What the caller of a session sends."""
Answers = AsyncGenerator[Any, None]


class Context(Protocol):
    """The methods used of Serve's or gRPC's servicer context."""

    def invocation_metadata(self) -> Any: ...
    def set_code(self, code: Any) -> None: ...
    def set_details(self, details: str) -> None: ...
    def set_trailing_metadata(self, trailing_metadata: Any) -> None: ...


class Service:
    """Base of the ingress of each application; its rpcs are the methods marked ``@rpc``."""

    name: ClassVar[str]  # the service in samclip.proto
    application: ClassVar[str]  # in Serve
    bulk: ClassVar[frozenset[str]] = frozenset()  # rpcs that are bulk work by default
    tunable: ClassVar[tuple[str, ...]] = ("log_level",)  # settings that may change at run time
    model: pb.ModelInfo
    figures: Mapping[str, float] = MappingProxyType({})  # measured quality of the model

    def __init__(self, settings: Settings):
        self.settings = settings
        self._sessions = sessions.Sessions()
        if settings.otlp_endpoint:
            tracing.start(self.application, settings.otlp_endpoint)

    def tune(self, settings: Settings) -> None:
        """Apply the ``tunable`` settings. Raises SettingsError, and then changes nothing."""
        self.settings = settings
        logs.start(settings.log_level)

    def successor(self, settings: Settings) -> "Service":
        """Load the same service with the checkpoint of these settings, beside this one."""
        return type(self)(settings)

    async def usable(self) -> bool:
        """Return whether everything that the checkpoint depends on is available."""
        return True

    async def close(self) -> None:
        """Release all resources. The service answers nothing afterwards."""

    def __serve_build_asgi_app__(self) -> "ASGIApp":
        """Build the HTTP side; Serve calls this method by name."""
        from services.request import http  # FastAPI, which ``samclip --local`` does not need

        return http.application(self.application, self)

    async def health(self) -> dict[str, Any]:
        """Return the application's report; any answer means that it is ready."""
        return {"model": json_bodies.to_json(self.model)}

    async def check_health(self) -> None:
        """Raise Unavailable if the replica is unhealthy; Serve replaces it if that persists."""
        most, used = self.settings.max_replica_bytes, metrics.resident_bytes()
        if most and used > most:
            raise Unavailable(f"the replica uses {used:,} bytes of memory, at most {most:,}")

    def scope(self, method: str, request: Message | Messages) -> str:
        """Return the scope of ``services.front_door.keys`` that a key needs for this rpc."""
        return "read"

    async def call(self, method: str, request: Message, metadata: Mapping[str, str]) -> Message:
        """Call ``respond`` and record it as one request."""
        with request_log.request(self.name, method, metadata):
            return await self.respond(method, request, self.arrive(method, metadata))

    async def respond(self, method: str, request: Message, context: RequestContext) -> Message:
        """Answer one request that came over HTTP or gRPC.

        Raises an error of ``samclip_core.errors``, or any other; ``services.request.status``
        translates both.
        """
        with self._audited(method, request, context):
            context.caller.check(self.scope(method, request))
            async with time_limit(context):
                return await self.answer(method, request, context)

    async def stream(
        self, method: str, request: Message | Messages, metadata: Mapping[str, str]
    ) -> Answers:
        """Yield the answers to one request, or to each message of a session, and record it as one.

        Raises as ``respond`` does, and the errors of ``services.request.sessions``.
        """
        with request_log.request(self.name, method, metadata):
            most_s = None if isinstance(request, Message) else sessions.LONGEST_S
            context = self.arrive(method, metadata, most_s)
            async with aclosing(self.respond_in_parts(method, request, context)) as answers:
                async for answer in answers:
                    yield answer

    async def respond_in_parts(
        self, method: str, request: Message | Messages, context: RequestContext
    ) -> Answers:
        """Do what ``stream`` does, without a record."""
        context.caller.check(self.scope(method, request))
        total_s = context.priority.time_left()
        with nullcontext() if isinstance(request, Message) else self._sessions.opened():
            async with stream_key.opened(context) as key:
                if not isinstance(request, Message):
                    request = sessions.within_limits(request, key.count)
                async with aclosing(self.answers(method, request, context)) as answers:
                    while True:
                        # While an answer is sent, the limit would look like a cancelled call.
                        async with time_limit(context, total_s), key.watched():
                            answer = await anext(answers, None)
                        if answer is None:
                            return
                        yield answer

    def arrive(
        self, method: str, metadata: Mapping[str, str], most_s: float | None = None
    ) -> RequestContext:
        """Return the context of a request from its headers; its time begins now.

        ``most_s`` limits it, or else the settings do. Raises Unauthenticated and InvalidRequest.
        """
        if not admission.admitted(metadata):
            raise Unauthenticated(admission.REFUSAL)
        caller = Caller.read(metadata, bool(self.settings.api_keys_file))
        limit_s = most_s or self.settings.request_timeout_s
        return RequestContext.read(metadata, caller, limit_s, bulk=method in self.bulk)

    async def answer(self, method: str, request: Message, context: RequestContext) -> Message:
        """Run the method of the rpc."""
        body: Method[Message, Message] = getattr(self, method).answer
        return await body(self, request, context)

    async def answers(
        self, method: str, request: Message | Messages, context: RequestContext
    ) -> Answers:
        """Run the method of an rpc that answers with a stream."""
        async with aclosing(getattr(self, method).answer(self, request, context)) as answers:
            async for answer in answers:
                yield answer

    @contextmanager
    def _audited(self, method: str, request: Message, context: RequestContext) -> Iterator[None]:
        """Audit each attempted change: the caller, the rpc and the outcome."""
        code = "CANCELLED"
        try:
            yield
            code = "OK"
        except Exception as error:
            code = status.describe(error, "").status.code.name
            raise
        finally:
            if (scope := self.scope(method, request)) != "read":
                collection = str(getattr(request, "collection", ""))[:80]
                about = {"scope": scope, "collection": collection}
                context.caller.audit(method, context.id, code, **about)


def rpc(method: Method[Request, Response]) -> Callable[[Any, Request, Context], Any]:
    """Wrap ``async method(self, request, context)`` as a gRPC method of samclip.proto."""
    empty: type[Response] = get_type_hints(method)["return"]

    @functools.wraps(method)
    async def grpc_method(self: Service, request: Request, grpc_context: Context) -> Message:
        metadata = headers_of(grpc_context)
        try:
            return await self.call(method.__name__, request, metadata)
        except Exception as error:
            fail(grpc_context, error, metadata)
            return empty()

    return _published(grpc_method, method)


def stream_rpc(method: Callable[[Any, Any, RequestContext], Answers]) -> Callable[..., Any]:
    """Wrap ``async method(self, request, context)`` that yields messages as a gRPC method.

    In a session, ``request`` is an asynchronous iterator over the caller's messages.
    """

    @functools.wraps(method)
    async def grpc_method(self: Service, request: Any, grpc_context: Context) -> Answers:
        metadata = headers_of(grpc_context)
        try:
            async with aclosing(self.stream(method.__name__, request, metadata)) as answers:
                async for answer in answers:
                    yield answer
        except Exception as error:
            fail(grpc_context, error, metadata)

    return _published(grpc_method, method)


def headers_of(grpc_context: Context) -> dict[str, str]:
    """Return the headers of a call, with a request id in any case."""
    metadata = dict(grpc_context.invocation_metadata())
    metadata[request_log.REQUEST_ID] = metadata.get(request_log.REQUEST_ID) or uuid.uuid4().hex
    return metadata


def fail(grpc_context: Context, error: Exception, metadata: Mapping[str, str]) -> None:
    """Set the status of a call that failed."""
    failure = status.describe(error, metadata[request_log.REQUEST_ID])
    grpc_context.set_code(failure.status.code)
    grpc_context.set_details(failure.message)
    grpc_context.set_trailing_metadata([(ERROR_KIND, failure.kind)])


def _published(grpc_method: Any, method: Callable[..., Any]) -> Any:
    """Give a wrapper the signature that Serve needs, and its method as ``answer``."""
    # Serve passes the context only if the signature names it, and ``wraps`` would hide that.
    del grpc_method.__wrapped__
    grpc_method.answer = method
    return grpc_method
