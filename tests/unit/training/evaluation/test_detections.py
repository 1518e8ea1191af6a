import json
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from training.evaluation.coco import to_coco
from training.evaluation.detections import read_detections

BOX = {"image_id": 7, "category_id": 90, "bbox": [10, 20.5, 30, 40], "score": 0.5}


@pytest.fixture
def coco() -> COCO:
    images = [{"id": 7, "width": 100, "height": 80}, {"id": 9, "width": 100, "height": 80}]
    categories = [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}]
    return to_coco({"images": images, "annotations": [], "categories": categories})


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
        ([BOX, BOX | {"image_id": 8}], "no image_id 8 .*give --annotations of the same"),
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
