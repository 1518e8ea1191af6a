"""Items that come with their vectors."""

import numpy as np
import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.zero_shot import unit
from tests.in_process import Caller, png

N = 40


@pytest.fixture
def vector_ND(tiny_model) -> np.ndarray:
    return unit(np.random.default_rng(1).normal(size=(N, tiny_model.config.text_dim)))


@pytest.fixture
def model(caller: Caller) -> pb.ModelInfo:
    (retrieval,) = (one for one in caller.services if one.name == "RetrievalService")
    return pb.ModelInfo(digest=retrieval.model.digest, dtype="float32")


def request(vectors: np.ndarray, model: pb.ModelInfo, **fields: object) -> pb.IndexRequest:
    items = [
        pb.IndexItem(id=f"{n}", vector=vector_D.astype("<f4").tobytes(), metadata={"n": f"{n % 3}"})
        for n, vector_D in enumerate(vectors)
    ]
    return pb.IndexRequest(**{"collection": "lake", "items": items, "made_by": model, **fields})


async def test_they_are_found_like_embedded_images(caller: Caller, vector_ND, model) -> None:
    image = pb.Image(encoded=png(7))
    photo = pb.IndexItem(id="photo", image=image)
    await caller("Index", pb.IndexRequest(collection="lake", items=[photo]))
    (found,) = (await caller("Search", pb.SearchRequest(collection="lake", image=image))).hits
    answer = await caller("Index", request(vector_ND, model))
    assert (answer.indexed, answer.replaced, [*answer.errors]) == (N, 0, [])
    hits = (await caller("Search", pb.SearchRequest(collection="lake", id="5", top_k=N))).hits
    expected = vector_ND @ vector_ND[5]
    scores = {hit.id: hit.score for hit in hits if hit.id != "photo"}
    assert scores == pytest.approx({f"{n}": expected[n] for n in range(N) if n != 5}, abs=1e-5)
    best = (await caller("Search", pb.SearchRequest(collection="lake", image=image))).hits[0]
    assert (best.id, best.score) == ("photo", pytest.approx(found.score))
    assert (await caller("Index", request(vector_ND[:3], model))).replaced == 3


async def test_a_collection_records_their_precision(caller: Caller, vector_ND, model) -> None:
    for dtype in ("int8:4caf4841", ""):
        model.dtype = dtype
        name = f"lake-{len(dtype)}"
        await caller("Index", request(vector_ND, model, collection=name))
        (made,) = (await caller("Describe", pb.DescribeRequest(collection=name))).collections
        assert (made.count, made.dtype, made.model_digest) == (N, dtype, model.digest)
        image = pb.IndexItem(id="photo", image=pb.Image(encoded=png()))
        mixed = pb.IndexRequest(collection=name, items=[image])
        await caller.refuses("Index", (mixed, "cannot mix precisions"))
        assert (await caller("Search", pb.SearchRequest(collection=name, id="1"))).hits


async def test_bad_vectors_and_ids_are_named_and_the_others_stored(
    caller: Caller, vector_ND, model
) -> None:
    bad = vector_ND[:6].copy()
    bad[0] *= 1.1
    bad[1, 0] = np.nan
    bad[2, 1] = np.inf
    bad[3] = 0
    asked = request(bad, model)
    asked.items[4].vector = asked.items[4].vector[:-4]
    asked.items.add(id="5", vector=asked.items[5].vector)
    asked.items.add(id="x" * 300, vector=asked.items[5].vector)
    answer = await caller("Index", asked)
    assert answer.indexed == 1
    words = [
        *["expected 1: normalise it"] * 4,
        "little-endian float32",
        "also has the id",
        "the id",
    ]
    found = [error.message for error in answer.errors]
    assert [word in message for word, message in zip(words, found, strict=True)] == [True] * 7


async def test_vectors_of_other_models_are_refused(caller: Caller, vector_ND, model) -> None:
    other = pb.ModelInfo(digest="0" * 64)
    good = request(vector_ND, model)
    photo = pb.IndexItem(id="photo", image=pb.Image(encoded=png()))
    both = pb.IndexItem(id="a", image=photo.image, vector=good.items[0].vector)
    mixed = pb.IndexRequest(collection="lake", items=[good.items[0], photo], made_by=model)
    odd = pb.ModelInfo(digest=model.digest, dtype="<script>")
    # A backup with a collection of these could not be restored.
    unknown = pb.ModelInfo(digest=model.digest, dtype="float33")
    made_up = pb.ModelInfo(digest=model.digest, graphs="x" * 65)
    await caller.refuses(
        "Index",
        (request(vector_ND, other), f"made with {'0' * 12}, this service runs {model.digest[:12]}"),
        (request(vector_ND, pb.ModelInfo()), "made with a model that is not named"),
        (pb.IndexRequest(collection="lake", items=good.items), "a model that is not named"),
        (request(vector_ND, odd), "expected one like float32"),
        (request(vector_ND, unknown), "expected one like float32"),
        (request(vector_ND, made_up), "made with"),
        (request(vector_ND, model, objects=True), "the objects are found in images"),
        (mixed, "send a vector for each item and no image"),
        (pb.IndexRequest(collection="lake", items=[both], made_by=model), "and no image"),
        (pb.IndexRequest(collection="lake", items=[photo], made_by=model), "or images alone"),
    )
    assert not (await caller("Describe", pb.DescribeRequest())).collections


async def test_items_are_listed_by_id(caller: Caller, vector_ND, model) -> None:
    await caller("Index", request(vector_ND, model))
    asked = pb.ListItemsRequest(collection="lake", ids=["7", "none", "3"])
    listed = (await caller("ListItems", asked)).items
    assert [(item.id, item.metadata["n"]) for item in listed] == [("7", "1"), ("3", "0")]
    for page in ({"limit": 2}, {"after_id": "1"}):
        asked = pb.ListItemsRequest(collection="lake", ids=["7"], **page)
        await caller.refuses("ListItems", (asked, "has both ids and a page"))
