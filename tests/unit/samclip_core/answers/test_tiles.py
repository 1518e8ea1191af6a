"""Tiles cover a picture, their masks lie where they belong, and those of one thing are one."""

import numpy as np
import pytest

from samclip_core import SamClip
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
    for tiles in (-2, 5):
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


def test_a_blend_follows_the_whole_in_the_middle_of_each_tile() -> None:
    """A step from left to right that the tiles and the whole see alike stays where it is."""

    def part(crop: Crop | None) -> tuple[Crop | None, ImageFeatures]:
        """Return features whose map has the column of the picture at each cell."""
        left, side = (crop.x, crop.width) if crop else (0, 256)
        column_8 = left + (np.arange(8, dtype=np.float32) + 0.5) * side / 8
        dense_Dhw = np.broadcast_to(column_8, (1, 8, 8))
        return crop, ImageFeatures(Geometry(side, side, 32), clip_dense_Dhw=dense_Dhw)

    def maps_of(features: ImageFeatures) -> np.ndarray:
        right_1hw = (features.clip_dense_Dhw >= 128).astype(np.float32)
        return np.concatenate([np.zeros_like(right_1hw), right_1hw])

    crops = tiles_of(256, 256, 2, 32, MAX_TILES)
    parts = [part(crop) for crop in (None, *crops)]
    geometry, step_Chw = run(mosaic(parts, maps_of), FakeSamHead(np.zeros((1, 1), int)))
    width = step_Chw.shape[2]
    assert geometry.input_width == width
    assert step_Chw[1, :, : width // 2 - 2].max() < 0.2
    assert step_Chw[1, :, width // 2 + 2 :].min() > 0.8
    assert not step_Chw[0].any()


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
    with pytest.raises(InvalidRequest, match="or the features of each tile"):
        tiny_model.find(tiny_model.encode(picture_HW3), ["a"], tiles=2)
