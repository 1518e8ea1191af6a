"""The base of all services, and the one way of a request through them.

gRPC here and HTTP in ``services.request.http`` record a request, make its context with ``arrive``,
and call ``answers``, or ``answer`` for the only one. It checks the caller, limits the time and
``run``s the method of the rpc: the one with its name in ``samclip.rpcs``.
"""

import inspect
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from samclip.rpcs import RPCS
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import Unavailable
from services.observability import logs, metrics, tracing
from services.request import calls, request_log, status
from services.request.context import RequestContext, time_limit
from services.request.limits import check_encoding
from services.request.to_json import to_json
from services.settings import Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

Answers = AsyncGenerator[Any, None]


class Service:
    """Base of the ingress of each application.

    Its rpcs are methods ``async Name(self, request, context)`` that return the answer, or yield
    several.
    """

    name: str  # the service in samclip.proto
    application: str  # in Serve
    bulk: frozenset[str] = frozenset()  # rpcs that are bulk work by default
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

    def scope(self, request: Message) -> str:
        """Return the scope of ``services.front_door.keys`` that a key needs for this request."""
        return "read"

    def arrive(self, method: str, headers: Mapping[str, str]) -> RequestContext:
        """Return the context of a request; its time begins now. Raises as its ``read`` does."""
        return RequestContext.read(headers, self.settings, bulk=method in self.bulk)

    async def answer(self, method: str, request: Message, context: RequestContext) -> Message:
        """Return the only answer to one request. Raises as ``answers`` does."""
        (answer,) = [one async for one in self.answers(method, request, context)]
        return answer

    async def answers(self, method: str, request: Message, context: RequestContext) -> Answers:
        """Yield the answers to one request. Attempted changes are audited.

        Raises an error of ``samclip_core.errors``, or any other; ``services.request.status``
        translates both.
        """
        total_s = context.priority.time_left()
        with self._audited(method, request, context):
            check_encoding(request, panoptic=method == "SegmentEverything")
            async with aclosing(self.run(method, request, context)) as answers:
                while True:
                    # While an answer is sent, the limit would look like a cancelled call.
                    async with time_limit(context, total_s):
                        answer = await anext(answers, None)
                    if answer is None:
                        return
                    yield answer

    @contextmanager
    def _audited(self, method: str, request: Message, context: RequestContext) -> Iterator[None]:
        """Check that the caller's key may ask this, and log what changes something."""
        scope, code = self.scope(request), "CANCELLED"
        try:
            context.caller.check(scope)
            yield
            code = "OK"
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

    async def run(self, method: str, request: Message, context: RequestContext) -> Answers:
        """Run the method of an rpc; a single answer is a stream of one."""
        made = getattr(self, method)(request, context)
        if not inspect.isasyncgen(made):
            yield await made
            return
        async with aclosing(made) as answers:
            async for answer in answers:
                yield answer


def model_of(request: Message) -> str:
    """Return the name of the model that a request asks for, "" if it names none."""
    return str(getattr(request, "model", ""))


def rpcs_of(service: object) -> list[str]:
    """Return the rpcs that a service has, by their names in ``samclip.rpcs``."""
    return [name for name in RPCS if hasattr(service, name)]


def over_grpc(service: Service, names: Iterable[str]) -> Any:
    """Return the gRPC side of rpcs that share one name in the proto: the request's type tells them.

    Serve calls it, and passes the context by the name in the signature.
    """
    rpcs = {GetMessageClass(RPCS[name].input_type): name for name in names}

    async def many(request: Message, grpc_context: Any) -> Answers:
        name = rpcs[type(request)]
        with grpc_call(grpc_context) as headers, request_log.record(service.name, name, headers):
            calls.check(headers)
            context = service.arrive(name, headers)
            answers = service.answers(name, request, context)
            with context.reply.reserved as reserved:
                async with aclosing(answers):
                    async for answer in answers:
                        reserved.set(0)  # the port counts a message that it sends
                        yield answer

    async def one(request: Message, grpc_context: Any) -> Message:
        replies = [reply async for reply in many(request, grpc_context)]
        empty = GetMessageClass(RPCS[rpcs[type(request)]].output_type)
        return replies[0] if replies else empty()

    return many if any(RPCS[name].server_streaming for name in names) else one


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
