"""The masks of one answer, for supervision and for notebooks."""

import io
import sys

import numpy as np
import pytest
import supervision
from PIL import Image
from samclip import Mask, Masks, mask_codecs
from samclip.mask import SHOWN_PIXELS

WIDTH, HEIGHT = 60, 40


def photograph(width: int = WIDTH, height: int = HEIGHT) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (100, 100, 100)).save(file, "PNG")
    return file.getvalue()


GREY = photograph()


def mask(y0: int, y1: int, x0: int, x1: int, label: str = "", photograph: bytes = GREY) -> Mask:
    array_HW = np.zeros((HEIGHT, WIDTH), bool)
    array_HW[y0:y1, x0:x1] = True
    area = int(array_HW.sum())
    return Mask(array_HW, (x0, y0, x1, y1), area, 0.9, 0.8, label, 0.7 * bool(label), photograph)


def test_detections_of_supervision() -> None:
    masks = Masks([mask(0, 9, 0, 5, "dog"), mask(3, 7, 20, 60, "cat"), mask(0, 2, 0, 2, "dog")])
    found = masks.to_supervision()
    assert isinstance(found, supervision.Detections)
    np.testing.assert_array_equal(found.xyxy, [each.box for each in masks])
    np.testing.assert_array_equal(found.mask, masks)
    np.testing.assert_array_equal(found.area, [each.area for each in masks])
    np.testing.assert_allclose(found.confidence, 0.7)
    assert found.class_id.tolist() == [0, 1, 0]
    assert found["class_name"].tolist() == ["dog", "cat", "dog"]
    scene_HW3 = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    drawn_HW3 = supervision.MaskAnnotator().annotate(scene_HW3, found)
    np.testing.assert_array_equal(drawn_HW3.any(axis=2), np.any(masks, axis=0))


def test_detections_without_labels_and_of_nothing() -> None:
    found = Masks([mask(0, 9, 0, 5)]).to_supervision()
    assert found.class_id is None
    np.testing.assert_allclose(found.confidence, 0.9)
    assert len(Masks().to_supervision()) == 0


def test_without_supervision_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError, match="pip install supervision"):
        Masks([mask(0, 9, 0, 5)]).to_supervision()


def test_a_slice_is_of_masks() -> None:
    masks = Masks([mask(0, 9, 0, 5), mask(3, 7, 20, 60)])
    assert isinstance(masks[:1], Masks)
    assert masks[0] is masks[:1][0]
    assert Masks() == []


def test_a_notebook_displays_masks_over_their_photograph() -> None:
    shown = Masks([mask(0, HEIGHT, 0, WIDTH // 2)])._repr_jpeg_()
    assert shown is not None
    picture_HW3 = np.asarray(Image.open(io.BytesIO(shown))).astype(int)
    assert abs(picture_HW3[20, 50] - 100).max() < 8
    assert abs(picture_HW3[20, 10] - 100).max() > 40


@pytest.mark.parametrize(
    "masks",
    [
        Masks(),
        Masks([mask(0, 9, 0, 5, photograph=b"")]),
        Masks([mask(0, 9, 0, 5), mask(0, 9, 0, 5, photograph=photograph(50, 40))]),
    ],
)
def test_masks_of_no_photograph_or_of_several_are_not_displayed(masks: Masks) -> None:
    assert masks._repr_jpeg_() is None


def test_a_large_photograph_is_shown_small() -> None:
    large = photograph(3001, 1501)
    array_HW = np.zeros((1501, 3001), bool)
    array_HW[:, :1500] = True
    rle = mask_codecs.Encoded("rle", mask_codecs.encode_rle(array_HW), 1501, 3001)
    for data in (array_HW, rle):
        shown = Masks([Mask(data, (0, 0, 1500, 1501), 1500 * 1501, 0.9, 0.9, photograph=large)])
        encoded = shown._repr_jpeg_()
        assert encoded is not None
        picture = Image.open(io.BytesIO(encoded))
        assert picture.size == (SHOWN_PIXELS, SHOWN_PIXELS // 2)
        middle_W3 = np.asarray(picture).astype(int)[SHOWN_PIXELS // 4]
        assert (abs(middle_W3[: SHOWN_PIXELS // 2 - 9] - 100).max(axis=1) > 40).all()
        assert (abs(middle_W3[SHOWN_PIXELS // 2 + 9 :] - 100) < 9).all()
        cut_out = shown[0]._repr_png_()
        assert cut_out is not None
        assert max(Image.open(io.BytesIO(cut_out)).size) == SHOWN_PIXELS
