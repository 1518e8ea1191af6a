"""The CLIP map that follows SAM's objects is the formula's; padding has no part in it."""

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


def by_formula(given: ImageFeatures) -> np.ndarray:
    """Return the valid rows of the map of ``attend``; SAM's side is twice the CLIP map's."""
    sam_Ehw = given.sam_Dhw[:, : 2 * ROWS].astype(np.float64)
    sam_Ehw[:, WIDE.grid(sam_Ehw.shape[-1])[0] :] = np.nan
    key_EN = np.nanmean(sam_Ehw.reshape(6, ROWS, 2, 16, 2), axis=(2, 4)).reshape(6, -1)
    key_EN /= np.linalg.norm(key_EN, axis=0)
    above_NN = key_EN.T @ key_EN
    above_NN -= above_NN.mean(axis=1, keepdims=True)
    weight_NN = np.where(above_NN >= 0, np.exp(SHARPNESS * above_NN), 0)
    map_DN = given.clip_dense_Dhw[:, :ROWS].reshape(5, -1) @ weight_NN.T
    return (map_DN / np.linalg.norm(map_DN, axis=0)).reshape(5, ROWS, 16)


def test_without_a_sharpness_nothing_is_changed() -> None:
    given = replace(features(), sam_Dhw=None)
    assert proxy_attention.attend(given, None) is given


def test_it_is_the_formula() -> None:
    given = features()
    np.testing.assert_allclose(attend(given).clip_dense_Dhw[:, :ROWS], by_formula(given), atol=1e-4)


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
