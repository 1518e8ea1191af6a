"""A request is one trace through all services; without a collector there are no spans."""

import asyncio
import threading

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import INVALID_SPAN
from samclip.v1 import samclip_pb2 as pb

from samclip_core.model import SamClip
from services.cache.connection import RedisLink
from services.observability import metrics, tracing
from tests.in_process import ADMITTED, Caller, png
from tests.shown import shown

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
POINT = pb.Prompt(points=[pb.Point(x=20, y=15)])


def parents(spans: list[ReadableSpan]) -> dict[str, str]:
    """Return span name → name of its parent, "" for a parent outside these spans."""
    names = {span.context.span_id: span.name for span in spans}
    return {span.name: names.get(span.parent.span_id, "") if span.parent else "" for span in spans}


def of_trace(spans: tuple[ReadableSpan, ...], trace: int) -> list[ReadableSpan]:
    return [span for span in spans if span.context.trace_id == trace]


async def ask_together(caller: Caller, model: SamClip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for masks in TRACE, while another request waits for the same batch of the encoder."""
    free, running, encode_batch = threading.Event(), threading.Event(), model.encode_batch

    def held(batch):
        running.set()
        assert free.wait(60)
        return encode_batch(batch)

    monkeypatch.setattr(model, "encode_batch", held)
    traced = Caller(caller.port, (*ADMITTED, ("traceparent", f"00-{TRACE}-{SPAN}-01")))

    def embed(number: int) -> asyncio.Task:
        request = pb.EmbedRequest(image=pb.Image(encoded=png(number)), outputs=[pb.SAM])
        return asyncio.create_task(caller("Embed", request))

    async def waiting(count: int) -> None:
        while shown(metrics.QUEUE.labels("image_encoder")) != count:
            await asyncio.sleep(0.001)

    # Only ours has a mask to decode: its batch of the decoder has no other member.
    ours_asks = pb.SegmentRequest(image=pb.Image(encoded=png(2)), prompts=[POINT])
    alone = embed(1)  # occupies the device
    assert await asyncio.to_thread(running.wait, 60)
    ours = asyncio.create_task(traced("Segment", ours_asks))
    await waiting(1)
    other = embed(3)
    await waiting(2)
    free.set()
    await asyncio.gather(alone, ours, other)
    await traced.close()


async def test_one_trace_from_the_caller_to_the_batch_whose_other_members_are_linked(
    caller: Caller, tiny_model: SamClip, exported: InMemorySpanExporter, monkeypatch
):
    await ask_together(caller, tiny_model, monkeypatch)
    spans = exported.get_finished_spans()
    trace = of_trace(spans, int(TRACE, 16))
    assert parents(trace) == {
        "SegmentationService/Segment": "",
        "backbone": "SegmentationService/Segment",
        "BackboneService/Embed": "backbone",
        "hash": "BackboneService/Embed",
        "cache_l1": "BackboneService/Embed",
        "wait for decode": "BackboneService/Embed",
        "batch of decode": "wait for decode",
        "decode": "BackboneService/Embed",
        "preprocess": "BackboneService/Embed",
        "wait for image_encoder": "BackboneService/Embed",
        "batch of image_encoder": "wait for image_encoder",
        "execute": "batch of image_encoder",
        "wait for mask_decoder": "SegmentationService/Segment",
        "batch of mask_decoder": "wait for mask_decoder",
        "mask_decode": "batch of mask_decoder",
        "wait for work": "SegmentationService/Segment",
        "batch of work": "wait for work",
        "encode": "SegmentationService/Segment",
    }
    (root,) = [span for span in trace if span.name == "SegmentationService/Segment"]
    assert root.parent.span_id == int(SPAN, 16)
    assert root.attributes["code"] == "OK"
    (batch,) = [span for span in trace if span.name == "batch of image_encoder"]
    assert batch.attributes["members"] == 2
    (link,) = batch.links
    (member,) = [span for span in spans if span.context.span_id == link.context.span_id]
    assert member.name == "wait for image_encoder"
    assert member.context.trace_id != batch.context.trace_id
    assert [back.context for back in member.links] == [batch.context]


async def test_exchanges_with_redis_are_spans(shared_redis, exported: InMemorySpanExporter):
    link = RedisLink(shared_redis.url, 60)
    with tracing.span("request", tracing.SERVER):
        await link.read(link.client.mget, ["samclip:none"])
    await link.close()
    assert parents(list(exported.get_finished_spans())) == {"redis mget": "request", "request": ""}


async def test_a_request_that_fails_says_so(caller: Caller, exported: InMemorySpanExporter):
    await caller.refused("Classify", pb.ClassifyRequest(templates=["a secret"], labels=["a"]))
    (span,) = exported.get_finished_spans()
    assert span.attributes["code"] == "INVALID_ARGUMENT"
    assert span.attributes["request_id"]
    assert not span.status.is_ok
    assert "secret" not in span.to_json()


async def test_what_is_not_sampled_costs_one_span_and_is_not_sampled_elsewhere(
    exported: InMemorySpanExporter,
):
    unsampled = tracing.caller({"traceparent": f"00-{TRACE}-{SPAN}-00"})
    with tracing.span("request", tracing.SERVER, unsampled):
        with tracing.span("stage") as stage:
            assert stage is INVALID_SPAN
        ((name, value),) = tracing.headers()
    assert (name, value[:36], value[-2:]) == ("traceparent", f"00-{TRACE}-", "00")
    with tracing.span("no request's"):
        pass
    assert not exported.get_finished_spans()


async def test_off_it_makes_and_sends_nothing(caller: Caller):
    with tracing.span("anything") as span:
        assert span is INVALID_SPAN
        assert tracing.headers() == ()
    assert tracing.caller({"traceparent": f"00-{TRACE}-{SPAN}-01"}) is None
