"""Semantic maps and heat maps are the library's own."""

import itertools

import numpy as np
import pytest
from samclip.mask_codecs import decode_rle
from samclip.v1 import samclip_pb2 as pb

from samclip_core.io.image import encode_png
from samclip_core.io.masks import decode_label_map, read_png
from services.batching.threads import Threads
from services.request import limits
from tests.close import assert_close
from tests.in_process import png

LABELS = ["dog", "grass", "cat"]
IMAGE = pb.Image(encoded=png())


def ask(**fields) -> pb.SegmentTextRequest:
    return pb.SegmentTextRequest(**{"image": IMAGE, "labels": LABELS, **fields})


async def test_the_label_map_is_the_librarys_own(caller, tiny_model):
    for background, refine in itertools.product((False, True), repeat=2):
        response = await caller("SegmentText", ask(background=background, refine=refine))
        assert response.model.dtype == "float32"
        label_map = decode_label_map(response.label_map_png)
        expected = tiny_model.segment_text(png(), LABELS, background, refine).label_map_HW
        assert label_map.shape == (30, 40)
        assert (label_map == expected).mean() > 0.98  # embeddings are sent as float16


async def test_the_map_of_tiles_is_the_librarys_own(caller, tiny_model):
    pixels_HW3 = np.random.default_rng(0).integers(0, 255, (160, 200, 3), np.uint8)
    picture = encode_png(pixels_HW3)
    response = await caller("SegmentText", ask(image=pb.Image(encoded=picture), tiles=2))
    label_map = decode_label_map(response.label_map_png)
    expected = tiny_model.segment_text(picture, LABELS, tiles=2).label_map_HW
    assert label_map.shape == expected.shape == (160, 200)
    assert (label_map == expected).mean() > 0.9
    known = pb.Image(key=response.image.key)
    again = await caller("SegmentText", ask(image=known, tiles=2))
    assert_close(again.regions, response.regions)


async def test_regions_are_the_label_map_taken_apart(caller):
    response = await caller("SegmentText", ask())
    label_map = decode_label_map(response.label_map_png)
    areas = [region.area for region in response.regions]
    assert areas == sorted(areas, reverse=True)
    assert sum(areas) == label_map.size
    for region in response.regions:
        mask = decode_rle(region.mask.rle.counts, 30, 40)
        np.testing.assert_array_equal(mask, label_map == LABELS.index(region.label))
        assert region.area == region.mask.area == mask.sum()
        assert 0 < region.score <= 1


async def test_many_labels_make_a_16_bit_map(caller):
    labels = [f"thing {i}" for i in range(300)]
    response = await caller("SegmentText", ask(labels=labels, encoding=pb.POLYGONS))
    assert decode_label_map(response.label_map_png).max() < 300


async def test_a_second_question_needs_only_the_key(caller):
    first = await caller("SegmentText", ask())
    again = await caller("SegmentText", ask(image=pb.Image(key=first.image.key), refine=True))
    assert again.image.cached
    assert (again.image.width, again.image.height) == (40, 30)


NO_IMAGE = pb.Image(encoded=b"nothing")


def explain(**fields) -> pb.ExplainRequest:
    return pb.ExplainRequest(**{"image": IMAGE, "label": "dog", **fields})


async def test_bad_requests_are_refused(caller):
    await caller.refuses("SegmentText", (ask(tiles=2, refine=True), "tiles and refine exclude"))
    await caller.refuses(
        "SegmentText",
        (ask(labels=["", "dog"]), "label 0 is empty"),
        (ask(encoding=pb.LOGITS), "no logits"),
        (ask(encoding=8), "mask encoding 8"),
        (ask(image=NO_IMAGE), "not an image"),
    )
    await caller.refuses(
        "Explain",
        (explain(label=""), "the label is empty"),
        (explain(others=["cat", " "]), "other 1 is empty"),
        (explain(others=["cat"] * 2000), "labels, at most"),
        (explain(image=NO_IMAGE), "not an image"),
    )


@pytest.mark.parametrize("others", [[], ["grass", "cat"]])
async def test_the_heat_map_is_the_librarys_own(caller, tiny_model, others):
    response = await caller("Explain", explain(others=others))
    expected = tiny_model.explain(png(), "dog", others)
    assert (response.image.width, response.image.height) == (40, 30)
    assert response.model.dtype == "float32"
    found = response.low, response.high
    assert found == pytest.approx((expected.low, expected.high), abs=2e-3)
    levels_HW = read_png(response.heat_png)
    assert levels_HW.dtype == np.uint8
    difference_HW = np.abs(levels_HW.astype(int) - expected.levels_HW)
    assert np.percentile(difference_HW, 95) <= 10  # embeddings are sent as float16


async def test_masks_of_too_many_pixels_are_refused_before_any_work(caller, monkeypatch):
    """Run lengths cost no more with many labels."""
    monkeypatch.setattr(limits, "MAX_MASK_PIXELS", 40 * 30 * 2)
    response = await caller("SegmentText", ask())
    assert sum(region.area for region in response.regions) == 40 * 30
    monkeypatch.setattr(Threads, "run_steps", None)  # any work would fail
    what = "up to 3 masks of 40×30 pixels as "
    encodings = (pb.PNG, pb.POLYGONS)
    await caller.refuses("SegmentText", *((ask(encoding=one), what) for one in encodings))
