"""The boxes of a detector: COCO's results format, checked against the annotations."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from training.evaluation.layouts import read_json

KEYS = ("image_id", "category_id", "bbox", "score")
FORMAT = (
    'a list of {"image_id": …, "category_id": …, "bbox": [x_min, y_min, width, height], "score": …}'
)


def read_detections(path: Path, coco: COCO) -> dict[int, list[dict[str, Any]]]:
    """Return the boxes of each image, in pixels of the photograph.

    Raises ValueError, which says what to change, if they are not boxes of these images and
    categories, or most of them do not lie inside their images.
    """
    found = read_json(path)
    if not isinstance(found, list) or not all(map(_is_box, found)):
        raise ValueError(f"{path} is not in COCO's results format: expected {FORMAT}")
    _check_ids(path, "image_id", found, coco.imgs, "give --annotations of the same photographs")
    _check_ids(
        path,
        "category_id",
        found,
        coco.cats,
        "some detectors write the place of a category, from 0 on: replace it by the category's id",
    )
    _check_frame(path, found, coco)
    boxes: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for box in found:
        boxes[box["image_id"]].append({key: box[key] for key in KEYS})  # without its masks
    return boxes


def _is_box(box: object) -> bool:
    if not isinstance(box, dict) or not all(key in box for key in KEYS):
        return False
    numbers = [*box["bbox"], box["score"]] if isinstance(box["bbox"], list) else []
    real = all(isinstance(number, int | float) and np.isfinite(number) for number in numbers)
    return len(numbers) == 5 and real


def _check_ids(
    path: Path, key: str, found: Sequence[dict[str, Any]], known: Collection[Any], advice: str
) -> None:
    if unknown := {box[key] for box in found} - set(known):
        raise ValueError(
            f"{path}: the annotations have no {key} {min(unknown, key=str)!r} (of {len(unknown)} "
            f"that they lack): {advice}"
        )


def _check_frame(path: Path, found: Sequence[dict[str, Any]], coco: COCO) -> None:
    """Raise ValueError if most boxes end outside their images, or all are a pixel at most."""
    sizes = [(coco.imgs[b["image_id"]]["width"], coco.imgs[b["image_id"]]["height"]) for b in found]
    box_N4 = np.array([box["bbox"] for box in found], np.float64).reshape(-1, 4)
    end_N2 = box_N4[:, :2] + box_N4[:, 2:]
    outside_N = (end_N2 > np.array(sizes).reshape(-1, 2) + 1).any(axis=1)  # a pixel of rounding
    normalised = len(found) > 0 and box_N4.max() <= 1
    if normalised or 2 * outside_N.sum() > len(found):
        raise ValueError(
            f"{path}: {int(outside_N.sum())} of {len(found)} boxes end outside their photographs, "
            f"and the largest number is {box_N4.max():g}: expected pixels of the photograph as it "
            "is stored, [x_min, y_min, width, height]; corners, shares of the sides and pixels of "
            "a resized photograph must be converted"
        )
