"""Mask files that other programs read: label maps, and the panoptic picture of all masks."""

import io
import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from samclip_core.geometry import Crop, Geometry
from samclip_core.io import masks
from samclip_core.io.panoptic import paint
from samclip_core.types import EverythingMask


@pytest.mark.parametrize(
    ("labels", "depth", "background"), [(254, np.uint8, 255), (255, np.uint16, 65535)]
)
def test_label_map_depth_and_background(labels: int, depth: type, background: int) -> None:
    encoded = masks.encode_label_map(np.array([[0, labels - 1, -1]]), labels)
    with Image.open(BytesIO(encoded)) as image:
        values = np.asarray(image)
    assert values.dtype == depth
    assert values.tolist() == [[0, labels - 1, background]]


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="one channel"):
        masks.read_png(b"not a file")
    with pytest.raises(ValueError, match="16-bit"):
        masks.encode_label_map(np.zeros((1, 1), int), 70_000)


SQUARE = Geometry(64, 64, 64)


def mask(rows: slice, columns: slice, crop: Crop | None = None) -> EverythingMask:
    logits_hw = np.full((64, 64), -1, np.float32)
    logits_hw[rows, columns] = 1
    return EverythingMask(SQUARE, logits_hw, 0.9, 0.9, crop=crop)


def read(png: bytes) -> np.ndarray:
    """Return the ids by COCO's rule."""
    colours_HW3 = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(np.int64)
    return colours_HW3 @ np.array([1, 256, 256**2])


def test_ids_areas_and_boxes_are_those_of_the_visible_pixels() -> None:
    large, small, hidden = mask(slice(0, 40), slice(0, 64)), mask(slice(8, 16), slice(4, 10)), None
    hidden = mask(slice(9, 12), slice(5, 8))
    picture = paint([large, hidden, small], 64, 64)
    ids_HW = read(picture.png)
    assert [segment.index for segment in picture.segments] == [0, 2]
    assert set(np.unique(ids_HW)) == {0, *(segment.id for segment in picture.segments)}
    for segment in picture.segments:
        y_N, x_N = np.nonzero(ids_HW == segment.id)
        x, y, width, height = segment.bbox
        assert (x, y) == (x_N.min(), y_N.min())
        assert (x + width, y + height) == (x_N.max() + 1, y_N.max() + 1)
        assert segment.area == len(y_N)
    assert picture.segments[1].area == 48
    json.dumps([vars(segment) for segment in picture.segments])  # plain numbers


def test_no_masks_are_a_black_picture() -> None:
    picture = paint([], 30, 20)
    assert read(picture.png).shape == (30, 20)
    assert not read(picture.png).any()
    assert picture.segments == []


def test_masks_of_crops_are_painted_in_their_place() -> None:
    crop = Crop(100, 50, 64, 64, 200, 300)
    ids_HW = read(paint([mask(slice(0, 10), slice(0, 64), crop)], 200, 300).png)
    y_N, x_N = np.nonzero(ids_HW)
    assert (y_N.min(), y_N.max(), x_N.min(), x_N.max()) == (50, 59, 100, 163)
