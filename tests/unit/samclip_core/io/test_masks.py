from io import BytesIO

import cv2
import numpy as np
import pytest
from PIL import Image

from samclip_core.io import masks


def test_a_hole_runs_the_other_way_round_than_its_outline() -> None:
    mask_HW = np.ones((5, 5), np.bool_)
    mask_HW[2, 2] = False
    outline, hole = masks.encode_polygons(mask_HW)
    assert outline.tolist() == [0, 0, 5, 0, 5, 5, 0, 5]
    assert hole.tolist() == [3, 2, 2, 2, 2, 3, 3, 3]


def test_pixels_that_touch_at_a_corner_are_separate_parts() -> None:
    assert len(masks.encode_polygons(np.eye(3, dtype=np.bool_))) == 3


def test_polygons_of_others_are_filled_by_pixel_centres() -> None:
    triangle = np.array([1.2, 0.7, 27.9, 6.1, 9.4, 29.3], np.float32)
    mask_HW = masks.decode_polygons([triangle], 30, 30)
    points = triangle.reshape(-1, 1, 2)
    for y, x in np.ndindex(30, 30):
        inside = cv2.pointPolygonTest(points, (x + 0.5, y + 0.5), measureDist=False) >= 0
        assert mask_HW[y, x] == inside


def test_polygons_that_leave_the_picture_are_clipped() -> None:
    square = np.array([-5, -5, 50, -5, 50, 50, -5, 50], np.float32)
    assert masks.decode_polygons([square], 7, 9).all()
    assert not masks.decode_polygons([], 7, 9).any()


def test_a_large_mask_goes_through_every_codec() -> None:
    y, x = np.ogrid[:1500, :2000]
    mask_HW = ((x - 900) ** 2 + (y - 700) ** 2 < 600**2) & ((x - 900) ** 2 + (y - 700) ** 2 > 99**2)
    for decoded in (
        masks.decode_rle(masks.encode_rle(mask_HW), 1500, 2000),
        masks.decode_png(masks.encode_png(mask_HW)),
        masks.unpack_bits(masks.pack_bits(mask_HW), 1500, 2000),
        masks.decode_polygons(masks.encode_polygons(mask_HW), 1500, 2000),
    ):
        assert decoded.dtype == np.bool_
        np.testing.assert_array_equal(decoded, mask_HW)


def test_masks_open_with_pillow() -> None:
    mask_HW = np.array([[True, False, True]])
    with Image.open(BytesIO(masks.encode_png(mask_HW))) as image:
        assert image.mode == "L"
        assert np.asarray(image).tolist() == [[255, 0, 255]]


@pytest.mark.parametrize(
    ("labels", "depth", "background"), [(254, np.uint8, 255), (255, np.uint16, 65535)]
)
def test_label_map_depth_and_background(labels: int, depth: type, background: int) -> None:
    encoded = masks.encode_label_map(np.array([[0, labels - 1, -1]]), labels)
    with Image.open(BytesIO(encoded)) as image:
        values = np.asarray(image)
    assert values.dtype == depth
    assert values.tolist() == [[0, labels - 1, background]]


def test_an_empty_mask_has_an_empty_box_and_no_polygons() -> None:
    empty = np.zeros((3, 4), np.bool_)
    assert masks.mask_box(empty) == (0, 0, 0, 0)
    assert masks.encode_polygons(empty) == []


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 2"):
        masks.unpack_bits(b"\0", 3, 4)
    with pytest.raises(ValueError, match="one channel"):
        masks.decode_png(b"not a file")
    with pytest.raises(ValueError, match="16-bit"):
        masks.encode_label_map(np.zeros((1, 1), int), 70_000)
