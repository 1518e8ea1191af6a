import numpy as np
import pytest
from segment_anything.utils.amg import generate_crop_boxes, is_box_near_crop_edge
from torch import tensor

from samclip_core.answers.points import MAX_LAYERS, check_layers, crops_of, is_cut
from samclip_core.errors import InvalidRequest
from samclip_core.geometry import Crop


@pytest.mark.parametrize("size", [(300, 450), (3000, 4000), (33, 31)], ids=str)
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_crops_are_sams(size: tuple[int, int], layers: int) -> None:
    boxes, _ = generate_crop_boxes(size, layers, 512 / 1500)
    found = crops_of(*size, layers)
    assert [[c.x, c.y, c.x + c.width, c.y + c.height] for c in found] == boxes[1:]
    assert {(c.picture_height, c.picture_width) for c in found} <= {size}


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5, 5), (20_000, 3)], ids=str)
def test_thin_pictures_have_no_empty_crops(size: tuple[int, int]) -> None:
    image_HW3 = np.zeros((*size, 3), np.uint8)
    covered_HW = np.zeros(size, bool)
    for crop in crops_of(*size, MAX_LAYERS):
        assert crop.of(image_HW3).shape == (crop.height, crop.width, 3)
        assert crop.height > 0 < crop.width
        covered_HW[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width] = True
    assert covered_HW.all()


def test_a_cut_object_is_one_that_ends_at_an_inner_edge() -> None:
    crop = Crop(0, 100, 300, 400, 600, 800)
    rng = np.random.default_rng(0)
    cut = []
    for _ in range(300):
        x, y = np.sort(rng.integers(0, 400, 2)), np.sort(rng.integers(100, 400, 2))
        box = (float(x[0]), float(y[0]), float(x[1]), float(y[1]))
        inner = tensor([[x[0], y[0] - 100, x[1], y[1] - 100]])  # SAM gives them within the crop
        expected = is_box_near_crop_edge(inner, [0, 100, 400, 400], [0, 0, 800, 600]).item()
        assert is_cut(box, crop) == expected
        cut.append(expected)
    assert 20 < sum(cut) < 280


def test_layers_have_a_limit() -> None:
    check_layers(MAX_LAYERS)
    for layers in (-1, MAX_LAYERS + 1):
        with pytest.raises(InvalidRequest, match=f"crop_layers is {layers}, expected 0 to"):
            check_layers(layers)


def test_a_crop_has_its_own_pixels() -> None:
    image_HW3 = np.arange(60 * 80 * 3).reshape(60, 80, 3).astype(np.uint8)
    part = Crop(5, 7, 20, 30, 60, 80).of(image_HW3)
    np.testing.assert_array_equal(part, image_HW3[7:27, 5:35])
