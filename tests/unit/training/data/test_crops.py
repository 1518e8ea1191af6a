import cv2
import numpy as np
import pytest
from PIL import Image

from tests.photographs import draw, jpg, png, sample
from training.data.crops import SHARES, Crop, View, stacked_views
from training.data.sample import BadSample


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [40, 224])
def test_a_view_is_the_crop_resized_by_pillow(resample: str, side: int):
    """As ``RandomResizedCrop`` of Pillow's pictures, but for the rounding of two passes."""
    image_HW3 = cv2.GaussianBlur(draw(4, 120, 180).image_HW3, (3, 3), 1)
    photograph = sample("set", encoded=png(image_HW3))
    for crop in (Crop(0.75, 0.5, 0.25, False), Crop(0.9, 1, 1, True), Crop(1, 0, 0.4, False)):
        (found_3LL,) = crop.views(photograph, [View(side, resample)])
        length = round(120 * crop.share)
        top, left = round(crop.down * (120 - length)), round(crop.across * (180 - length))
        cut = Image.fromarray(image_HW3).crop((left, top, left + length, top + length))
        expected_LL3 = np.asarray(cut.resize((side, side), Image.Resampling[resample.upper()]))
        expected_LL3 = expected_LL3[:, ::-1] if crop.flip else expected_LL3
        off = np.abs(found_3LL.transpose(1, 2, 0).astype(int) - expected_LL3)
        assert off.max() <= (2 if resample == "bicubic" else 1)
        assert off.mean() < 0.2


def test_all_networks_see_the_same_place_and_none_the_others_pixels():
    photograph = sample("set", encoded=jpg(draw(3, 240, 320).image_HW3))
    crop = Crop.draw(np.random.default_rng(2))
    small, large = crop.views(photograph, [View(32), View(128, "bicubic")])
    pooled = large.reshape(3, 32, 4, 32, 4).mean((2, 4))
    assert np.abs(pooled - small).mean() < 4
    assert np.array_equal(crop.views(photograph, [View(128, "bicubic")])[0], large)


def test_crops_are_square_inside_the_photograph_and_of_many_kinds():
    crops = [Crop.draw(np.random.default_rng(seed)) for seed in range(40)]
    sides = []
    for shape in ((90, 160), (160, 90), (5, 2000), (1, 1)):
        for crop in crops:
            cut_LL3 = crop.of(np.zeros((*shape, 3), np.uint8))
            assert cut_LL3.shape[0] == cut_LL3.shape[1] > 0
            sides.append(cut_LL3.shape[0] / min(shape))
    assert min(sides) < SHARES[0] + 0.05
    assert max(sides) == SHARES[1]
    assert {crop.flip for crop in crops} == {True, False}
    assert {round(crop.down, 1) for crop in crops} == {round(0.1 * tenth, 1) for tenth in range(11)}


def test_a_large_jpeg_is_decoded_at_the_least_scale_that_is_enough_for_every_view(
    monkeypatch: pytest.MonkeyPatch,
):
    photograph = sample("set", encoded=jpg(draw(4, 480, 640).image_HW3))
    seen, whole = [], Crop.of
    monkeypatch.setattr(Crop, "of", lambda crop, im: seen.append(im.shape[0]) or whole(crop, im))
    for sides in ((60,), (60, 140), (200, 60), (400,)):
        Crop(0.8, 0, 0, False).views(photograph, [View(side) for side in sides])
    assert seen == [120, 240, 480, 480]


def test_views_stack_with_the_channels_last():
    crop, photograph = Crop(0.9, 0, 1, True), sample("set")
    views = [crop.views(photograph, [View(16)])[0] for _ in range(3)]
    stacked_B3LL = stacked_views(views)
    assert stacked_B3LL.shape == (3, 3, 16, 16)
    assert stacked_B3LL.transpose(0, 2, 3, 1).flags["C_CONTIGUOUS"]
    assert np.array_equal(stacked_B3LL[1], views[1])


def test_a_broken_photograph_is_the_samples_fault():
    with pytest.raises(BadSample, match="set/one: the photograph is broken"):
        Crop(1, 0, 0, False).views(sample("set", encoded=b"<html>404</html>"), [View(8)])
