from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.oracle import Oracle
from tests.photographs import annotated, draw, write_shard
from training.data.annotations import encoded
from training.evaluation import everything
from training.evaluation.suite import Options


def found(mask_HW: np.ndarray, predicted_iou: float) -> SimpleNamespace:
    return SimpleNamespace(mask_HW=mask_HW, predicted_iou=predicted_iou)


def test_a_region_counts_if_one_of_the_best_masks_fits(monkeypatch) -> None:
    left_HW, right_HW, top_HW = (np.zeros((20, 30), bool) for _ in range(3))
    left_HW[:, :10], right_HW[:, 20:], top_HW[:10] = True, True, True
    masks = [found(left_HW, 0.5), found(right_HW, 0.9), found(top_HW, 0.7)]
    regions = [encoded(left_HW), encoded(right_HW)]
    np.testing.assert_allclose(everything.overlaps(masks, regions), [1, 1])
    monkeypatch.setattr(everything, "MOST", 2)  # without the worst one
    np.testing.assert_allclose(everything.overlaps(masks, regions), [1 / 4, 1])
    np.testing.assert_allclose(everything.overlaps([], regions), [0, 0])


def test_recall_is_over_regions_and_its_interval_over_photographs(tmp_path: Path) -> None:
    drawings = [draw(seed) for seed in range(4)]
    for source in ("bsds500", "coco_multi"):
        shard = {str(index): annotated(drawing) for index, drawing in enumerate(drawings)}
        write_shard(tmp_path / f"{source}/val-0.tar", shard)
    turns = iter([drawings[0].masks, drawings[1].masks[:1], [], drawings[3].masks] * 2)
    model = Oracle(drawings)
    model.segment_everything = lambda seen: [found(mask_HW, 0.5) for mask_HW in next(turns)]
    metrics = everything.own_sets(model, Options(root=tmp_path))
    counts = [len(drawing.masks) for drawing in drawings]
    right = counts[0] + 1 + counts[3]
    for source in ("bsds500", "coco_multi"):
        name = f"{source}_everything"
        assert metrics[f"{name}_recall"] == pytest.approx(right / sum(counts))
        assert metrics[f"{name}_masks"] == right
        assert metrics[f"{name}_regions"] == sum(counts)
        assert metrics[f"{name}_photographs"] == 4
        low, high = metrics[f"{name}_recall_low"], metrics[f"{name}_recall_high"]
        assert 0 <= low < metrics[f"{name}_recall"] < high <= 1
