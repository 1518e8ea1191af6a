"""The bytes of the objects of a picture: as they were found, bounded, and safe to read."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers import objects as choice
from samclip_core.answers import stored_objects as objects
from samclip_core.answers.stored_objects import Object, Objects
from samclip_core.answers.tiles import PlacedMask, of_everything
from samclip_core.geometry import Crop, Geometry
from samclip_core.io.masks import decode_runs, runs_of_logits
from samclip_core.regions import Regions, to_levels
from services.request import wire
from services.retrieval import object_search
from services.retrieval.backup import LONGEST
from services.retrieval.index import Collections
from services.retrieval.query import Query
from services.retrieval.registry import Registry
from services.retrieval.rows import Item
from tests.vectors import (
    GEOMETRY,
    MODEL,
    SIDE,
    D,
    made_up,
    outline,
    regions,
    vector,
    with_objects,
)

PIXELS = 64 * 48


def held(packed: bytes) -> list[objects.Object]:
    return [Objects(packed, D)[index] for index in range(objects.count(packed))]


def test_the_best_regions_of_some_size_are_kept(monkeypatch):
    monkeypatch.setattr(choice, "MOST", 2)
    found = replace(
        regions(1, 4),
        predicted_iou_R=np.array([0.9, 0.8, 1, 1], np.float32),
        stability_R=np.array([0.5, 0.9, 1, 0.4], np.float32),
        area_R=np.array([0.1, 0.1, choice.MIN_PIXELS / PIXELS - 1e-6, 0.1], np.float32),
    )
    kept = held(objects.pack(found, GEOMETRY))
    scores = [(one.predicted_iou, one.stability) for one in kept]
    np.testing.assert_allclose(scores, [(0.8, 0.9), (0.9, 0.5)], atol=1e-3)


def test_a_picture_without_regions_has_no_objects():
    empty = regions(1, 0)
    assert isinstance(empty, Regions)
    assert (objects.pack(empty, GEOMETRY), objects.count(b"")) == (b"", 0)


def mask_of(one: Object) -> pb.Mask:
    return wire.to_everything_mask(one.found(), pb.RLE)


def test_masks_are_those_of_the_regions():
    for seed in range(20):
        found = regions(seed, 4)
        order = np.argsort(-found.predicted_iou_R * found.stability_R)
        kept = held(objects.pack(found, GEOMETRY))
        for index, one in zip(order, kept, strict=True):
            expected, mask = runs_of_logits(GEOMETRY, found.logits(index)), mask_of(one)
            assert (mask.rle.height, mask.rle.width) == (48, 64)
            runs = decode_runs(mask.rle.counts, 48, 64)
            both = np.zeros((2, PIXELS), bool)
            for row, these in zip(both, (runs, expected), strict=True):
                for start, end in zip(these.start_K, these.end_K, strict=True):
                    row[start:end] = True
            assert both.all(0).sum() / both.any(0).sum() > 0.97
            box = mask.box.x_min, mask.box.y_min, mask.box.x_max, mask.box.y_max
            np.testing.assert_allclose(box, found.box_R4[index], atol=1.01)
            assert mask.predicted_iou == pytest.approx(found.predicted_iou_R[index], abs=1e-3)
            assert mask.stability_score == pytest.approx(found.stability_R[index], abs=1e-3)


GOOD = with_objects(1, count=2).objects

PICTURE = Geometry(96, 128, 64)
LEFT, RIGHT = (Crop(x, 24, 48, 64, 96, 128) for x in (0, 64))
"""Tiles in which things are twice as large as in the picture."""


def in_parts(**of: Regions) -> tuple[dict[Crop | None, bytes], list[PlacedMask]]:
    """Return what is found in the picture and its tiles, and where each thing is."""
    crops = {"whole": None, "left": LEFT, "right": RIGHT}
    parts = {
        crops[name]: objects.pack(found, GEOMETRY if crops[name] else PICTURE, crops[name])
        for name, found in of.items()
    }
    every = (objects.placed(packed, D, crop) for crop, packed in parts.items())
    return parts, of_everything([one for found in every for one in found])


TILED = objects.merge(*in_parts(whole=regions(3), left=regions(8, 8), right=regions(11, 8)), D)


@given(
    count=st.sampled_from([1, 2, choice.MOST, choice.MOST + 1]),
    side=st.sampled_from([SIDE, 1, SIDE - 1, 4 * SIDE, 64 * SIDE]),
    height=st.sampled_from([48, 1, PIXELS, 70_000]),
    width=st.sampled_from([64, 1, PIXELS, 70_000]),
    frame=st.sampled_from([64, 1, 63, 4096]),
    kind=st.sampled_from(["random", "constant", "checkerboard"]),
    known=st.booleans(),
)
def test_whole_objects_of_other_sizes_are_refused_or_as_small_as_ours(
    count, side, height, width, frame, kind, known
):
    """``known``: to the service, which has a model, and not to ``restore``, which has none."""
    most_pixels = 2**26
    geometry = Geometry(height, width, frame)
    cells = int(np.prod(objects._stored_cells(geometry, side)))
    assume(count * cells <= 2**22)  # for the sake of time
    made = made_up(count, side, geometry, count * [outline(kind, side, geometry)])
    found = Objects(made, D)
    expected = (64, SIDE) if known else ()
    fits = count <= choice.MOST and height * width <= most_pixels
    fits = fits and max(height, width) <= 65_535 and len(made) <= 2**20
    if not fits or (known and (frame, side) != expected):
        with pytest.raises(ValueError, match="objects"):
            found.check(most_pixels, *expected)
        return
    found.check(most_pixels, *expected)
    assert len(made) <= 2**20
    assert 4 * len(made) / 3 < LONGEST / 8
    if known:
        assert cells <= SIDE**2
        counts = mask_of(found[count - 1]).rle.counts
        assert len(counts) < 5 * (SIDE + 1) * width + 10


def test_objects_of_tiles_are_placed_in_the_picture_and_found_by_a_search():
    found = Objects(TILED, D)
    found.check(PICTURE.height * PICTURE.width, PICTURE.size, SIDE)
    assert (len(found), len(found.parts)) == (objects.count(TILED), 3)
    for index in range(len(found)):
        one = found[index]
        mask = mask_of(one)
        assert (mask.rle.height, mask.rle.width) == (96, 128)
        if one.crop:
            assert one.crop.x <= mask.box.x_min < mask.box.x_max <= one.crop.x + 64
            assert 24 < mask.box.y_min < mask.box.y_max < 24 + 48
        query = Query(found.vector_RD[index].astype(np.float32), 9)
        assert object_search.meant(TILED, query, D) == one


def test_a_thing_in_several_parts_is_one_object():
    def ellipse(x: float, y: float, size: float) -> Regions:
        y_16, x_16 = np.ogrid[0.5:16, 0.5:16]
        inside = 1 - ((x_16 - x) ** 2 + (y_16 - y) ** 2) / size**2
        return replace(regions(1, 1), levels_Rss=to_levels(4 * inside)[None])

    left = ellipse(8, 6, 4)
    packed = objects.merge(*in_parts(whole=ellipse(4, 6, 2), left=left), D)
    (one,) = held(packed)
    assert one.crop == LEFT
    assert objects.count(objects.merge(*in_parts(whole=ellipse(12, 6, 2), left=left), D)) == 2
    cut = ellipse(0, 6, 4)  # by the edge between both tiles
    assert objects.merge(*in_parts(right=cut), D) == b""


def test_no_picture_has_more_bytes_of_objects_than_a_service_takes(monkeypatch):
    every = objects.pack(regions(1, 40), GEOMETRY)
    monkeypatch.setattr(objects, "MOST_BYTES", len(every) - 1)
    fewer = objects.pack(regions(1, 40), GEOMETRY)
    Objects(fewer, D).check(PIXELS, GEOMETRY.size, SIDE)
    assert objects.count(fewer) == objects.count(every) - 1
    assert [one.outline for one in held(fewer)] == [one.outline for one in held(every)[:-1]]
    monkeypatch.setattr(objects, "MOST_BYTES", len(every))
    assert objects.pack(regions(1, 40), GEOMETRY) == every
    parts = in_parts(whole=regions(1), left=regions(2, 20))
    every = objects.merge(*parts, D)
    monkeypatch.setattr(objects, "MOST_BYTES", len(every) // 2)
    fewer = objects.merge(*parts, D)
    Objects(fewer, D).check(PICTURE.height * PICTURE.width, PICTURE.size, SIDE)
    least = min(one.predicted_iou * one.stability for one in held(fewer))
    dropped = [one for one in held(every) if one not in held(fewer)]
    assert all(one.predicted_iou * one.stability <= least for one in dropped)


@given(
    whole=st.sampled_from([GOOD, TILED]),
    header=st.tuples(
        st.sampled_from([1, 0, 2]),
        st.booleans(),
        st.sampled_from([2, 0, 1, 3, 100, 65_535]),
        st.sampled_from([16, 0, 15, 17, 1024, 65_535]),
        *[st.sampled_from([48, 64, 0, 1, 3072, 2**31, 2**32 - 1])] * 2,
        st.sampled_from([64, 0, 1, 63, 4096, 2**32 - 1]),
    ),
    as_it_was=st.booleans(),
    edits=st.lists(
        st.tuples(st.integers(20, len(GOOD)), st.integers(0, 40), st.binary(max_size=40)),
        max_size=4,
    ),
)
def test_hostile_bytes_are_refused_or_as_harmless_as_ours(whole, header, as_it_was, edits):
    """Other counts and sizes, and slices that are replaced, inserted and left out."""
    made = whole if as_it_was else objects._HEADER.pack(*header) + whole[objects._HEADER.size :]
    for at, length, instead in edits:
        made = made[:at] + instead + made[at + length :]
    try:
        found = Objects(made, D)
        found.check(PIXELS, GEOMETRY.size, SIDE)
    except ValueError:
        return
    count, parts = objects.count(made), len(found.parts)
    assert 0 < count <= choice.MOST * parts
    most = (parts + 1) * 32 + (count + parts) * (2 * D + 14) + count * (16 * 16 + 1024)
    assert len(made) < most
    assert np.isfinite(found.vector_RD).all()
    for index in range(count):
        mask = mask_of(found[index])
        assert 0 < mask.rle.height * mask.rle.width <= PIXELS
        assert 0 <= mask.box.x_min <= mask.box.x_max <= mask.rle.width
        assert 0 <= mask.box.y_min <= mask.box.y_max <= mask.rle.height


def test_a_predicted_iou_above_1_is_no_damage():
    found = replace(regions(1), predicted_iou_R=np.array([1.12, 1.03, 0.9], np.float32))
    Objects(objects.pack(found, GEOMETRY), D).check(PIXELS)


def test_damaged_objects_are_left_out_and_named(tmp_path, caplog):
    pets = Collections(Registry(tmp_path), MODEL, D).get_or_make("pets", "float32")
    stored = {"whole": GOOD, "cut": GOOD[:40], "foreign": b"\x09" + GOOD[1:]}
    pets.upsert([Item(id, vector(1), {}, packed) for id, packed in stored.items()])
    assert [hit.id for hit, _ in pets.search_objects(Query(vector(1), 9))] == ["whole"]
    assert "item 'cut' is left out" in caplog.text
    assert "item 'foreign' is left out" in caplog.text
    whole = Objects(GOOD, D)[0]
    hits = [(pb.Hit(id="a"), whole), (pb.Hit(id="b"), whole._replace(outline=b"nothing"))]
    assert [hit.id for hit in object_search.drawn(hits)] == ["a"]
