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
    """Write the photographs with outlines and boxes, captions and panoptic maps."""
    images, instances, captions, panoptic = [], [], [], []
    for i, drawing in enumerate(drawings):
        height, width = drawing.labels_HW.shape
        write(root / f"val2017/{i}.jpg", jpg(drawing.image_HW3))
        images.append({"id": i, "file_name": f"{i}.jpg", "height": height, "width": width})
        captions.append({"image_id": i, "caption": f"the dog {i}"})
        for value, mask_HW in enumerate(drawing.masks, 1):
            box = coco_mask.toBbox(rle(mask_HW)).tolist()
            instances.append(
                {"id": len(instances) + 1, "image_id": i, "category_id": value, "bbox": box}
                | {"area": int(mask_HW.sum()), "iscrowd": 0, "segmentation": rle(mask_HW)}
            )
        ids_HW3 = drawing.labels_HW[..., None] * np.array([1, 0, 0], np.uint8)
        write(root / f"annotations/panoptic_val2017/{i}.png", png(ids_HW3))
        segments = [{"id": value, "category_id": value} for value in (1, 2, 3)]
        panoptic.append({"file_name": f"{i}.png", "segments_info": segments})
    names = [{"id": i, "name": name} for i, name in enumerate("abc", 1)]
    boxes = {"images": images, "annotations": instances, "categories": names}
    write(root / INSTANCES, boxes)
    written = {"images": images, "annotations": captions}
    write(root / "annotations/captions_val2017.json", written)
    content = {"annotations": panoptic, "categories": names}
    write(root / "annotations/panoptic_val2017.json", content)


def write(path: Path, content: bytes | str | Any) -> Path:
    """Write a file of a data set, as JSON unless it is bytes or text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content if isinstance(content, bytes | str) else json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
