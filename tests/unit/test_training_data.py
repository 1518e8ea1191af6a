import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tests import photographs
from tests.photographs import COLOURS, Drawing, draw, instance, jpg, png, write_shard
from training.data import Sample, class_names, cut, label_map, read_shards, regions

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
    """Which of COLOURS each pixel shows, 0 for none."""
    seen_SS = np.zeros(pixels_3SS.shape[1:], np.uint8)
    for label, colour in COLOURS.items():
        off_SS = np.abs(pixels_3SS.astype(int) - np.array(colour)[:, None, None]).max(axis=0)
        seen_SS[off_SS < 40] = label
    return seen_SS


@pytest.mark.parametrize("shape", [(240, 320), (320, 240)])
@pytest.mark.parametrize("mask_size", [256, 128])
def test_masks_stay_on_what_they_outline(shape: tuple[int, int], mask_size: int):
    """Through any scale, cut and flip, the mask of a rectangle covers its colour and no other."""
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
    assert min(overlaps) > 0.92  # half a pixel of a narrow mask's edge
    assert np.mean(overlaps) > 0.975  # a shift by one pixel would not pass


def test_both_flips_and_many_scales_occur():
    drawing = draw(3, 240, 320)
    order = {tuple(dict.fromkeys(column_labels(frame_of(drawing, s)))) for s in range(20)}
    assert any(seen == other[::-1] for seen in order for other in order if len(seen) == 3)
    valid = {frame_of(drawing, seed).valid for seed in range(20)}
    assert len(valid) > 5
    assert (256, 256) in valid  # cut out of a larger scale
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
    assert (height, width) == (96, 192)  # three quarters of 256, the shorter side a half of that
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


def test_a_frame_depends_on_its_random_numbers_only():
    first, again, other = (frame_of(draw(1), seed) for seed in (4, 4, 5))
    assert np.array_equal(first.pixels_3SS, again.pixels_3SS)
    assert np.array_equal(first.masks_Pmm, again.masks_Pmm)
    assert first.valid == again.valid
    assert not np.array_equal(first.pixels_3SS, other.pixels_3SS)
    assert first.pixels_3SS.shape == (3, 256, 256)
    assert first.pixels_3SS.dtype == np.uint8
