import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tests import photographs
from tests.photographs import COLOURS, Drawing, draw, instance, jpg, png, write_shard
from training.data.annotations import (
    BadSample,
    Sample,
    class_names,
    cut,
    label_map,
    read_shards,
    regions,
)

GREY = np.full((40, 60, 3), 128, np.uint8)


def sample(source: str, image_HW3: np.ndarray = GREY, **parts: object) -> Sample:
    return Sample(**{"key": "one", "source": source, "encoded": jpg(image_HW3), "info": {}} | parts)


def block(rows: slice, columns: slice) -> np.ndarray:
    mask_HW = np.zeros(GREY.shape[:2], np.bool_)
    mask_HW[rows, columns] = True
    return mask_HW


def decoded(rles: list) -> list[np.ndarray]:
    return [coco_mask.decode(rle).astype(bool) for rle in rles]


def same(masks: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return sorted(m.tobytes() for m in masks) == sorted(m.tobytes() for m in expected)


def test_the_files_of_a_key_make_one_sample_in_the_order_of_the_shards(tmp_path: Path):
    def files(name: str, **more: bytes) -> dict[str, bytes]:
        return {"jpg": name.encode(), "json": json.dumps({"name": name}).encode()} | more

    write_shard(tmp_path / "set/train-00001.tar", {"c": files("c", cls=b"7")})
    write_shard(
        tmp_path / "set/train-00000.tar",
        {"b": files("b", **{"inst.png": b"ids"}), "a": files("a", png=b"labels")},
    )
    write_shard(tmp_path / "set/val-00000.tar", {"v": files("v")})

    found = read_shards(tmp_path, "set", "train")
    assert [s.key for s in found] == ["b", "a", "c"]
    assert [s.encoded for s in found] == [b"b", b"a", b"c"]
    assert [s.info["name"] for s in found] == ["b", "a", "c"]
    assert [s.instance_png for s in found] == [b"ids", b"", b""]
    assert [s.label_png for s in found] == [b"", b"labels", b""]
    assert [s.class_index for s in found] == [-1, -1, 7]
    assert {s.source for s in found} == {"set"}


def test_a_set_without_shards_says_where_they_were_expected(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"train-\*\.tar in .*absent"):
        read_shards(tmp_path, "absent", "train")


def test_a_broken_sample_is_left_out_of_the_list(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    good = {"jpg": b"a", "json": b"{}"}
    write_shard(
        tmp_path / "set/val-0.tar", {"a": good, "b": {"jpg": b"b", "json": b"{"}, "c": good}
    )
    assert [s.key for s in read_shards(tmp_path, "set", "val")] == ["a", "c"]
    assert "skipped: set/b: its json, caption or class cannot be read" in caplog.text


def test_class_names_leave_out_what_is_not_a_class(tmp_path: Path):
    photographs.write_classes(tmp_path / "set", {0: "various", 1: "car", 5: "sky"}, ignored=(0,))
    assert class_names(tmp_path, "set") == {1: "car", 5: "sky"}


def test_a_label_map_is_read_as_it_was_written():
    labels_HW = draw(0).labels_HW
    assert np.array_equal(label_map(sample("camvid", label_png=png(labels_HW))), labels_HW)


def test_the_regions_of_every_annotator_count_unless_tiny():
    left, right = block(slice(None), slice(20)), block(slice(None), slice(20, 60))
    speck, rest = block(slice(4), slice(6)), block(slice(10, 40), slice(60))
    info = {
        "annotations": [
            {"instances": [instance(left), instance(right)]},
            {"instances": [instance(speck), instance(rest)]},
        ]
    }
    assert same(decoded(regions(sample("bsds500", info=info))), [left, right, rest])


def test_a_panoptic_picture_gives_its_segments_but_not_the_void():
    ids_HW = np.zeros(GREY.shape[:2], np.uint8)
    car, sky, speck = (
        block(slice(5, 30), slice(5, 25)),
        block(slice(40), slice(40, 60)),
        block(slice(2), slice(3)),
    )
    for value, mask in {3: car, 9: sky, 11: speck}.items():
        ids_HW[mask] = value
    found = regions(sample("coco_multi", instance_png=png(ids_HW), label_png=png(ids_HW)))
    assert same(decoded(found), [car, sky])


def test_things_only_gives_the_instances_without_crowds():
    car, crowd, speck = (
        block(slice(5, 30), slice(5, 25)),
        block(slice(40), slice(40, 60)),
        block(slice(2), slice(3)),
    )
    info = {
        "instances": [
            instance(car, iscrowd=0),
            instance(crowd, iscrowd=1),
            instance(speck, iscrowd=0),
        ]
    }
    labels = png(np.zeros(GREY.shape[:2], np.uint8))
    found = regions(sample("coco_multi", info=info, label_png=labels))
    assert same(decoded(found), [car])


def test_a_picture_of_which_nothing_is_known_gives_no_regions():
    assert regions(sample("coco_multi", info={"instances": [], "captions": ["a dog"]})) == []


def test_the_annotations_of_sa_1b_are_regions():
    car, speck = block(slice(5, 30), slice(5, 25)), block(slice(2), slice(3))
    info = {"image": {}, "annotations": [instance(car, predicted_iou=0.9), instance(speck)]}
    assert same(decoded(regions(sample("sa_1b", info=info))), [car])
    assert regions(sample("sa_1b", info={"image": {}, "annotations": []})) == []


BROKEN_SEGMENTATIONS = {
    "absent": None,
    "no counts": {"size": [40, 60]},
    "no size": {"counts": "0"},
    "size of one": {"size": [40], "counts": "0"},
    "empty": {"size": [40, 60], "counts": ""},
    "cut short": {"size": [40, 60], "counts": "P"},  # an incomplete number
    "other characters": {"size": [40, 60], "counts": "\x01\x02"},
}


@pytest.mark.parametrize("broken", BROKEN_SEGMENTATIONS.values(), ids=list(BROKEN_SEGMENTATIONS))
@pytest.mark.parametrize("source", ["sa_1b", "bsds500", "coco_multi"])
def test_a_broken_outline_is_the_samples_fault(source: str, broken: object):
    outline = {"segmentation": broken, "area": 99, "iscrowd": 0}
    info = {
        "sa_1b": {"annotations": [outline]},
        "bsds500": {"annotations": [{"instances": [outline]}]},
        "coco_multi": {"instances": [outline]},
    }[source]
    with pytest.raises(BadSample, match=f"{source}/one: its regions are broken: "):
        regions(sample(source, info=info))


def test_annotations_of_another_shape_are_the_samples_fault():
    for annotations in ("masks", [7], [{"area": 40}], {"a": 1}):
        with pytest.raises(BadSample, match="its regions are broken"):
            regions(sample("sa_1b", info={"annotations": annotations}))


def test_a_broken_label_map_is_the_samples_fault():
    labels = png(draw(0).labels_HW)
    for broken in (b"", b"no picture", labels[:60], labels[:40] + bytes(20) + labels[60:]):
        with pytest.raises(BadSample, match="camvid/one: its label map is broken"):
            label_map(sample("camvid", label_png=broken))
    with pytest.raises(BadSample, match="its label map is broken"):
        regions(sample("coco_multi", instance_png=labels[:60]))


@pytest.mark.parametrize(("source", "ignored"), [("labelmefacade", 0), ("camvid", 255)])
def test_the_connected_parts_of_a_label_map_stand_for_objects(source: str, ignored: int):
    near, far = block(slice(5, 20), slice(5, 20)), block(slice(25, 38), slice(30, 50))
    beside, speck = block(slice(5, 20), slice(20, 40)), block(slice(9), slice(50, 60))
    labels_HW = np.full(GREY.shape[:2], ignored, np.uint8)
    labels_HW[near | far | speck] = 4  # the speck has 90 pixels
    labels_HW[beside] = 5
    found = regions(sample(source, label_png=png(labels_HW)))
    assert same(decoded(found), [near, far, beside])


def frame_of(drawing: Drawing, seed: int, size: int = 256, mask_size: int = 256, **more: object):
    rles = [photographs.rle(mask) for mask in drawing.masks]
    random = np.random.default_rng(seed)
    return cut(sample("bsds500", drawing.image_HW3), rles, size, mask_size, random, **more)


def labels_seen(pixels_3SS: np.ndarray) -> np.ndarray:
    """Return the key of COLOURS that each pixel shows, 0 for none."""
    seen_SS = np.zeros(pixels_3SS.shape[1:], np.uint8)
    for label, colour in COLOURS.items():
        off_SS = np.abs(pixels_3SS.astype(int) - np.array(colour)[:, None, None]).max(axis=0)
        seen_SS[off_SS < 40] = label
    return seen_SS


@pytest.mark.parametrize("shape", [(240, 320), (320, 240)])
@pytest.mark.parametrize("mask_size", [256, 128])
def test_masks_stay_on_what_they_outline(shape: tuple[int, int], mask_size: int):
    """After any scaling, cropping and flipping, a mask covers its rectangle's colour only."""
    drawing, overlaps = draw(3, *shape), []
    for seed in range(12):
        frame = frame_of(drawing, seed, mask_size=mask_size)
        seen_SS = labels_seen(frame.pixels_3SS)
        for mask_mm in frame.masks_Pmm > 0.5:
            mask_SS = mask_mm.repeat(256 // mask_size, 0).repeat(256 // mask_size, 1)
            label = np.bincount(seen_SS[mask_SS]).argmax()
            assert label in COLOURS
            colour_SS = seen_SS == label
            overlaps.append((mask_SS & colour_SS).sum() / (mask_SS | colour_SS).sum())
    assert len(overlaps) > 24
    assert min(overlaps) > 0.92  # allows half a pixel at a narrow mask's edge
    assert np.mean(overlaps) > 0.975  # detects a shift by one pixel


def test_boxes_are_tight_around_what_the_window_shows_however_large_the_cells():
    drawing = draw(3, 240, 320)
    for seed in range(12):
        fine, coarse = (frame_of(drawing, seed, mask_size=side) for side in (256, 64))
        for box_4, mask_SS in zip(fine.boxes_P4, fine.masks_Pmm, strict=True):
            y, x = np.nonzero(mask_SS > 0.5)
            assert np.abs(box_4 - [x.min(), y.min(), x.max() + 1, y.max() + 1]).max() <= 1
        assert {tuple(box_4) for box_4 in coarse.boxes_P4} <= {tuple(b) for b in fine.boxes_P4}


def test_a_box_is_as_exact_as_its_outline():
    shown = np.zeros((100, 200), np.bool_)
    shown[10:17, 20:34] = True
    photograph = Drawing(draw(5, 100, 200).image_HW3, shown.astype(np.uint8))
    for seed in range(4):
        frame = frame_of(photograph, seed, scales=(0.75, 0.75))
        left, top, right, bottom = frame.boxes_P4[0]
        assert (top, bottom) == pytest.approx((10 * 0.96, 17 * 0.96))
        ends = {(20 * 0.96, 34 * 0.96), (192 - 34 * 0.96, 192 - 20 * 0.96)}  # unflipped and flipped
        assert any((left, right) == pytest.approx(pair, abs=1e-4) for pair in ends)


def test_both_flips_and_many_scales_occur():
    drawing = draw(3, 240, 320)
    order = {tuple(dict.fromkeys(column_labels(frame_of(drawing, s)))) for s in range(20)}
    assert any(seen == other[::-1] for seen in order for other in order if len(seen) == 3)
    valid = {frame_of(drawing, seed).valid for seed in range(20)}
    assert len(valid) > 5
    assert (256, 256) in valid  # cropped
    assert min(valid) < (256, 256)  # padded


def column_labels(frame) -> list[int]:
    seen_SS = labels_seen(frame.pixels_3SS)
    return [int(label) for label in seen_SS[frame.valid[0] // 2] if label]


def test_padding_is_black_and_masks_end_with_the_photograph():
    drawing = draw(5, 100, 200)
    full = Drawing(drawing.image_HW3, np.ones_like(drawing.labels_HW))
    full.labels_HW[:, 100:] = 2
    frame = frame_of(full, 0, scales=(0.75, 0.75))
    height, width = frame.valid
    assert (height, width) == (96, 192)  # the longer side is three quarters of 256
    assert frame.pixels_3SS[:, :height, :width].min() > 0
    assert not frame.pixels_3SS[:, height:].any()
    assert not frame.pixels_3SS[:, :, width:].any()
    assert len(frame.masks_Pmm) == 2
    assert frame.masks_Pmm.sum(axis=0)[:height, :width].min() == 1
    assert not frame.masks_Pmm[:, height:].any()
    assert not frame.masks_Pmm[:, :, width:].any()


def test_masks_that_are_cut_away_or_fill_the_frame_are_dropped():
    shown, everything, speck = np.zeros((3, 40, 60), np.bool_)
    shown[:20], everything[:], speck[0, :2] = True, True, True
    rles = [photographs.rle(mask) for mask in (everything, speck, shown)]
    frame = cut(sample("bsds500"), rles, 60, 60, np.random.default_rng(0), scales=(1, 1))
    assert frame.masks_Pmm.sum(axis=(1, 2)).tolist() == [20 * 60]
    nothing = cut(sample("bsds500"), rles[:2], 60, 30, np.random.default_rng(0), scales=(1, 1))
    assert nothing.masks_Pmm.shape == (0, 30, 30)
    assert nothing.boxes_P4.shape == (0, 4)


def test_a_frame_depends_on_its_random_numbers_only():
    first, again, other = (frame_of(draw(1), seed) for seed in (4, 4, 5))
    assert np.array_equal(first.pixels_3SS, again.pixels_3SS)
    assert np.array_equal(first.masks_Pmm, again.masks_Pmm)
    assert first.valid == again.valid
    assert not np.array_equal(first.pixels_3SS, other.pixels_3SS)
    assert first.pixels_3SS.shape == (3, 256, 256)
    assert first.pixels_3SS.dtype == np.uint8


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


def test_a_cut_shows_the_photograph_upright_and_in_its_colours():
    """Rotated and CMYK photographs give the same frame as the plain one, as in serving."""
    drawing = draw(2, 90, 90)
    plain = Image.fromarray(drawing.image_HW3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored image must be rotated clockwise
    turned = encoded(plain.rotate(90), format="JPEG", quality=95, subsampling=0, exif=exif)
    cmyk = encoded(plain.convert("CMYK"), format="JPEG", quality=95)
    frames = [
        cut(sample("set", encoded=file), (), 90, 1, np.random.default_rng(3), scales=(1, 1))
        for file in (jpg(drawing.image_HW3), turned, cmyk)
    ]
    for frame in frames[1:]:
        off = np.abs(frame.pixels_3SS.astype(int) - frames[0].pixels_3SS)
        assert off.mean() < 6


BROKEN_PHOTOGRAPHS = {
    "empty": b"",
    "text": b"<html>404</html>",
    "GIF": b"GIF89a" + bytes(40),
    "cut short": jpg(draw(0).image_HW3)[:2000],
    "header only": jpg(GREY)[:20],
}


@pytest.mark.parametrize("broken", BROKEN_PHOTOGRAPHS.values(), ids=list(BROKEN_PHOTOGRAPHS))
def test_a_broken_photograph_is_the_samples_fault(broken: bytes):
    with pytest.raises(BadSample, match="set/one: the photograph is broken: ") as raised:
        cut(sample("set", encoded=broken), (), 64, 32, np.random.default_rng(0))
    assert (raised.value.source, raised.value.key) == ("set", "one")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"size": [40, 60], "counts": "0" * 3 + "o" * 6 + "0"}, "RLE"),
        (
            {"size": [60, 40], "counts": photographs.rle(np.ones((60, 40)))["counts"]},
            "expected the photograph's",
        ),
        ({"size": [40, 60]}, "counts"),
        ({"size": [40, 60], "counts": 7}, ""),
    ],
)
def test_a_mask_that_does_not_fit_is_the_samples_fault(broken: dict, reason: str):
    with pytest.raises(BadSample, match=f"set/one: a mask is broken: .*{reason}"):
        cut(sample("set"), [broken], 64, 32, np.random.default_rng(0))
