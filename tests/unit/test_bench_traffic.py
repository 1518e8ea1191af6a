"""What the benchmark asks is what the service understands, over both transports."""

from functools import partial

import pytest
from samclip.v1 import samclip_pb2 as pb
from starlette.requests import Request

from services import bodies
from services.arrival import Arrivals
from tests.bench import traffic

REQUESTS = {
    "embed": pb.EmbedRequest,
    "classify": pb.ClassifyRequest,
    "click": pb.SegmentRequest,
    "semantic": pb.SegmentTextRequest,
}


@pytest.mark.parametrize("images", ["file", "key"])
@pytest.mark.parametrize("kind", REQUESTS)
async def test_both_transports_ask_the_same(kind: str, images: str) -> None:
    content_type, content = traffic.body(kind, images, 5)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": content, "more_body": False}

    scope = {"type": "http", "headers": [(b"content-type", content_type.encode())]}
    to_message = partial(bodies.to_message, REQUESTS[kind])
    found = await bodies.read(Request(scope, receive), 2**20, 1000, Arrivals(), to_message)
    assert found == traffic.message(kind, images, 5)


def test_a_fresh_file_is_new_and_a_known_one_is_not() -> None:
    assert traffic.fresh(1) != traffic.fresh(1)
    assert traffic.fresh(1).startswith(traffic.known(1))
    assert traffic.known(1) == traffic.known(1 + len(traffic.files()))
