"""Regions: levels instead of logits, their file, and the search that finds them."""

import cv2
import numpy as np
import pytest

from samclip_core.answers.areas import Area
from samclip_core.answers.everything import of_regions
from samclip_core.answers.zero_shot import unit
from samclip_core.errors import InvalidRequest
from samclip_core.geometry import Geometry
from samclip_core.regions import LARGEST_LOGIT, Regions, to_levels, to_logits
from tests.in_process import png


def test_no_cell_changes_sides_when_logits_are_rounded():
    logits_N = np.array([-40, -1e-4, 0, 1e-4, 0.02, 0.04, 7.9, 40, 90])
    logits_ss = np.stack([logits_N, np.where(logits_N > 0, -1, 1)], axis=1).astype(np.float16)
    levels_ss = to_levels(logits_ss)
    assert levels_ss.dtype == np.int8
    np.testing.assert_array_equal(levels_ss > 0, logits_ss > 0)
    near = np.abs(logits_ss - to_logits(levels_ss)) <= 0.01 + 0.05 * np.abs(logits_ss)
    assert near[np.abs(logits_ss) <= LARGEST_LOGIT].all()


def test_outlines_stay_where_they_are():
    geometry, random = Geometry(300, 400, 256), np.random.default_rng(0)
    for _ in range(20):
        rough_hw = random.normal(size=(6, 6)).astype(np.float32)
        logits_ss = 20 * cv2.resize(rough_hw, (64, 64), interpolation=cv2.INTER_CUBIC)
        kept_ss = to_logits(to_levels(logits_ss))
        before, after = geometry.masks_to_original(np.stack([logits_ss, kept_ss]))
        assert (before & after).sum() > 0.99 * (before | after).sum()


def test_regions_come_back_from_their_file(tiny_model):
    regions = tiny_model.regions(png()).regions
    again = Regions.unpack(regions.pack())
    assert len(regions) > 1
    for name, array in vars(regions).items():
        np.testing.assert_array_equal(getattr(again, name), array)


@pytest.mark.parametrize("damage", [b"", b"no file", b"PK\x05\x06" + bytes(18)])
def test_another_file_is_an_error(damage):
    with pytest.raises(ValueError, match="not a file of regions"):
        Regions.unpack(damage)


def test_a_damaged_file_is_an_error(tiny_model):
    packed = np.frombuffer(tiny_model.regions(png()).regions.pack(), np.uint8)
    refused = 0
    for place in range(0, len(packed), max(1, len(packed) // 400)):
        damaged = packed.copy()
        damaged[place] ^= 0xFF
        try:
            Regions.unpack(damaged.tobytes())
        except ValueError as error:
            refused += "not a file of regions" in str(error)
    assert refused > 300


def test_regions_are_those_of_the_search_with_their_vectors(tiny_model):
    features = tiny_model.regions(png())
    regions = features.regions
    own = tiny_model.segment_everything(png(), points_per_side=tiny_model.config.points_per_side)
    assert len(own) == len(regions)
    first = next(iter(of_regions(features, None)))
    x_min, y_min, x_max, y_max = regions.box_R4[regions.area_R.argmax()]
    rows, columns = np.nonzero(first.mask_HW)
    assert (columns.min(), rows.min()) == pytest.approx((x_min, y_min), abs=1)
    assert (columns.max() + 1, rows.max() + 1) == pytest.approx((x_max, y_max), abs=1)
    np.testing.assert_allclose(regions.area_R.max(), first.mask_HW.mean(), atol=0.1)
    (area_D,) = [tiny_model.embed_image(features, area=Area.of_mask(first.mask_HW))]
    mine_D = unit(regions.clip_RD[regions.area_R.argmax()])
    assert float(area_D @ mine_D) > 0.99


def test_regions_are_searched_once_for_the_same_features(tiny_model, monkeypatch):
    features = tiny_model.encode(png())
    asked = []
    segment = tiny_model.sam_head.segment
    monkeypatch.setattr(
        tiny_model.sam_head, "segment", lambda *args: asked.append(1) or segment(*args)
    )
    first = tiny_model.segment_everything(features)
    calls = len(asked)
    assert calls
    assert tiny_model.regions(features).regions_N is tiny_model.regions(features).regions_N
    second = tiny_model.segment_everything(features, labels=["a dog"])
    assert len(asked) == calls
    assert len(second) == len(first)


def test_a_checkpoint_without_masks_has_no_regions(tiny_model, monkeypatch):
    monkeypatch.setattr(type(tiny_model.config), "masks", property(lambda _: False))
    with pytest.raises(InvalidRequest, match="makes no masks"):
        tiny_model.regions(png())
