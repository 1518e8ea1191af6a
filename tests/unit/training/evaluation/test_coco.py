import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.photographs import rle
from training.evaluation.coco import average_precision, image_path, read_coco


def square(place: int, side: int = 40) -> np.ndarray:
    mask_HW = np.zeros((100, 200), np.bool_)
    mask_HW[10 : 10 + side, place : place + side] = True
    return mask_HW


def annotation(key: int, category: int, mask_HW: np.ndarray, image: int = 1) -> dict[str, Any]:
    known = {"id": key, "image_id": image, "category_id": category, "segmentation": rle(mask_HW)}
    return known | {"area": int(mask_HW.sum())}


def result(category: int, mask_HW: np.ndarray, score: float, image: int = 1) -> dict[str, Any]:
    known = {"image_id": image, "category_id": category, "segmentation": rle(mask_HW)}
    return known | {"score": score}


def write(path: Path, annotations: list[dict[str, Any]], **of_images: Any) -> Path:
    content = {
        "images": [{"id": i, "width": 200, "height": 100} | of_images for i in (1, 2)],
        "categories": [
            {"id": 1, "name": "cat", "frequency": "f"},
            {"id": 2, "name": "dog", "frequency": "r"},
        ],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))
    return path


def test_the_same_masks_have_an_average_precision_of_1(tmp_path: Path):
    masks = [square(0), square(60, 20), square(100, 90)]
    truths = [annotation(i, 1 + i % 2, mask) for i, mask in enumerate(masks, 1)]
    coco = read_coco(write(tmp_path / "a.json", truths))
    results = [result(1 + i % 2, mask, 0.9) for i, mask in enumerate(masks, 1)]
    metrics = average_precision(coco, results, [1, 2])
    expected = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
    # 20² pixels are small, 40² and 90² medium; no mask is large.
    assert metrics == dict.fromkeys(expected, pytest.approx(1)) | {"ap_large": 0}


def test_nothing_found_has_none(tmp_path: Path):
    coco = read_coco(write(tmp_path / "a.json", [annotation(1, 1, square(0))]))
    assert set(average_precision(coco, [], [1, 2]).values()) == {0.0}


def test_a_loose_mask_counts_up_to_its_overlap(tmp_path: Path):
    coco = read_coco(write(tmp_path / "a.json", [annotation(1, 1, square(0, 50))]))
    half = square(0, 50) & (np.arange(200) < 31)  # IoU 0.62: above 0.5, 0.55 and 0.6
    metrics = average_precision(coco, [result(1, half, 0.9)], [1])
    assert metrics["ap"] == pytest.approx(0.3)
    assert (metrics["ap50"], metrics["ap75"]) == (pytest.approx(1), 0)


def test_pictures_outside_the_limit_do_not_count(tmp_path: Path):
    truths = [annotation(1, 1, square(0)), annotation(2, 1, square(0), image=2)]
    coco = read_coco(write(tmp_path / "a.json", truths))
    results = [result(1, square(0), 0.9)]
    assert average_precision(coco, results, [1])["ap"] == pytest.approx(1)
    assert average_precision(coco, results, [1, 2])["ap"] < 0.6


def test_lvis_counts_only_what_was_looked_for(tmp_path: Path):
    """In picture 2, dogs are negative, and the annotation of cats is not exhaustive."""
    truths = [annotation(1, 1, square(0)), annotation(2, 2, square(60))]
    truths.append(annotation(3, 1, square(0), image=2))
    path = write(tmp_path / "a.json", truths, neg_category_ids=[], not_exhaustive_category_ids=[1])
    coco = read_coco(path)
    right = [result(1, square(0), 0.5), result(2, square(60), 0.5), result(1, square(0), 0.5, 2)]
    more = [result(1, square(140), 0.9, 2), result(2, square(140), 0.9, 2)]
    metrics = average_precision(coco, right + more, [1, 2], federated=True)
    for name in ("ap", "ap_rare", "ap_frequent"):
        assert metrics[name] == pytest.approx(1)
    assert metrics["ap_common"] == 0  # there is no common class
    assert average_precision(coco, right + more, [1, 2])["ap"] < 0.8
    coco.imgs[2]["neg_category_ids"] = [2]
    assert average_precision(coco, right + more, [1, 2], federated=True)["ap_rare"] < 0.8


def test_lvis_keeps_the_best_300_of_a_picture(tmp_path: Path):
    path = write(
        tmp_path / "a.json",
        [annotation(1, 1, square(0)), annotation(2, 2, square(60))],
        neg_category_ids=[],
        not_exhaustive_category_ids=[2],
    )
    others = [result(2, square(140), 0.8)] * 300
    found = [result(1, square(0), 0.5), *others]
    assert average_precision(read_coco(path), found, [1], federated=True)["ap_frequent"] == 0
    found[0]["score"] = 0.9
    metrics = average_precision(read_coco(path), found, [1], federated=True)
    assert metrics["ap_frequent"] == pytest.approx(1)


def test_pictures_are_found_where_their_sets_have_them(tmp_path: Path):
    for place in ("val2017/1.jpg", "train2017/2.jpg", "images/3.jpg"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
    annotations = tmp_path / "annotations/instances_val2017.json"
    assert image_path(tmp_path, annotations, {"file_name": "1.jpg"}).parent.name == "val2017"
    url = {"coco_url": "http://images.cocodataset.org/train2017/2.jpg"}  # LVIS has no file_name
    assert image_path(tmp_path, tmp_path / "lvis_v1_val.json", url).parent.name == "train2017"
    assert image_path(tmp_path, annotations, {"file_name": "3.jpg"}).parent.name == "images"
    with pytest.raises(FileNotFoundError, match=r"val2017/4\.jpg"):
        image_path(tmp_path, annotations, {"file_name": "4.jpg"})
