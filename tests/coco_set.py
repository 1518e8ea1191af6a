"""COCO 2017's validation set, drawn in miniature, with its annotations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from tests.photographs import Drawing, jpg, png, rle

INSTANCES = "annotations/instances_val2017.json"


def write_coco(root: Path, drawings: Sequence[Drawing]) -> None:
    """Write the photographs with outlines and boxes, captions, panoptic and stuff maps, and LVIS's.

    Categories are a, b and c; COCO-Stuff names a fifth, which is nowhere, and "other".
    """
    images, instances, panoptic = [], [], []
    for i, drawing in enumerate(drawings):
        height, width = drawing.labels_HW.shape
        write(root / f"val2017/{i}.jpg", jpg(drawing.image_HW3))
        images.append({"id": i, "file_name": f"{i}.jpg", "height": height, "width": width})
        for value, mask_HW in enumerate(drawing.masks, 1):
            box = coco_mask.toBbox(rle(mask_HW)).tolist()
            instances.append(
                {"id": len(instances) + 1, "image_id": i, "category_id": value, "bbox": box}
                | {"area": int(mask_HW.sum()), "iscrowd": 0, "segmentation": rle(mask_HW)}
            )
        ids_HW3 = drawing.labels_HW[..., None] * np.array([1, 0, 0], np.uint8)
        write(root / f"annotations/panoptic_val2017/{i}.png", png(ids_HW3))
        # COCO-Stuff's maps have category ids less one, and 255 where there is none.
        write(root / f"stuffthingmaps/val2017/{i}.png", png(drawing.labels_HW - np.uint8(1)))
        segments = [{"id": value, "category_id": value} for value in (1, 2, 3)]
        panoptic.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
    names = [{"id": i, "name": name} for i, name in enumerate("abc", 1)]
    captions = [{"image_id": image["id"], "caption": f"the dog {image['id']}"} for image in images]
    of_images = {"images": images, "annotations": instances}
    write(root / INSTANCES, of_images | {"categories": names})
    stuff = [{"id": 5, "name": "grass"}, {"id": 6, "name": "other"}]
    write(root / "annotations/stuff_val2017.json", of_images | {"categories": stuff})
    written = {"images": images, "annotations": captions}
    write(root / "annotations/captions_val2017.json", written)
    content = {"images": images, "annotations": panoptic, "categories": names}
    write(root / "annotations/panoptic_val2017.json", content)
    write_lvis(root, images, instances, names)


def write_lvis(root: Path, images: list, instances: list, names: list) -> None:
    """Write LVIS's annotations: images by URL, no crowds, and a frequency of each category."""
    (root / "train2017").mkdir()
    url = "http://images.cocodataset.org/val2017"
    ways = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    located = [
        {k: v for k, v in image.items() if k != "file_name"}
        | {"coco_url": f"{url}/{image['file_name']}"}
        | ways
        for image in images
    ]
    outlines = [{k: v for k, v in one.items() if k != "iscrowd"} for one in instances]
    frequent = [name | {"frequency": letter} for name, letter in zip(names, "rcf", strict=True)]
    content = {"images": located, "annotations": outlines, "categories": frequent}
    write(root / "annotations/lvis_v1_val.json", content)


def write(path: Path, content: bytes | str | Any) -> Path:
    """Write a file of a data set, as JSON unless it is bytes or text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content if isinstance(content, bytes | str) else json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
