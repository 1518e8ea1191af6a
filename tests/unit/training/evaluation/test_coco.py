"""Masks that are prompted by boxes get the average precision that COCO defines."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from tests.coco_set import INSTANCES, write_coco
from tests.oracle import Oracle
from tests.photographs import draw, rle
from training.evaluation.coco import average_precision, indexed, read_detections
from training.evaluation.suite import Options
from training.suites import measure_public


def square(place: int, side: int = 40) -> np.ndarray:
    mask_HW = np.zeros((100, 200), np.bool_)
    mask_HW[10 : 10 + side, place : place + side] = True
    return mask_HW


def annotation(key: int, category: int, mask_HW: np.ndarray, image: int = 1) -> dict[str, Any]:
    known = {"id": key, "image_id": image, "category_id": category, "segmentation": rle(mask_HW)}
    return known | {"area": int(mask_HW.sum()), "iscrowd": 0}


def result(category: int, mask_HW: np.ndarray, score: float, image: int = 1) -> dict[str, Any]:
    known = {"image_id": image, "category_id": category, "segmentation": rle(mask_HW)}
    return known | {"score": score}


def of(annotations: list[dict[str, Any]]) -> COCO:
    images = [{"id": i, "width": 200, "height": 100} for i in (1, 2)]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return indexed({"images": images, "categories": categories, "annotations": annotations})


def test_the_same_masks_have_an_average_precision_of_1():
    masks = [square(0), square(60, 20), square(100, 90)]
    truths = [annotation(i, 1 + i % 2, mask) for i, mask in enumerate(masks, 1)]
    coco = of(truths)
    results = [result(1 + i % 2, mask, 0.9) for i, mask in enumerate(masks, 1)]
    metrics = average_precision(coco, results, [1, 2])
    expected = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    assert set(average_precision(coco, [], [1, 2]).values()) == {0.0}
    # 20² pixels are small, 40² and 90² medium; no mask is large.
    assert metrics == dict.fromkeys(expected, pytest.approx(1)) | {"ap_large": 0}


def test_a_loose_mask_counts_up_to_its_overlap():
    coco = of([annotation(1, 1, square(0, 50))])
    half = square(0, 50) & (np.arange(200) < 31)  # IoU 0.62: above 0.5, 0.55 and 0.6
    metrics = average_precision(coco, [result(1, half, 0.9)], [1])
    assert metrics["ap"] == pytest.approx(0.3)
    assert (metrics["ap50"], metrics["ap75"]) == (pytest.approx(1), 0)


def test_pictures_outside_the_limit_do_not_count():
    truths = [annotation(1, 1, square(0)), annotation(2, 1, square(0), image=2)]
    coco = of(truths)
    results = [result(1, square(0), 0.9)]
    assert average_precision(coco, results, [1])["ap"] == pytest.approx(1)
    assert average_precision(coco, results, [1, 2])["ap"] < 0.6


BOX = {"image_id": 7, "category_id": 90, "bbox": [10, 20.5, 30, 40], "score": 0.5}


@pytest.fixture
def coco() -> COCO:
    images = [{"id": 7, "width": 100, "height": 80}, {"id": 9, "width": 100, "height": 80}]
    categories = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
    content = {"images": images, "annotations": [], "categories": categories}
    return indexed(content)


def test_boxes_are_sorted_by_image(tmp_path: Path, coco: COCO) -> None:
    other = BOX | {"image_id": 9}
    masked = other | {"segmentation": {"size": [1, 1], "counts": "1"}}
    edge = BOX | {"bbox": [60, 0, 40.6, 80]}  # a detector's boxes end at the edge, nearly
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps([BOX, masked, edge]))
    assert read_detections(path, coco) == {7: [BOX, edge], 9: [other]}
    path.write_text("[]")
    assert read_detections(path, coco) == {}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"annotations": [BOX]}, "expected a list of"),
        ([BOX | {"bbox": [1, 2, 3]}], "expected a list of"),
        ([BOX | {"bbox": [1, 2, 3, float("nan")]}], "expected a list of"),
        ([{key: BOX[key] for key in ("image_id", "category_id", "bbox")}], "expected a list of"),
        ([BOX, BOX | {"image_id": 8}], "no image_id 8 .*of other photographs"),
        ([BOX, BOX | {"category_id": 0}], "no category_id 0 .*replace it by the category's id"),
        ([BOX | {"bbox": [60, 50, 90, 70]}], "1 of 1 boxes end outside .* corners"),
        ([BOX | {"bbox": [0.1, 0.2, 0.5, 0.5]}], "the largest number is 0.5: expected pixels"),
    ],
)
def test_what_is_not_of_these_images_says_what_to_do(
    tmp_path: Path, coco: COCO, found: object, message: str
) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=rf"(?s)boxes\.json.*{message}"):
        read_detections(path, coco)


def written(root: Path, count: int) -> tuple[Oracle, list[dict]]:
    """Write some drawings as COCO; return a model that knows them, and their annotations."""
    drawings = [draw(seed) for seed in range(count)]
    write_coco(root, drawings)
    return Oracle(drawings), json.loads((root / INSTANCES).read_text())["annotations"]


def test_true_boxes_of_rectangles_are_perfect(tmp_path: Path):
    oracle, _ = written(tmp_path, 3)
    assert measure_public("coco-boxes", oracle, Options(root=tmp_path))["ap"] == pytest.approx(1)


def test_a_detectors_boxes_have_its_scores_and_stay_in_the_picture(tmp_path: Path):
    oracle, annotations = written(tmp_path, 2)
    keys = ("image_id", "category_id", "bbox")
    right = [{key: a[key] for key in keys} | {"score": 0.5} for a in annotations]
    wrong = [box | {"bbox": [-30, -30, 60, 60], "score": 0.9} for box in right]
    outside = [box | {"bbox": [170, 5, 20, 20], "score": 1.0} for box in right]
    detections = tmp_path / "detections.json"
    options = Options(root=tmp_path, detections=detections)
    detections.write_text(json.dumps(right + outside))
    assert measure_public("coco-boxes", oracle, options)["ap"] == pytest.approx(1)
    detections.write_text(json.dumps(right + wrong))
    mixed = measure_public("coco-boxes", oracle, options)["ap"]
    assert 0.3 < mixed < 0.7  # the worse half comes first
    detections.write_text(json.dumps(right + [box | {"score": 0.1} for box in wrong]))
    assert measure_public("coco-boxes", oracle, options)["ap"] == pytest.approx(1)


def test_the_limit_takes_pictures_not_boxes(tmp_path: Path):
    oracle, _ = written(tmp_path, 3)
    for unseen in ("1", "2"):
        (tmp_path / f"val2017/{unseen}.jpg").write_bytes(b"never read")
    options = Options(root=tmp_path, limit=1)
    assert measure_public("coco-boxes", oracle, options)["ap"] == pytest.approx(1)


def lvis(annotations: list[dict[str, Any]], **images: list[int]) -> COCO:
    """Return two images, of which the first one has these lists of categories."""
    size = {"width": 200, "height": 100}
    nothing = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    content = {
        "images": [{"id": 1} | size | nothing | images, {"id": 2} | size | nothing],
        "categories": [{"id": i, "frequency": letter} for i, letter in enumerate("rcf", 1)],
        "annotations": annotations,
    }
    return indexed(content)


RARE = annotation(1, 1, square(0))
FREQUENT = annotation(2, 3, square(0))
RIGHT = [result(1, square(0), 0.5), result(3, square(0), 0.5)]


@pytest.mark.parametrize(
    ("lists", "wrong", "expected"),
    [
        ({}, result(2, square(60), 0.9), (1, 1)),  # nobody looked for category 2
        ({"neg_category_ids": [2]}, result(2, square(60), 0.9), (1, 1)),  # and it is nowhere
        ({}, result(3, square(60), 0.9), (1, 0.5)),
        ({"not_exhaustive_category_ids": [3]}, result(3, square(60), 0.9), (1, 1)),
        ({}, result(3, square(60), 0.9, image=2), (1, 1)),  # category 3 was not looked for there
        ({"neg_category_ids": [2]}, result(1, square(60), 0.9), (0.5, 1)),
    ],
)
def test_lvis_counts_only_what_was_looked_for(lists, wrong, expected):
    """The figures are those of the package lvis 0.5.3."""
    coco = lvis([RARE, FREQUENT], **lists)
    metrics = average_precision(coco, [*RIGHT, wrong], [1, 2], federated=True)
    assert (metrics["ap_rare"], metrics["ap_frequent"]) == pytest.approx(expected)
    assert metrics["ap"] == pytest.approx(np.mean(expected))
    assert metrics["ap_common"] == 0


def test_lvis_keeps_300_masks_of_an_image():
    others = [result(2, square(60), 0.9)] * 298
    coco = lvis([RARE, FREQUENT], neg_category_ids=[2])
    assert average_precision(coco, [*others, *RIGHT], [1], True)["ap"] == pytest.approx(1)
    assert average_precision(coco, [*others, *others, *RIGHT], [1], True)["ap"] == 0
