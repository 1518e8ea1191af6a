"""The benchmark's requests are valid for the service."""

from collections import Counter

import pytest
from samclip.v1 import samclip_pb2 as pb
from starlette.requests import Request

from benchmarks import traffic
from services.request import bodies, messages
from services.request.transit import Budget

REQUESTS = {"/classify": pb.ClassifyRequest, "/segment": pb.SegmentRequest}
REQUESTS |= {"/search": pb.SearchRequest, "/index": pb.IndexRequest}


async def understood(path: str, content_type: str, content: bytes) -> pb.ClassifyRequest:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": content, "more_body": False}

    async with bodies.whole(
        Request({"type": "http", "headers": []}, receive), 2**24, Budget("request bodies", 2**29)
    ) as chunks:
        fields = bodies.parse(chunks, content_type, 1000)
    return messages.to_message(REQUESTS[path], fields, bodies.is_form(content_type))


async def test_the_service_understands_a_visit() -> None:
    visit = next(traffic.working_day(1))
    classify, *clicks, search = [await understood(*traffic.to_service(ask)) for ask in visit]
    assert classify.images[0].encoded == visit[0].file
    assert list(classify.labels) == list(traffic.LABELS)
    assert {len(click.image.key) for click in clicks} == {64}
    points = {(click.prompts[0].points[0].x, click.prompts[0].points[0].y) for click in clicks}
    assert len(points) == len(clicks) == 3
    assert search.text


async def test_the_service_understands_the_collection() -> None:
    index = await understood("/index", "application/json", traffic.collection())
    assert index.collection == traffic.COLLECTION
    assert len({item.image.encoded for item in index.items}) == traffic.COLLECTION_SIZE


def test_a_fresh_file_is_new() -> None:
    assert traffic.fresh(1) != traffic.fresh(1)
    assert traffic.fresh(1).startswith(traffic.photograph(1))
    assert len({next(traffic.all_new())[0].file for _ in range(5)}) == 5


def test_a_working_day_follows_zipfs_law() -> None:
    visits = list(traffic.working_day(5000))
    files = Counter(visit[0].file for visit in visits)
    (_, first), (_, second) = files.most_common(2)
    assert first / second == pytest.approx(2**traffic.ZIPF, rel=0.15)
    assert len(files) < traffic.IMAGES
    assert visits[:10] == list(traffic.working_day(10))
    assert len({visit[-1].text for visit in visits}) == len(files)
