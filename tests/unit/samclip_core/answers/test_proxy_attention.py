"""The CLIP map that follows SAM's objects is the formula's; padding has no part in it."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from samclip_core.answers import proxy_attention
from samclip_core.geometry import Geometry
from samclip_core.types import ImageFeatures

SHARPNESS = 60.0
attend = partial(proxy_attention.attend, sharpness=SHARPNESS)
WIDE = Geometry(60, 128, 128)  # the lower half of the frame is padding
ROWS = 8  # of the CLIP map, whose last one holds some padding


def features(sam_side: int = 32, side: int = 16, seed: int = 0) -> ImageFeatures:
    random = np.random.default_rng(seed)
    dense_Dss = random.normal(size=(5, side, side)).astype(np.float32)
    sam_Ess = random.normal(size=(6, sam_side, sam_side)).astype(np.float32)
    return ImageFeatures(WIDE, sam_Ess, dense_Dss / np.linalg.norm(dense_Dss, axis=0))


def padded_with(given: ImageFeatures, value: float) -> ImageFeatures:
    sam_Ess, dense_Dss = given.sam_Dhw.copy(), given.clip_dense_Dhw.copy()
    sam_Ess[:, WIDE.grid(sam_Ess.shape[-1])[0] :] = value
    dense_Dss[:, WIDE.grid(dense_Dss.shape[-1])[0] :] = value
    return replace(given, sam_Dhw=sam_Ess, clip_dense_Dhw=dense_Dss)


def slowly(given: ImageFeatures) -> np.ndarray:
    """Return the map of ``attend`` in loops over cells; SAM's side is twice the CLIP map's."""
    side = given.clip_dense_Dhw.shape[-1]
    cells = [(y, x) for y in range(ROWS) for x in range(side)]
    keys = {}
    for y, x in cells:
        parts = [
            given.sam_Dhw[:, 2 * y + i, 2 * x + j]
            for i in range(2)
            for j in range(2)
            if 2 * y + i < WIDE.grid(2 * side)[0]
        ]
        mean = np.mean(parts, axis=0)
        keys[y, x] = mean / np.linalg.norm(mean)
    result = np.zeros_like(given.clip_dense_Dhw)
    for y, x in cells:
        cosine = {cell: float(keys[cell] @ keys[y, x]) for cell in cells}
        mean = sum(cosine.values()) / len(cells)
        weight = {
            cell: math.exp(SHARPNESS * (value - mean))
            for cell, value in cosine.items()
            if value >= mean
        }
        total = sum(weight.values())
        vector = sum(weight[cell] / total * given.clip_dense_Dhw[:, *cell] for cell in weight)
        result[:, y, x] = vector / np.linalg.norm(vector)
    return result


def test_without_a_sharpness_nothing_is_changed() -> None:
    given = replace(features(), sam_Dhw=None)
    assert proxy_attention.attend(given, None) is given


def test_it_is_the_formula() -> None:
    given = features()
    np.testing.assert_allclose(attend(given).clip_dense_Dhw, slowly(given), atol=1e-4)


def test_what_the_padding_holds_has_no_part_in_it() -> None:
    expected_Dss = attend(features()).clip_dense_Dhw
    assert not expected_Dss[:, ROWS:].any()
    for value in (0.0, 7.0, -7.0):
        found_Dss = attend(padded_with(features(), value)).clip_dense_Dhw
        np.testing.assert_allclose(found_Dss, expected_Dss, atol=1e-6)


@pytest.mark.parametrize("sam_side", [8, 16, 24, 64])
def test_sides_that_are_no_multiple_of_each_other(sam_side: int) -> None:
    """A SAM embedding that is constant within each cell is averaged to itself."""
    given = features()
    coarse_Ess = given.sam_Dhw[:, :8, :8]
    at_8 = attend(replace(given, sam_Dhw=coarse_Ess)).clip_dense_Dhw
    same_Ess = coarse_Ess.repeat(sam_side // 8, axis=1).repeat(sam_side // 8, axis=2)
    found_Dss = attend(replace(given, sam_Dhw=same_Ess)).clip_dense_Dhw
    np.testing.assert_allclose(found_Dss, at_8, atol=1e-4)


def test_both_maps_are_needed() -> None:
    with pytest.raises(ValueError, match="SAM"):
        attend(replace(features(), sam_Dhw=None))
    with pytest.raises(ValueError, match="CLIP_DENSE"):
        attend(replace(features(), clip_dense_Dhw=None))
