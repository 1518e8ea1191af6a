"""Frames with their masks, and crops, are cut out of photographs exactly and as in serving."""

import io
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools import mask as coco_mask

from tests.photographs import Drawing, draw, jpg, png, rle, sample
from training.data import frames
from training.data.frames import (
    SHARES,
    Crop,
    Strips,
    View,
    cut,
    strips,
)
from training.data.sample import BadSample


def frame_of(drawing: Drawing, seed: int, size: int = 256, mask_size: int = 256, **more: object):
    rles = [rle(mask) for mask in drawing.masks]
    photograph, random = sample("set", encoded=jpg(drawing.image_HW3)), np.random.default_rng(seed)
    return cut(photograph, rles, size, mask_size, random, **more)


def reference(window: frames.Window, mask_HW: np.ndarray, cells: int) -> np.ndarray:
    """Resize a whole mask to the drawn scale, cut the window, flip, pad, and shrink to cells."""
    (y, x), (height, width) = window.corner, window.valid
    area = cv2.INTER_AREA
    resized = cv2.resize(mask_HW.astype(np.float32), window.scaled[::-1], interpolation=area)
    shown = resized[y : y + height, x : x + width]
    shown = shown[:, ::-1] if window.flip else shown
    padded = np.pad(shown, [(0, window.size - height), (0, window.size - width)])
    return cv2.resize(padded, (cells, cells), interpolation=area)


def reference_box(window: frames.Window, mask_HW: np.ndarray) -> np.ndarray:
    """Return the tight box of the photograph's pixels in the window."""
    scale_2, corner_2 = np.divide(window.scaled, window.shape), np.array(window.corner)
    first_2 = np.floor(corner_2 / scale_2 + 1e-9).astype(int)
    last_2 = np.ceil((corner_2 + window.valid) / scale_2 - 1e-9).astype(int)
    seen_2N = np.argwhere(mask_HW[first_2[0] : last_2[0], first_2[1] : last_2[1]]).T
    if not seen_2N.size:
        return np.zeros(4)
    low_2, high_2 = (
        ((first_2 + ends) * scale_2 - corner_2).clip(0, window.valid)
        for ends in (seen_2N.min(axis=1), seen_2N.max(axis=1) + 1)
    )
    (y0, x0), (y1, x1) = low_2, high_2
    if window.flip:
        x0, x1 = window.valid[1] - x1, window.valid[1] - x0
    return np.array([x0, y0, x1, y1])


def shapes(random: np.random.Generator, height: int, width: int) -> Sequence[np.ndarray]:
    """Draw a large, a small, a ragged and a full mask."""
    large, small, full = np.zeros((3, height, width), np.uint8)
    cv2.ellipse(large, (width // 2, height // 2), (width // 3, height // 4), 30, 0, 360, (1,), -1)
    small[height // 3 : height // 3 + 5, width // 4 : width // 4 + 7] = 1
    full[:] = 1
    ragged = (random.random((height, width)) < 0.4).astype(np.uint8)
    return large, small, ragged, full


@pytest.mark.parametrize("shape", [(300, 451), (97, 64), (333, 500)])
@pytest.mark.parametrize("cells", [256, 64])
def test_masks_and_boxes_equal_those_cut_from_whole_masks(shape: tuple[int, int], cells: int):
    random = np.random.default_rng(1)
    masks = shapes(random, *shape)
    rles = [rle(mask_HW) for mask_HW in masks]
    photograph = sample("set", encoded=jpg(np.full((*shape, 3), 90, np.uint8)))
    for seed in range(8):
        window = frames.Window.draw(shape, 256, (0.7, 1.7), np.random.default_rng(seed))
        frame = cut(photograph, rles, 256, cells, np.random.default_rng(seed), every=True)
        assert frame.valid == window.valid
        for mask_mm, box_4, mask_HW in zip(frame.masks_Pmm, frame.boxes_P4, masks, strict=True):
            assert np.abs(mask_mm - reference(window, mask_HW, cells)).max() < 1e-3
            assert box_4 == pytest.approx(reference_box(window, mask_HW), abs=1e-3)


def test_a_photograph_is_resampled_as_in_serving():
    """Within a level of Pillow's antialiased bilinear filter, enlarged, shrunk and shrunk a lot."""
    image_HW3 = cv2.GaussianBlur(draw(4, 260, 390).image_HW3, (3, 3), 1)
    for size in (64, 200, 400):
        for seed in range(4):
            window = frames.Window.draw((260, 390), size, (0.7, 1.7), np.random.default_rng(seed))
            resized = Image.fromarray(image_HW3).resize(
                window.scaled[::-1], Image.Resampling.BILINEAR
            )
            (y, x), (height, width) = window.corner, window.valid
            expected = np.asarray(resized)[y : y + height, x : x + width]
            expected = expected[:, ::-1] if window.flip else expected
            found = window.pixels(image_HW3)
            assert np.abs(found[:height, :width].astype(int) - expected).max() <= 1
            assert not found[height:].any()
            assert not found[:, width:].any()


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_at_the_least_scale_that_is_enough(
    monkeypatch: pytest.MonkeyPatch, orientation: int
):
    image_HW3 = cv2.GaussianBlur(draw(4, 480, 640).image_HW3, (9, 9), 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = encoded(Image.fromarray(image_HW3), format="JPEG", quality=95, exif=exif)
    seen, whole = [], frames.Window.pixels
    monkeypatch.setattr(frames.Window, "pixels", lambda w, im: seen.append((w, im)) or whole(w, im))
    for size, decoded in ((60, 80), (140, 160), (180, 320), (400, 640)):
        cut(sample("set", encoded=large), (), size, 1, np.random.default_rng(0), scales=(1.1, 1.1))
        window, found_HW3 = seen.pop()
        assert max(found_HW3.shape) == decoded
        assert found_HW3.shape >= window.scaled
        assert (found_HW3.shape[0] > found_HW3.shape[1]) == (orientation == 6)
        upright_HW3 = np.rot90(image_HW3, -1) if orientation == 6 else image_HW3
        off = whole(window, found_HW3).astype(int) - whole(
            window, np.ascontiguousarray(upright_HW3)
        )
        assert np.abs(off).mean() < 2


def test_masks_that_are_cut_away_or_fill_the_frame_are_dropped():
    shown, everything, speck = np.zeros((3, 40, 60), np.bool_)
    shown[:20], everything[:], speck[0, :2] = True, True, True
    rles = [rle(mask) for mask in (everything, speck, shown)]
    frame = cut(sample("bsds500"), rles, 60, 60, np.random.default_rng(0), scales=(1, 1))
    assert frame.masks_Pmm.sum(axis=(1, 2)).tolist() == [20 * 60]
    nothing = cut(sample("bsds500"), rles[:2], 60, 30, np.random.default_rng(0), scales=(1, 1))
    assert nothing.masks_Pmm.shape == (0, 30, 30)
    assert nothing.boxes_P4.shape == (0, 4)


def test_a_frame_keeps_as_many_masks_as_are_asked_for():
    frame = frame_of(draw(1), 4)
    assert len(frame.masks_Pmm) > 1
    assert np.array_equal(frame.first(1).masks_Pmm, frame.masks_Pmm[:1])
    assert np.array_equal(frame.first(1).boxes_P4, frame.boxes_P4[:1])
    assert np.array_equal(frame.first(9).masks_Pmm, frame.masks_Pmm)
    assert frame.first(1).pixels_3SS is frame.pixels_3SS


def encoded(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


@pytest.mark.parametrize("broken", [b"<html>404</html>", jpg(draw(0).image_HW3)[:2000]])
def test_a_broken_photograph_is_the_samples_fault(broken: bytes):
    with pytest.raises(BadSample, match="set/one: the photograph is broken: ") as raised:
        cut(sample("set", encoded=broken), (), 64, 32, np.random.default_rng(0))
    with pytest.raises(BadSample, match="set/one: the photograph is broken"):
        Crop(1, 0, 0, False).views(sample("set", encoded=broken), [View(8)])
    assert (raised.value.source, raised.value.key) == ("set", "one")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"size": [40, 60], "counts": "0" * 3 + "o" * 6 + "0"}, "RLE"),
        (
            {"size": [60, 40], "counts": rle(np.ones((60, 40)))["counts"]},
            "expected the photograph's",
        ),
        ({"size": [40, 60]}, "counts"),
        ({"size": [40, 60], "counts": 7}, ""),
    ],
)
def test_a_mask_that_does_not_fit_is_the_samples_fault(broken: dict, reason: str):
    with pytest.raises(BadSample, match=f"set/one: a mask is broken: .*{reason}"):
        cut(sample("set"), [broken], 64, 32, np.random.default_rng(0))


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


def test_a_large_jpeg_is_decoded_at_a_scale_that_is_enough_for_every_view(
    monkeypatch: pytest.MonkeyPatch,
):
    photograph = sample("set", encoded=jpg(draw(4, 480, 640).image_HW3))
    seen, whole = [], Crop.of
    monkeypatch.setattr(Crop, "of", lambda crop, im: seen.append(im.shape[0]) or whole(crop, im))
    for sides in ((60,), (60, 140), (200, 60), (400,)):
        Crop(0.8, 0, 0, False).views(photograph, [View(side) for side in sides])
    assert seen == [120, 240, 480, 480]


MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40))


def drawn(found: Strips, shape: tuple[int, ...]) -> np.ndarray:
    mask_HW = np.zeros(shape, int)
    for column, top, bottom in zip(*found, strict=True):
        mask_HW[top:bottom, column] += 1
    return mask_HW


@given(MASKS)
@settings(max_examples=200, deadline=None)
def test_runs_draw_the_mask(mask_HW: np.ndarray):
    assert np.array_equal(drawn(strips(rle(mask_HW)), mask_HW.shape), mask_HW)


def test_runs_of_a_large_mask_have_long_numbers_and_differences():
    y, x = np.mgrid[:700, :900]
    mask_HW = (y - 350) ** 2 + (x - 400) ** 2 < 340**2
    mask_HW[:, 850:] = True  # one run over many columns
    found = strips(rle(mask_HW))
    assert np.array_equal(drawn(found, mask_HW.shape), mask_HW)
    as_bytes = coco_mask.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    assert all(map(np.array_equal, strips(as_bytes), found))
