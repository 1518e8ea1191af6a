"""Masks of our own sets: from boxes, centres and later clicks, and from a search for everything."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from samclip_core.types import ImageFeatures, MaskSet, Prompt
from tests.oracle import Oracle
from tests.photographs import annotated, draw, instance, jpg, things, write_shard
from training.data.annotations import encoded
from training.evaluation import instances
from training.evaluation.suite import Options


def test_boxes_and_points_ask_for_the_regions_that_people_outlined(tmp_path: Path):
    drawings = [draw(seed) for seed in range(2)]
    masks = [mask for drawing in drawings for mask in drawing.masks]
    coco = {str(place): things(drawing) for place, drawing in enumerate(drawings)}
    nothing = {"jpg": jpg(draw(7).image_HW3), "json": b"{}"}
    write_shard(tmp_path / "coco_multi/val-0.tar", coco | {"nothing": nothing})
    write_shard(
        tmp_path / "bsds500/val-0.tar", {str(i): annotated(d) for i, d in enumerate(drawings)}
    )

    metrics = instances.own_sets(Oracle(drawings), Options(root=tmp_path))

    share = np.mean([mask.mean() for mask in masks])
    for source in ("coco_multi", "bsds500"):
        assert metrics.pop(f"{source}_box_miou") == 1
        assert metrics.pop(f"{source}_point_best_of_3_miou") == 1
        # The first of the three masks, with the highest predicted IoU, is everything.
        assert metrics.pop(f"{source}_point_miou") == pytest.approx(share)
    assert metrics == {"coco_multi_things_box_miou": 1}


def test_things_are_neither_crowds_nor_small_nor_stuff(tmp_path: Path):
    """A ring of 32² pixels counts by its area, not by its box, which the oracle fills."""
    drawing = draw(0)
    ring = np.zeros(drawing.labels_HW.shape, np.bool_)
    ring[20:56, 20:56] = True
    ring[27:43, 28:45] = False  # 36² - 16 * 17 = 32²
    small, crowd = np.zeros_like(ring), np.zeros_like(ring)
    small[:31, :33] = True
    crowd[60:110, 60:150] = True
    annotations = [
        instance(ring, iscrowd=0),
        instance(small, iscrowd=0),
        instance(crowd, iscrowd=1),
    ]
    sample = {
        "jpg": jpg(drawing.image_HW3),
        "json": json.dumps({"instances": annotations}).encode(),
    }
    write_shard(tmp_path / "coco_multi/val-0.tar", {"one": sample})
    write_shard(tmp_path / "bsds500/val-0.tar", {"one": annotated(drawing)})
    metrics = instances.own_sets(Oracle([drawing]), Options(root=tmp_path))
    assert metrics["coco_multi_things_box_miou"] == pytest.approx(32**2 / 36**2)
    assert metrics["coco_multi_box_miou"] == pytest.approx((1 + 32**2 / 36**2) / 2)


def square(x: int, y: int, side: int) -> np.ndarray:
    mask_HW = np.zeros((40, 60), bool)
    mask_HW[y : y + side, x : x + side] = True
    return mask_HW


def free() -> np.ndarray:
    return np.ones((40, 60), bool)


def test_the_first_click_is_the_centre_and_later_ones_are_in_the_largest_error():
    nothing_HW, truth_HW = np.zeros((40, 60), bool), square(0, 0, 20)
    assert instances.next_click(nothing_HW, square(10, 5, 11), free()) == (15, 10, False)
    surplus_HW = truth_HW | square(40, 10, 21)
    x, y, negative = instances.next_click(surplus_HW, truth_HW, free())
    assert (abs(x - 50) <= 1, abs(y - 20) <= 1, negative) == (True, True, True)
    missing_HW = truth_HW & ~square(3, 3, 9)
    assert instances.next_click(missing_HW, truth_HW, free()) == (7, 7, False)


def test_no_pixel_is_clicked_twice():
    free_HW = free()
    free_HW[10, 15] = False
    x, y, _ = instances.next_click(np.zeros((40, 60), bool), square(10, 5, 11), free_HW)
    assert (x, y) != (15, 10)


def test_clicks_needed():
    assert instances.needed([0.2, 0.86, 0.4, 0.91], 0.85) == 2
    assert instances.needed([0.2, 0.86, 0.4, 0.91], 0.9) == 4
    assert instances.needed([0.2, 0.86], 0.95) == instances.CLICKS


def test_the_same_objects_are_drawn_each_time():
    truths = [square(x, 0, 5) for x in range(9)]
    first = instances.drawn(truths)
    assert len(first) == instances.OBJECTS
    assert all(a is b for a, b in zip(first, instances.drawn(truths), strict=True))


class Slow:
    """A model that knows the object and shows one more row of it with each click."""

    def __init__(self, truth_HW: np.ndarray) -> None:
        self.truth_HW, self.prompts = truth_HW, list[Prompt]()

    def segment(
        self, features: ImageFeatures, prompts: list[Prompt], multimask: bool
    ) -> list[MaskSet]:
        self.prompts += prompts
        number = len(self.prompts)
        mask_HW = self.truth_HW.copy()
        mask_HW[number:] = False
        logits_1hw = np.full((1, 4, 4), number, np.float32)
        return [MaskSet(mask_HW[None], np.ones(1), np.ones(1), logits_1hw)]


def test_clicks_go_on_until_the_mask_is_right():
    model = Slow(square(0, 0, 10))
    overlaps = instances.clicked(model, None, model.truth_HW)
    assert overlaps == pytest.approx([n / 10 for n in range(1, 10)])
    first, second = model.prompts[:2]
    assert (first.points, first.negative, first.mask_input_hw) == (((4.5, 4.5),), (False,), None)
    assert (second.points[0], len(second.points)) == (first.points[0], 2)
    assert second.mask_input_hw.max() == 1, "each answer starts from the logits of the last one"
    endless = Slow(square(0, 0, 30))
    assert len(instances.clicked(endless, None, endless.truth_HW)) == instances.CLICKS


def everything_mask(mask_HW: np.ndarray, predicted_iou: float) -> SimpleNamespace:
    return SimpleNamespace(mask_HW=mask_HW, predicted_iou=predicted_iou)


def test_a_region_counts_if_one_of_the_best_masks_fits(monkeypatch) -> None:
    left_HW, right_HW, top_HW = (np.zeros((20, 30), bool) for _ in range(3))
    left_HW[:, :10], right_HW[:, 20:], top_HW[:10] = True, True, True
    masks = [
        everything_mask(left_HW, 0.5),
        everything_mask(right_HW, 0.9),
        everything_mask(top_HW, 0.7),
    ]
    regions = [encoded(left_HW), encoded(right_HW)]
    np.testing.assert_allclose(instances.found_overlaps(masks, regions), [1, 1])
    monkeypatch.setattr(instances, "MOST", 2)  # without the worst one
    np.testing.assert_allclose(instances.found_overlaps(masks, regions), [1 / 4, 1])
    np.testing.assert_allclose(instances.found_overlaps([], regions), [0, 0])
