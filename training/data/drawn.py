"""Photographs of scikit-image with shapes drawn on them, so that ``debug`` needs no data set.

ROOT/drawn/KEY.jpg .json .png    the photograph, the shapes' outlines, the label map
ROOT/drawn/classes.json          the shapes' names
ROOT/imagenet1k_sample/          ImageNet's class names, which the edge merge reads
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.data.annotations import encoded

DRAWN_SETS: dict[str, Any] = {
    "region_sets": (("drawn", 1.0),),
    "photo_sets": (("drawn", 1.0),),
    "named_sets": ("drawn",),
}
"""The fields of a recipe that trains on these photographs."""
PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
SHAPES = {
    "red circle": (220, 40, 40),
    "green square": (40, 180, 60),
    "blue triangle": (50, 70, 220),
}
VOID = 255  # a pixel without a shape


def write_drawn_sets(root: Path) -> None:
    """Write the drawn photographs and the class names into a folder, the same ones every time.

    Raises FileNotFoundError if scikit-image is not installed.
    """
    folder = root / "drawn"
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(PHOTOGRAPHS):
        image_HW3 = np.array(Image.open(_photographs() / name).convert("RGB"))
        labels_HW = _draw_shapes(image_HW3, np.random.default_rng(seed))
        path = folder / name
        Image.fromarray(image_HW3).save(path.with_suffix(".jpg"), quality=95)
        Image.fromarray(labels_HW).save(path.with_suffix(".png"))
        outlines = [_outline(labels_HW == index) for index in range(len(SHAPES))]
        path.with_suffix(".json").write_text(json.dumps({"annotations": outlines}))
    _write_names(folder, list(SHAPES), [VOID])
    from open_clip import IMAGENET_CLASSNAMES  # takes seconds to import

    _write_names(root / "imagenet1k_sample", IMAGENET_CLASSNAMES, [])


def _photographs() -> Path:
    """Return the folder of scikit-image's photographs, without importing the package."""
    package = find_spec("skimage")
    if package is None or package.origin is None:
        raise FileNotFoundError("package scikit-image is missing: run pip install -e '.[train]'")
    return Path(package.origin).parent / "data"


def _draw_shapes(image_HW3: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one of each shape, side by side in random order; return the map of their indices."""
    height, width = image_HW3.shape[:2]
    column = width / len(SHAPES)
    labels_HW = np.full((height, width), VOID, np.uint8)
    for place, index in enumerate(random.permutation(len(SHAPES)).tolist()):
        radius = int(random.uniform(0.2, 0.4) * min(column, height))
        x, y = int((place + 0.5) * column), int(random.uniform(radius, height - radius))
        if index == 0:
            cv2.circle(labels_HW, (x, y), radius, index, cv2.FILLED)
        else:
            top = [(-radius, -radius), (radius, -radius)] if index == 1 else [(0, -radius)]
            corners = np.add([*top, (radius, radius), (-radius, radius)], (x, y))
            cv2.fillPoly(labels_HW, [corners.astype(np.int32)], index)
    for index, colour in enumerate(SHAPES.values()):
        image_HW3[labels_HW == index] = colour
    return labels_HW


def _outline(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    rle = encoded(mask_HW)
    segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
    return {"segmentation": segmentation, "area": int(mask_HW.sum())}


def _write_names(folder: Path, names: list[str], ignored: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    classes = [{"id": index, "name": name} for index, name in enumerate(names)]
    (folder / "classes.json").write_text(json.dumps({"ignore_ids": ignored, "classes": classes}))
