"""Objects of indexed images, from Index to Search, with a checkpoint of random weights."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from samclip.mask_codecs import encode_rle
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers import stored_objects as objects
from samclip_core.answers.areas import Area
from samclip_core.answers.find_regions import FindRegions
from samclip_core.answers.stored_objects import Object
from samclip_core.answers.tiles import tiles_of
from samclip_core.io.image import encode_png
from samclip_core.io.masks import decode_runs
from services.heads.backbone_client import BackboneClient
from services.request import limits as request_limits
from services.retrieval.collection import Collection
from tests.fakes import in_the_middle
from tests.in_process import png, responsive
from tests.unit.services.retrieval.test_app import BOX, delete, described, photo

SEEDS = {"a": 1, "b": 2, "c": 3}
"""Of the noise of each picture, by its id."""


def index(ids: Mapping[str, int] = SEEDS, **fields: object) -> pb.IndexRequest:
    items = [
        pb.IndexItem(id=id, image=pb.Image(encoded=png(noise=seed)), metadata={"seed": str(seed)})
        for id, seed in ids.items()
    ]
    return pb.IndexRequest(**{"collection": "pets", "items": items, "objects": True, **fields})


def search(**fields: object) -> pb.SearchRequest:
    return pb.SearchRequest(**{"collection": "pets", "objects": True, **fields})


@pytest.fixture
async def pets(caller):
    response = await caller("Index", index())
    assert (response.indexed, list(response.errors)) == (3, [])
    return caller


@pytest.fixture
def expected(tiny_model):
    """Return id → the library's regions of its picture, those that are indexed."""
    found = {}
    for id, seed in SEEDS.items():
        features = tiny_model.regions(png(noise=seed))
        packed = objects.pack(features.regions, features.geometry)
        found[id] = objects.Objects(packed, tiny_model.config.text_dim)
    return found


async def test_each_image_is_a_hit_by_its_best_object(pets, expected, tiny_model):
    text_D = tiny_model.class_embeddings(["dog"])[0]
    area_D = tiny_model.embed_image(png(), area=Area(box=(5, 0, 20, 30)))
    inside_HW = np.zeros((30, 40), bool)
    inside_HW[:, 5:20] = True
    rle = pb.CocoRle(height=30, width=40, counts=encode_rle(inside_HW))
    for query, vector_D in (
        ({"text": "dog"}, text_D),
        ({"image": photo(), "area": BOX}, area_D),
        ({"example": pb.Example(image=photo(), mask=rle)}, area_D),
        ({"id": "b"}, tiny_model.embed_image(png(noise=2))),
    ):
        hits = (await pets("Search", search(**query))).hits
        best = {
            id: float((found.vector_RD @ vector_D).max())
            for id, found in expected.items()
            if id != query.get("id")
        }
        assert [hit.id for hit in hits] == sorted(best, key=lambda id: -best[id])
        for hit in hits:
            assert hit.score == pytest.approx(best[hit.id], abs=3e-3)
            assert hit.metadata == {"seed": str(SEEDS[hit.id])}
            assert hit.box == hit.mask.box
            rle = hit.mask.rle
            runs = decode_runs(rle.counts, rle.height, rle.width)
            assert (rle.height, rle.width, runs.area) == (30, 40, hit.mask.area)
    assert not (await pets("Search", search(text="dog", objects=False))).hits[0].HasField("mask")


async def test_objects_are_counted_replaced_and_deleted_with_their_images(pets, expected):
    counts = {id: len(found.vector_RD) for id, found in expected.items()}
    assert (await described(pets))["pets"].objects == sum(counts.values())
    assert (await pets("Index", index({"b": 2}, objects=False))).replaced == 1
    assert (await described(pets))["pets"].objects == counts["a"] + counts["c"]
    assert {hit.id for hit in (await pets("Search", search(text="dog"))).hits} == {"a", "c"}
    await pets("Delete", delete(ids=["a"]))
    assert {hit.id for hit in (await pets("Search", search(text="dog"))).hits} == {"c"}
    assert (await described(pets))["pets"].objects == counts["c"]
    await pets("Delete", delete(ids=["c"]))
    assert (await described(pets))["pets"].objects == 0
    await pets.refuses("Search", (search(text="dog"), "'pets' has no objects: index its images"))


async def test_bad_requests_are_refused(pets):
    example = pb.Example(image=photo(), box=BOX.box)
    negative = pb.Example(image=photo(), box=BOX.box, negative=True)
    rle = pb.CocoRle(height=3, width=3, counts=b"9")
    await pets.refuses(
        "Search",
        (search(text="dog", min_score=-1.5), "min_score is -1.5, expected a cosine from -1 to 1"),
        (search(text="dog", min_score=float("nan")), "min_score is nan"),
        (
            search(example=pb.Example(image=photo())),
            "the place is empty: give a box, points or a mask",
        ),
        (search(example=negative), "no example of what is wanted"),
        (search(example=pb.Example(image=photo(), mask=rle)), "the mask has 3×3 pixels"),
        (search(example=example, area=BOX), "an area without its image"),
    )
    await pets("Index", index({"a": 1}, collection="whole", objects=False))
    await pets.refuses("Search", (search(collection="whole", text="dog"), "has no objects"))


@pytest.mark.parametrize("limits", [{"max_collection_objects": 1}])
async def test_the_limit_is_checked_before_and_after_the_search_for_objects(caller, monkeypatch):
    one = index({"a": 1})  # two objects
    await caller.refuses("Index", (one, "more would exceed the limit of 1: delete some items"))
    assert await described(caller) == {}

    async def embed(*_: object) -> None:
        raise AssertionError("an image was embedded")

    monkeypatch.setattr(BackboneClient, "features", embed)
    await caller.refuses("Index", (index(), "has 0 objects in other items, and 3 more"))


async def test_an_image_whose_objects_cannot_be_found_is_an_error_of_its_own(caller):
    request = index()
    request.items.add(id="bad", image=pb.Image(encoded=b"not an image"))
    response = await caller("Index", request)
    assert (response.indexed, [error.id for error in response.errors]) == (3, ["bad"])


async def test_objects_are_found_in_tiles_as_well(caller, monkeypatch):
    """One in each part; a second time from the cache."""
    monkeypatch.setattr(FindRegions, "steps", in_the_middle)
    noise_HW3 = np.random.default_rng(5).integers(0, 255, (160, 200, 3), np.uint8)
    encoded = encode_png(noise_HW3)
    item = pb.IndexItem(id="large", image=pb.Image(encoded=encoded))
    request = index(items=[item], tiles=2)
    assert (await caller("Index", request)).indexed == 1
    tiles = tiles_of(160, 200, 2, 1024, 4)
    assert (await described(caller))["pets"].objects == 1 + len(tiles) == 5
    boxes = set()
    for crop in tiles:
        box = pb.Box(x_min=crop.x, y_min=crop.y, x_max=crop.x + 114, y_max=crop.y + 114)
        example = pb.Example(image=pb.Image(encoded=encoded), box=box)
        (hit,) = (await caller("Search", search(example=example))).hits
        assert (hit.mask.rle.height, hit.mask.rle.width) == (160, 200)
        boxes.add((hit.box.x_min, hit.box.y_min))
    item.image.CopyFrom(pb.Image(key=hashlib.sha256(encoded).hexdigest()))
    assert (await caller("Index", index(items=[item], tiles=2))).replaced == 1
    assert (await described(caller))["pets"].objects == 5


async def test_bad_requests_for_tiles(caller):
    await caller.refuses(
        "Index",
        (index(tiles=2, objects=False), "tiles are searched for objects: send objects, or leave"),
        (index(tiles=5), "tiles is 5, expected 0 (the whole alone) to 4, or -1"),
        (index(tiles=-2), "tiles is -2, expected 0"),
    )
    done = await caller("Index", index({"small": 1}, tiles=4))
    (error,) = done.errors
    assert (done.indexed, error.id) == (0, "small")
    assert "tiles is 4, and 40×30 pixels make tiles of 13" in error.message
    await caller("Index", index({"a": 1}))
    known = pb.IndexItem(id="a", image=pb.Image(key=hashlib.sha256(png(noise=1)).hexdigest()))
    (error,) = (await caller("Index", index(items=[known], tiles=2))).errors
    assert "tiles need the image's pixels, not only its key: send the image" in error.message


async def test_many_masks_are_drawn_beside_the_event_loop_and_within_limits(caller, monkeypatch):
    """As many hits as may be asked for, of pictures of 48 megapixels, are refused."""
    await caller("Index", index({"a": 1}))
    packed = Collection.search_objects

    def many(count: int) -> object:
        def found(*arguments: object) -> list[tuple[pb.Hit, Object]]:
            ((hit, best),) = packed(*arguments)
            size = replace(best.geometry, height=6000, width=8000)
            return [(pb.Hit(id=hit.id), best._replace(geometry=size))] * count

        return found

    monkeypatch.setattr(Collection, "search_objects", many(10_000))
    await caller.refuses("Search", (search(text="dog"), "a smaller top_k"))
    monkeypatch.setattr(Collection, "search_objects", many(60))
    with responsive():
        assert len((await caller("Search", search(text="dog"))).hits) == 60
    monkeypatch.setattr(request_limits, "MAX_REPLY_BYTES", 1000)
    await caller.refuses("Search", (search(text="dog"), "ask for fewer at once"))
