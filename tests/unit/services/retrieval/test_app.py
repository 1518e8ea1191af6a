import asyncio
from dataclasses import replace
from threading import Event
from unittest.mock import Mock

import numpy as np
import pytest
import redis
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers.areas import Area
from samclip_core.errors import Unavailable
from samclip_core.io.image import image_key
from services.backbone.app import Backbone
from services.backbone.engine import Engine
from services.heads.backbone_client import BackboneClient
from services.request import messages
from services.request.context import KEY, SCOPES, TENANT
from services.retrieval import app
from services.retrieval.collection import EmbeddedCollection
from services.retrieval.engine import OwnIndex
from services.retrieval.vector_sets import VectorSet
from tests.in_process import ADMITTED, ANYBODY, Caller, png, served
from tests.ports import free_port


@pytest.fixture
def limits():
    """Return settings that differ from the defaults; a test may parametrize them."""
    return {}


@pytest.fixture
def engine():
    """Return the engine; ``test_collection_engines.py`` compares both."""
    return "embedded"


ON_BOTH = pytest.mark.parametrize("engine", ["embedded", "redis"])


@pytest.fixture
def settings(settings, request, limits, engine):
    settings = settings.model_copy(update=limits)
    if engine == "embedded":
        return settings
    server = request.getfixturevalue("shared_redis")
    url = f"redis://127.0.0.1:{server.port}/7"  # a database only for these tests
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return settings.model_copy(update={"redis_url": url})


REDS = {"dark": 10, "middle": 120, "bright": 240}


def item(id: str, image: pb.Image, **metadata: str) -> pb.IndexItem:
    return pb.IndexItem(id=id, image=image, metadata=metadata)


@pytest.fixture
async def pets(caller):
    items = [item(id, pb.Image(encoded=png(red)), red=str(red)) for id, red in REDS.items()]
    response = await caller("Index", pb.IndexRequest(collection="pets", items=items))
    assert (response.indexed, list(response.errors)) == (3, [])
    return caller


async def indexed_at_once(caller, requests):
    """Index all requests concurrently; return the number of items, or the error, of each."""
    answers = await asyncio.gather(
        *(caller("Index", request) for request in requests), return_exceptions=True
    )
    return [getattr(answer, "indexed", answer) for answer in answers]


@pytest.mark.parametrize("limits", [{"max_collections": 3}])
async def test_requests_at_once_make_no_more_collections_than_allowed(caller):
    image = pb.Image(encoded=png(120))
    names = [f"pets-{number}" for number in range(24)]
    done = await indexed_at_once(
        caller, [pb.IndexRequest(collection=name, items=[item("a", image)]) for name in names]
    )
    assert done.count(1) == 3
    assert all("3 collections already" in str(one) for one in done if one != 1)
    assert len((await caller("Describe", pb.DescribeRequest())).collections) == 3


@pytest.mark.parametrize("limits", [{"max_collection_items": 5}])
async def test_requests_at_once_add_no_more_items_than_allowed(caller):
    image = pb.Image(encoded=png(120))
    done = await indexed_at_once(
        caller,
        [
            pb.IndexRequest(collection="pets", items=[item(f"{n}-{i}", image) for i in range(2)])
            for n in range(12)
        ],
    )
    assert done.count(2) == 2
    assert all("would exceed the limit of 5" in str(one) for one in done if one != 2)
    (pets,) = (await caller("Describe", pb.DescribeRequest())).collections
    assert pets.count == 4
    again = [item(f"{id}", image) for id in ("new", "0-0", "1-0")]
    assert await caller("Index", pb.IndexRequest(collection="pets", items=again[:1]))
    full = await caller("Index", pb.IndexRequest(collection="pets", items=again[:1]))
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
    await backbone.engine.close()


async def test_vectors_of_other_graphs_are_neither_searched_nor_added(graphs, tiny_model):
    caller, use = graphs
    image, ours, others = pb.Image(encoded=png(10)), "1" * 64, "2" * 64
    add = pb.IndexRequest(collection="pets", items=[item("a", image)])
    searches = (
        pb.SearchRequest(collection="pets", text="dog"),
        pb.SearchRequest(collection="pets", image=image),
    )
    use(ours)
    await caller("Index", add)
    (found,) = (await caller("Describe", pb.DescribeRequest())).collections
    assert (found.model_digest, found.graphs) == (tiny_model.digest, ours)
    for search in searches:
        assert (await caller("Search", search)).model.graphs == ours
    use(others)
    await caller("Index", pb.IndexRequest(collection="more", items=add.items))
    for method, request in (("Index", add), *(("Search", search) for search in searches)):
        code, message = await caller.refused(method, request)
        assert code == "INVALID_ARGUMENT"
        assert "with graphs 111111111111, this service runs" in message
        assert "samclip reindex" in message
    listed = await caller("ListItems", pb.ListItemsRequest(collection="pets"))
    assert [each.id for each in listed.items] == ["a"]
    use("")  # torch
    await caller("Index", pb.IndexRequest(collection="torch", items=add.items))
    for search in searches:
        assert (await caller("Search", search)).hits[0].id == "a"


async def test_a_collection_of_torch_takes_the_vectors_of_the_first_graphs_only(graphs):
    caller, use = graphs
    add = pb.IndexRequest(collection="pets", items=[item("a", pb.Image(encoded=png(10)))])
    for graph in ("", "1" * 64):
        use(graph)
        await caller("Index", add)
        (found,) = (await caller("Describe", pb.DescribeRequest())).collections
        assert found.graphs == graph
        assert (await caller("Search", pb.SearchRequest(collection="pets", text="dog"))).hits
    use("2" * 64)
    assert (await caller.refused("Index", add))[0] == "INVALID_ARGUMENT"


@ON_BOTH
async def test_an_image_finds_itself_first(pets):
    request = pb.SearchRequest(collection="pets", image=pb.Image(encoded=png(120)))
    response = await pets("Search", request)
    assert response.hits[0].id == "middle"
    assert dict(response.hits[0].metadata) == {"red": "120"}
    assert response.hits[0].score == pytest.approx(1, abs=1e-4)
    assert len(response.hits) == 3
    assert response.model.name == "tiny-edge"


async def test_a_text_is_compared_as_the_model_would(pets, tiny_model):
    response = await pets("Search", pb.SearchRequest(collection="pets", text="dog", top_k=2))
    text_D = tiny_model._class_embeddings(["dog"])[0]
    cosine = {id: float(text_D @ tiny_model.embed_image(png(red))) for id, red in REDS.items()}
    assert len(response.hits) == 2
    for hit in response.hits:
        assert hit.score == pytest.approx(cosine[hit.id], abs=2e-3)
    assert response.hits[0].score >= response.hits[1].score


BOX = pb.Area(box=pb.Box(x_min=5, y_min=0, x_max=20, y_max=30))


async def test_a_part_of_an_image_and_a_text_are_searched_for_as_the_library_embeds_them(
    pets, tiny_model
):
    image, area = pb.Image(encoded=png(120)), Area(box=(5, 0, 20, 30))
    vectors = {id: tiny_model.embed_image(png(red)) for id, red in REDS.items()}
    for fields, query_D in (
        ({"area": BOX}, tiny_model.embed_image(png(120), area=area)),
        ({"with_text": "dog"}, tiny_model.embed_image(png(120), with_text="dog")),
        (
            {"area": BOX, "with_text": "dog"},
            tiny_model.embed_image(png(120), area=area, with_text="dog"),
        ),
    ):
        request = pb.SearchRequest(collection="pets", image=image, **fields)
        hits = (await pets("Search", request)).hits
        assert {hit.id for hit in hits} == set(REDS)
        for hit in hits:
            assert hit.score == pytest.approx(float(query_D @ vectors[hit.id]), abs=3e-3)
    request = pb.SearchRequest(collection="pets", id="dark", with_text="dog")
    hits = (await pets("Search", request)).hits
    query_D = tiny_model.embed_image(png(10), with_text="dog")
    assert {hit.id for hit in hits} == {"middle", "bright"}
    for hit in hits:
        assert hit.score == pytest.approx(float(query_D @ vectors[hit.id]), abs=3e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "dog", "area": BOX}, "an area without its image"),
        ({"id": "dark", "area": BOX}, "an area without its image"),
        ({"image": pb.Image(encoded=png()), "area": pb.Area()}, "area 0 is empty"),
        (
            {"image": pb.Image(encoded=png()), "area": pb.Area(box=pb.Box(x_max=99, y_max=1))},
            "area 0: box (0, 0, 99, 1) extends beyond",
        ),
        ({"text": "dog", "with_text": "cat"}, "with_text is for a search by image or id"),
        ({"with_text": "cat"}, "with_text is for a search by image or id"),
        ({"id": "dark", "with_text": " "}, "with_text is empty"),
    ],
)
async def test_parts_of_a_query_that_do_not_fit_are_refused(pets, fields, message):
    code, details = await pets.refused("Search", pb.SearchRequest(collection="pets", **fields))
    assert code == "INVALID_ARGUMENT"
    assert message in details


async def test_more_like_one_leaves_that_one_out(pets):
    response = await pets("Search", pb.SearchRequest(collection="pets", id="dark"))
    assert {hit.id for hit in response.hits} == {"middle", "bright"}


async def test_a_filter_and_pages(pets):
    request = pb.SearchRequest(collection="pets", image=pb.Image(encoded=png(120)))
    whole = [hit.id for hit in (await pets("Search", request)).hits]
    request.filter["red"] = "240"
    assert [hit.id for hit in (await pets("Search", request)).hits] == ["bright"]
    request.ClearField("filter")
    request.top_k = 1
    for request.offset in range(4):
        hits = (await pets("Search", request)).hits
        assert [hit.id for hit in hits] == whole[request.offset : request.offset + 1]
    request.filter.update({str(number): "" for number in range(33)})
    code, details = await pets.refused("Search", request)
    assert (code, "a filter has 33 pairs" in details) == ("INVALID_ARGUMENT", True)


async def test_items_are_listed_page_by_page(pets):
    request = pb.ListItemsRequest(collection="pets", limit=2)
    first = (await pets("ListItems", request)).items
    assert [item.id for item in first] == ["bright", "dark"]
    assert dict(first[1].metadata) == {"red": "10"}
    request.after_id = "dark"
    assert [item.id for item in (await pets("ListItems", request)).items] == ["middle"]
    request.after_id = "middle"
    assert len((await pets("ListItems", request)).items) == 0


async def test_items_that_fail_are_named_and_the_others_indexed(caller):
    items = [
        item("good", pb.Image(encoded=png())),
        item("bad", pb.Image(encoded=b"not an image")),
        item("gone", pb.Image(key="0" * 64)),
        item("", pb.Image(encoded=png())),
    ]
    response = await caller("Index", pb.IndexRequest(collection="pets", items=items))
    assert response.indexed == 1
    errors = {error.id: error.message for error in response.errors}
    assert "not an image" in errors["bad"]
    assert "send the image" in errors["gone"]
    assert "expected 1 to 256" in errors[""]
    described = await caller("Describe", pb.DescribeRequest(collection="pets"))
    assert described.collections[0].count == 1


async def test_an_id_that_a_request_repeats_is_an_error_and_its_first_item_counts(pets):
    items = [item(id, pb.Image(encoded=png(red))) for id, red in (("a", 1), ("a", 2), ("dark", 3))]
    response = await pets("Index", pb.IndexRequest(collection="pets", items=items))
    assert (response.indexed, response.replaced) == (2, 1)
    (error,) = response.errors
    assert error.id == "a"
    assert "an earlier item of the request also has the id 'a'" in error.message
    request = pb.SearchRequest(collection="pets", image=pb.Image(encoded=png(1)), top_k=1)
    assert (await pets("Search", request)).hits[0].score == pytest.approx(1, abs=1e-4)


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
    items = [item(key, pb.Image(key=key)) for key in ("a", "b", "bad", "c")]
    answer = await caller.refused("Index", pb.IndexRequest(collection="pets", items=items))
    assert answer == ("UNAVAILABLE", "the backbone is away: try again")
    assert sorted(ended) == ["a", "b"] or sorted(ended) == ["a", "b", "c"]


async def test_when_all_items_fail_no_collection_is_made(caller):
    items = [item("bad", pb.Image(encoded=b"x"))]
    response = await caller("Index", pb.IndexRequest(collection="pets", items=items))
    assert (response.indexed, len(response.errors)) == (0, 1)
    assert len((await caller("Describe", pb.DescribeRequest())).collections) == 0


async def test_describe_and_delete(pets, tiny_model):
    (described,) = (await pets("Describe", pb.DescribeRequest())).collections
    assert (described.name, described.count, described.dimension) == ("pets", 3, 32)
    assert (described.model_digest, described.dtype) == (tiny_model.digest, "float32")
    request = pb.DeleteRequest(collection="pets", ids=["dark", "nobody"])
    assert (await pets("Delete", request)).deleted == 1
    assert (await pets("Delete", pb.DeleteRequest(collection="pets", all=True))).deleted == 2
    code, _ = await pets.refused("Describe", pb.DescribeRequest(collection="pets"))
    assert code == "NOT_FOUND"


def compute_in(monkeypatch, dtype: dict[str, str]) -> None:
    """Make the backbone report these precisions by image key; "" stands for all other images."""
    features = BackboneClient.features

    async def patched(self, context, image, *outputs, size=0):
        info, found = await features(self, context, image, *outputs, size=size)
        return info, replace(found, dtype=dtype.get(info.key, dtype[""]))

    monkeypatch.setattr(BackboneClient, "features", patched)


async def test_vectors_of_two_precisions_are_not_mixed(pets, monkeypatch):
    compute_in(monkeypatch, {"": "int8"})
    index = pb.IndexRequest(items=[item("new", pb.Image(encoded=png(60)))], collection="pets")
    code, details = await pets.refused("Index", index)
    assert code == "INVALID_ARGUMENT"
    for part in ("'pets'", "computed in float32", "in int8", "SAMCLIP_DTYPE", "samclip reindex"):
        assert part in details
    search = pb.SearchRequest(collection="pets", image=pb.Image(encoded=png(120)))
    found = await pets("Search", search)
    assert (found.hits[0].id, found.model.dtype) == ("middle", "float32")
    index.collection = "pets-2"
    assert (await pets("Index", index)).indexed == 1
    described = (await pets("Describe", pb.DescribeRequest())).collections
    assert [(found.count, found.dtype) for found in described] == [(3, "float32"), (1, "int8")]


async def test_a_request_whose_images_differ_in_precision_changes_nothing(pets, monkeypatch):
    compute_in(monkeypatch, {"": "float32", image_key(png(2)): "int8"})
    items = [item(f"new {red}", pb.Image(encoded=png(red))) for red in (1, 2)]
    for collection in ("pets", "pets-2"):
        request = pb.IndexRequest(collection=collection, items=items)
        code, details = await pets.refused("Index", request)
        assert (code, "float32 and int8" in details) == ("UNAVAILABLE", True)
    (described,) = (await pets("Describe", pb.DescribeRequest())).collections
    assert described.count == 3
    labels = {"labels": ["a", "b"]}
    for reds, dtype in (([1], "float32"), ([2], "int8"), ([1, 2], "")):
        images = [pb.Image(encoded=png(red)) for red in reds]
        answer = await pets("Classify", pb.ClassifyRequest(images=images, **labels))
        assert answer.model.dtype == dtype


@pytest.mark.parametrize(
    "body",
    [
        {"collection": "pets"},
        {"collection": "pets", "ids": None},
        {"collection": "pets", "ids": []},
        {"collection": "pets", "ids": [], "all": False},
        {"collection": "pets", "ids": ["dark"], "all": True},
    ],
)
async def test_only_all_without_ids_deletes_a_collection(pets, body):
    request = messages.to_message(pb.DeleteRequest, body, form=False)
    code, details = await pets.refused("Delete", request)
    assert code == "INVALID_ARGUMENT"
    assert "all" in details
    (described,) = (await pets("Describe", pb.DescribeRequest())).collections
    assert described.count == 3


@pytest.mark.parametrize(
    ("rpc", "request_", "code", "message"),
    [
        ("Search", pb.SearchRequest(collection="no", text="x"), "NOT_FOUND", "no collection 'no'"),
        ("Search", pb.SearchRequest(collection="pets", id="x"), "NOT_FOUND", "no item 'x'"),
        (
            "Search",
            pb.SearchRequest(collection="pets"),
            "INVALID_ARGUMENT",
            "nothing to search for",
        ),
        (
            "Search",
            pb.SearchRequest(collection="pets", text=" "),
            "INVALID_ARGUMENT",
            "the text to search for is empty",
        ),
        (
            "Search",
            pb.SearchRequest(collection="pets", text="x", top_k=-2),
            "INVALID_ARGUMENT",
            "top_k is -2",
        ),
        (
            "Search",
            pb.SearchRequest(collection="pets", image=pb.Image(key="0")),
            "FAILED_PRECONDITION",
            "send the image",
        ),
        (
            "Search",
            pb.SearchRequest(collection="pets", text="x", offset=-1),
            "INVALID_ARGUMENT",
            "offset is -1",
        ),
        (
            "ListItems",
            pb.ListItemsRequest(collection="pets", limit=-1),
            "INVALID_ARGUMENT",
            "limit is -1",
        ),
        ("ListItems", pb.ListItemsRequest(collection="no"), "NOT_FOUND", "no collection 'no'"),
        ("Index", pb.IndexRequest(collection="pets"), "INVALID_ARGUMENT", "no image"),
        (
            "Index",
            pb.IndexRequest(collection="../x", items=[pb.IndexItem(id="a")]),
            "INVALID_ARGUMENT",
            "expected a name of 1 to 64",
        ),
        ("Delete", pb.DeleteRequest(collection="no", all=True), "NOT_FOUND", "no collection"),
        ("Delete", pb.DeleteRequest(collection="no", ids=["a"]), "NOT_FOUND", "no collection"),
    ],
)
async def test_bad_requests_are_refused(pets, rpc, request_, code, message):
    found, details = await pets.refused(rpc, request_)
    assert found == code
    assert message in details


def ones(id: str) -> app._Made:
    item = app.Item(id, np.ones(32, np.float32) / np.sqrt(np.float32(32)), {})
    return app._Made(item, "float32")


async def test_vectors_are_kept_at_length_one(pets, monkeypatch):
    kept, searched = [], app.Retrieval._searched

    async def watched(self, context, request):
        kept.append(await searched(self, context, request))
        return kept[-1]

    monkeypatch.setattr(app.Retrieval, "_searched", watched)
    for id in REDS:
        await pets("Search", pb.SearchRequest(collection="pets", id=id))
    norms = [np.linalg.norm(vector_D) for vector_D in kept]
    np.testing.assert_allclose(norms, np.ones(len(REDS)), atol=1e-6)


@ON_BOTH
async def test_a_restart_finds_everything(settings):
    service = app.Retrieval(settings)
    await service._ask_index(
        ANYBODY, lambda ours: service._upsert(ours, "pets", [ones("a"), ones("b")])
    )
    service.__del__()
    again = app.Retrieval(settings)
    query = app.Query(ones("a").item.vector_D, 9)
    hits = await again._ask_index(ANYBODY, lambda ours: ours.get("pets").search(query))
    assert {hit.id for hit in hits} == {"a", "b"}
    again.__del__()


def test_the_index_is_closed_by_its_own_thread_where_that_lets_go_last(settings):
    index, let_go = OwnIndex(settings), Event()
    index._opened = opened = Mock()
    thread = index._thread
    thread.submit(lambda _: let_go.wait(), index)
    del index
    let_go.set()
    thread.shutdown()
    opened.close.assert_called_once_with()


def test_it_is_one_application(settings):
    assert app.build(settings)._bound_deployment.name == "retrieval"


@ON_BOTH
async def test_health_counts_the_collections(settings):
    service = app.Retrieval(settings)
    await service._ask_index(ANYBODY, lambda ours: service._upsert(ours, "pets", [ones("a")]))
    health = await service.health()
    assert (health["index"], health["collections"]) == ("ready", 1)
    await service.backbone.close()
    service.__del__()


async def test_what_is_indexed_lets_other_work_pass(caller, monkeypatch):
    seen = []
    embed = Engine.embed

    async def watched(self, context, source, outputs, size):
        seen.append(context.priority.bulk)
        return await embed(self, context, source, outputs, size)

    monkeypatch.setattr(Engine, "embed", watched)
    items = [item("a", pb.Image(encoded=png(1)))]
    await caller("Index", pb.IndexRequest(collection="pets", items=items))
    await caller("Search", pb.SearchRequest(collection="pets", image=pb.Image(encoded=png(2))))
    assert seen == [True, False]


def become(caller, name: str, scopes: str = "read,index,admin") -> None:
    about = ((KEY, name), (TENANT, name), (SCOPES, scopes))
    caller._metadata = (*ADMITTED, *about)


@ON_BOTH
async def test_collections_of_another_tenant_are_not_there(caller):
    collection = "pets"
    for name, red in (("ann", 10), ("bob", 240)):
        become(caller, name)
        items = [item(f"of {name}", pb.Image(encoded=png(red)))]
        await caller("Index", pb.IndexRequest(collection=collection, items=items))
    become(caller, "ann")
    await caller("Index", pb.IndexRequest(collection="private", items=items))
    become(caller, "bob")
    hits = (await caller("Search", pb.SearchRequest(collection=collection, text="dog"))).hits
    assert [hit.id for hit in hits] == ["of bob"]
    described = (await caller("Describe", pb.DescribeRequest())).collections
    assert [(found.name, found.count) for found in described] == [("pets", 1)]
    for rpc_name, request in (
        ("Search", pb.SearchRequest(collection="private", text="dog")),
        ("Search", pb.SearchRequest(collection=collection, id="of ann")),
        ("ListItems", pb.ListItemsRequest(collection="private")),
        ("Describe", pb.DescribeRequest(collection="private")),
        ("Delete", pb.DeleteRequest(collection="private", all=True)),
    ):
        code, details = await caller.refused(rpc_name, request)
        assert code == "NOT_FOUND"
        assert "@" not in details
    for name in ("ann@pets", "ann@private"):
        code, _ = await caller.refused("Search", pb.SearchRequest(collection=name, text="dog"))
        assert code == "INVALID_ARGUMENT"
    request = pb.DeleteRequest(collection=collection, all=True)
    assert (await caller("Delete", request)).deleted == 1
    become(caller, "ann")
    described = (await caller("Describe", pb.DescribeRequest())).collections
    assert [found.name for found in described] == ["pets", "private"]


async def test_without_keys_there_is_what_came_in_without_them_and_a_tenant_for_it(pets):
    become(pets, "ann")
    assert len((await pets("Describe", pb.DescribeRequest())).collections) == 0
    await pets(
        "Index", pb.IndexRequest(collection="hers", items=[item("a", pb.Image(encoded=png()))])
    )
    become(pets, "-")
    (found,) = (await pets("Describe", pb.DescribeRequest())).collections
    assert found.name == "pets"
    pets._metadata = ADMITTED
    (found,) = (await pets("Describe", pb.DescribeRequest())).collections
    assert found.name == "pets"


@pytest.mark.parametrize(
    ("rpc_name", "request_", "scope"),
    [
        ("Search", pb.SearchRequest(collection="pets", text="dog"), "read"),
        ("Describe", pb.DescribeRequest(), "read"),
        ("ListItems", pb.ListItemsRequest(collection="pets"), "read"),
        ("Index", pb.IndexRequest(collection="pets", items=[pb.IndexItem(id="x")]), "index"),
        ("Delete", pb.DeleteRequest(collection="pets", ids=["dark"]), "index"),
        ("Delete", pb.DeleteRequest(collection="pets", all=True), "admin"),
    ],
)
async def test_each_rpc_needs_its_scope(pets, rpc_name, request_, scope):
    others = {"read", "index", "admin"} - {scope}
    become(pets, "-", ",".join(others))
    code, details = await pets.refused(rpc_name, request_)
    assert (code, f"no scope '{scope}'" in details) == ("PERMISSION_DENIED", True)
    become(pets, "-", scope)
    await pets(rpc_name, request_)


async def test_metadata_has_a_limit_for_each_item(caller, settings):
    image, most = pb.Image(encoded=png()), settings.max_metadata_bytes
    items = [item("a", image, k="x" * (most - 1)), item("b", image, k="x" * most)]
    response = await caller("Index", pb.IndexRequest(collection="pets", items=items))
    assert response.indexed == 1
    assert f"the metadata has {most + 1:,} bytes" in response.errors[0].message


async def test_a_search_knows_when_its_caller_has_gone(pets, monkeypatch):
    queries = asyncio.Queue()
    go_on = Event()

    def search(self, query):
        asyncio.run_coroutine_threadsafe(queries.put(query), loop)
        go_on.wait(60)
        return []

    loop = asyncio.get_running_loop()
    for engine in (EmbeddedCollection, VectorSet):
        monkeypatch.setattr(engine, "search", search)
    asked = asyncio.create_task(pets("Search", pb.SearchRequest(collection="pets", id="dark")))
    query = await queries.get()
    assert not query.abandoned.is_set()
    asked.cancel()
    assert await asyncio.to_thread(query.abandoned.wait, 60)
    go_on.set()
    await asyncio.wait([asked])


async def test_ids_to_delete_are_bounded(pets):
    request = pb.DeleteRequest(collection="pets", ids=map(str, range(10_001)))
    code, message = await pets.refused("Delete", request)
    assert code == "INVALID_ARGUMENT"
    assert message == "10,001 ids in one request, at most 10,000: send them in several"
