"""Every pixel gets the label of the CLIP map, with outlines of the SAM head if refined."""

import tracemalloc

import numpy as np
import pytest
import torch

from samclip_core.answers.semantic import SegmentText
from samclip_core.answers.steps import Terms, run
from samclip_core.config import EDGE
from samclip_core.errors import InvalidLabels
from samclip_core.geometry import Geometry
from samclip_core.types import ImageFeatures, SemanticMap
from tests.fakes import FakeSamHead, features_of

SCALE = EDGE.logit_scale
WIDE = Geometry(64, 128, 128)  # the lower half of the frame is padding


def segment_text(
    features: ImageFeatures, text_XD: np.ndarray, labels: list[str], background: bool = False
) -> SemanticMap:
    steps = SegmentText(labels, background).of_dense_map(features, text_XD, SCALE)
    return run(steps, FakeSamHead(np.zeros((1, 1))))


def refine(
    features: ImageFeatures,
    text_XD: np.ndarray,
    labels: list[str],
    sam_head: FakeSamHead,
    background: bool = False,
) -> SemanticMap:
    asked = SegmentText(labels, background, refine=True)
    return run(asked.steps(features, text_XD, EDGE, Terms.of(sam_head, 64)), sam_head)


def iou(left: np.ndarray, right: np.ndarray) -> float:
    return float((left & right).sum() / (left | right).sum())


def random_features(width: int) -> ImageFeatures:
    dense_Dhw = np.random.default_rng(0).normal(size=(width, 16, 16)).astype(np.float32)
    return ImageFeatures(WIDE, None, dense_Dhw / np.linalg.norm(dense_Dhw, axis=0))


def test_two_halves_meet_in_the_middle_and_padding_has_no_say() -> None:
    classes_hw = np.full((16, 16), 2)
    classes_hw[:8, :8], classes_hw[:8, 8:] = 0, 1
    found = segment_text(features_of(WIDE, classes_hw, 3), np.eye(3), ["a", "b", "c"])
    assert found.label_map_HW.dtype == np.int16
    expected_HW = np.zeros((64, 128))
    expected_HW[:, 64:] = 1
    np.testing.assert_array_equal(found.label_map_HW, expected_HW)
    assert [(region.label, region.area) for region in found.regions] == [("a", 4096), ("b", 4096)]
    np.testing.assert_array_equal(found.regions[1].mask_HW, expected_HW == 1)


def test_labels_and_scores_are_those_of_the_upsampled_logits() -> None:
    labels = ["a", "b", "c", "d", "e"]
    features = random_features(5)
    found = segment_text(features, np.eye(5), labels)
    logits_Lhw = torch.from_numpy(features.clip_dense_Dhw[None, :, :8] * SCALE)
    logits_LHW = torch.nn.functional.interpolate(logits_Lhw, (64, 128), mode="bilinear")[0]
    probability_LHW = logits_LHW.softmax(dim=0).numpy()
    assert (found.label_map_HW == probability_LHW.argmax(axis=0)).mean() > 0.9999
    assert sum(region.area for region in found.regions) == 64 * 128
    for region in found.regions:
        mean = probability_LHW[region.index][region.mask_HW].mean()
        assert region.score == pytest.approx(mean, abs=1e-4)
        assert region.area == region.mask_HW.sum()
    areas = [region.area for region in found.regions]
    assert areas == sorted(areas, reverse=True)


def test_an_unclear_win_is_background_only_when_asked() -> None:
    dense_Dhw = np.zeros((2, 16, 16), np.float32)
    dense_Dhw[:, :, :8] = 0.5**0.5  # equally similar to both labels
    dense_Dhw[0, :, 8:] = 1
    features = ImageFeatures(WIDE, None, dense_Dhw)
    found = segment_text(features, np.eye(2), ["a", "b"], True)
    assert (found.label_map_HW[:, :56] == -1).all()
    assert (found.label_map_HW[:, 72:] == 0).all()
    everywhere = segment_text(features, np.eye(2), ["a", "b"])
    assert everywhere.label_map_HW.min() == 0


@pytest.mark.parametrize("many", [1, 1000])
def test_the_order_of_values_in_memory_changes_no_label(
    monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    labels = [str(index) for index in range(40)]
    features = random_features(40)
    expected = segment_text(features, np.eye(40), labels, True)
    monkeypatch.setattr("samclip_core.answers.semantic.MANY_CLASSES", many)
    found = segment_text(features, np.eye(40), labels, True)
    assert (found.label_map_HW == expected.label_map_HW).mean() > 0.9999
    for ours, theirs in zip(found.regions, expected.regions, strict=True):
        assert (ours.label, ours.score) == (theirs.label, pytest.approx(theirs.score, abs=1e-5))


def test_memory_is_bounded_for_a_large_picture() -> None:
    classes_hw = np.arange(256).reshape(16, 16) % 20
    features = features_of(Geometry(3000, 4000, 1024), classes_hw, 20)
    tracemalloc.start()
    found = segment_text(features, np.eye(20), [str(index) for index in range(20)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.label_map_HW.shape == (3000, 4000)
    assert peak < 200 * 2**20  # scores of all classes for all pixels would take 960 MB
    np.testing.assert_array_equal(found.label_map_HW[125::250, 125::250], classes_hw[:12])


def test_no_labels_are_refused() -> None:
    with pytest.raises(InvalidLabels):
        segment_text(random_features(2), np.zeros((0, 2)), [])


def scene() -> tuple[ImageFeatures, FakeSamHead, np.ndarray]:
    """Return features, head and mask of a disc, which is a coarse square in the CLIP grid."""
    y, x = np.ogrid[:64, :64]
    objects_ss = ((x - 30) ** 2 + (y - 14) ** 2 < 11**2).astype(int)
    classes_hw = np.ones((16, 16), int)
    classes_hw[0:7, 4:11] = 0
    features = features_of(WIDE, classes_hw, 3)
    return features, FakeSamHead(objects_ss), WIDE.masks_to_original(objects_ss[None] - 0.5)[0]


def test_refine_takes_the_outline_from_the_sam_head() -> None:
    features, sam_head, disc_HW = scene()
    sam_head.objects_ss = np.where(sam_head.objects_ss == 0, 2, 1)  # the rest is an object too
    coarse = segment_text(features, np.eye(3), ["disc", "rest", "none"])
    refined = refine(features, np.eye(3), ["disc", "rest", "none"], sam_head)
    assert iou(coarse.label_map_HW == 0, disc_HW) < 0.8
    assert iou(refined.label_map_HW == 0, disc_HW) > 0.97
    assert [region.label for region in refined.regions] == ["rest", "disc"]
    assert all(0.9 < region.score <= 1 for region in refined.regions)


def test_refine_sends_one_call_with_box_point_and_class_map() -> None:
    features, sam_head, _ = scene()
    refine(features, np.eye(3), ["disc", "rest", "none"], sam_head)
    ((sent, prompts, multimask),) = sam_head.calls
    assert sent.geometry == WIDE.model_frame
    assert not multimask
    disc = prompts[1]  # the rest is larger
    assert len(prompts) == 2
    assert np.abs(np.array(disc.box) - [32, 0, 88, 56]).max() <= 4
    (x, y), = disc.points  # fmt: skip
    assert 36 < x < 84
    assert y < 52
    assert disc.mask_input_hw.shape == (64, 64)
    assert (disc.mask_input_hw[4:24, 20:40] > 0).all()
    assert (disc.mask_input_hw[:, 52:] < 0).all()


def test_refine_with_background_words_frees_what_the_mask_leaves_out() -> None:
    features, sam_head, disc_HW = scene()
    text_D = np.eye(3)
    refined = refine(features, text_D[:2], ["disc"], sam_head, True)
    ((_, prompts, _),) = sam_head.calls
    assert len(prompts) == 1  # background words are not refined
    assert set(np.unique(refined.label_map_HW)) == {-1, 0}
    assert iou(refined.label_map_HW == 0, disc_HW) > 0.95
