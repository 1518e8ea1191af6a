import numpy as np
import pytest

from samclip_core.answers.everything import (
    EverythingSettings,
    drop_duplicates,
    name_masks,
    segment_everything,
)
from samclip_core.errors import InvalidLabels
from samclip_core.geometry import Geometry
from samclip_core.types import EverythingMask, ImageFeatures
from tests.fakes import FakeSamHead, features_of

WIDE = Geometry(640, 1280, 128)  # the lower half of the 64×64 cells is padding
NO_SCENE = EverythingSettings(min_predicted_iou=0.8)  # filters the mask of the whole scene


def scene() -> np.ndarray:
    objects_ss = np.zeros((64, 64), int)
    objects_ss[2:30, 3:25], objects_ss[4:14, 30:44], objects_ss[20:29, 50:60] = 1, 2, 3
    return objects_ss


def features(classes_hw: np.ndarray | None = None) -> ImageFeatures:
    return features_of(WIDE, np.zeros((16, 16), int) if classes_hw is None else classes_hw, 3)


def test_every_object_is_found_once_largest_first() -> None:
    objects_ss = scene()
    found = segment_everything(FakeSamHead(objects_ss), features(), 8, NO_SCENE)
    assert len(found) == 3
    for mask, target in zip(found, (1, 2, 3), strict=True):
        expected_HW = WIDE.masks_to_original((objects_ss == target)[None] - 0.5)[0]
        assert mask.mask_HW.shape == (640, 1280)
        np.testing.assert_array_equal(mask.mask_HW, expected_HW)
        assert (mask.predicted_iou, mask.stability) == pytest.approx((0.95, 0.95))
        assert (mask.label, mask.label_score) == ("", 0.0)


def test_thresholds_decide_what_is_kept() -> None:
    sam_head = FakeSamHead(scene())
    whole = segment_everything(sam_head, features(), 8)
    assert len(whole) == 4
    assert whole[0].predicted_iou == pytest.approx(0.75)  # the whole scene, the largest mask
    for settings in (
        EverythingSettings(min_predicted_iou=0.96),
        EverythingSettings(min_stability=0.96),
        EverythingSettings(min_predicted_iou=0.8, min_area=0.35),
    ):
        assert segment_everything(sam_head, features(), 8, settings) == []


def test_points_cover_the_picture_in_chunks_at_the_models_own_size() -> None:
    sam_head = FakeSamHead(scene())
    segment_everything(sam_head, features(), 6, EverythingSettings(points_per_call=10))
    assert [len(prompts) for _, prompts, _ in sam_head.calls] == [10, 10, 10, 6]
    assert all(multimask for _, _, multimask in sam_head.calls)
    assert {sent.geometry for sent, _, _ in sam_head.calls} == {Geometry(64, 128, 128)}
    points = [prompt.points[0] for _, prompts, _ in sam_head.calls for prompt in prompts]
    np.testing.assert_allclose(points[0], (128 / 12, 64 / 12))
    np.testing.assert_allclose(points[-1], (128 - 128 / 12, 64 - 64 / 12))
    assert len(set(points)) == 36


def test_small_islands_and_holes_are_cleaned() -> None:
    objects_ss = scene()
    objects_ss[10, 10] = 0
    objects_ss[1, 62] = 1
    settings = EverythingSettings(min_predicted_iou=0.8, min_area=0.002)
    largest = segment_everything(FakeSamHead(objects_ss), features(), 8, settings)[0]
    np.testing.assert_array_equal(largest.logits_hw[:32] > 0, scene()[:32] == 1)


def test_padding_is_not_part_of_a_mask() -> None:
    objects_ss = np.zeros((64, 64), int)
    objects_ss[34:, :] = 1  # only in the padding
    objects_ss[:, 40:] = 2
    found = segment_everything(FakeSamHead(objects_ss), features(), 8, NO_SCENE)
    assert [mask.mask_HW.mean() for mask in found] == [pytest.approx(24 / 64, abs=0.001)]


def test_duplicates_give_way_to_the_better() -> None:
    def mask(columns: int, quality: float) -> EverythingMask:
        logits_hw = np.full((64, 64), -1, np.float32)
        logits_hw[:20, :columns] = 1
        return EverythingMask(WIDE, logits_hw, quality, 1.0)

    masks = [mask(20, 0.8), mask(22, 0.9), mask(50, 0.7)]
    kept = drop_duplicates(masks, [item.predicted_iou for item in masks])
    assert kept == [masks[1], masks[2]]
    assert drop_duplicates([], []) == []


def test_masks_are_named_by_what_lies_under_them() -> None:
    classes_hw = np.full((16, 16), 2)
    classes_hw[0:8, 0:7] = 0
    classes_hw[1:4, 7:11] = 1
    sent = features(classes_hw)
    found = segment_everything(FakeSamHead(scene()), sent, 8, NO_SCENE)
    named = name_masks(found, sent, np.eye(3), ["dog", "cat", "grass"], 20.0)
    assert [mask.label for mask in named] == ["dog", "cat", "grass"]
    assert all(mask.label_score > 0.99 for mask in named)
    with pytest.raises(InvalidLabels):
        name_masks(found, sent, np.zeros((0, 3)), [], 20.0)


def test_no_points_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        segment_everything(FakeSamHead(scene()), features(), 0)
