"""The runs of a mask from its logits are those of the enlarged mask."""

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from samclip.mask_codecs import decode_rle

from samclip_core.geometry import Crop, Geometry
from samclip_core.io import masks
from samclip_core.io.masks import runs_of_logits

sides = st.integers(1, 300)


@given(
    height=sides,
    width=sides,
    size=st.sampled_from([32, 64, 128]),
    blur=st.floats(0.3, 6),
    offset=st.floats(-3, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_runs(height: int, width: int, size: int, blur: float, offset: float, seed: int) -> None:
    geometry = Geometry(height, width, size)
    noise = np.random.default_rng(seed).normal(size=(size // 2, size // 2)).astype(np.float32)
    logits_hw = cv2.GaussianBlur(noise, (0, 0), blur)
    logits_hw = 3 * logits_hw / max(float(logits_hw.std()), 1e-6) + np.float32(offset)
    mask_HW = geometry.masks_to_original(logits_hw[None])[0]
    runs = runs_of_logits(geometry, logits_hw)
    decoded_HW = decode_rle(masks.encode_runs(runs), height, width)
    near_zero_HW = np.abs(geometry.logits_to_original(logits_hw)) < 1e-4
    assert not ((decoded_HW != mask_HW) & ~near_zero_HW).any()
    assert runs.box == masks.pixel_box(decoded_HW)
    assert masks.encode_runs(runs) == masks.encode_rle(decoded_HW)  # as few runs as there can be


def test_the_runs_of_a_crop_are_those_of_the_whole_picture() -> None:
    crop, geometry = Crop(30, 20, 40, 60, 90, 110), Geometry(40, 60, 64)
    logits_hw = np.full((32, 32), -1, np.float32)
    logits_hw[5:15, 4:20] = 1
    runs = runs_of_logits(geometry, logits_hw, crop)
    decoded_HW = decode_rle(masks.encode_runs(runs), 90, 110)
    part_hw = geometry.masks_to_original(logits_hw[None])[0]
    np.testing.assert_array_equal(decoded_HW[20:60, 30:90], part_hw)
    assert decoded_HW.sum() == part_hw.sum() > 100
