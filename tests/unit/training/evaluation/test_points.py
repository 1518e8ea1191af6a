import json
from pathlib import Path

import numpy as np
import pytest

from tests.oracle import Oracle
from tests.photographs import draw, jpg, rle
from training.evaluation import points
from training.evaluation.suite import Options


def test_coco_json_without_its_crowds(tmp_path: Path):
    drawings = [draw(seed) for seed in range(2)]
    masks = [(image, mask) for image, drawing in enumerate(drawings) for mask in drawing.masks]
    annotations = [
        {"id": key, "image_id": image, "category_id": 1, "iscrowd": 0, "segmentation": rle(mask)}
        for key, (image, mask) in enumerate(masks, 1)
    ]
    crowd = rle(np.ones((120, 160), np.bool_))
    annotations.append(annotations[0] | {"id": 99, "iscrowd": 1, "segmentation": crowd})
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 160, "height": 120} for i in range(3)]
    (tmp_path / "val2017").mkdir()
    for image, drawing in enumerate([*drawings, draw(7)]):  # the last has no outline
        (tmp_path / f"val2017/{image}.jpg").write_bytes(jpg(drawing.image_HW3))
    (tmp_path / "annotations").mkdir()
    content = {"images": images, "categories": [], "annotations": annotations}
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(content))
    metrics = points.public(Oracle(drawings), Options(root=tmp_path))
    # Of the three masks, everything has the highest predicted IoU.
    share = np.mean([mask.mean() for _, mask in masks])
    assert metrics == {
        "point_best_of_3_miou": 1,
        "point_most_confident_miou": pytest.approx(share),
    }


def test_sa1b_folders(tmp_path: Path):
    drawing = draw(4)
    folder = tmp_path / "sa_000000"
    folder.mkdir()
    (folder / "sa_1.jpg").write_bytes(jpg(drawing.image_HW3))
    outlines = [{"segmentation": rle(mask)} for mask in drawing.masks]
    outlines.append({"segmentation": rle(np.zeros_like(drawing.masks[0]))})
    (folder / "sa_1.json").write_text(json.dumps({"annotations": outlines}))
    metrics = points.public(Oracle([drawing]), Options(root=tmp_path))
    assert metrics["point_best_of_3_miou"] == 1
    assert metrics["point_most_confident_miou"] == pytest.approx(
        np.mean([mask.mean() for mask in drawing.masks])
    )
