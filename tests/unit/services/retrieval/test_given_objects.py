"""Objects that come with the vectors of their images, as ``samclip index --from`` sends them."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from samclip.cli import lake
from samclip.types import ListedItem
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers import stored_objects as objects
from samclip_core.answers.objects import MOST
from samclip_core.answers.stored_objects import Objects
from samclip_core.model import SamClip
from services.heads.backbone_client import BackboneClient
from services.lake.part import run_part
from tests.in_process import Caller, png
from tests.unit.services.lake.test_part import planned
from tests.unit.services.retrieval.test_app import described

SEEDS = {"a.png": 1, "b.png": 2, "c.png": 3}
HEADER = struct.Struct("<BxHHIII")  # version, objects, side, height, width, frame


@pytest.fixture
def table(tiny_model: SamClip, tmp_path: Path) -> Path:
    """Make the table that ``samclip batch --embed --regions`` writes about three pictures."""
    photos, out = tmp_path / "photos", tmp_path / "lake"
    photos.mkdir()
    for name, seed in SEEDS.items():
        (photos / name).write_bytes(png(noise=seed))
    plan = planned(str(out), photos, tiny_model, embed=True, regions=True)
    for number in range(plan.count):
        run_part(tiny_model, plan, number, 1)
    return out


def rows(table: Path) -> list[lake.Rows]:
    return [found for part in lake.parts(str(table), objects=True) for found in part.rows()]


async def store(caller: Caller, collection: str, found: lake.Rows) -> Any:
    """Send rows as ``samclip index --from`` does."""

    async def ask(request: pb.IndexRequest) -> Any:
        return await caller("Index", request)

    client = SimpleNamespace(_session=SimpleNamespace(ask=ask))
    return await lake.store.__wrapped__(client, collection, found)  # type: ignore[attr-defined]


def request(found: lake.Rows, **packed: bytes | None) -> pb.IndexRequest:
    """Return a request with some of the objects replaced; without those that are None."""
    items = [
        pb.IndexItem(
            id=id, vector=vector_D.astype("<f4").tobytes(), objects=packed.get(id[0], held) or b""
        )
        for id, vector_D, held in zip(found.ids, found.vectors, found.objects, strict=True)
    ]
    model = pb.ModelInfo(digest=found.model.digest, dtype=found.model.dtype)
    return pb.IndexRequest(collection="pets", items=items, made_by=model)


def together(found: list[lake.Rows]) -> lake.Rows:
    return lake.Rows(
        found[0].model,
        [id for each in found for id in each.ids],
        np.concatenate([each.vectors for each in found]),
        [pairs for each in found for pairs in each.metadata],
        [packed for each in found for packed in each.objects],
    )


def search(**fields: object) -> pb.SearchRequest:
    return pb.SearchRequest(**{"collection": "pets", "objects": True, **fields})


async def test_a_search_finds_what_it_finds_in_images_that_the_service_indexed(
    caller: Caller, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = together(rows(table))
    items = [
        pb.IndexItem(id=id, image=pb.Image(encoded=png(noise=SEEDS[id])), metadata=pairs)
        for id, pairs in zip(held.ids, held.metadata, strict=True)
    ]
    await caller("Index", pb.IndexRequest(collection="seen", items=items, objects=True))

    async def encode(*_: object) -> None:
        raise AssertionError("an image was encoded")

    with monkeypatch.context() as patch:
        patch.setattr(BackboneClient, "features", encode)
        for found in rows(table):
            assert not (await store(caller, "loaded", found)).errors
    collections = await described(caller)
    assert collections["seen"].objects == collections["loaded"].objects > 0
    box = pb.Box(x_min=5, y_min=0, x_max=20, y_max=30)
    example = pb.Example(image=pb.Image(encoded=png()), box=box)
    for query in ({"text": "dog"}, {"id": "b.png"}, {"example": example}):
        seen = (await caller("Search", search(collection="seen", **query))).hits
        loaded = (await caller("Search", search(collection="loaded", **query))).hits
        assert [hit.id for hit in seen] == [hit.id for hit in loaded]
        for one, other in zip(seen, loaded, strict=True):
            assert other.score == pytest.approx(one.score, abs=1e-3)  # the service's is float16
            assert (one.box, one.mask.rle, one.metadata) == (
                other.box,
                other.mask.rle,
                other.metadata,
            )
        assert all(hit.mask.area > 0 for hit in seen)
    listed = (await caller("ListItems", pb.ListItemsRequest(collection="loaded"))).items
    counts = {id: objects.count(packed) for id, packed in zip(held.ids, held.objects, strict=True)}
    assert {item.id: item.objects for item in listed} == counts


async def test_a_request_may_mix_items_with_and_without_objects(
    caller: Caller, table: Path
) -> None:
    held = together(rows(table))
    assert (await caller("Index", request(held, b=None))).indexed == 3
    hits = (await caller("Search", search(text="dog"))).hits
    assert {hit.id for hit in hits} == {"a.png", "c.png"}
    assert len((await caller("Search", search(text="dog", objects=False))).hits) == 3
    assert (await caller("Index", request(held, a=None))).replaced == 3
    hits = (await caller("Search", search(text="dog"))).hits
    assert {hit.id for hit in hits} == {"b.png", "c.png"}, "an image and its objects go together"


def changed(packed: bytes, **fields: int) -> bytes:
    names = ("version", "count", "side", "height", "width", "frame")
    values = dict(zip(names, HEADER.unpack_from(packed), strict=True))
    return HEADER.pack(*(values | fields).values()) + packed[HEADER.size :]


def with_outline(packed: bytes, dimension: int, outline: bytes) -> bytes:
    """Replace the last outline."""
    count = objects.count(packed)
    outlines_at = HEADER.size + 2 * (count + 1) * dimension + 10 * count + 4 * count
    ends = np.frombuffer(packed, "<u4", count, outlines_at - 4 * count).copy()
    start = int(ends[-2]) if count > 1 else 0
    ends[-1] = start + len(outline)
    head = packed[: outlines_at - 4 * count]
    return head + ends.tobytes() + packed[outlines_at : outlines_at + start] + outline


def with_numbers(packed: bytes, at: int, value: float) -> bytes:
    """Replace a float16 behind the header."""
    place = HEADER.size + 2 * at
    return packed[:place] + np.float16(value).tobytes() + packed[place + 2 :]


async def test_hostile_objects_are_named_and_the_others_stored(
    caller: Caller, table: Path, tiny_model: SamClip
) -> None:
    held, width = together(rows(table)), tiny_model.config.text_dim
    good, count = held.objects[1], objects.count(held.objects[1])
    side = HEADER.unpack_from(good)[2]
    bomb = zlib.compress(bytes(2**24))
    padded = bytes([0, 0, 0, 255, 255])  # an empty block of zlib's; any number may follow
    cells = len(Objects(good, width)[count - 1].levels().tobytes())
    stream = zlib.compress(bytes(cells))
    long = stream[:2] + 1000 * padded + stream[2:]
    assert zlib.decompress(long) == bytes(cells)
    for bad, words in (
        (b"x", "no header"),
        (good[:-1], "bytes than they state"),
        (good + b"x", "bytes than they state"),
        (changed(good, version=3), "layout 3"),
        (of_tile(good, x=41), "of a tile outside of its picture"),
        (of_tile(good, parts=258), "in 258 parts of a picture"),
        (of_tile(good, parts=2), "objects of a part are missing"),
        (of_tile(of_tile(good)), "layout 2, expected 1"),
        (of_tile(good) + b"x", "bytes than they state"),
        (of_tile(good, height=2**31), "of a picture of"),
        (changed(good, count=0), "0 objects in one picture"),
        (changed(good, count=65_535), "cannot be searched"),
        (changed(good, height=2**31), "of a picture of"),
        (changed(good, height=0), "sides must be at least 1"),
        (changed(good, side=0), "impossible size"),
        (changed(good, side=60_000), "impossible size"),
        (changed(good, side=2 * side), f"outlines of side {2 * side}, expected {side}"),
        (changed(good, height=1, width=64_000_000), "a side of 64,000,000 pixels"),
        (good + bytes(2**20), "expected at most 1,048,576"),
        (changed(good, frame=1024), "in a frame of 1024 pixels, expected"),
        (with_numbers(good, 0, np.nan), "not finite"),
        (with_numbers(good, 0, 100), "vectors of length 1"),
        (with_numbers(good, count * width, np.inf), "not finite"),
        (with_numbers(good, count * width, 9), "a mean vector"),
        (with_numbers(good, (count + 1) * width, np.nan), "predicted IoU that is not finite"),
        (with_numbers(good, (count + 1) * width + 1, -1), "scores from 0 to 1"),
        (with_numbers(good, (count + 1) * width + 4, np.nan), "scores from 0 to 1"),
        (with_outline(good, width, bomb), "cannot be searched"),
        (with_outline(good, width, long), "longer than they can be"),
        (with_outline(good, width, stream + b"more"), "is damaged"),
        (with_outline(good, width, stream[:-4]), "is damaged"),
        (with_outline(good, width, b""), "is damaged"),
        (of_another_model(tiny_model), "cannot be searched"),
        (many(good, width, MOST + 1), f"expected 1 to {MOST}"),
    ):
        answer = await caller("Index", request(held, b=bad))
        assert (answer.indexed, [error.id for error in answer.errors]) == (2, ["b.png"]), words
        assert words in answer.errors[0].message
        assert "send those that samclip batch --regions has found" in answer.errors[0].message
    for fine in (many(good, width, MOST), of_tile(good)):
        assert (await caller("Index", request(held, b=fine))).indexed == 3


def of_tile(packed: bytes, x: int = 40, parts: int = 1, height: int = 60) -> bytes:
    """Return the objects of a picture as those of a tile of one that is twice as large."""
    header = HEADER.pack(2, objects.count(packed), parts, height, 80, 0)
    return header + struct.pack("<III", x, 30, len(packed)) + packed


def many(packed: bytes, dimension: int, count: int) -> bytes:
    """Return the first object so many times."""
    found = Objects(packed, dimension)
    outline, number = found[0].outline, objects.count(packed)
    scores_at = HEADER.size + 2 * (number + 1) * dimension
    return b"".join(
        (
            HEADER.pack(1, count, *HEADER.unpack_from(packed)[2:]),
            count * found.vector_RD[0].tobytes(),
            packed[scores_at - 2 * dimension : scores_at],
            count * packed[scores_at : scores_at + 10],
            np.cumsum(count * [len(outline)]).astype("<u4").tobytes(),
            count * outline,
        )
    )


def of_another_model(model: SamClip) -> bytes:
    """Return the objects of a picture with vectors of twice the size."""
    features = model.regions(png(noise=2))
    found = features.regions
    wide_RD, mean_D = np.repeat(found.clip_RD, 2, axis=1), np.repeat(found.clip_mean_D, 2)
    halved = replace(found, clip_RD=wide_RD / np.float16(2), clip_mean_D=mean_D / np.float16(2))
    return objects.pack(halved, features.geometry)


@pytest.mark.parametrize("limits", [{"max_collection_objects": 1}])
async def test_the_limit_holds_for_them(caller: Caller, table: Path) -> None:
    held = together(rows(table))
    await caller.refuses("Index", (request(held), "has 0 objects in other items, and 3 more"))
    count = objects.count(held.objects[0])
    assert count > 1
    one = request(held, b=None, c=None)
    await caller.refuses("Index", (one, f"and {count} more would exceed the limit of 1"))
    assert await described(caller) == {}
    assert (await caller("Index", request(held, a=None, b=None, c=None))).indexed == 3


def test_rows_without_objects_in_the_collection_are_sent_again(table: Path) -> None:
    found = together(rows(table))
    listed = {
        id: ListedItem(id, pairs) for id, pairs in zip(found.ids, found.metadata, strict=True)
    }
    assert [*found.without(listed).ids] == [*found.ids]
    listed["b.png"] = ListedItem("b.png", listed["b.png"].metadata, 2)
    assert [*found.without(listed).ids] == ["a.png", "c.png"]
