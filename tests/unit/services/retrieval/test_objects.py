from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from samclip.v1 import samclip_pb2 as pb

from samclip_core.answers import objects as choice
from samclip_core.geometry import Geometry
from samclip_core.io.masks import decode_runs, runs_of_logits
from samclip_core.regions import Regions
from services.retrieval import objects
from services.retrieval.backup import LONGEST
from services.retrieval.objects import Objects
from services.retrieval.query import Query, finished
from tests.vectors import (
    GEOMETRY,
    SIDE,
    D,
    best_objects,
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


def test_masks_are_those_of_the_regions():
    for seed in range(20):
        found = regions(seed, 4)
        order = np.argsort(-found.predicted_iou_R * found.stability_R)
        kept = held(objects.pack(found, GEOMETRY))
        for index, one in zip(order, kept, strict=True):
            expected, mask = runs_of_logits(GEOMETRY, found.logits(index)), one.mask()
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


@given(
    counts=st.lists(st.integers(1, 5), max_size=12),
    page=st.integers(1, 5),
    top_k=st.integers(1, 15),
    offset=st.integers(0, 5),
    min_score=st.sampled_from([0, 0.3, 0.9]),
    seed=st.integers(0, 9),
)
def test_each_image_is_found_by_its_best_object(counts, page, top_k, offset, min_score, seed):
    items = [with_objects(seed + n, f"id {n}", count) for n, count in enumerate(counts)]
    rows = iter([(item.id, item.objects) for item in items])
    pages = iter(lambda: [*islice(rows, page)], [])
    query = Query(3 * vector(seed), top_k, offset, exclude="id 1", min_score=min_score)
    found = finished(objects.nearest(pages, query, D))
    every = best_objects(items, Query(vector(seed), 99)).values()
    assume(all(abs(score - min_score) > 2e-3 for score in every))  # the query is rounded
    expected = best_objects(items, replace(query, vector_D=vector(seed)))
    part = [*expected.values()][offset : offset + top_k]
    assert [score for _, score in found] == pytest.approx(part, abs=2e-3)
    for id, _ in found:
        (item,) = [item for item in items if item.id == id]
        scores_R = Objects(item.objects, D).vector_RD @ vector(seed)
        nearest = Objects(item.objects, D)[int(scores_R.argmax())]
        assert objects.meant(item.objects, query, D) == nearest


GOOD = with_objects(1, count=2).objects


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
        counts = found[count - 1].mask().rle.counts
        assert len(counts) < 5 * (SIDE + 1) * width + 10


def test_no_picture_has_more_bytes_of_objects_than_a_service_takes(monkeypatch):
    every = objects.pack(regions(1, 40), GEOMETRY)
    monkeypatch.setattr(objects, "MOST_BYTES", len(every) - 1)
    fewer = objects.pack(regions(1, 40), GEOMETRY)
    Objects(fewer, D).check(PIXELS, GEOMETRY.size, SIDE)
    assert objects.count(fewer) == objects.count(every) - 1
    assert [one.outline for one in held(fewer)] == [one.outline for one in held(every)[:-1]]
    monkeypatch.setattr(objects, "MOST_BYTES", len(every))
    assert objects.pack(regions(1, 40), GEOMETRY) == every


@given(
    header=st.tuples(
        st.sampled_from([1, 0, 2]),
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
def test_hostile_bytes_are_refused_or_as_harmless_as_ours(header, as_it_was, edits):
    """Other counts and sizes, and slices that are replaced, inserted and left out."""
    made = GOOD if as_it_was else objects._HEADER.pack(*header) + GOOD[objects._HEADER.size :]
    for at, length, instead in edits:
        made = made[:at] + instead + made[at + length :]
    try:
        found = Objects(made, D)
        found.check(PIXELS, GEOMETRY.size, SIDE)
    except ValueError:
        return
    count = objects.count(made)
    assert 0 < count <= choice.MOST
    assert len(made) < objects._HEADER.size + (count + 1) * (2 * D + 14) + count * (16 * 16 + 1024)
    assert np.isfinite(found.vector_RD).all()
    for index in range(count):
        mask = found[index].mask()
        assert 0 < mask.rle.height * mask.rle.width <= PIXELS
        assert 0 <= mask.box.x_min <= mask.box.x_max <= mask.rle.width
        assert 0 <= mask.box.y_min <= mask.box.y_max <= mask.rle.height


def test_a_predicted_iou_above_1_is_no_damage():
    found = replace(regions(1), predicted_iou_R=np.array([1.12, 1.03, 0.9], np.float32))
    Objects(objects.pack(found, GEOMETRY), D).check(PIXELS)


def test_damaged_objects_are_left_out_and_named(caplog):
    page = [("whole", GOOD), ("cut", GOOD[:40]), ("foreign", b"\x09" + GOOD[1:])]
    found = finished(objects.nearest([page], Query(vector(1), 9), D))
    assert [id for id, _ in found] == ["whole"]
    assert "item 'cut' is left out" in caplog.text
    assert "item 'foreign' is left out" in caplog.text
    whole = Objects(GOOD, D)[0]
    hits = [(pb.Hit(id="a"), whole), (pb.Hit(id="b"), whole._replace(outline=b"nothing"))]
    assert [hit.id for hit in objects.drawn(hits)] == ["a"]
