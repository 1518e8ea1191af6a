"""With a checkpoint without a mask decoder, requests for masks are refused, all others answered."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb

from samclip_core.commands.export import export
from samclip_core.model import SamClip
from services.heads.segmentation.app import Segmentation
from services.settings import Settings
from tests.in_process import Caller, png
from tests.tiny import WITHOUT_MASKS, make_tiny_checkpoint
from tests.unit.services.test_local import AREA, BOX, IMAGE, LABELS, OF_PROMPTS, REQUESTS, rpc_of

POINT = pb.Prompt(points=[pb.Point(x=20, y=15)])
REFUSED: list[Message] = [
    pb.SegmentRequest(image=IMAGE, prompts=[POINT]),
    pb.SegmentRequest(image=pb.Image(key="0" * 64), prompts=[POINT]),
    pb.SegmentRequest(image=IMAGE, prompts=[pb.Prompt(text="a dog")]),
    pb.SegmentRequest(image=IMAGE, prompts=[pb.Prompt(mask=AREA.rle)]),
    *(pb.SegmentEverythingRequest(image=IMAGE, encoding=one) for one in (*OF_PROMPTS, pb.PANOPTIC)),
    pb.SegmentTextRequest(image=IMAGE, labels=LABELS, refine=True),
    pb.EmbedRequest(image=IMAGE, outputs=[pb.CLIP_POOLED, pb.SAM]),
]
ASKED_FOR_MASKS = [
    request
    for request in REQUESTS
    if isinstance(request, pb.AskRequest) and request.head == "parts"
]
ANSWERED = [
    request
    for request in REQUESTS
    if not isinstance(
        request, pb.SegmentRequest | pb.SegmentEverythingRequest | pb.ListHeadsRequest
    )
    and request not in ASKED_FOR_MASKS
    and not getattr(request, "refine", False)
]
SAYS = "checkpoint 'tiny-v4' makes no masks"


@pytest.fixture(scope="module", params=["torch", pytest.param("graphs", marks=pytest.mark.slow)])
def tiny_checkpoint(request: pytest.FixtureRequest, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("v4") / "tiny"
    made = make_tiny_checkpoint(made, "radio", **WITHOUT_MASKS)
    if request.param == "graphs":
        export(made)
    return made


@pytest.fixture(scope="module")
def tiny_model(tiny_checkpoint: Path) -> SamClip:
    return SamClip.load(tiny_checkpoint)


async def test_what_needs_masks_is_refused_unencoded_and_the_rest_answered(
    caller: Caller, tiny_model: SamClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tiny_model, "encode_batch", None)  # a call would be an internal error
        for request in (*REFUSED, *ASKED_FOR_MASKS):
            await caller.refuses(rpc_of(request), (request, SAYS))
    for request in ANSWERED:
        answer = await caller(rpc_of(request), request)
        assert answer.model.without_masks
        contents = {descriptor.name for descriptor, _ in answer.ListFields()}
        assert contents - {"model", "image"}, request
    every = await caller("Embed", pb.EmbedRequest(image=IMAGE))
    assert [tensor.name for tensor in every.tensors] == ["CLIP_DENSE", "CLIP_POOLED"]


async def test_a_concept_needs_a_box_or_a_mask(caller: Caller) -> None:
    def put(**place: Any) -> pb.PutConceptRequest:
        return pb.PutConceptRequest(name="x", examples=[pb.Example(image=IMAGE, **place)])

    await caller("PutConcept", put(box=BOX))
    points = pb.Points(points=POINT.points)
    await caller.refuses("PutConcept", (put(points=points), "example 0: the checkpoint 'tiny-v4'"))


async def test_its_segmentation_is_healthy(caller: Caller, tiny_checkpoint: Path) -> None:
    segmentation = Segmentation(Settings(checkpoint=str(tiny_checkpoint)))
    assert (await segmentation.health())["engine"] in ("none", "torch")
    await segmentation.close()


async def test_streams_are_refused(caller: Caller) -> None:
    everything = pb.SegmentEverythingRequest(image=IMAGE)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await anext(aiter(caller.stream("StreamEverything", everything)))
    assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert SAYS in (error.value.details() or "")


async def test_collections_and_areas(caller: Caller) -> None:
    items = [pb.IndexItem(id=str(n), image=pb.Image(encoded=png(n))) for n in range(2)]
    assert (await caller("Index", pb.IndexRequest(collection="it", items=items))).indexed == 2
    asked = {"collection": "it", "top_k": 1}
    for query in ({"text": "a dog"}, {"image": IMAGE, "area": AREA}, {"id": "1"}):
        assert len((await caller("Search", pb.SearchRequest(**asked, **query))).hits) == 1
    request = pb.ClassifyRequest(images=[IMAGE], labels=LABELS, areas=[pb.Area(box=BOX), AREA])
    assert len((await caller("Classify", request)).results) == 2
