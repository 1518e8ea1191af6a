"""A search for everything finds each object once, by SAM's rules or by fitted ones."""

from dataclasses import replace

import numpy as np
import pytest

from samclip_core.answers.areas import Namer
from samclip_core.answers.everything import (
    SAM,
    EverythingSettings,
    Found,
    Search,
    largest_first,
    settings_of,
)
from samclip_core.answers.points import not_suppressed, of_boxes, of_masks
from samclip_core.answers.segment_everything import Everything
from samclip_core.answers.steps import Terms, run
from samclip_core.errors import InvalidLabels
from samclip_core.geometry import Geometry
from samclip_core.types import ImageFeatures
from tests.fakes import FakeSamHead, blobs, everything, features_of
from tests.tiny import CALIBRATION, TINY

WIDE = Geometry(640, 1280, 128)  # the lower half of the 64×64 cells is padding


def settings(adaptive: bool = False, **other) -> EverythingSettings:
    """By default, the mask of the whole scene is filtered."""
    search = CALIBRATION.search if adaptive else None
    return EverythingSettings(
        adaptive=search, **{"min_predicted_iou": 0.8, "min_area": 0.0005, **other}
    )


def scene() -> np.ndarray:
    objects_ss = np.zeros((64, 64), int)
    objects_ss[2:30, 3:25], objects_ss[4:14, 30:44], objects_ss[20:29, 50:60] = 1, 2, 3
    return objects_ss


def features(classes_hw: np.ndarray | None = None) -> ImageFeatures:
    return features_of(WIDE, np.zeros((16, 16), int) if classes_hw is None else classes_hw, 3)


def found_by(
    sam_head: FakeSamHead, sent: ImageFeatures, side: int, chosen: EverythingSettings
) -> list[Found]:
    terms = Terms.of(sam_head, chosen.points_per_round)
    return run(everything(terms, sent, side, chosen), sam_head)


def search(objects_ss: np.ndarray, side: int, chosen: EverythingSettings) -> list[Found]:
    return largest_first(found_by(FakeSamHead(objects_ss), features(), side, chosen))


@pytest.mark.parametrize("adaptive", [False, True])
def test_every_object_is_found_once_largest_first(adaptive: bool) -> None:
    objects_ss = scene()
    found = search(objects_ss, 12, settings(adaptive))
    assert len(found) == 3
    for one, target in zip(found, (1, 2, 3), strict=True):
        expected_HW = WIDE.masks_to_original((objects_ss == target)[None] - 0.5)[0]
        np.testing.assert_array_equal(one.mask.mask_HW, expected_HW)
        y_N, x_N = np.nonzero(expected_HW)
        ends = (x_N.min(), y_N.min(), x_N.max(), y_N.max())
        np.testing.assert_allclose(one.box, ends, atol=20)  # a cell has 20 pixels
        assert (one.mask.predicted_iou, one.mask.stability) == pytest.approx((0.95, 0.95))
        assert (one.mask.label, one.mask.label_score) == ("", 0.0)


def test_the_order_is_by_pixels_of_the_picture_not_by_cells_of_the_logits() -> None:
    found = largest_first(blobs())
    pixels = [int(one.mask.mask_HW.sum()) for one in found]
    assert pixels == sorted(pixels, reverse=True)
    assert [one.inside_hw.sum() for one in found] != sorted(pixels, reverse=True)


def test_thresholds_decide_what_is_kept() -> None:
    whole = search(scene(), 8, SAM)
    assert len(whole) == 4
    assert whole[0].mask.predicted_iou == pytest.approx(0.75)  # the whole scene, the largest mask
    for chosen in (
        settings(min_predicted_iou=0.96),
        settings(min_stability=0.96),
        settings(min_area=0.35),
    ):
        assert search(scene(), 8, chosen) == []


def test_points_cover_the_picture_in_rounds_at_the_models_own_size() -> None:
    sam_head = FakeSamHead(scene())
    found_by(sam_head, features(), 6, settings(points_per_round=10))
    assert [len(prompts) for _, prompts, _ in sam_head.calls] == [10, 10, 10, 6]
    assert all(multimask for _, _, multimask in sam_head.calls)
    assert {sent.geometry for sent, _, _ in sam_head.calls} == {Geometry(64, 128, 128)}
    points = [prompt.points[0] for _, prompts, _ in sam_head.calls for prompt in prompts]
    np.testing.assert_allclose(points[0], (128 / 12, 64 / 12))
    np.testing.assert_allclose(points[-1], (128 - 128 / 12, 64 - 64 / 12))
    assert len(set(points)) == 36


def test_the_adaptive_search_asks_at_most_half_of_the_points() -> None:
    whole, chosen = Search(TERMS, settings()), Search(TERMS, settings(adaptive=True))
    for each in (whole, chosen):
        for steps in each.rounds(features(), 16):
            run(steps, FakeSamHead(scene()))
        assert each.progress == 1
    assert whole.points == 256
    assert 0 < chosen.points <= 128


def test_a_search_can_be_read_after_every_round() -> None:
    """A better mask replaces an earlier one."""
    quality = iter([0.81, 0.9, 0.85])
    sam_head, whole = FakeSamHead(np.ones((64, 64), int)), Search(TERMS, ONE_POINT)
    seen = []
    for steps in whole.rounds(features(), 2):
        sam_head.predicted_iou = next(quality, 0.5)
        run(steps, sam_head)
        (one,) = whole.found
        seen.append((round(one.mask.predicted_iou, 2), whole.progress))
    assert seen == [(0.81, 0.25), (0.9, 0.5), (0.9, 0.75), (0.9, 1.0)]


def test_small_islands_and_holes_are_cleaned() -> None:
    objects_ss = scene()
    objects_ss[10, 10] = 0
    objects_ss[1, 62] = 1
    largest = search(objects_ss, 8, settings(min_area=0.002))[0]
    np.testing.assert_array_equal(largest.mask.logits_hw[:32] > 0, scene()[:32] == 1)


def test_duplicates_give_way_to_the_better() -> None:
    masks = np.zeros((3, 64, 64), bool)
    for mask_hw, columns in zip(masks, (20, 22, 50), strict=True):
        mask_hw[:20, :columns] = True
    boxes_M4 = [(0, 0, columns, 20) for columns in (20, 22, 50)]
    for overlap in (of_masks(list(masks)), of_boxes(boxes_M4)):
        assert [*not_suppressed(overlap, [0.8, 0.9, 0.7])] == [1, 2]
    for nothing in (of_boxes([]), of_masks([])):
        assert [*not_suppressed(nothing, [])] == []


def test_masks_are_named_by_what_lies_under_them() -> None:
    classes_hw = np.full((16, 16), 2)
    classes_hw[0:8, 0:7] = 0
    classes_hw[1:4, 7:11] = 1
    sent = features(classes_hw)
    found = largest_first(found_by(FakeSamHead(scene()), sent, 8, settings()))
    namer = Namer(["dog", "cat", "grass"], np.eye(3), 20.0, 0)
    named = [namer.name(one.mask, one.features) for one in found]
    assert [mask.label for mask in named] == ["dog", "cat", "grass"]
    assert all(mask.label_score > 0.99 for mask in named)
    with pytest.raises(InvalidLabels):
        Namer([], np.zeros((0, 3)), 20.0, 0)


def test_only_a_search_that_was_fitted_is_adaptive() -> None:
    fitted = settings_of(TINY["edge"])
    assert fitted.adaptive == CALIBRATION.search
    assert fitted.min_predicted_iou == CALIBRATION.search.min_predicted_iou
    assert settings_of(replace(TINY["edge"], calibration=None)) == SAM


@pytest.mark.parametrize(
    ("calibration", "asked", "named"),
    [(CALIBRATION, None, False), (None, None, True), (CALIBRATION, 0.2, True)],
)
def test_without_a_fitted_share_every_mask_has_a_name(calibration, asked, named) -> None:
    sent, labels = features(), ["cat", "dog", "cow", "hen"]
    (one, *_) = found_by(FakeSamHead(scene()), sent, 8, settings())
    unlike = np.eye(3)[[1, 1, 1, 1]]  # a quarter each
    request = Everything(8, labels, min_label_score=asked)
    namer = request.namer(unlike, replace(TINY["edge"], calibration=calibration))
    assert bool(namer.name(one.mask, sent).label) is named


TERMS = Terms.of(FakeSamHead(scene()), 10)
ONE_POINT = settings(points_per_round=1)
