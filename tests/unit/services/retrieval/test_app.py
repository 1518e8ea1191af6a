import asyncio
from dataclasses import replace

import numpy as np
import pytest
from google.protobuf.message import Message
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.areas import Area
from samclip_core.errors import Unavailable
from samclip_core.io.image import image_key
from services.backbone.app import Backbone
from services.backbone.embedder import Embedder
from services.heads.backbone_client import BackboneClient
from services.request import messages
from services.request.context import KEY, SCOPES, TENANT
from services.retrieval import app
from tests.in_process import ADMITTED, Caller, png, served
from tests.ports import free_port
from tests.tiny import CALIBRATION

REDS = {"dark": 10, "middle": 120, "bright": 240}
BOX = pb.Area(box=pb.Box(x_min=5, y_min=0, x_max=20, y_max=30))


def photo(red: int = 100) -> pb.Image:
    return pb.Image(encoded=png(red))


def item(id: str, image: pb.Image | None = None, **metadata: str) -> pb.IndexItem:
    return pb.IndexItem(id=id, image=image or photo(), metadata=metadata)


def index(*items: pb.IndexItem, to: str = "pets") -> pb.IndexRequest:
    return pb.IndexRequest(collection=to, items=items)


def search(**fields: object) -> pb.SearchRequest:
    return pb.SearchRequest(**{"collection": "pets", **fields})


def delete(**fields: object) -> pb.DeleteRequest:
    return pb.DeleteRequest(**{"collection": "pets", **fields})


def rpc_of(request: Message) -> str:
    return type(request).__name__.removesuffix("Request")


async def described(caller: Caller) -> dict[str, pb.Collection]:
    found = await caller("Describe", pb.DescribeRequest())
    return {collection.name: collection for collection in found.collections}


async def found_ids(caller: Caller, request: pb.SearchRequest) -> list[str]:
    return [hit.id for hit in (await caller("Search", request)).hits]


@pytest.fixture
async def pets(caller):
    response = await caller(
        "Index", index(*(item(id, photo(red), red=str(red)) for id, red in REDS.items()))
    )
    assert (response.indexed, list(response.errors)) == (3, [])
    return caller


async def test_a_search_by_text_says_from_which_score_on_hits_are_likely(pets, monkeypatch):
    growth = {"images_growth": 0.1, "images_most": 4}
    likely = replace(CALIBRATION.likely, images=0.3, **growth)
    (ours,) = (one for one in pets.services if isinstance(one, app.Retrieval))
    calibration = replace(CALIBRATION, likely=likely)
    monkeypatch.setattr(ours, "config", replace(ours.config, calibration=calibration))
    by_text = await pets("Search", search(text="a dark picture"))
    assert by_text.likely_score == pytest.approx(0.3 + 0.1 * np.log(len(REDS)))
    few = search(text="a dark picture", filter={"red": "0"})  # nobody counts what it leaves
    for other in (search(id="dark"), search(image=photo()), few):
        assert (await pets("Search", other)).likely_score == 0
    await pets("Index", index(item("fourth"), item("fifth")))  # more than were measured
    assert (await pets("Search", search(text="a dark picture"))).likely_score == 0


async def indexed_at_once(caller, requests):
    """Index all requests concurrently; return the number of items, or the error, of each."""
    calls = (caller("Index", request) for request in requests)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    return [getattr(answer, "indexed", answer) for answer in answers]


@pytest.mark.parametrize("limits", [{"max_collections": 3}])
async def test_requests_at_once_make_no_more_collections_than_allowed(caller):
    done = await indexed_at_once(caller, [index(item("a"), to=f"pets-{n}") for n in range(24)])
    assert done.count(1) == len(await described(caller)) == 3
    assert all("3 collections already" in str(answer) for answer in done if answer != 1)


@pytest.mark.parametrize("limits", [{"max_collection_items": 5}])
async def test_requests_at_once_add_no_more_items_than_allowed(caller):
    pairs = [index(item(f"{n}-0"), item(f"{n}-1")) for n in range(12)]
    done = await indexed_at_once(caller, pairs)
    assert done.count(2) == 2
    assert all("would exceed the limit of 5" in str(one) for one in done if one != 2)
    assert (await described(caller))["pets"].count == 4
    assert await caller("Index", index(item("new")))
    full = await caller("Index", index(item("new")))
    assert (full.indexed, full.replaced) == (1, 1)  # a full collection takes its items again


@pytest.fixture
async def graphs(settings, tiny_model, cold):
    """Return a caller of a retrieval service, and a function that changes the backbone's graphs."""
    ports = {"inner_grpc_port": free_port(), "head_cache_bytes": 0}  # the backbone is always asked
    settings = settings.model_copy(update=ports)
    backbone, retrieval = Backbone(settings, tiny_model), app.Retrieval(settings)
    assert retrieval.backbone.graphs == ""  # made before it has graphs: accepts those of any

    def use(graphs: str) -> None:
        backbone.model.graphs = retrieval.model.graphs = graphs

    async with served(backbone, retrieval, port=settings.inner_grpc_port) as port:
        caller = Caller(port)
        yield caller, use
        await caller.close()
    await retrieval.backbone.close()
    retrieval.__del__()
    await backbone.embedder.close()


async def test_vectors_of_other_graphs_are_neither_searched_nor_added(graphs, tiny_model):
    caller, use = graphs
    ours, others = "1" * 64, "2" * 64
    add, searches = index(item("a", photo(10))), (search(text="dog"), search(image=photo(10)))
    use(ours)
    await caller("Index", add)
    found = (await described(caller))["pets"]
    assert (found.model_digest, found.graphs) == (tiny_model.digest, ours)
    for request in searches:
        assert (await caller("Search", request)).model.graphs == ours
    use(others)
    await caller("Index", index(*add.items, to="more"))
    for request in (add, *searches):
        code, message = await caller.refused(rpc_of(request), request)
        assert code == "INVALID_ARGUMENT"
        assert "with graphs 111111111111, this service runs" in message
        assert "samclip reindex" in message
    listed = await caller("ListItems", pb.ListItemsRequest(collection="pets"))
    assert [each.id for each in listed.items] == ["a"]
    use("")  # torch
    await caller("Index", index(*add.items, to="torch"))
    for request in searches:
        assert await found_ids(caller, request) == ["a"]
    use(ours)
    await caller("Index", index(*add.items, to="torch"))
    assert (await described(caller))["torch"].graphs == ours


async def test_all_queries_are_those_that_the_library_would_search_for(pets, tiny_model):
    """An item that is searched for by its id is left out."""
    vectors = {id: tiny_model.embed_image(png(red)) for id, red in REDS.items()}
    image, area = photo(120), Area(box=(5, 0, 20, 30))

    def embed(red: int = 120, **fields: object) -> np.ndarray:
        return tiny_model.embed_image(png(red), **fields)

    for request, query_D in (
        (search(text="dog"), tiny_model.class_embeddings(["dog"])[0]),
        (search(image=image, area=BOX), embed(area=area)),
        (search(image=image, with_text="dog"), embed(with_text="dog")),
        (search(image=image, area=BOX, with_text="dog"), embed(area=area, with_text="dog")),
        (search(id="dark"), embed(10)),
        (search(id="dark", with_text="dog"), embed(10, with_text="dog")),
    ):
        hits = (await pets("Search", request)).hits
        assert {hit.id for hit in hits} == REDS.keys() - {request.id}
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        for hit in hits:
            assert hit.score == pytest.approx(float(query_D @ vectors[hit.id]), abs=3e-3)


async def test_a_filter_and_pages(pets):
    request = search(image=photo(120))
    whole = await found_ids(pets, request)
    request.top_k = 1
    for request.offset in range(4):
        assert await found_ids(pets, request) == whole[request.offset : request.offset + 1]
    assert await found_ids(pets, search(text="dog", filter={"red": "240"})) == ["bright"]


async def test_a_search_for_many_hits_counts_as_more_work_than_one_for_few(pets, monkeypatch):
    (ours,) = (one for one in pets.services if isinstance(one, app.Retrieval))
    run, works = ours.index.run, list[float]()

    async def noted(priority, function, work=1):
        works.append(work)
        return await run(priority, function, work)

    monkeypatch.setattr(ours.index, "run", noted)
    for asked in ({"top_k": 1}, {"top_k": 300}, {"top_k": 1, "offset": 3000}):
        await pets("Search", search(text="dog", **asked))
    few, many, deep = works
    assert 1 <= few < many < deep


async def test_items_are_listed_page_by_page(pets):
    request = pb.ListItemsRequest(collection="pets", limit=2)
    first = (await pets("ListItems", request)).items
    assert [item.id for item in first] == ["bright", "dark"]
    assert first[1].metadata == {"red": "10"}
    for request.after_id, expected in (("dark", ["middle"]), ("middle", [])):
        assert [item.id for item in (await pets("ListItems", request)).items] == expected


async def test_vectors_are_listed_on_request(pets, tiny_model):
    request = pb.ListItemsRequest(collection="pets", inline=True)
    for item in (await pets("ListItems", request)).items:
        vector_D = tiny_model.embed_image(png(REDS[item.id]))
        assert np.frombuffer(item.vector.data, "<f4") == pytest.approx(vector_D, abs=3e-3)
    request.limit = 1001
    await pets.refuses("ListItems", (request, "limit is 1001, expected 0 to 1000 with inline"))


async def test_items_that_fail_are_named_and_the_others_indexed(pets, settings):
    most = settings.max_metadata_bytes
    response = await pets(
        "Index",
        index(
            item("good", k="x" * (most - 1)),
            item("bad", pb.Image(encoded=b"not an image")),
            item("gone", pb.Image(key="0" * 64)),
            item(""),
            item("wordy", k="x" * most),
            item("twice", photo(1)),
            item("twice", photo(2)),
            item("dark", photo(3)),
        ),
    )
    assert (response.indexed, response.replaced) == (3, 1)
    errors = {error.id: error.message for error in response.errors}
    expected = {
        "bad": "not an image",
        "gone": "send the image",
        "": "expected 1 to 256",
        "wordy": f"the metadata has {most + 1:,} bytes",
        "twice": "an earlier item of the request also has the id 'twice'",
    }
    assert errors.keys() == expected.keys()
    assert all(message in errors[id] for id, message in expected.items())
    assert (await described(pets))["pets"].count == 5
    (hit,) = (await pets("Search", search(image=photo(1), top_k=1))).hits  # of two, the first
    assert (hit.id, hit.score) == ("twice", pytest.approx(1, abs=1e-4))


async def test_when_the_service_fails_for_one_item_the_work_on_the_others_ends(caller, monkeypatch):
    ended = []

    async def embed(self, context, image):
        if image.key == "bad":
            raise Unavailable("the backbone is away: try again")
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append(image.key)

    monkeypatch.setattr(app.Retrieval, "_embed", embed)
    request = index(*(item(key, pb.Image(key=key)) for key in ("a", "b", "bad", "c")))
    answer = await caller.refused("Index", request)
    assert answer == ("UNAVAILABLE", "image 2: the backbone is away: try again")
    assert sorted(ended) == ["a", "b"] or sorted(ended) == ["a", "b", "c"]


async def test_when_all_items_fail_no_collection_is_made(caller):
    response = await caller("Index", index(item("bad", pb.Image(encoded=b"x"))))
    assert (response.indexed, len(response.errors)) == (0, 1)
    assert await described(caller) == {}


async def test_describe_and_delete(pets, tiny_model):
    ((name, found),) = (await described(pets)).items()
    assert (name, found.count, found.dimension) == ("pets", 3, 32)
    assert (found.model_digest, found.dtype) == (tiny_model.digest, "float32")
    assert (await pets("Delete", delete(ids=["dark", "nobody"]))).deleted == 1
    assert (await pets("Delete", delete(all=True))).deleted == 2
    code, _ = await pets.refused("Describe", pb.DescribeRequest(collection="pets"))
    assert code == "NOT_FOUND"


def compute_in(monkeypatch, dtype: dict[str, str]) -> None:
    """Make the backbone report these precisions by image key; "" stands for all other images."""
    features = BackboneClient.features

    async def patched(self, context, image, *outputs, **fields):
        info, found = await features(self, context, image, *outputs, **fields)
        return info, replace(found, dtype=dtype.get(info.key, dtype[""]))

    monkeypatch.setattr(BackboneClient, "features", patched)


async def test_a_request_whose_images_differ_in_precision_changes_nothing(pets, monkeypatch):
    compute_in(monkeypatch, {"": "float32", image_key(png(2)): "int8"})
    for collection in ("pets", "pets-2"):
        request = index(item("new 1", photo(1)), item("new 2", photo(2)), to=collection)
        code, details = await pets.refused("Index", request)
        assert (code, "float32 and int8" in details) == ("UNAVAILABLE", True)
    assert {name: each.count for name, each in (await described(pets)).items()} == {"pets": 3}
    for reds, dtype in (([1], "float32"), ([2], "int8"), ([1, 2], "")):
        request = pb.ClassifyRequest(images=map(photo, reds), labels=["a", "b"])
        assert (await pets("Classify", request)).model.dtype == dtype


BAD = [
    (search(), "nothing to search for"),
    (search(text=" "), "the text to search for is empty"),
    (search(text="x", top_k=-2), "top_k is -2"),
    (search(text="x", offset=-1), "offset is -1"),
    (search(text="x", filter={str(n): "" for n in range(33)}), "a filter has 33 pairs"),
    (search(text="dog", area=BOX), "an area without its image"),
    (search(id="dark", area=BOX), "an area without its image"),
    (search(image=photo(), area=pb.Area()), "area 0 is empty"),
    (
        search(image=photo(), area=pb.Area(box=pb.Box(x_max=99, y_max=1))),
        "area 0: box (0, 0, 99, 1) extends beyond",
    ),
    (search(text="dog", with_text="cat"), "with_text is for a search by image or id"),
    (search(with_text="cat"), "with_text is for a search by image or id"),
    (search(id="dark", with_text=" "), "with_text is empty"),
    (pb.ListItemsRequest(collection="pets", limit=-1), "limit is -1"),
    (index(), "no image"),
    (index(item("a"), to="../x"), "expected a name of 1 to 64"),
    (
        delete(ids=map(str, range(10_001))),
        "10,001 ids in one request, at most 10,000: send fewer",
    ),
    *(
        (messages.to_message(pb.DeleteRequest, {"collection": "pets", **body}, form=False), "all")
        for body in (
            {},
            {"ids": None},
            {"ids": []},
            {"ids": [], "all": False},
            {"ids": ["dark"], "all": True},
        )
    ),
]
ABSENT = [
    (search(collection="no", text="x"), "no collection 'no'"),
    (search(id="x"), "no item 'x'"),
    (pb.ListItemsRequest(collection="no"), "no collection 'no'"),
    (delete(collection="no", all=True), "no collection"),
    (delete(collection="no", ids=["a"]), "no collection"),
]


async def test_bad_requests_are_refused_and_change_nothing(pets):
    refusals = [(*bad, "INVALID_ARGUMENT") for bad in BAD] + [(*no, "NOT_FOUND") for no in ABSENT]
    refusals.append((search(image=pb.Image(key="0")), "send the image", "FAILED_PRECONDITION"))
    for request, message, code in refusals:
        found, details = await pets.refused(rpc_of(request), request)
        assert (found, message in details) == (code, True), (request, details)
    assert {name: each.count for name, each in (await described(pets)).items()} == {"pets": 3}


async def test_what_is_indexed_lets_other_work_pass(caller, monkeypatch):
    seen = []
    embed = Embedder.embed

    async def watched(self, context, source, outputs, size):
        seen.append(context.priority.bulk)
        return await embed(self, context, source, outputs, size)

    monkeypatch.setattr(Embedder, "embed", watched)
    await caller("Index", index(item("a", photo(1))))
    await caller("Search", search(image=photo(2)))
    assert seen == [True, False]


def become(caller, name: str, scopes: str = "read,index,admin") -> None:
    about = ((KEY, name), (TENANT, name), (SCOPES, scopes))
    caller._metadata = (*ADMITTED, *about)


async def test_collections_of_another_tenant_are_not_there(caller):
    for name, red in (("ann", 10), ("bob", 240)):
        become(caller, name)
        await caller("Index", index(item(f"of {name}", photo(red))))
    become(caller, "ann")
    await caller("Index", index(item("of ann"), to="private"))
    become(caller, "bob")
    assert await found_ids(caller, search(text="dog")) == ["of bob"]
    assert {name: each.count for name, each in (await described(caller)).items()} == {"pets": 1}
    for request in (
        search(collection="private", text="dog"),
        search(id="of ann"),
        pb.ListItemsRequest(collection="private"),
        pb.DescribeRequest(collection="private"),
        delete(collection="private", all=True),
    ):
        code, details = await caller.refused(rpc_of(request), request)
        assert code == "NOT_FOUND"
        assert "@" not in details
    for name in ("ann@pets", "ann@private"):
        code, _ = await caller.refused("Search", search(collection=name, text="dog"))
        assert code == "INVALID_ARGUMENT"
    assert (await caller("Delete", delete(all=True))).deleted == 1
    become(caller, "ann")
    assert (await described(caller)).keys() == {"pets", "private"}


async def test_without_keys_there_is_what_came_in_without_them_and_a_tenant_for_it(pets):
    become(pets, "ann")
    assert await described(pets) == {}
    await pets("Index", index(item("a"), to="hers"))
    become(pets, "-")
    assert (await described(pets)).keys() == {"pets"}
    pets._metadata = ADMITTED
    assert (await described(pets)).keys() == {"pets"}


async def test_each_rpc_needs_its_scope(pets):
    for request, scope in (
        (search(text="dog"), "read"),
        (pb.DescribeRequest(), "read"),
        (pb.ListItemsRequest(collection="pets"), "read"),
        (index(pb.IndexItem(id="x")), "index"),
        (delete(ids=["dark"]), "index"),
        (delete(all=True), "admin"),
    ):
        become(pets, "-", ",".join({"read", "index", "admin"} - {scope}))
        code, details = await pets.refused(rpc_of(request), request)
        assert (code, f"no scope '{scope}'" in details) == ("PERMISSION_DENIED", True)
        become(pets, "-", scope)
        await pets(rpc_of(request), request)
