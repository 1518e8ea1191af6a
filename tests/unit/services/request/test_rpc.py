"""One way of a request through a service over gRPC: its status, scope, deadline and audit."""

import asyncio
import inspect
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from time import monotonic
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
from services.batching.priority import PRIORITY, TIMEOUT, Priority
from services.deployment.ingress import Ingress
from services.observability import metrics
from services.request import calls, request_log, rpc
from services.request.context import (
    KEY,
    SCOPES,
    TENANT,
    RequestContext,
    audit_log,
    time_limit,
)
from services.settings import Settings
from tests.in_process import Caller, served
from tests.shown import shown

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

    async def StreamEverything(
        self, request: pb.SegmentEverythingRequest, context: RequestContext
    ) -> AsyncGenerator[pb.EverythingUpdate, None]:
        self.seen.append(context)
        try:
            for index in range(request.points_per_side):
                yield pb.EverythingUpdate(progress=index / request.points_per_side)
            if request.labels:
                raise InvalidRequest(request.labels[0])
            if not request.vocabulary:
                await asyncio.sleep(60)
        finally:
            self.cancelled.set()


class EchoStream(Echo):
    name = "SegmentationService"
    application = "segmentation"


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
    return shown(metrics.REQUESTS.labels("ClassificationService", "Classify", code))


async def test_an_answer_is_counted_once(echo):
    before = requests("OK")
    async with served(echo) as port:
        caller = Caller(port)
        assert (await caller("Classify", ask("dog"))).model.name == "dog"
        await caller.close()
    assert requests("OK") == before + 1
    assert shown(metrics.INFLIGHT.labels("ClassificationService")) == 0


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
    arrived = echo.arrive("StreamEverything", {SCOPES: "index"})
    with pytest.raises(PermissionDenied):
        await anext(echo.answers("StreamEverything", object(), arrived))
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
    side = rpc.over_grpc(echo, ["StreamEverything"])
    every = side(pb.SegmentEverythingRequest(), grpc_context=streamed)
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
        async with time_limit(RequestContext(priority=Priority(monotonic() + 0.01)), left_s):
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
async def streaming() -> AsyncIterator[tuple[EchoStream, Caller]]:
    echo = EchoStream(Settings(request_timeout_s=30))
    async with served(echo) as port:
        caller = Caller(port)
        yield echo, caller
        await caller.close()


def streams_ended(code: str) -> float:
    return shown(metrics.REQUESTS.labels("SegmentationService", "StreamEverything", code))


async def test_a_stream_is_counted_at_its_end(streaming):
    before = streams_ended("OK")
    request = pb.SegmentEverythingRequest(points_per_side=2, vocabulary="coco")
    updates = [update async for update in streaming[1].stream("StreamEverything", request)]
    assert [update.progress for update in updates] == [0, 0.5]
    assert streams_ended("OK") == before + 1


async def test_an_error_in_a_stream_ends_it_with_a_status(streaming):
    echo, caller = streaming
    before = streams_ended("INVALID_ARGUMENT")
    request = pb.SegmentEverythingRequest(points_per_side=1, labels=["no good"])
    call = caller.stream("StreamEverything", request)
    assert (await call.read()).progress == 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert (caught.value.code().name, caught.value.details()) == ("INVALID_ARGUMENT", "no good")
    assert dict(await call.trailing_metadata())[calls.ERROR_KIND] == "InvalidRequest"
    assert streams_ended("INVALID_ARGUMENT") == before + 1
    assert echo.cancelled.is_set()


async def test_work_of_a_stream_stops_when_its_caller_leaves(streaming):
    echo, caller = streaming
    before = streams_ended("CANCELLED")
    call = caller.stream("StreamEverything", pb.SegmentEverythingRequest(points_per_side=1))
    await call.read()
    call.cancel()
    await asyncio.wait_for(echo.cancelled.wait(), 10)
    assert streams_ended("CANCELLED") == before + 1


async def test_a_time_limit_that_passes_while_an_answer_is_sent_is_no_cancelled_call():
    answers = everything(EchoStream(Settings(request_timeout_s=0.2)), points=2)
    assert [(await anext(answers)).progress for _ in range(2)] == [0, 0.5]
    await asyncio.sleep(0.3)  # the caller is slow to take it
    with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
        await anext(answers)


def test_serve_finds_the_context_in_the_signature():
    member = Ingress(Echo, Settings())
    assert inspect.isasyncgenfunction(member.StreamEverything)
    for side in (member.StreamEverything, member.Classify):
        assert list(inspect.signature(side).parameters) == ["request", "grpc_context"]
    assert not hasattr(member, "Segment")


def test_it_has_an_http_side(echo):
    paths = {route.path for route in echo.__serve_build_asgi_app__().routes}
    assert "/classify" in paths
