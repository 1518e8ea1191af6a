import asyncio
import inspect
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from unittest.mock import Mock

import grpc
import pytest
from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb

from samclip_core.errors import (
    DeadlineExceeded,
    InvalidLabels,
    InvalidRequest,
    KeyUnknown,
    PermissionDenied,
    Unavailable,
    UnsupportedImage,
)
from services.observability import metrics
from services.request import calls, request_log, rpc, streams
from services.request.context import (
    KEY,
    PRIORITY,
    SCOPES,
    TENANT,
    TIMEOUT,
    RequestContext,
    audit_log,
    time_limit,
)
from services.settings import Settings
from tests.in_process import Caller, served

ANN = {KEY: "ann", TENANT: "acme", SCOPES: "read"}


class Echo(rpc.Service):
    """A service that echoes the first label, or does what the label names."""

    name = "ClassificationService"
    application = "classification"

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self.cancelled = asyncio.Event()
        self.seen: list[RequestContext] = []
        self.times_left: list[float | None] = []

    @rpc.rpc
    async def Classify(
        self, request: pb.ClassifyRequest, context: RequestContext
    ) -> pb.ClassifyResponse:
        self.seen.append(context)
        self.times_left.append(context.priority.time_left())
        what = request.labels[0]
        if what == "wait":
            try:
                await asyncio.sleep(60)
            finally:
                self.cancelled.set()
        errors = {
            "labels": InvalidLabels("no good labels"),
            "type": UnsupportedImage("a GIF"),
            "key": KeyUnknown("send the image"),
            "bug": RuntimeError("password=hunter2"),
            "timeout": TimeoutError("of something else"),
        }
        if what in errors:
            raise errors[what]
        return pb.ClassifyResponse(model=pb.ModelInfo(name=what))

    @rpc.rpc
    async def SegmentStream(
        self, request: AsyncIterator[pb.SegmentStreamRequest], context: RequestContext
    ) -> AsyncGenerator[pb.SegmentStreamResponse, None]:
        self.seen.append(context)
        try:
            async for message in request:
                width = len(message.points)
                if width == 3:
                    raise InvalidRequest("three points")
                if width == 4:
                    await asyncio.sleep(60)
                yield pb.SegmentStreamResponse(image=pb.ImageInfo(width=width))
        finally:
            self.cancelled.set()

    @rpc.rpc
    async def StreamEverything(
        self, request: pb.SegmentEverythingRequest, context: RequestContext
    ) -> AsyncGenerator[pb.EverythingUpdate, None]:
        for index in range(request.points_per_side):
            yield pb.EverythingUpdate(progress=index / request.points_per_side)
        await asyncio.sleep(60)


class EchoStream(Echo):
    name = "SegmentationService"
    application = "segmentation"


def points(count: int) -> pb.SegmentStreamRequest:
    return pb.SegmentStreamRequest(points=[pb.Point()] * count)


def ask(label: str) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(labels=[label])


async def answer(echo: Echo, label: str = "dog", **headers: str) -> Message:
    """Ask past gRPC and HTTP."""
    return await echo.answer("Classify", ask(label), echo.arrive("Classify", headers))


def everything(echo: Echo, points: int = 1) -> rpc.Answers:
    request = pb.SegmentEverythingRequest(points_per_side=points)
    return echo.answers("StreamEverything", request, echo.arrive("StreamEverything", {}))


@pytest.fixture
def echo() -> Echo:
    return Echo(Settings(request_timeout_s=30))


def requests(code: str) -> float:
    return metrics.REQUESTS.labels("ClassificationService", "Classify", code)._value.get()


async def test_an_answer_is_counted_once(echo):
    before = requests("OK")
    async with served(echo) as port:
        caller = Caller(port)
        assert (await caller("Classify", ask("dog"))).model.name == "dog"
        await caller.close()
    assert requests("OK") == before + 1
    assert metrics.INFLIGHT.labels("ClassificationService")._value.get() == 0


async def test_errors_become_status_and_message(echo):
    async with served(echo) as port:
        caller = Caller(port)
        for what, code, message in (
            ("labels", "INVALID_ARGUMENT", "no good labels"),
            ("type", "INVALID_ARGUMENT", "a GIF"),
            ("key", "FAILED_PRECONDITION", "send the image"),
        ):
            before = requests(code)
            assert await caller.refused("Classify", ask(what)) == (code, message)
            assert (await caller("Classify", ask("dog"))).model.name == "dog"
            assert requests(code) == before + 1
        await caller.close()


@pytest.mark.parametrize("what", ["bug", "timeout"])
@pytest.mark.parametrize("given", [((request_log.REQUEST_ID, "r-77"),), ()])
async def test_a_bug_tells_the_request_id_and_nothing_more(echo, caplog, what, given):
    async with served(echo) as port:
        caller = Caller(port, given)
        code, message = await caller.refused("Classify", ask(what))
        await caller.close()
    (context,) = echo.seen
    assert context.id == "r-77" if given else len(context.id) == 32
    assert (code, message) == ("INTERNAL", f"internal error; request id {context.id}")
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert context.id in record.getMessage()
    assert record.exc_info


async def test_a_key_needs_the_scope_and_is_known_to_the_work(echo):
    with pytest.raises(PermissionDenied):
        await answer(echo, **{**ANN, SCOPES: "index"})
    arrived = echo.arrive("SegmentStream", {SCOPES: "index"})
    with pytest.raises(PermissionDenied):
        await anext(echo.answers("SegmentStream", object(), arrived))
    assert echo.seen == []
    await answer(echo, **ANN)
    assert echo.seen[0].caller.tenant == "acme"


async def test_changes_are_audited_and_questions_are_not(echo, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(audit_log, "info", lines.append)
    await answer(echo, **ANN)
    assert lines == []
    monkeypatch.setattr(Echo, "scope", lambda *_: "index")
    with pytest.raises(PermissionDenied):
        await answer(echo, **ANN, request_id="r-1")
    allowed = {**ANN, SCOPES: "index", "request_id": "r-2"}
    await answer(echo, **allowed)
    cancelled = asyncio.create_task(answer(echo, "wait", **allowed))
    while len(echo.seen) < 3:
        await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    records = [json.loads(line) for line in lines]
    assert {(record["audit"], record["key"]) for record in records} == {("Classify", "ann")}
    assert [(record["id"], record["code"]) for record in records] == [
        ("r-1", "PERMISSION_DENIED"),
        ("r-2", "OK"),
        ("r-2", "CANCELLED"),
    ]


GUESSED = ((calls.SECRET_HEADER, "guessed"),)


async def test_what_did_not_come_through_the_front_door_is_refused(echo):
    async with served(echo) as port:
        caller = Caller(port, GUESSED)
        code, details = await caller.refused("Classify", ask("dog"))
        assert (code, details) == ("UNAUTHENTICATED", calls.REFUSAL)
        await caller.close()
    streamed = Mock()
    streamed.invocation_metadata.return_value = GUESSED
    every = echo.StreamEverything(pb.SegmentEverythingRequest(), grpc_context=streamed)
    assert [answer async for answer in every] == []
    streamed.set_code.assert_called_once_with(grpc.StatusCode.UNAUTHENTICATED)
    assert echo.seen == []


async def test_a_replica_that_has_grown_too_large_is_not_healthy(monkeypatch):
    await Echo(Settings()).check_health()
    await Echo(Settings(max_replica_bytes=2**40)).check_health()
    with pytest.raises(Unavailable, match="at most 1,000"):
        await Echo(Settings(max_replica_bytes=1000)).check_health()


async def test_the_service_has_a_time_limit_of_its_own():
    echo = Echo(Settings(request_timeout_s=0.5))
    with pytest.raises(DeadlineExceeded, match=r"within 0\.(4\d|5) s"):
        await answer(echo, "wait")
    assert echo.cancelled.is_set()


@pytest.mark.parametrize(
    ("left_s", "named"), [(0.497, "0.5 s"), (0.25, "0.25 s"), (29.97, "30 s"), (149.96, "150 s")]
)
async def test_the_time_limit_is_named_though_some_has_passed(left_s: float, named: str):
    with pytest.raises(DeadlineExceeded, match=f"^no answer within {named}: try"):
        async with time_limit(RequestContext().within(0.01), left_s):
            await asyncio.sleep(60)


async def test_the_callers_deadline_stops_the_work(echo):
    before = requests("CANCELLED")
    async with served(echo) as port:
        caller = Caller(port)
        code, _ = await caller.refused("Classify", ask("wait"), timeout=0.2)
        await asyncio.wait_for(echo.cancelled.wait(), 10)
        await caller.close()
    assert code == "DEADLINE_EXCEEDED"
    assert requests("CANCELLED") == before + 1


async def test_a_deadline_in_the_headers_is_kept_where_it_is_earlier(echo):
    await answer(echo)
    assert 0 < echo.times_left[0] <= 30
    with pytest.raises(DeadlineExceeded, match=r"within 0\.0(5|4\d*) s"):  # some time has passed
        await answer(echo, "wait", **{TIMEOUT: "50m"})
    assert echo.cancelled.is_set()
    await answer(echo, **{TIMEOUT: "1H"})
    assert echo.times_left[-1] <= 30


async def test_a_caller_says_what_is_bulk_and_a_service_what_is_by_default(echo, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Echo, "bulk", frozenset({"Classify"}))
        await answer(echo)
        await answer(echo, **{PRIORITY: "interactive"})
    await answer(echo, **{PRIORITY: "bulk"})
    assert [context.priority.bulk for context in echo.seen] == [True, False, True]


async def test_the_level_of_the_log_changes_while_it_runs(echo):
    logger = logging.getLogger("services")
    at_start = echo.settings
    for config, level in (({"log_level": "DEBUG"}, "DEBUG"), ({}, "WARNING")):
        echo.tune(at_start.tuned(config, echo.tunable))
        assert logging.getLevelName(logger.level) == level


@pytest.fixture
async def session() -> AsyncIterator[tuple[EchoStream, Caller]]:
    echo = EchoStream(Settings(request_timeout_s=30))
    async with served(echo) as port:
        caller = Caller(port)
        yield echo, caller
        await caller.close()


def ended(rpc: str, code: str) -> float:
    return metrics.REQUESTS.labels("SegmentationService", rpc, code)._value.get()


async def test_a_session_answers_message_by_message(session):
    _, caller = session
    before = ended("SegmentStream", "OK")
    call = caller.stream("SegmentStream", None)
    for count in (0, 2, 1):
        await call.write(points(count))
        assert (await call.read()).image.width == count
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert ended("SegmentStream", "OK") == before + 1


async def test_an_error_in_a_session_ends_it_with_a_status(session):
    echo, caller = session
    before = ended("SegmentStream", "INVALID_ARGUMENT")
    call = caller.stream("SegmentStream", None)
    for count in (1, 3):
        await call.write(points(count))
    assert (await call.read()).image.width == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert (caught.value.code().name, caught.value.details()) == (
        "INVALID_ARGUMENT",
        "three points",
    )
    assert dict(await call.trailing_metadata())[calls.ERROR_KIND] == "InvalidRequest"
    assert ended("SegmentStream", "INVALID_ARGUMENT") == before + 1
    assert echo.cancelled.is_set()


async def test_a_session_ends_when_its_caller_leaves(session, monkeypatch):
    monkeypatch.setattr(streams, "MAX_SESSIONS", 1)
    echo, caller = session
    call = caller.stream("SegmentStream", None)
    await call.write(points(1))
    await call.read()
    with pytest.raises(grpc.aio.AioRpcError, match="1 sessions are open"):
        await caller.stream("SegmentStream", None).read()
    call.cancel()
    await asyncio.wait_for(echo.cancelled.wait(), 10)
    again = caller.stream("SegmentStream", None)
    await again.write(points(2))
    assert (await again.read()).image.width == 2


async def test_work_in_a_session_stops_when_its_caller_leaves(session):
    echo, caller = session
    before = ended("SegmentStream", "CANCELLED")
    call = caller.stream("SegmentStream", None)
    await call.write(points(4))
    while not echo.seen:
        await asyncio.sleep(0.01)
    call.cancel()
    await asyncio.wait_for(echo.cancelled.wait(), 10)
    assert ended("SegmentStream", "CANCELLED") == before + 1


async def test_an_idle_session_ends_with_an_error(session, monkeypatch):
    monkeypatch.setattr(streams, "IDLE_S", 0.1)
    _, caller = session
    call = caller.stream("SegmentStream", None)
    with pytest.raises(grpc.aio.AioRpcError, match=r"no message for 0\.1 seconds") as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_session_may_last_longer_than_a_request_and_has_the_callers_deadline(session):
    echo, caller = session
    call = caller.stream("SegmentStream", None, timeout=0.2)
    await call.write(points(1))
    await call.read()
    assert echo.seen[0].priority.time_left() > 1000
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(echo.cancelled.wait(), 10)


async def test_a_time_limit_that_passes_while_an_answer_is_sent_is_no_cancelled_call():
    answers = everything(EchoStream(Settings(request_timeout_s=0.2)), points=2)
    assert [(await anext(answers)).progress for _ in range(2)] == [0, 0.5]
    await asyncio.sleep(0.3)  # the caller is slow to take it
    with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
        await anext(answers)


def test_serve_finds_the_context_in_the_signature():
    assert inspect.isasyncgenfunction(Echo.SegmentStream)
    names = list(inspect.signature(Echo.SegmentStream).parameters)
    assert names == ["self", "request", "grpc_context"]
    assert list(inspect.signature(Echo.Classify).parameters) == ["self", "request", "grpc_context"]
    assert Echo.Classify.__name__ == "Classify"


def test_it_has_an_http_side(echo):
    paths = {route.path for route in echo.__serve_build_asgi_app__().routes}
    assert "/classify" in paths
