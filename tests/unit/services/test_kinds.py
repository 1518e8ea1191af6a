"""The services answer with a checkpoint of a kind whose encoder is shared by all heads."""

from pathlib import Path

import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.model import SamClip
from tests.in_process import Caller
from tests.tiny import BESIDE_MOBILE_SAM, make_tiny_checkpoint
from tests.unit.services.test_local import REQUESTS, rpc_of


@pytest.fixture(scope="module", params=[{}, BESIDE_MOBILE_SAM], ids=["alone", "beside MobileSAM"])
def tiny_checkpoint(request: pytest.FixtureRequest, tmp_path_factory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("kinds") / "it", "radio", **request.param)


@pytest.fixture(scope="module")
def tiny_model(tiny_checkpoint: Path) -> SamClip:
    return SamClip.load(tiny_checkpoint)


async def test_every_head_answers(caller: Caller) -> None:
    for request in REQUESTS:
        answer = await caller(rpc_of(request), request)
        assert answer.model.kind == "radio"
        contents = {descriptor.name for descriptor, _ in answer.ListFields()}
        assert contents - {"model", "image"}, request
    item = pb.IndexItem(id="one", image=REQUESTS[0].images[0])
    await caller("Index", pb.IndexRequest(collection="it", items=[item]))
    found = await caller("Search", pb.SearchRequest(collection="it", text="a dog", top_k=1))
    assert [hit.id for hit in found.hits] == ["one"]
