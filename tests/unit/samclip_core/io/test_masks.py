from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from samclip_core.io import masks


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


def test_an_empty_mask_has_an_empty_box() -> None:
    assert masks.mask_box(np.zeros((3, 4), np.bool_)) == (0, 0, 0, 0)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="one channel"):
        masks.read_png(b"not a file")
    with pytest.raises(ValueError, match="16-bit"):
        masks.encode_label_map(np.zeros((1, 1), int), 70_000)
