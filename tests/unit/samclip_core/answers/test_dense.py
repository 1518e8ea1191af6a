"""The dense CLIP map compared with texts, and enlarged."""

import numpy as np
import pytest
import torch

from samclip_core.answers.dense import BACKGROUND_WORDS, background_words, cosine_maps, upsampling
from samclip_core.geometry import Geometry
from samclip_core.types import ImageFeatures
from tests.fakes import features_of

WIDE = Geometry(64, 128, 128)  # the lower half of the frame is padding


def test_a_word_that_is_asked_for_is_not_background() -> None:
    words = background_words(["the Grass", "a dog"])
    assert set(BACKGROUND_WORDS) - set(words) == {"grass"}
    assert set(BACKGROUND_WORDS) - set(background_words(["blurred texture"])) == {"blurred texture"}


def test_cosines_of_the_valid_cells_and_the_best_background_word() -> None:
    classes_hw = np.full((16, 16), 3)
    classes_hw[:8] = np.arange(16) % 3
    text_D = np.eye(4)
    maps_Chw = cosine_maps(features_of(WIDE, classes_hw, 4), text_D[:1], text_D[1:3])
    assert maps_Chw.shape == (2, 8, 16)
    np.testing.assert_array_equal(maps_Chw[0], classes_hw[:8] == 0)
    np.testing.assert_array_equal(maps_Chw[1], classes_hw[:8] > 0)


def test_features_without_a_dense_map_say_so() -> None:
    with pytest.raises(ValueError, match="CLIP_DENSE"):
        cosine_maps(ImageFeatures(WIDE), np.eye(2))


@pytest.mark.parametrize(("height", "width"), [(64, 128), (200, 400), (37, 74), (8, 16)])
def test_upsampling_is_torchs_bilinear_where_cells_fit_the_picture(height: int, width: int) -> None:
    map_hw = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    rows_Hh, columns_wW = upsampling(WIDE, 16, height, width)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(map_hw)[None, None], (height, width), mode="bilinear"
    )[0, 0]
    np.testing.assert_allclose(rows_Hh @ map_hw @ columns_wW, expected.numpy(), atol=1e-5)


def test_a_cell_that_is_half_padding_keeps_its_place() -> None:
    # The image covers 100 of 160 rows: 6.25 of 10 cells. A ramp over cell centres stays a ramp.
    geometry = Geometry(100, 160, 160)
    rows_Hh, _ = upsampling(geometry, 10, 100, 160)
    ramp = rows_Hh @ np.arange(7, dtype=np.float32)
    np.testing.assert_allclose(ramp[8:], (np.arange(100)[8:] + 0.5) / 16 - 0.5, atol=1e-5)
