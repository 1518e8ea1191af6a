"""Tiles cover a picture, their masks lie where they belong, and those of one thing are one."""

from collections.abc import Callable

import numpy as np
import pytest

from samclip_core import SamClip
from samclip_core.answers.dense import valid_cells
from samclip_core.answers.steps import run
from samclip_core.answers.tiles import (
    AUTO,
    MAX_TILES,
    check_tiles,
    mosaic,
    of_everything,
    of_label,
    place,
    tiles_of,
)
from samclip_core.errors import InvalidPrompt, InvalidRequest
from samclip_core.geometry import Crop, Geometry
from samclip_core.types import EverythingMask, ImageFeatures, Prompt, TextPrompt
from tests.fakes import FakeSamHead

SIZE = 64


@pytest.mark.parametrize("size", [(1000, 1500), (1500, 1000), (640, 640), (97, 1300)], ids=str)
@pytest.mark.parametrize("count", [2, 3, 5])
def test_tiles_of_one_size_cover_the_picture_and_overlap(size: tuple[int, int], count: int) -> None:
    crops, covered_HW = tiles_of(*size, count, SIZE, MAX_TILES), np.zeros(size, int)
    for crop in crops:
        assert (crop.picture_height, crop.picture_width) == size
        assert (crop.height, crop.width) == (crops[0].height, crops[0].width)
        crop.of(covered_HW)[:] += 1
    assert covered_HW.min() == 1
    longer = [{crop.y for crop in crops}, {crop.x for crop in crops}][int(np.argmax(size))]
    assert len(longer) == count
    side = max(crops[0].height, crops[0].width)
    assert np.diff(sorted(longer)).max() <= 0.76 * side


def test_as_many_as_keep_every_other_pixel() -> None:
    assert tiles_of(128, 96, AUTO, SIZE, 4) == []
    crops = tiles_of(400, 300, AUTO, SIZE, 9)
    assert max(crops[0].height, crops[0].width) <= 2 * SIZE
    assert len({crop.y for crop in tiles_of(4000, 3000, AUTO, SIZE, 4)}) == 4
    assert tiles_of(400, 300, 1, SIZE, 4) == tiles_of(400, 300, 0, SIZE, 4) == []


def test_too_many_and_too_small_tiles_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"tiles is 9, and 100×90 pixels make tiles of 15"):
        tiles_of(90, 100, 9, SIZE, 9)
    for tiles in (-2, 5, 1.5, float("nan")):
        with pytest.raises(InvalidRequest, match=f"tiles is {tiles}, expected 0"):
            check_tiles(tiles, 4)


def mask(y: int, x: int, crop: Crop | None, score: float, side: int = 100) -> EverythingMask:
    """Return a mask of 20×20 pixels of a picture of 200×200, as one of its parts sees it."""
    top, left, pixels = (crop.y, crop.x, crop.height) if crop else (0, 0, 200)
    logits_hw = np.full((side, side), -5, np.float32)
    cells = slice((y - top) * side // pixels, (y + 20 - top) * side // pixels)
    logits_hw[cells, (x - left) * side // pixels : (x + 20 - left) * side // pixels] = 5
    return EverythingMask(Geometry(pixels, pixels, side), logits_hw, score, 1.0, "cup", score)


def test_masks_of_one_thing_are_one_and_cut_ones_are_left_to_the_neighbour() -> None:
    left, right = Crop(0, 0, 100, 100, 200, 200), Crop(75, 0, 100, 100, 200, 200)
    found = [
        *place([mask(30, 30, None, 0.7)], None),
        *place([mask(30, 30, left, 0.9), mask(30, 80, left, 0.95)], left),
        *place([mask(30, 110, right, 0.8)], right),
    ]
    first, second = (one.mask for one in of_label(found))
    assert (first.label_score, first.crop) == (0.9, left)
    assert np.argwhere(first.mask_HW).min(axis=0).tolist() == [30, 30]
    assert first.mask_HW.sum() == pytest.approx(400, rel=0.2)
    assert (second.label_score, second.crop) == (0.8, right)
    assert [one.mask.crop for one in of_everything(found)] == [left, right]
    wide = [*place([mask(30, 30, None, 0.9), mask(32, 36, None, 0.85)], None), *found[2:]]
    assert [one.mask.thing for one in of_label(wide)] == [0, 0, 1]


def blend(
    height: int, width: int, count: int, maps_of: Callable[[ImageFeatures], np.ndarray]
) -> np.ndarray:
    """Return the mosaic of maps of a picture and its tiles, as the cells of which count them.

    The features have the row and the column of the picture at each cell.
    """

    def part(crop: Crop | None) -> tuple[Crop | None, ImageFeatures]:
        top, left = (crop.y, crop.x) if crop else (0, 0)
        geometry = Geometry(*((crop.height, crop.width) if crop else (height, width)), 32)
        scale = (
            4 * geometry.height / geometry.input_height,
            4 * geometry.width / geometry.input_width,
        )
        rows_88, columns_88 = np.mgrid[0.5:8, 0.5:8].astype(np.float32)
        dense_2hw = np.stack([top + rows_88 * scale[0], left + columns_88 * scale[1]])
        return crop, ImageFeatures(geometry, clip_dense_Dhw=dense_2hw)

    parts = [part(crop) for crop in (None, *tiles_of(height, width, count, 32, MAX_TILES))]
    geometry, made_Chw = run(mosaic(parts, maps_of), FakeSamHead(np.zeros((1, 1), int)))
    assert made_Chw.shape[1:] == (geometry.input_height, geometry.input_width)
    return made_Chw


def test_a_blend_follows_the_whole_in_the_middle_of_each_tile() -> None:
    """A step from left to right that the tiles and the whole see alike stays where it is."""

    def maps_of(features: ImageFeatures) -> np.ndarray:
        right_1hw = (features.clip_dense_Dhw[1:] >= 128).astype(np.float32)
        return np.concatenate([np.zeros_like(right_1hw), right_1hw])

    step_Chw = blend(256, 256, 2, maps_of)
    width = step_Chw.shape[2]
    assert step_Chw[1, :, : width // 2 - 2].max() < 0.2
    assert step_Chw[1, :, width // 2 + 2 :].min() > 0.8
    assert not step_Chw[0].any()


def test_a_tile_lies_where_it_is_although_no_cell_begins_there() -> None:
    row_hw, column_hw = blend(510, 680, 3, valid_cells)
    height, width = row_hw.shape
    row_h, column_w = (
        (np.arange(height) + 0.5) / height * 510,
        (np.arange(width) + 0.5) / width * 680,
    )
    np.testing.assert_allclose(row_hw[1:-1], np.tile(row_h[1:-1, None], width), atol=1)
    np.testing.assert_allclose(column_hw[:, 1:-1], np.tile(column_w[1:-1], (height, 1)), atol=1)


def test_at_the_border_of_the_picture_a_tile_counts_as_in_its_middle() -> None:
    def of_tiles(features: ImageFeatures) -> np.ndarray:
        return np.full_like(valid_cells(features)[:1], features.geometry.width < 256)

    (share_hw,) = blend(256, 256, 2, of_tiles)
    border = [share_hw[0], share_hw[-1], share_hw[:, 0], share_hw[:, -1]]
    assert np.max(border) == pytest.approx(share_hw.max())
    assert np.min(border) > 0.6


def test_a_model_answers_about_tiles(tiny_model: SamClip) -> None:
    picture_HW3 = np.random.default_rng(0).integers(0, 255, (160, 200, 3), np.uint8)
    (whole,), (closely,) = (tiny_model.find(picture_HW3, ["a"], 0.0, n) for n in (0, 2))
    assert [one.label_score for one in closely] == sorted(
        (one.label_score for one in closely), reverse=True
    )
    assert all(one.mask_HW.shape == (160, 200) for one in (*whole, *closely))
    every = tiny_model.segment_everything(picture_HW3, labels=["a"], tiles=2)
    assert all(one.mask_HW.shape == (160, 200) for one in every)
    found = tiny_model.segment_text(picture_HW3, ["a", "b"], tiles=2)
    assert found.label_map_HW.shape == (160, 200)
    with pytest.raises(InvalidPrompt, match="leave points, boxes and masks out"):
        tiny_model.find(picture_HW3, [TextPrompt("a", where=Prompt(box=(0, 0, 9, 9)))], tiles=2)
    with pytest.raises(InvalidRequest, match="tiles and refine"):
        tiny_model.segment_text(picture_HW3, ["a", "b"], refine=True, tiles=2)
    alone, same = (tiny_model.segment_everything(picture_HW3, tiles=n) for n in (0, 1))
    assert len(alone) == len(same)
    with pytest.raises(InvalidRequest, match="pass the image"):
        tiny_model.find(tiny_model.encode(picture_HW3), ["a"], tiles=2)
