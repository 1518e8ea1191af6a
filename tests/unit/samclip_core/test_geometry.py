"""The model frame is that of segment_anything."""

import numpy as np
import pytest
import torch
from segment_anything.utils.transforms import ResizeLongestSide

from samclip_core.geometry import Geometry
from samclip_core.io.masks import runs_of_logits

SIZES = [(1, 1), (480, 640), (640, 480), (333, 1000), (1, 900), (2000, 1501)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pixels_and_points_equal_resize_longest_side(height: int, width: int) -> None:
    geometry, sam = Geometry(height, width, 1024), ResizeLongestSide(1024)
    image_HW3 = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = sam.apply_image(image_HW3)
    pixels_3SS = geometry.resize(image_HW3)
    assert expected.shape[:2] == (geometry.input_height, geometry.input_width)
    np.testing.assert_array_equal(
        pixels_3SS[:, : expected.shape[0], : expected.shape[1]], expected.transpose(2, 0, 1)
    )
    assert not pixels_3SS[:, expected.shape[0] :].any()
    assert not pixels_3SS[:, :, expected.shape[1] :].any()
    points_N2 = np.array([[0, 0], [width / 3, height / 7], [width, height]])
    np.testing.assert_allclose(
        geometry.points_to_model(points_N2), sam.apply_coords(points_N2, (height, width)), rtol=1e-6
    )


def test_a_sliver_keeps_one_row() -> None:
    geometry = Geometry(1, 8000, 384)
    assert (geometry.input_height, geometry.input_width) == (1, 384)
    assert geometry.grid(48) == (1, 48)
    assert geometry.resize(np.full((1, 8000, 3), 7, np.uint8))[:, 0].min() == 7


@pytest.mark.parametrize(("height", "width"), [(480, 640), (700, 300), (31, 17)])
def test_logits_equal_sams_post_processing(height: int, width: int) -> None:
    geometry = Geometry(height, width, 256)
    logits_hw = np.random.default_rng(1).normal(size=(64, 64)).astype(np.float32)
    resize = torch.nn.functional.interpolate
    frame = resize(torch.from_numpy(logits_hw)[None, None], (256, 256), mode="bilinear")
    valid = frame[..., : geometry.input_height, : geometry.input_width]
    expected = resize(valid, (height, width), mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(geometry.logits_to_original(logits_hw), expected, atol=1e-4)
    agree = geometry.masks_to_original(logits_hw[None])[0] == (expected > 0)
    assert agree.mean() > 0.999


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Geometry(0, 5, 64)
    with pytest.raises(ValueError, match="expected"):
        Geometry(4, 5, 64).resize(np.zeros((5, 4, 3), np.uint8))


@pytest.mark.parametrize(("height", "width"), [(40, 120), (120, 40), (2000, 1000)])
def test_a_squashed_picture_fills_its_frame(height: int, width: int) -> None:
    geometry = Geometry(height, width, 64, squash=True)
    assert (geometry.input_height, geometry.input_width) == (64, 64)
    assert geometry.grid(16) == (16, 16)
    corner = geometry.points_to_model([(width, height), (width / 4, height / 2)])
    np.testing.assert_allclose(corner, [(64, 64), (16, 32)])
    logits_ss = np.full((16, 16), -1.0)
    logits_ss[:8, 12:] = 1
    mask_HW = geometry.masks_to_original(logits_ss[None])[0]
    assert mask_HW.mean() == pytest.approx(1 / 8, abs=0.02)
    assert mask_HW[: height // 3, -width // 6 :].all()
    assert runs_of_logits(geometry, logits_ss).area == np.count_nonzero(mask_HW)
    image_HW3 = np.zeros((height, width, 3), np.uint8)
    image_HW3[:, width // 2 :] = 255
    assert geometry.resize(image_HW3).mean() == pytest.approx(127.5, abs=2)
