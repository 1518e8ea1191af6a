"""Concepts: stored per tenant, and labels and texts of every head."""

import json
from dataclasses import replace

import numpy as np
import pytest
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers import examples
from samclip_core.answers.concepts import MAX_NAME
from samclip_core.errors import InvalidRequest
from samclip_core.io.masks import find_runs
from services.backbone.embedder import Embedder
from services.request import wire
from services.request.context import KEY, SCOPES, TENANT
from services.retrieval import concepts
from services.retrieval.concepts import Concept, Concepts
from services.retrieval.index import OF_CONCEPTS, Collections
from services.retrieval.registry import Registry
from tests.close import assert_close
from tests.in_process import ADMITTED, Caller, png
from tests.vectors import MODEL, OTHER, D, vector

BOX = pb.Box(x_min=5, y_min=0, x_max=20, y_max=30)
IMAGE = pb.Image(encoded=png(100))
MUG = "concept:my mug"


def example(red: int = 100, negative: bool = False) -> pb.Example:
    return pb.Example(image=pb.Image(encoded=png(red)), box=BOX, negative=negative)


def put(*given: pb.Example, name: str = "my mug") -> pb.PutConceptRequest:
    return pb.PutConceptRequest(name=name, examples=given or [example()])


def become(caller: Caller, name: str, scopes: str = "read,index") -> None:
    caller._metadata = (*ADMITTED, (KEY, name), (TENANT, name), (SCOPES, scopes))


async def listed(caller: Caller, *names: str) -> pb.ListConceptsResponse:
    return await caller("ListConcepts", pb.ListConceptsRequest(names=names, inline=True))


def classify(*labels: str, image: pb.Image = IMAGE) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(images=[image], labels=labels)


async def similarity(caller: Caller, *labels: str) -> float:
    """Return the cosine of the image with the concept, asked for beside these labels."""
    reply = await caller("Classify", classify(*labels, MUG))
    (score,) = (each for each in reply.results[0].scores if each.label == MUG)
    return score.similarity


async def test_concepts_are_stored_replaced_listed_and_deleted(caller, tiny_model):
    reply = await caller("PutConcept", put(example(10), example(20), example(240, negative=True)))
    made = pb.Concept(name="my mug", examples=3, model_digest=tiny_model.digest)
    assert (reply.concept, reply.replaced) == (made, False)
    await caller("PutConcept", put(name="a café"))
    found = await listed(caller)
    assert [each.name for each in found.concepts] == ["a café", "my mug"]
    config = tiny_model.config
    clip_ND, sam_NE = wire.from_tensor(found.clip), wire.from_tensor(found.sam)
    assert (clip_ND.shape, sam_NE.shape) == ((2, config.text_dim), (2, config.embed_dim))
    for vectors in (clip_ND, sam_NE):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (await caller("PutConcept", put())).replaced
    other = await listed(caller, "my mug", "my mug")
    assert other.concepts[0].examples == 1
    assert not np.allclose(wire.from_tensor(other.clip)[0], clip_ND[1], atol=1e-3)
    plain = await caller("ListConcepts", pb.ListConceptsRequest())
    assert (len(plain.concepts), plain.clip.data) == (2, b"")
    await caller("DeleteConcept", pb.DeleteConceptRequest(name="my mug"))
    assert [each.name for each in (await listed(caller)).concepts] == ["a café"]
    for rpc, request in (
        ("DeleteConcept", pb.DeleteConceptRequest(name="my mug")),
        ("ListConcepts", pb.ListConceptsRequest(names=["a café", "my mug"])),
    ):
        code, details = await caller.refused(rpc, request)
        assert (code, "no concept 'my mug'" in details) == ("NOT_FOUND", True)
    assert not (await caller("Describe", pb.DescribeRequest())).collections
    (retrieval,) = (each for each in caller.services if each.name == "RetrievalService")
    assert (await retrieval.health())["collections"] == 0


async def test_a_concept_has_the_vectors_of_the_library(caller, tiny_model):
    """A box gets the SAM head's mask; a mask, as it is, has the same vectors as in the library."""
    mask_HW = np.zeros((30, 40), np.bool_)
    mask_HW[3:20, 5:33] = True
    rle = wire.to_mask(mask_HW, pb.RLE).rle
    await caller("PutConcept", put(pb.Example(image=IMAGE, mask=rle)))
    found = await listed(caller)
    own = examples.Example(IMAGE.encoded, find_runs(mask_HW))
    (vectors,) = tiny_model.example_vectors([own])
    np.testing.assert_allclose(wire.from_tensor(found.clip)[0], vectors.clip_D, atol=5e-3)
    np.testing.assert_allclose(wire.from_tensor(found.sam)[0], vectors.sam_E, atol=5e-3)


async def test_a_concept_is_a_label_and_a_text_of_every_head(caller):
    await caller("Index", pb.IndexRequest(collection="pets", items=[{"id": "a", "image": IMAGE}]))
    labels, prompt = ["a dog", MUG], pb.Prompt(text=MUG, not_texts=["a cat"])
    requests = {
        "Classify": classify(*labels),
        "Segment": pb.SegmentRequest(image=IMAGE, prompts=[prompt], min_score=0),
        "SegmentText": pb.SegmentTextRequest(image=IMAGE, labels=labels),
        "SegmentEverything": pb.SegmentEverythingRequest(image=IMAGE, labels=labels),
        "Explain": pb.ExplainRequest(image=IMAGE, label=MUG),
        "Search": pb.SearchRequest(collection="pets", text=MUG),
    }
    for rpc, request in requests.items():
        code, details = await caller.refused(rpc, request)
        assert (code, "no concept 'my mug'" in details) == ("NOT_FOUND", True), (rpc, details)
    await caller("PutConcept", put())
    replies = {rpc: await caller(rpc, request) for rpc, request in requests.items()}
    assert {score.label for score in replies["Classify"].results[0].scores} == {*labels}
    by_name = pb.SearchRequest(collection="pets", concept="my mug")
    assert_close((await caller("Search", by_name)).hits, replies["Search"].hits)
    assert replies["Search"].hits[0].id == "a"


async def test_answers_follow_the_last_put_and_delete(caller):
    await caller("PutConcept", put(example(10)))
    first = await similarity(caller, "a dog")
    assert await similarity(caller) == pytest.approx(first, abs=1e-5)
    await caller("PutConcept", put(example(240)))
    assert await similarity(caller, "a dog") != pytest.approx(first, abs=1e-5)
    await caller("DeleteConcept", pb.DeleteConceptRequest(name="my mug"))
    assert (await caller.refused("Classify", classify("a dog", MUG)))[0] == "NOT_FOUND"


async def test_no_tenant_has_the_concepts_of_another(caller):
    vectors = {}
    for name, red in (("ann", 10), ("bob", 240), ("-", 120)):
        become(caller, name)
        assert not (await listed(caller)).concepts
        assert (await caller.refused("Classify", classify(MUG)))[0] == "NOT_FOUND"
        await caller("PutConcept", put(example(red)))
        vectors[name] = (await listed(caller, "my mug")).clip.data
    assert len(set(vectors.values())) == 3
    become(caller, "bob")
    await caller("DeleteConcept", pb.DeleteConceptRequest(name="my mug"))
    for name in (OF_CONCEPTS, f"ann{OF_CONCEPTS}", f"ann{OF_CONCEPTS}@x"):
        code, _ = await caller.refused("ListItems", pb.ListItemsRequest(collection=name))
        assert code == "INVALID_ARGUMENT"
    for name in ("ann", "-"):
        become(caller, name)
        assert (await listed(caller, "my mug")).clip.data == vectors[name]
    caller._metadata = ADMITTED  # a service without keys has those that came in without them
    assert (await listed(caller, "my mug")).clip.data == vectors["-"]


async def test_changes_need_the_scope_index(caller):
    for rpc, request, scope in (
        ("PutConcept", put(), "index"),
        ("ListConcepts", pb.ListConceptsRequest(names=["my mug"], inline=True), "read"),
        ("DeleteConcept", pb.DeleteConceptRequest(name="my mug"), "index"),
    ):
        become(caller, "-", ",".join({"read", "index", "admin"} - {scope}))
        code, details = await caller.refused(rpc, request)
        assert (code, f"no scope '{scope}'" in details) == ("PERMISSION_DENIED", True)
        become(caller, "-", scope)
        await caller(rpc, request)


async def test_changes_are_audited_with_the_name(caller, caplog):
    become(caller, "ann")
    await caller("PutConcept", put())
    record = json.loads(caplog.messages[-1])
    assert (record["audit"], record["tenant"], record["concept"]) == ("PutConcept", "ann", "my mug")


async def test_requests_are_checked_before_any_work(caller, monkeypatch):
    monkeypatch.setattr(Embedder, "embed", None)
    many = [example()] * (examples.MAX_EXAMPLES + 1)
    for name in ("", " mug", "a\nmug", "x" * (MAX_NAME + 1)):
        await caller.refuses("PutConcept", (put(name=name), "is no name of a concept"))
    await caller.refuses(
        "PutConcept",
        (put(*many), f"at most {examples.MAX_EXAMPLES}"),
        (put(example(negative=True)), "not negative"),
        (put(pb.Example(image=IMAGE)), "the place is empty"),
        (put(pb.Example(image=IMAGE, points=pb.Points())), "the place is empty"),
        (put(pb.Example(image=IMAGE, mask=pb.CocoRle(counts=bytes(2**21)))), "2,097,1"),
    )
    monkeypatch.setattr(concepts, "MAX_CONCEPTS", 0)
    await caller.refuses("PutConcept", (put(), "0 concepts already"))


async def test_places_outside_the_image_and_empty_objects_are_refused(caller):
    outside = pb.Box(x_min=5, y_min=0, x_max=41, y_max=30)
    rle = pb.CocoRle(height=7, width=7, counts=b"0a1")
    await caller.refuses(
        "PutConcept",
        (put(pb.Example(image=IMAGE, box=outside)), "extends beyond the image"),
        (put(example(), pb.Example(image=IMAGE, box=outside)), "example 1: box (5, 0, 41, 30) ext"),
        (put(pb.Example(image=IMAGE, mask=rle)), "example 0: the mask has 7×7 pixels"),
    )
    assert not (await listed(caller)).concepts


async def test_a_concept_of_another_checkpoint_is_refused_until_it_is_added_again(caller):
    await caller("PutConcept", put())
    (retrieval,) = (each for each in caller.services if each.name == "RetrievalService")
    ours, retrieval.model.digest = retrieval.model.digest, "0" * 64
    await caller("PutConcept", put(name="new"))
    code, details = await caller.refused("ListConcepts", pb.ListConceptsRequest(inline=True))
    assert (code, f"made with model {ours[:12]}" in details) == ("INVALID_ARGUMENT", True)
    assert "samclip concept add" in details
    plain = await caller("ListConcepts", pb.ListConceptsRequest())
    shown = {each.name: each.model_digest for each in plain.concepts}
    assert shown == {"my mug": ours, "new": "0" * 64}
    assert (await caller("PutConcept", put())).replaced
    assert len((await listed(caller)).concepts) == 2
    retrieval.model.digest = ours
    code, _ = await caller.refused("Classify", classify(MUG))  # nothing of before is left
    assert code == "INVALID_ARGUMENT"


def concept(name: str) -> Concept:
    return Concept(name, 1, MODEL, vector(1), vector(2))


def test_vectors_of_another_length_are_refused_until_the_concept_is_added_again(tmp_path, settings):
    index = Collections(Registry(tmp_path), MODEL, D)
    forged = Concepts(index, "", MODEL, D, 0)
    forged.put(Concept("my mug", 1, MODEL, vector(1), np.empty(0, np.float32)), settings)
    ours = Concepts(index, "", MODEL, D, D)
    assert [*ours.all()] == ["my mug"]
    with pytest.raises(InvalidRequest, match="vectors of another length"):
        ours.usable(["my mug"])
    ours.put(concept("other"), settings)
    assert [*ours.usable([])] == ["other"]


@pytest.mark.parametrize("emptied", [False, True])
@pytest.mark.parametrize(("digest", "dimension"), [(MODEL[:12] + OTHER[12:], D), (MODEL, D - 1)])
def test_concepts_of_a_forged_backup_give_way_to_new_ones(
    settings, tmp_path, digest, dimension, emptied
):
    """Also of another model, whose digest only begins like that of ours."""
    index = Collections(Registry(tmp_path / "index"), MODEL, D)
    mug = Concept("my mug", 1, digest, vector(1), np.empty(0, np.float32))
    forged = Concepts(index, "", digest, dimension, 0)
    forged.put(replace(mug, clip_D=mug.clip_D[:dimension]), settings)
    ours = Concepts(index, "", MODEL, D, 0)
    if emptied:
        ours.delete("my mug")
    assert ours.put(replace(mug, digest=MODEL), settings) is not emptied
    assert [one.digest for one in ours.usable([]).values()] == [MODEL]
