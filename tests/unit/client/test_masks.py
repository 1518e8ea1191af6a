"""Masks in the forms that people and other programs see, decoded only when they have to be."""

import io
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO
from samclip import Mask, Masks, drawing, mask_codecs, wire
from samclip.v1 import samclip_pb2 as pb

from services.request.wire import to_mask

INFO = pb.ImageInfo(width=30, height=20)


PIXELS_HW3 = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


PHOTOGRAPH = png(PIXELS_HW3)


def ring_with_a_hole() -> np.ndarray:
    mask_HW = np.zeros((20, 30), bool)
    mask_HW[2:15, 5:25] = True
    mask_HW[5:8, 10:14] = False
    return mask_HW


def received(encoding: str, label: str = "") -> Mask:
    message = to_mask(ring_with_a_hole(), pb.MaskEncoding.Value(encoding.upper()))
    message.predicted_iou, message.label, message.label_score = 0.75, label, 0.5
    return wire.mask(message, INFO, PHOTOGRAPH)


ENCODINGS = ["rle", "png", "polygons"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rle_is_read_by_pycocotools_and_json(encoding: str) -> None:
    rle = received(encoding).rle
    assert json.loads(json.dumps(rle)) == rle
    assert rle["size"] == [20, 30]
    np.testing.assert_array_equal(coco.decode(rle), ring_with_a_hole())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_polygons_are_rings_of_parts_and_holes(encoding: str) -> None:
    part_K2, hole_K2 = received(encoding).polygons
    assert part_K2.dtype == np.float32
    np.testing.assert_array_equal(part_K2, [(5, 2), (25, 2), (25, 15), (5, 15)])
    assert sorted(hole_K2.tolist()) == [[10, 5], [10, 8], [14, 5], [14, 8]]
    assert _area(part_K2) == 13 * 20  # clockwise on the screen
    assert _area(hole_K2) == -3 * 4


def _area(ring_K2: np.ndarray) -> float:
    x_K, y_K = ring_K2.T
    return float((x_K * np.roll(y_K, -1) - np.roll(x_K, -1) * y_K).sum() / 2)


def test_cocos_api_loads_it_as_an_annotation_and_as_a_result() -> None:
    written = received("rle", "dog").to_coco(image_id=7, category_id=3)
    assert json.loads(json.dumps(written)) == written
    assert (written["image_id"], written["category_id"], written["score"]) == (7, 3, 0.5)
    assert (written["area"], written["bbox"]) == (248, [5, 2, 20, 13])
    assert received("rle").to_coco(image_id=7, category_id=3)["score"] == 0.75
    dataset = COCO()
    dataset.dataset = {
        "images": [{"id": 7, "width": 30, "height": 20}],
        "categories": [{"id": 3, "name": "dog"}],
        "annotations": [{"id": 1, **written}],
    }
    dataset.createIndex()
    for loaded in (dataset, dataset.loadRes([written])):
        (annotation,) = loaded.loadAnns(loaded.getAnnIds(imgIds=[7], catIds=[3]))
        np.testing.assert_array_equal(loaded.annToMask(annotation), ring_with_a_hole())


def test_nothing_is_decoded_that_need_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Any] = []
    original = mask_codecs.Encoded.decode
    monkeypatch.setattr(
        mask_codecs.Encoded, "decode", lambda self: decoded.append(self) or original(self)
    )
    mask = received("rle")
    assert (mask.area, mask.box) == (13 * 20 - 3 * 4, (5, 2, 25, 15))
    mask.to_coco(image_id=1, category_id=1)
    assert received("polygons").polygons
    assert not decoded
    assert mask.array is mask.array
    assert len(decoded) == 1


def test_a_mask_survives_pickling() -> None:
    for mask in (received("rle"), received("polygons")):
        copied = pickle.loads(pickle.dumps(mask))
        np.testing.assert_array_equal(copied, ring_with_a_hole())
        assert copied.area == mask.area


def test_damage_is_found_when_the_mask_is_decoded() -> None:
    damaged = wire.mask(pb.Mask(rle=pb.CocoRle(height=4, width=5, counts=b"40")), INFO, b"")
    with pytest.raises(ValueError, match="do not fill 5×4 pixels"):
        _ = damaged.array


def test_logits_have_no_outline() -> None:
    logits = Mask(np.zeros((4, 4), np.float32), (0, 0, 1, 1), 1, 0.9, 0.9)
    for form in ("rle", "polygons"):
        with pytest.raises(ValueError, match="holds logits"):
            getattr(logits, form)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_cut_out_is_the_photograph_inside_and_transparent_outside(encoding: str) -> None:
    picture = received(encoding).cutout()
    assert (picture.mode, picture.size) == ("RGBA", (20, 13))
    cut_hw4 = np.asarray(picture)
    np.testing.assert_array_equal(cut_hw4[..., 3], 255 * ring_with_a_hole()[2:15, 5:25])
    np.testing.assert_array_equal(cut_hw4[..., :3], PIXELS_HW3[2:15, 5:25])


def test_a_cut_out_of_a_turned_photograph() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: stored 30×20, shown 20×30
    file = io.BytesIO()
    Image.fromarray(PIXELS_HW3).save(file, "PNG", exif=exif)
    upright_HW = np.zeros((30, 20), bool)
    upright_HW[10:, 5:9] = True
    mask = Mask(upright_HW, (5, 10, 9, 30), 80, 0.9, 0.9, photograph=file.getvalue())
    expected_hw3 = np.rot90(PIXELS_HW3, -1)[10:, 5:9]
    np.testing.assert_array_equal(np.asarray(mask.cutout())[..., :3], expected_hw3)


def test_nothing_to_cut_out() -> None:
    nothing_HW = np.zeros((20, 30), bool)
    empty = Mask(nothing_HW, (0, 0, 0, 0), 0, 0.9, 0.9, photograph=PHOTOGRAPH)
    with pytest.raises(ValueError, match="the mask is empty"):
        empty.cutout()
    alone = Mask(ring_with_a_hole(), (5, 2, 25, 15), 248, 0.9, 0.9)
    with pytest.raises(ValueError, match="knows no photograph"):
        alone.cutout()
    assert empty._repr_png_() is None
    assert alone._repr_png_() is None


def test_a_notebook_displays_the_cut_out() -> None:
    with Image.open(io.BytesIO(received("rle")._repr_png_() or b"")) as picture:
        np.testing.assert_array_equal(picture, received("rle").cutout())


def test_a_mask_is_saved_white_on_black(tmp_path: Path) -> None:
    received("rle").save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as picture:
        assert picture.mode == "L"
        np.testing.assert_array_equal(picture, 255 * ring_with_a_hole())
    with pytest.raises(ValueError, match="unknown file extension"):
        received("rle").save(tmp_path / "mask.xyz")


WIDTH, HEIGHT, SHOWN_PIXELS = 60, 40, 100


def grey(width: int = WIDTH, height: int = HEIGHT) -> bytes:
    return png(np.full((height, width, 3), 100, np.uint8))


GREY = grey()


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
    unnamed = Masks([mask(0, 9, 0, 5)]).to_supervision()
    assert unnamed.class_id is None
    np.testing.assert_allclose(unnamed.confidence, 0.9)
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
    shown = Masks([mask(0, HEIGHT, 0, WIDTH // 2)])._repr_jpeg_() or b""
    picture_HW3 = np.asarray(Image.open(io.BytesIO(shown))).astype(int)
    assert abs(picture_HW3[20, 50] - 100).max() < 8
    assert abs(picture_HW3[20, 10] - 100).max() > 40


@pytest.mark.parametrize(
    "masks",
    [
        Masks(),
        Masks([mask(0, 9, 0, 5, photograph=b"")]),
        Masks([mask(0, 9, 0, 5), mask(0, 9, 0, 5, photograph=grey(50, 40))]),
    ],
)
def test_masks_of_no_photograph_or_of_several_are_not_displayed(masks: Masks) -> None:
    assert masks._repr_jpeg_() is None


def test_a_large_photograph_is_shown_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "SHOWN_PIXELS", SHOWN_PIXELS)
    large = grey(301, 151)
    array_HW = np.zeros((151, 301), bool)
    array_HW[:, :150] = True
    rle = mask_codecs.Encoded("rle", mask_codecs.encode_rle(array_HW), 151, 301)
    for data in (array_HW, rle):
        shown = Masks([Mask(data, (0, 0, 150, 151), 150 * 151, 0.9, 0.9, photograph=large)])
        picture = Image.open(io.BytesIO(shown._repr_jpeg_() or b""))
        assert picture.size == (SHOWN_PIXELS, SHOWN_PIXELS // 2)
        middle_W3 = np.asarray(picture).astype(int)[SHOWN_PIXELS // 4]
        assert (abs(middle_W3[: SHOWN_PIXELS // 2 - 9] - 100).max(axis=1) > 40).all()
        assert (abs(middle_W3[SHOWN_PIXELS // 2 + 9 :] - 100) < 9).all()
        cut_out = Image.open(io.BytesIO(shown[0]._repr_png_() or b""))
        assert max(cut_out.size) == SHOWN_PIXELS
