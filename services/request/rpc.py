"""The base of all services: a table of rpcs, and the one way of a request through it.

gRPC here and HTTP in ``services.request.http`` record a request, make its context with ``arrive``,
and call ``answer``, or ``answers`` for a stream. Both check the caller, limit the time and ``run``
the method of the rpc.
"""

import functools
import inspect
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from samclip.rpcs import RPCS
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import Unavailable
from services.observability import logs, metrics, tracing
from services.request import calls, request_log, status
from services.request.context import RequestContext, time_limit
from services.request.to_json import to_json
from services.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

Method = Callable[[Any, Any, RequestContext], Any]
"""``async method(self, request, context)`` that returns the answer, or yields several."""
Answers = AsyncGenerator[Any, None]


class Service:
    """Base of the ingress of each application; its rpcs are the methods marked ``@rpc``."""

    name: ClassVar[str]  # the service in samclip.proto
    application: ClassVar[str]  # in Serve
    rpcs: ClassVar[Mapping[str, Method]] = MappingProxyType({})
    bulk: ClassVar[frozenset[str]] = frozenset()  # rpcs that are bulk work by default
    tunable: ClassVar[tuple[str, ...]] = ("log_level",)  # settings that may change at run time
    model: pb.ModelInfo
    figures: Mapping[str, float] = MappingProxyType({})  # measured quality of the model

    def __init__(self, settings: Settings):
        self.settings = settings
        if settings.otlp_endpoint:
            tracing.start(self.application, settings.otlp_endpoint)

    def tune(self, settings: Settings) -> None:
        """Apply the ``tunable`` settings. Raises SettingsError, and then changes nothing."""
        self.settings = settings
        logs.start(settings.log_level)

    @classmethod
    def shared(cls, settings: Settings) -> dict[str, Any]:
        """Return what the models of a process share: arguments of each one's service."""
        return {}

    @classmethod
    async def wanted(cls, request: Message, context: RequestContext, **shared: Any) -> str:
        """Return the identity of the checkpoint that must answer, "" for any."""
        return ""

    @classmethod
    def expected_bytes(cls, settings: Settings) -> int:
        """Return the memory that a model may take, before it was loaded and measured."""
        return 0

    async def start(self) -> None:
        """Prepare what needs the event loop, before the first request. Raises any error."""

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
        return {"model": to_json(self.model)}

    async def check_health(self) -> None:
        """Raise Unavailable if the replica is unhealthy; Serve replaces it if that persists."""
        most, used = self.settings.max_replica_bytes, metrics.resident_bytes()
        if most and used > most:
            raise Unavailable(f"the replica uses {used:,} bytes of memory, at most {most:,}")

    def scope(self, method: str, request: Message) -> str:
        """Return the scope of ``services.front_door.keys`` that a key needs for this rpc."""
        return "read"

    def arrive(self, method: str, headers: Mapping[str, str]) -> RequestContext:
        """Return the context of a request; its time begins now. Raises as its ``read`` does."""
        return RequestContext.read(headers, self.settings, bulk=method in self.bulk)

    async def answer(self, method: str, request: Message, context: RequestContext) -> Message:
        """Return the answer to one request. Attempted changes are audited.

        Raises an error of ``samclip_core.errors``, or any other; ``services.request.status``
        translates both.
        """
        scope, code = self.scope(method, request), "CANCELLED"
        try:
            context.caller.check(scope)
            async with time_limit(context), aclosing(self.run(method, request, context)) as answers:
                answer: Message = await anext(answers)
            code = "OK"
            return answer
        except Exception as error:
            code = status.describe(error, "").status.code.name
            raise
        finally:
            if scope != "read":
                collection = str(getattr(request, "collection", ""))[:80]
                about = {"scope": scope, "collection": collection}
                if hasattr(request, "name"):
                    about["concept"] = str(request.name)[:80]
                context.caller.audit(method, context.id, code, **about)

    async def answers(self, method: str, request: Message, context: RequestContext) -> Answers:
        """Yield the answers to one request. Raises as ``answer`` does."""
        context.caller.check(self.scope(method, request))
        total_s = context.priority.time_left()
        async with aclosing(self.run(method, request, context)) as answers:
            while True:
                # While an answer is sent, the limit would look like a cancelled call.
                async with time_limit(context, total_s):
                    answer = await anext(answers, None)
                if answer is None:
                    return
                yield answer

    async def run(self, method: str, request: Message, context: RequestContext) -> Answers:
        """Run the method of an rpc; a single answer is a stream of one."""
        made = self.rpcs[method](self, request, context)
        if not inspect.isasyncgen(made):
            yield await made
            return
        async with aclosing(made) as answers:
            async for answer in answers:
                yield answer


def model_of(request: Message) -> str:
    """Return the name of the model that a request asks for, "" if it names none."""
    return str(getattr(request, "model", ""))


class _Rpc:
    """A marked method: its class gets it in ``rpcs``, and its gRPC side under its name."""

    def __init__(self, method: Method):
        self.method = method

    def __set_name__(self, service: type[Service], name: str) -> None:
        service.rpcs = {**service.rpcs, name: self.method}
        side, called = _over_grpc(self.method), RPCS[name].name
        for other in service.rpcs.keys() - {name}:
            if RPCS[other].name == called:  # of another service: Serve calls both by this name
                asked = GetMessageClass(RPCS[name].input_type)
                side = _if_asked(asked, side, _over_grpc(service.rpcs[other]))
        setattr(service, called, side)


def rpc(method: Method) -> Any:
    """Mark a method that answers the rpc of its name in samclip.proto."""
    return _Rpc(method)


def _over_grpc(method: Method) -> Any:
    """Return the gRPC side of a method, which Serve calls by name."""
    name = method.__name__
    empty = get_type_hints(method)["return"]

    async def one(self: Service, request: Message, grpc_context: Any) -> Message:
        with grpc_call(grpc_context) as headers, request_log.record(self.name, name, headers):
            calls.check(headers)
            context = self.arrive(name, headers)
            with context.reply.reserved:
                return await self.answer(name, request, context)
        return empty()

    async def many(self: Service, request: Any, grpc_context: Any) -> Answers:
        with grpc_call(grpc_context) as headers, request_log.record(self.name, name, headers):
            calls.check(headers)
            context = self.arrive(name, headers)
            with context.reply.reserved as reserved:
                async with aclosing(self.answers(name, request, context)) as answers:
                    async for answer in answers:
                        reserved.set(0)  # the port counts a message that it sends
                        yield answer

    side = functools.wraps(method)(many if inspect.isasyncgenfunction(method) else one)
    # Serve passes the context only if the signature names it, and ``wraps`` would hide that.
    del side.__wrapped__
    return side


def _if_asked(asked: type[Message], side: Any, other: Any) -> Any:
    """Return the gRPC side of two methods of the same name: ``side`` if this type is asked."""

    async def one(self: Service, request: Message, grpc_context: Any) -> Any:
        chosen = side if isinstance(request, asked) else other
        return await chosen(self, request, grpc_context)

    return one


@contextmanager
def grpc_call(grpc_context: Any) -> Iterator[dict[str, str]]:
    """Yield the headers of a call, with a request id in any case; an error becomes its status.

    ``grpc_context`` is Serve's or gRPC's. After an error, a call with one answer returns an empty
    message: Serve would send the text of an exception, stack trace included, to the caller.
    """
    headers = dict(grpc_context.invocation_metadata())
    headers[request_log.REQUEST_ID] = headers.get(request_log.REQUEST_ID) or uuid.uuid4().hex
    try:
        yield headers
    except Exception as error:
        failure = status.describe(error, headers[request_log.REQUEST_ID])
        grpc_context.set_code(failure.status.code)
        grpc_context.set_details(failure.message)
        trailing = {calls.ERROR_KIND: failure.kind, **failure.headers}
        grpc_context.set_trailing_metadata([*trailing.items()])
