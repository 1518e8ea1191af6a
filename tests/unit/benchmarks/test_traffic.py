"""The benchmark's requests are valid for the service."""

from samclip.v1 import samclip_pb2 as pb
from starlette.requests import Request

from benchmarks import traffic
from services.request import bodies, messages
from services.request.transit import Room

REQUESTS = {"/classify": pb.ClassifyRequest, "/segment": pb.SegmentRequest}


async def understood(path: str, content_type: str, content: bytes) -> pb.ClassifyRequest:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": content, "more_body": False}

    async with bodies.whole(
        Request({"type": "http", "headers": []}, receive), 2**24, Room("request bodies", 2**29)
    ) as chunks:
        fields = bodies.parse(chunks, content_type, 1000)
    return messages.to_message(REQUESTS[path], fields, bodies.is_form(content_type))


async def test_the_service_understands_what_is_asked() -> None:
    new, known = traffic.Ask("classify", traffic.fresh(0)), next(traffic.again("click"))
    classify, click = [await understood(*traffic.to_service(ask)) for ask in (new, known)]
    assert classify.images[0].encoded == new.file
    assert list(classify.labels) == list(traffic.LABELS)
    assert len(click.image.key) == 64
    point = click.prompts[0].points[0]
    assert (point.x, point.y) == known.point


def test_a_fresh_file_is_new() -> None:
    assert traffic.fresh(1) != traffic.fresh(1)
    assert traffic.fresh(1).startswith(traffic.photograph(1))
    assert len({next(traffic.all_new()).file for _ in range(5)}) == 5
