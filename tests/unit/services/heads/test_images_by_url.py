"""Every rpc answers an image by its URL as it answers the file, which it fetches once."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from samclip.images import read_pixels
from samclip.v1 import samclip_pb2 as pb

from services.request import http
from services.request.image_urls import ImageUrls
from services.settings import Settings
from tests.far_hosts import IMAGES, FarHosts, far_hosts, file
from tests.in_process import ADMITTED, Caller, png

URL = f"http://{IMAGES}/cat.png"
BY_URL = pb.Image(url=URL)
PHOTO = png(red=50)
POINT = pb.Prompt(points=[pb.Point(x=5, y=5)])
LABELS = ["a cat", "a dog"]


@pytest.fixture
async def hosts(caller: Caller) -> AsyncIterator[FarHosts]:
    """Let the heads of ``caller`` fetch from hosts that have the photograph."""
    allowed = Settings(image_origins=f"http://{IMAGES}")  # type: ignore[arg-type]
    async with far_hosts(file(PHOTO)) as found:
        for service in caller.services:
            service.image_urls = ImageUrls(allowed, found.network())
        yield found
        for service in caller.services:
            await service.image_urls.close()


def requests(image: pb.Image) -> dict[str, Any]:
    example = pb.Example(image=image, box=pb.Box(x_max=20, y_max=20))
    return {
        "Classify": pb.ClassifyRequest(images=[image], labels=LABELS),
        "Segment": pb.SegmentRequest(image=image, prompts=[POINT, pb.Prompt(examples=[example])]),
        "SegmentEverything": pb.SegmentEverythingRequest(
            image=image, points_per_side=2, crop_layers=1
        ),
        "SegmentText": pb.SegmentTextRequest(image=image, labels=LABELS, refine=True),
        "Explain": pb.ExplainRequest(image=image, label="a cat"),
        "Index": pb.IndexRequest(
            collection="pets", items=[pb.IndexItem(id="cat", image=image)], objects=True
        ),
    }


@pytest.mark.parametrize("rpc", requests(BY_URL))
async def test_a_url_is_answered_as_its_file(caller: Caller, hosts: FarHosts, rpc: str) -> None:
    answers = [
        await caller(rpc, requests(image)[rpc]) for image in (pb.Image(encoded=PHOTO), BY_URL)
    ]
    for answer in answers:
        for info in (answer.image,) if hasattr(answer, "image") else ():
            info.cached = False
        for result in answer.results if rpc == "Classify" else ():
            result.image.cached = False
        if rpc == "Index":
            assert (answer.indexed, answer.errors) == (1, [])
            answer.replaced = 0
    assert answers[0] == answers[1]
    assert len(hosts.heads) == 1


async def test_a_session_and_a_search_take_urls(caller: Caller, hosts: FarHosts) -> None:
    async def messages() -> AsyncIterator[pb.SegmentStreamRequest]:
        yield pb.SegmentStreamRequest(image=BY_URL, points=POINT.points)

    answers = [answer async for answer in caller.stream("SegmentStream", messages())]
    updates = caller.stream("StreamEverything", requests(BY_URL)["SegmentEverything"])
    (first, *_) = [update async for update in updates]
    assert answers[0].image.key == first.image.key
    await caller("Index", requests(BY_URL)["Index"])
    found = await caller("Search", pb.SearchRequest(collection="pets", image=BY_URL))
    assert found.hits[0].score == pytest.approx(1, abs=1e-3)


async def test_a_refused_item_is_named_and_the_others_are_indexed(
    caller: Caller, hosts: FarHosts
) -> None:
    request = requests(BY_URL)["Index"]
    request.items.add(id="evil", image=pb.Image(url="http://evil.example/"))
    answer = await caller("Index", request)
    assert (answer.indexed, answer.errors[0].id) == (1, "evil")
    assert "http://evil.example are not fetched" in answer.errors[0].message


async def test_json_and_forms_take_urls_and_a_picture_is_drawn_on_the_image(
    caller: Caller, hosts: FarHosts
) -> None:
    (semantic,) = (one for one in caller.services if one.application == "semantic")
    headers = {"accept": "image/png", **dict(ADMITTED)}
    transport = httpx.ASGITransport(http.application("semantic", semantic))
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as door:
        body = {"image": base64.b64encode(PHOTO).decode(), "labels": LABELS}
        drawn = await door.post("/semantic", json=body, headers=headers)
        for image in URL, {"url": URL}, {"encoded": None, "url": URL}:
            body = {"image": image, "labels": LABELS}
            reply = await door.post("/semantic", json=body, headers=headers)
            assert reply.status_code == 200, reply.text
            assert reply.content == drawn.content
        form = [("image", (None, URL)), *(("labels", (None, label)) for label in LABELS)]
        again = await door.post("/semantic", files=form, headers=headers)
        assert again.content == drawn.content
        refused = await door.post(
            "/semantic", json={"image": "https://evil.example/", "labels": LABELS}, headers=headers
        )
    assert (refused.status_code, "image_origins" in refused.json()["detail"]) == (400, True)
    assert len(hosts.heads) == 4
    assert semantic.image_urls._arrivals.number == 0
    assert read_pixels(drawn.content).shape == (30, 40, 3)
